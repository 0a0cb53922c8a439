"""The scripts of examples/paper run, what they measure is right, and docs/paper.md is theirs."""

import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from clip_hyperbolic import emoji
from clip_hyperbolic.config import Config
from clip_hyperbolic.objective import Objective
from torch.nn.functional import normalize

from lorentzkit import ops

SCRIPTS = Path(__file__).parents[2] / "examples" / "paper"
sys.path.append(str(SCRIPTS))

import common
import dynamics
import interplay
import page
import usual

ROWS = {"interplay": 9, "collapse": 4, "gap": 4, "centroid": 4, "curvature": 6}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        emoji.prepare(emoji.default_cache())
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")  # gap.py finds what collapse.py has measured


@pytest.mark.thorough
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("data")
def test_smoke(name: str, out: Path) -> None:
    importlib.import_module(name).main(["--smoke", "--out", str(out)])
    content = json.loads((out / f"{name}.json").read_text("utf-8"))
    heading, *rows = content["table"]
    assert len(rows) == ROWS[name]
    assert all(len(row) == len(heading) for row in rows)
    assert content["environment"]["torch"] == torch.__version__
    assert content["size"] == "smoke"
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for case in content["cases"]:
        if case.get("formulas") != "usual":  # which may well end in NaN
            assert case.get("taken", 3) == 3


@pytest.mark.thorough
def test_cases_are_kept_in_order_and_not_measured_again(tmp_path: Path) -> None:
    function, cases = partial(dict, found=0), [{"of": i} for i in range(4)]
    results = common.measured("m", function, cases[:2], tmp_path)
    assert results == [{"of": 0, "found": 0}, {"of": 1, "found": 0}]
    for file in (tmp_path / "m").iterdir():
        file.write_text(file.read_text("utf-8").replace('"found": 0', '"found": 1'), "utf-8")
    results = common.measured("m", function, cases[::-1], tmp_path)
    assert [(case["of"], case["found"]) for case in results] == [(3, 0), (2, 0), (1, 1), (0, 1)]


def test_spread() -> None:
    assert common.spread([0.1, 0.3, 0.2]) == "0.200 ± 0.100"
    assert common.spread([0.25], 1) == "0.2"


