"""Pictures by their geometry: the vertices of what was drawn, taken back to the hyperboloid."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from torch import Tensor

from lorentzkit import ops, viz

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

F64 = torch.float64
CURVATURES = pytest.mark.parametrize("curv", [1.0, 0.1, 4.0])


@pytest.fixture
def ax() -> Iterator[Axes]:
    yield viz.poincare_disk(plt.figure().subplots())
    plt.close("all")


def plane(count: int, curv: float, radius: float = 1.5) -> Tensor:
    """Points about `radius / sqrt(curv)` from the origin."""
    generator = torch.Generator().manual_seed(count)
    u = radius * torch.randn(count, 2, generator=generator, dtype=F64)
    return ops.expmap0(u / curv**0.5, curv)


def vertices(ax: Axes, drawn: int = -1) -> list[Tensor]:
    """What the collection drawn last went through, in the disk."""
    return [torch.from_numpy(path.vertices) for path in ax.collections[drawn].get_paths()]


def to_hyperboloid(disk: Tensor, curv: float) -> Tensor:
    """From the drawn disk of radius 1, whose curvature is -1, to points of curvature -curv."""
    return ops.from_poincare(disk) / curv**0.5


# --- the disk and what is in it -------------------------------------------------------------------


def test_the_horizon_is_a_circle_of_radius_1_that_looks_like_one() -> None:
    figure, axes = plt.subplots()
    assert viz.poincare_disk(axes, edgecolor="red", linewidth=3) is axes
    (horizon,) = axes.patches
    assert (horizon.center, horizon.radius) == ((0, 0), 1.0)
    assert horizon.get_edgecolor() == to_rgba("red")
    assert horizon.get_linewidth() == 3
    assert axes.get_aspect() == 1.0
    assert not axes.axison
    plt.close(figure)


@pytest.mark.parametrize("draw", ["points", "geodesics", "cones"])
def test_axes_in_and_axes_out(ax: Axes, draw: str) -> None:
    x = plane(4, 1.0)
    of = (x, x + 1) if draw == "geodesics" else (x,)
    other = plt.figure().subplots()  # the current axes are not those given
    assert getattr(viz, draw)(*of, 1.0, ax=ax) is ax
    assert len(ax.collections) == 1
    assert not other.collections
    assert getattr(viz, draw)(*of, 1.0) is other
    assert len(other.collections) == 1


@CURVATURES
def test_points_are_where_they_belong(ax: Axes, curv: float) -> None:
    x = plane(20, curv)
    viz.points(x.view(4, 5, 2), curv, ax=ax, s=7, c="red")
    drawn = torch.as_tensor(np.asarray(ax.collections[0].get_offsets()))
    torch.testing.assert_close(to_hyperboloid(drawn, curv), x)
    # The distance to the origin is 2 artanh of the radius in the disk (Lee 2018, th. 3.7).
    torch.testing.assert_close(2 * drawn.norm(dim=-1).atanh(), curv**0.5 * ops.dist0(x, curv))
    assert ax.collections[0].get_sizes().tolist() == [7]


def test_points_of_many_curvatures_share_a_disk() -> None:
    curv = torch.tensor([0.5, 2.0])
    x = torch.randn(3, 2, 2)
    one_by_one = [viz.coordinates(x[:, i], float(c)) for i, c in enumerate(curv)]
    np.testing.assert_allclose(viz.coordinates(x, curv), np.stack(one_by_one, 1), rtol=1e-12)


@CURVATURES
def test_geodesics_are_geodesics(ax: Axes, curv: float) -> None:
    x, y = plane(12, curv, radius=4.0).view(2, 6, 2)
    viz.geodesics(x, y, curv, ax=ax, colors=["red"] * 6, linewidths=2)
    lines = torch.stack(vertices(ax))
    assert len(lines) == 6
    on_it, start, end = to_hyperboloid(lines, curv), x[:, None], y[:, None]
    torch.testing.assert_close(on_it[:, :1], start)
    torch.testing.assert_close(on_it[:, -1:], end)
    # On the geodesic alone the triangle inequality is an equality.
    detour = ops.dist(start, on_it, curv) + ops.dist(on_it, end, curv)
    torch.testing.assert_close(detour, ops.dist(start, end, curv).expand_as(detour))
    # The straight pieces drawn between vertices stay within 3e-4: a fraction of a pixel.
    halves = ops.geodesic(0.5, on_it[:, :-1], on_it[:, 1:], curv)
    drawn = (lines[:, :-1] + lines[:, 1:]) / 2
    assert (drawn - torch.from_numpy(viz.coordinates(halves, curv))).norm(dim=-1).max() < 3e-4
    assert ax.collections[0].get_linewidth().tolist() == [2]


def test_one_geodesic_of_single_points_and_none(ax: Axes) -> None:
    viz.geodesics(torch.zeros(2), torch.tensor([1.0, 1.0]), ax=ax)
    assert len(vertices(ax)) == 1
    viz.geodesics(torch.zeros(0, 2), torch.zeros(0, 2), ax=ax)
    assert vertices(ax) == []


# --- cones ----------------------------------------------------------------------------------------


@CURVATURES
@pytest.mark.parametrize("min_radius", [0.1, 0.5])
def test_the_boundary_of_a_cone_is_at_its_half_aperture(
    ax: Axes, curv: float, min_radius: float
) -> None:
    apex = plane(40, curv, radius=2.0)
    viz.cones(apex, curv, min_radius=min_radius, ax=ax)
    outlines = torch.stack(vertices(ax))
    assert len(outlines) == 40
    torch.testing.assert_close(outlines[:, 0], torch.from_numpy(viz.coordinates(apex, curv)))
    torch.testing.assert_close(outlines[:, -1], outlines[:, 0])
    # It goes round without a leap.
    assert outlines.diff(dim=1).norm(dim=-1).max() < 0.06
    # Near the horizon a rounding of the drawn vertex is a large distance.
    on_ray = outlines.norm(dim=-1) < 1 - 1e-6
    x, y = apex[:, None].expand_as(outlines)[on_ray], to_hyperboloid(outlines[on_ray], curv)
    away = ops.dist(x, y, curv) > 1e-9
    found = ops.exterior_angle(x, y, curv)[away]
    aperture = ops.half_aperture(x, curv, min_radius=min_radius)[away]
    torch.testing.assert_close(found, aperture, rtol=1e-6, atol=1e-6)
    # One ray on either side, and all else is the horizon.
    turn = torch.zeros_like(on_ray, dtype=F64)
    turn[on_ray] = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
    middle = outlines.shape[1] // 2
    # The last two vertices are the apex again: the way back to it, and the closing of the path.
    assert (turn[:, 1:middle] >= 0).all()
    assert (turn[:, middle:-2] <= 0).all()
    radius = outlines.norm(dim=-1)[~on_ray]
    assert (radius < 1 + 1e-12).all()
    assert (outlines.norm(dim=-1) > 1 - 1e-12).sum(1).min() > 300


@CURVATURES
@pytest.mark.parametrize("radius", [0.0, 0.05, 0.3, 1.0, 3.0])
def test_shaded_is_what_is_entailed(ax: Axes, curv: float, radius: float) -> None:
    """Random points of the disk, by matplotlib's own point-in-polygon test. K = 0.2: 0.3 < 2 K."""
    apex = ops.expmap0(torch.tensor([-0.6, 0.8], dtype=F64) * radius / curv**0.5, curv)
    viz.cones(apex, curv, min_radius=0.2, ax=ax)
    (path,) = ax.collections[0].get_paths()
    generator = torch.Generator().manual_seed(0)
    disk = 1.4 * torch.rand(20_000, 2, generator=generator, dtype=F64) - 0.7
    y = to_hyperboloid(disk, curv)
    outside = ops.exterior_angle(apex, y, curv) - ops.half_aperture(apex, curv, min_radius=0.2)
    clear = outside.abs() > 1e-3  # not on the line
    shaded = torch.from_numpy(path.contains_points(disk.numpy()))
    assert torch.equal(shaded[clear], outside[clear] <= 0)
    assert clear.sum() > 19_000
    if radius == 0:
        assert shaded.all()


