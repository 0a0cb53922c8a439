"""The two propositions' scripts, against geometry written out a second time in plain numpy."""

import json
import math
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[2] / "examples" / "paper"))

import proposition1
import proposition2

POLYGONS = [(2, 2), (2, 3), (2, 7)]
SIMPLICES = [(3, 4), (5, 4)]
CROSS_POLYTOPES = [(3, 6), (4, 8)]
KNOWN = POLYGONS + SIMPLICES + CROSS_POLYTOPES


def best_directions(dim: int, n: int) -> NDArray[np.float64]:
    """The unit vectors of the regular n-gon, simplex or cross-polytope."""
    if dim == 2:
        angles = 2 * np.pi * np.arange(n) / n
        return np.stack([np.cos(angles), np.sin(angles)], -1)
    if n == 2 * dim:
        return np.concatenate([np.eye(dim), -np.eye(dim)])
    # Corners of the standard simplex from its middle, in the hyperplane that holds them.
    corners = np.eye(n) - 1 / n
    flat = corners @ np.linalg.svd(corners)[2][: n - 1].T
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return np.pad(flat, ((0, 0), (0, dim - n + 1)))


def point(coordinates: list[float]) -> torch.Tensor:
    return torch.tensor(coordinates, dtype=torch.float64)


def written(folder: Path, name: str) -> dict[str, object]:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "keys"),
    [
        (proposition1, {"gap", "outside", "share", "predicted", "fewest"}),
        (proposition2, {"closed", "quadrature", "rates", "difference", "z", "power", "exponent"}),
    ],
)
def test_smoke(script: ModuleType, keys: set[str], tmp_path: Path) -> None:
    script.main(["--smoke", "--out", str(tmp_path)])
    content = written(tmp_path, script.__name__)
    assert {"size", "seeds", "environment", "table", "cases"} <= content.keys()
    heading, *rows = content["table"]
    assert rows
    assert all(len(row) == len(heading) for row in rows)
    assert all(keys <= case.keys() for case in content["cases"])


# --- proposition 1 --------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "n"), KNOWN)
@pytest.mark.parametrize(("reach", "curv"), [(1.0, 1.0), (0.3, 4.0)])
def test_largest_total_is_that_of_the_regular_set(
    dim: int, n: int, reach: float, curv: float
) -> None:
    v, r = best_directions(dim, n), math.sqrt(curv) * reach
    pairs = combinations(range(n), 2)
    cosh = [math.cosh(r) ** 2 - math.sinh(r) ** 2 * float(v[i] @ v[j]) for i, j in pairs]
    total = sum(map(math.acosh, cosh)) / math.sqrt(curv)
    assert proposition1.largest_total(dim, n, reach, curv) == pytest.approx(total, rel=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("dim", "n", "reach", "curv"), [(2, 3, 1, 1), (2, 7, 2, 0.5), (4, 8, 1, 1)]
)
def test_optimiser_reaches_the_largest_total(dim: int, n: int, reach: float, curv: float) -> None:
    case = proposition1.measure(0, 4, 120, dim, n, 1.0, reach, curv)
    assert case["gap"] < 1e-6


def test_points_stay_at_their_distance() -> None:
    x, y = point([1.0, 0.0]), torch.randn(3, 5, 2, dtype=torch.float64)
    moved = proposition1.spread_out(x, y, 1.5, 0.5, steps=5)
    distances = proposition1.ops.dist(x, moved, 0.5)
    torch.testing.assert_close(distances, torch.full_like(distances, 1.5))