def test_usual_formulas_are_those_of_the_operations() -> None:
    """In float64, and where nothing cancels: else they are as wrong as they are known to be."""
    x, y = torch.randn(2, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    c, tolerances = torch.tensor(0.7).double(), {"rtol": 1e-6, "atol": 1e-7}
    torch.testing.assert_close(usual.expmap0(x, c), ops.expmap0(x, c))
    torch.testing.assert_close(usual.dist(x, y, c), ops.pairwise_dist(x, y, c), **tolerances)
    angles = ops.pairwise_exterior_angle(x, y, c)
    torch.testing.assert_close(usual.exterior_angle(x, y, c), angles, **tolerances)
    torch.testing.assert_close(
        usual.exterior_angle_of_pairs(x, y, c), angles.diagonal(), **tolerances
    )
    torch.testing.assert_close(usual.half_aperture(x, c), ops.half_aperture(x, c), **tolerances)
    midpoint_radius = ops.dist0(ops.einstein_midpoint(x, curv=c), c)
    torch.testing.assert_close(usual.radius_of_midpoint(x, c), midpoint_radius)


@pytest.mark.parametrize(
    ("objective", "apex"), [("meru", "text"), ("atmg", "text"), ("atmg", "query")]
)
def test_usual_objective_is_the_examples(objective: str, apex: str) -> None:
    x, y = torch.randn(2, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    config = Config(objective=objective, apex=apex, shards=["none"])
    labels = torch.arange(32)
    levels = torch.stack([labels % 20, labels % 5, labels % 2])
    numbers = {"curv": torch.tensor(0.7).double(), "logit_scale": torch.tensor(9.0).double()}
    loss, expected = (
        kind(config)(x, y, numbers, labels.expand(3, 32), levels)[0]
        for kind in (usual.UsualObjective, Objective)
    )
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_effective_rank() -> None:
    equal = torch.eye(5)[:3]
    assert dynamics.effective_rank(equal).item() == pytest.approx(3)
    assert dynamics.effective_rank(torch.ones(4, 3)).item() == pytest.approx(1)
    assert dynamics.effective_rank(torch.zeros(4, 3)).item() == 1  # exp of no entropy


def test_spread_of_drawings() -> None:
    """Three concepts whose drawings lie on three axes: what a ruler says."""
    curv = torch.tensor(1.0)
    radii = torch.tensor([1.0, 1.5, 2.0])
    images = torch.eye(3)[:, None] * ops.expmap0(radii[:, None])[None]
    hyperbolic = dynamics.spread_within_concepts(images.double(), curv.double())
    assert hyperbolic["distance"] == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert hyperbolic["angle"] == pytest.approx(0, abs=1e-4)
    assert hyperbolic["rank"] == pytest.approx(1, abs=1e-6)
    euclidean = dynamics.spread_within_concepts(images.double(), None)
    assert euclidean["distance"] != pytest.approx(hyperbolic["distance"], rel=0.1)


def test_gap_is_seen_where_there_is_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 40, 8, generator=generator)
    one_cloud = dynamics.Points(images=x[:7], texts=x[8])
    two_clouds = dynamics.Points(images=x[:7] + 3, texts=x[8] - 3)
    two_radii = dynamics.Points(images=10 * normalize(x[:7], dim=-1), texts=normalize(x[8], dim=-1))
    one_cloud_gap, two_clouds_gap, two_radii_gap = (
        dynamics.gap(p, None) for p in (one_cloud, two_clouds, two_radii)
    )
    assert one_cloud_gap["separable"] < 0.8
    assert two_clouds_gap["separable"] == two_clouds_gap["separable by direction"] == 1
    assert two_clouds_gap["gap"] > 5 * one_cloud_gap["gap"]
    # Clouds at different radii lie in the same directions.
    assert two_radii_gap["separable by direction"] < 0.8


def test_gradients_that_agree_and_that_oppose() -> None:
    """Tangent vectors of length 2 and 3, outward and across, given as gradients of coordinates."""
    curv = torch.tensor(0.5).double()
    x = torch.tensor([[2.0, 0.0]]).double()
    time = (1 / curv + 4).sqrt()
    outward = torch.tensor([[1.0, 0.0]]).double() * (2 / (curv.sqrt() * time))  # metric * vector
    across = torch.tensor([[0.0, 3.0]]).double()
    agreement = interplay.gradient_agreement(x, curv, -outward, outward)
    assert agreement["cosine"] == pytest.approx(-1)
    assert agreement["opposed"] == 1
    assert agreement["outward, first"] == pytest.approx(1)
    assert agreement["length, second / first"] == pytest.approx(1)
    oblique = torch.tensor([[1.0, 0.0]]).double() / (curv.sqrt() * time) + across / 3
    agreement = interplay.gradient_agreement(x, curv, -oblique, across)  # as far outward as across
    assert agreement["outward, first"] == pytest.approx(0.5**0.5)
    assert agreement["cosine"] == pytest.approx(-(0.5**0.5))
    agreement = interplay.gradient_agreement(x, curv, outward, across)
    assert agreement["cosine"] == pytest.approx(0, abs=1e-12)
    assert agreement["outward, second"] == pytest.approx(0, abs=1e-12)


def test_separability_is_measured_on_concepts_that_the_plane_was_not_fitted_to() -> None:
    """In as many dimensions as there are concepts a plane parts any sample it is fitted to."""
    texts, images = torch.randn(2, 100, 100, generator=torch.Generator().manual_seed(0))
    assert 0.3 < dynamics.separability(texts, images) < 0.7


def test_the_page_shows_the_committed_results() -> None:
    text = page.PAGE.read_text("utf-8")
    assert page.written(text) == text, "run python examples/paper/page.py with the results"
    for file in page.RESULTS.glob("*.json"):
        assert json.loads(file.read_text("utf-8"))["size"] == "full"
        assert f"images/paper/{file.stem}.png" in text
        assert (page.IMAGES / f"{file.stem}.png").exists()