def test_a_cone_far_out_is_a_sliver_and_not_the_disk(ax: Axes) -> None:
    turn = torch.linspace(0, 7, 60, dtype=F64)
    directions = torch.stack([turn.cos(), turn.sin()], -1)
    for radius in (10.0, 20.0, 30.0, 40.0, 200.0):
        viz.cones(ops.expmap0(radius * directions), ax=ax)
        outlines = torch.stack(vertices(ax))
        assert (outlines - outlines[:, :1]).norm(dim=-1).max() < 1e-3


def test_each_cone_has_its_own_style(ax: Axes) -> None:
    x = plane(3, 1.0)
    viz.cones(x, ax=ax, color=["red", "green", "blue"], lw=2, alpha=0.5)
    (drawn,) = ax.collections
    assert drawn.get_facecolor().tolist() == [[*to_rgba(c, 0.5)] for c in ("red", "green", "blue")]
    assert drawn.get_linewidth().tolist() == [2]
    viz.cones(x, ax=ax, fc="none")
    assert ax.collections[1].get_facecolor().size == 0


# --- histograms and traversals --------------------------------------------------------------------


def test_radii_are_distances_in_common_bins() -> None:
    groups = {"text": torch.randn(300, 16, dtype=F64), "image": 9 * torch.randn(200, 16, dtype=F64)}
    figure, axes = plt.subplots()
    assert viz.radius_histogram(groups, 0.5, ax=axes, bins=10, density=False) is axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["image", "text"]
    radii = {
        name: torch.acosh((1 + 0.5 * x.square().sum(-1)).sqrt()).numpy() / 0.5**0.5
        for name, x in groups.items()
    }
    edges = np.histogram_bin_edges(np.concatenate([*radii.values()]), 10)
    by_label = {patch.get_label(): patch for patch in axes.patches}
    for name, distances in radii.items():
        outline = by_label[name].get_xy()
        np.testing.assert_allclose(np.unique(outline[:, 0]), edges, rtol=1e-12)
        heights = outline[1 : 2 * 10 + 1 : 2, 1]
        np.testing.assert_allclose(heights, np.histogram(distances, edges)[0])
    plt.close(figure)