@pytest.mark.parametrize(("dim", "curv"), [(2, 1.0), (2, 0.3), (5, 1.0)])
def test_counts_agree_with_the_law_of_cosines(dim: int, curv: float) -> None:
    x = torch.nn.functional.pad(point([1 / math.sqrt(curv)]), (0, dim - 1))
    # Drawn around a point further out, so that cones hold some of them.
    y = 3 * x + torch.randn(20, 30, dim, dtype=torch.float64) / math.sqrt(curv)
    counts = proposition1.count_outside(x, y, curv)

    def ball(points: NDArray[np.float64]) -> NDArray[np.float64]:
        root = math.sqrt(curv) * points
        return root / (1 + np.sqrt(1 + (root**2).sum(-1, keepdims=True)))

    def cosh(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        gap = (1 - (p**2).sum(-1)) * (1 - (q**2).sum(-1))
        return 1 + 2 * ((p - q) ** 2).sum(-1) / gap

    p, q = ball(x.numpy()), ball(y.numpy())
    to_x, between, to_y = cosh(p, 0 * p), cosh(p, q), cosh(q, 0 * q)
    sines = np.sqrt(to_x**2 - 1) * np.sqrt(between**2 - 1)
    angle = np.pi - np.arccos((to_x * between - to_y) / sines)
    for k, count in zip(proposition1.STYLES, counts, strict=True):
        expected = (angle > math.asin(2 * k)).sum(-1)
        np.testing.assert_array_equal(count.numpy(), expected)
    assert 0 < expected.mean() < 30  # of the widest


@pytest.mark.parametrize(("dim", "n"), KNOWN)
@pytest.mark.parametrize("aperture", [0.2, 0.8, 1.2, 1.5])
def test_fewest_outside_in_any_rotation(dim: int, n: int, aperture: float) -> None:
    v, generator = best_directions(dim, n), np.random.default_rng(0)
    # A cone that holds many points has its axis along their sum; random axes hold no more.
    sums = [v[list(c)].sum(0) for k in range(1, n) for c in combinations(range(n), k)]
    axes = np.concatenate([sums, generator.normal(size=(20_000, dim))])
    axes = axes[np.linalg.norm(axes, axis=1) > 1e-9]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    outside = (axes @ v.T < math.cos(aperture) - 1e-12).sum(1)
    assert proposition1.fewest_outside(dim, n, aperture) == outside.min()


@pytest.mark.parametrize("aperture", [0.01, 0.7, 1.5])
def test_share_of_the_directions(aperture: float) -> None:
    assert proposition1.share_inside(2, aperture) == pytest.approx(aperture / math.pi)
    cap = (1 - math.cos(aperture)) / 2
    assert proposition1.share_inside(3, aperture) == pytest.approx(cap)


# --- proposition 2 --------------------------------------------------------------------------------


@pytest.mark.parametrize("curv", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("norm", [0.3, 3.0])
def test_quadrature_agrees_with_the_closed_form(curv: float, norm: float) -> None:
    root = math.sqrt(curv)
    aperture = math.asin(min(1.0, 0.2 / (root * norm)))
    for reach in (0.01, 1.0, 10.0):
        area, length = proposition2.by_quadrature(point([norm, 0.0]), reach, curv)
        closed = 4 * aperture * math.sinh(root * reach / 2) ** 2 / curv
        assert area == pytest.approx(closed, rel=1e-11)
        assert length == pytest.approx(2 * aperture * math.sinh(root * reach) / root, rel=1e-11)


@pytest.mark.parametrize(("curv", "norm"), [(0.01, 1.0), (1.0, 0.4), (10.0, 1.0)])
def test_samples_agree_with_the_closed_form(curv: float, norm: float) -> None:
    root, samples, generator = math.sqrt(curv), 20_000, torch.Generator().manual_seed(0)
    aperture = math.asin(min(1.0, 0.2 / (root * norm)))
    for reach in (0.01, 1.0, 10.0):
        x = point([norm, 0.0])
        hits, whole = proposition2.by_samples(x, reach, curv, samples, generator)
        share = 4 * aperture * math.sinh(root * reach / 2) ** 2 / curv / whole
        assert 0.01 < share < 1
        assert abs(hits - samples * share) < 5 * math.sqrt(samples * share * (1 - share))


def radial(dim: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The integral of sinh^(dim - 1) from 0 in closed form."""
    return {
        2: lambda s: np.cosh(s) - 1,
        3: lambda s: np.sinh(2 * s) / 4 - s / 2,
        4: lambda s: np.cosh(s) ** 3 / 3 - np.cosh(s) + 2 / 3,
    }[dim]


@pytest.mark.parametrize("dim", [2, 3, 4])
def test_volumes_and_their_rates(dim: int) -> None:
    case = proposition2.volumes(dim, 1.0, 20)
    s = np.array(case["reaches"])
    far = s > 0.1  # where the closed forms do not cancel
    aperture = math.asin(0.2)
    cone = {
        2: 2 * aperture,
        3: 2 * math.pi * (1 - math.cos(aperture)),
        4: 4 * math.pi * (aperture / 2 - math.sin(2 * aperture) / 4),
    }[dim]
    volume = radial(dim)(s[far])
    np.testing.assert_allclose(np.array(case["log_volume"])[far], np.log(cone * volume), atol=1e-9)
    rates = np.sinh(s[far]) ** (dim - 1) / volume
    np.testing.assert_allclose(np.array(case["rates"])[far], rates, rtol=1e-9)
    assert case["power"] == pytest.approx(dim, rel=1e-3)
    assert case["exponent"] == pytest.approx(dim - 1, rel=0.02)


def test_rates_in_many_dimensions() -> None:
    case = proposition2.volumes(64, 1.0, 12)
    for s, rate in zip(case["reaches"], case["rates"], strict=True):
        t = np.linspace(0, s, 200_001)
        expected = 1 / np.trapezoid((np.sinh(t) / np.sinh(s)) ** 63, t)
        assert rate == pytest.approx(expected, rel=1e-5)