def test_a_traversal_has_a_row_for_each_run_of_a_label() -> None:
    picture = np.zeros((4, 6, 3))
    steps = [("a tabby", picture), "cat", "cat", ("cat", None), "animal", "cat"]
    figure, axes = plt.subplots()
    t = torch.tensor([0.0, 0.1, 0.2, 0.55, 0.7, 1.0])
    assert viz.traversal(steps, t, ax=axes, color="red", va="bottom") is axes
    texts = {text.xy[1]: [] for text in axes.texts}
    for text in axes.texts:
        texts[text.xy[1]].append(text.get_text())
    dash = "\N{EN DASH}"
    assert texts == {
        0: ["0.00", "a tabby"],
        1: [f"0.10{dash}0.55", "cat"],
        2: ["0.70", "animal"],
        3: ["1.00", "cat"],
    }
    labels = [text for text in axes.texts if text.get_text() == "cat"]
    assert {label.get_color() for label in labels} == {"red"}
    (line,) = axes.lines
    assert [*line.get_ydata()] == [0, 1, 2, 3]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the way leads down
    (thumbnail,) = axes.artists
    assert thumbnail.xy == (0, 0)
    assert thumbnail.offsetbox.get_data().shape == picture.shape
    plt.close(figure)


# --- errors ---------------------------------------------------------------------------------------


def test_more_dimensions_are_refused_and_the_message_has_the_remedy() -> None:
    x = torch.randn(10, 5, dtype=F64)
    for draw in (viz.coordinates, viz.points, lambda x: viz.geodesics(x, x)):
        with pytest.raises(ValueError, match=r"x: a disk shows points .*got shape \(10, 5\)"):
            draw(x)
    with pytest.raises(ValueError, match="apex: a disk shows") as raised:
        viz.cones(x)
    remedy = str(raised.value).split(": ")[-1]
    scope = {"ops": ops, "torch": torch, "apex": x, "curv": 1.0}
    exec(remedy, scope)
    assert viz.coordinates(scope["apex"]).shape == (10, 2)


def test_wrong_arguments_name_themselves() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(TypeError, match=r"x: expected a floating-point torch\.Tensor, got list"):
        viz.points([[0.0, 0.0]])
    with pytest.raises(ValueError, match="curv: expected a positive number"):
        viz.points(x, -1.0)
    with pytest.raises(ValueError, match="y: expected finite points, got 1 with NaN"):
        viz.geodesics(x, torch.tensor([[0.0, 1.0], [torch.nan, torch.inf], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="min_radius: expected a positive number"):
        viz.cones(x, min_radius=0.0)
    with pytest.raises(ValueError, match="groups: expected points by name"):
        viz.radius_histogram({})
    with pytest.raises(ValueError, match=r"groups\['text'\]: expected points, got none"):
        viz.radius_histogram({"text": torch.zeros(0, 4)})
    with pytest.raises(ValueError, match=r"groups\['text'\]: expected finite points"):
        viz.radius_histogram({"text": torch.full((2, 4), torch.nan)})
    with pytest.raises(ValueError, match=r"one t for each of one or more steps, got 2 steps .*3"):
        viz.traversal(["a", "b"], [0.0, 0.5, 1.0])
    with pytest.raises(ValueError, match="got 0 steps"):
        viz.traversal([])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'lorentzkit\[viz\]'"):
        viz.poincare_disk()
