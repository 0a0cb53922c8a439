"""Draws an embedded tree on the Poincaré disk, seen from its root and from one of its branches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from lorentzkit import ops, viz

from .trees import Tree

matplotlib.use("Agg")  # pictures go to files: no display is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

# fmt: off
COLOURS = (
    "#2f6fb5", "#e07b27", "#3a9a4c", "#c23b3b", "#7d5bb0", "#8c5a3c", "#d1609f",
    "#6b7a87", "#a3a72b", "#1f9fb0", "#274b8f", "#b5651d", "#1f6b3a", "#8f2d56",
)
# fmt: on
NEUTRAL = "#b9bfc6"
INK = "#22262b"


def seen_from(centre: Tensor, points: Tensor) -> Tensor:
    """The isometry that carries `centre` to the origin without turning, applied to `points`."""
    return ops.expmap0(ops.transp0back(centre, ops.logmap(centre, points)))


def draw(tree: Tree, points: Tensor, path: Path) -> None:
    """Writes a picture of 2-D `points` (space components, shape (nodes, 2)) to `path`."""
    points = points.double()
    tops = tree.branches()
    root, focus = tree.roots[0], _branch_to_show(tree, tops)
    parts = [child for child in tree.children[focus] if tree.children[child]] or [focus]

    figure = Figure(figsize=(18, 7.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, tree, seen_from(points[root], points), tops, [root])
    left.set_title(f"seen from “{tree.labels[root]}”", y=-0.04, fontsize=15)
    centre = ops.frechet_mean(points[parts])
    _panel(right, tree, seen_from(centre, points), parts, [root, focus])
    right.set_title(
        f"the same, seen from the midst of “{tree.labels[focus]}”", y=-0.04, fontsize=15
    )
    figure.savefig(path, dpi=110, format="png")


def _branch_to_show(tree: Tree, tops: Sequence[int], max_parts: int = 12) -> int:
    """The branch with the most parts, of those with room to name all parts."""

    def parts(node: int) -> int:
        return sum(bool(tree.children[child]) for child in tree.children[node])

    return max(tops, key=lambda node: parts(node) if parts(node) <= max_parts else 0)


def _panel(axes: Axes, tree: Tree, points: Tensor, named: Sequence[int], marked: list[int]) -> None:
    """One disk: every edge a geodesic, the branches `named` in colours, the nodes `marked`."""
    named = [*named][: len(COLOURS)]
    branch = tree.branch_of(named)
    colour_of = dict(zip(named, COLOURS, strict=False))
    colours = [NEUTRAL if top is None else colour_of[top] for top in branch]

    child, parent = torch.tensor(
        [(node, parent) for node, parents in enumerate(tree.parents) for parent in parents]
    ).T
    viz.poincare_disk(axes)
    viz.geodesics(
        points[parent],
        points[child],
        ax=axes,
        color=[colours[node] for node in child],
        linewidth=[1.6 if tree.children[node] else 0.45 for node in child],
        alpha=0.75,
    )
    sizes = [26 if children else 5 for children in tree.children]
    viz.points(points, ax=axes, s=sizes, c=colours, edgecolors="white", linewidths=0.3)
    viz.points(points[marked], ax=axes, s=60, c=INK, edgecolors="white", zorder=4)
    for node in marked:
        axes.annotate(
            tree.labels[node],
            viz.coordinates(points[node]),
            (0, 9),
            textcoords="offset points",
            horizontalalignment="center",
            color=INK,
            fontsize=11,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=5,
        )
    labels = [tree.labels[node] for node in named]
    _name_around(axes, labels, COLOURS, _directions(points, branch, named))
    axes.set(xlim=(-1.55, 1.55), ylim=(-1.14, 1.14))


def _directions(points: Tensor, branch: Sequence[int | None], named: Sequence[int]) -> list[float]:
    """For every branch the angle at which most of it lies."""
    unit = torch.nn.functional.normalize(points, dim=1)
    directions = []
    for top in named:
        members = [node for node, node_top in enumerate(branch) if node_top == top]
        x, y = unit[members].median(dim=0).values
        directions.append(math.atan2(y, x))
    return directions


def _name_around(
    axes: Axes, texts: Sequence[str], colours: Sequence[str], angles: Sequence[float]
) -> None:
    """Names around the disk at their angles, moved apart where they would overlap."""
    for side in (1, -1):  # right, left
        indices = [i for i, angle in enumerate(angles) if (math.cos(angle) >= 0) == (side == 1)]
        indices.sort(key=lambda i: math.sin(angles[i]))
        heights = _apart([1.06 * math.sin(angles[i]) for i in indices])
        for i, height in zip(indices, heights, strict=True):
            axes.text(
                side * (math.sqrt(max(1.06**2 - height**2, 0.0)) + 0.01),
                height,
                texts[i],
                color=colours[i],
                horizontalalignment="left" if side == 1 else "right",
                verticalalignment="center",
                fontsize=13,
                fontweight="bold",
            )


def _apart(heights: Sequence[float], gap: float = 0.085) -> list[float]:
    """Ascending heights moved as little as needed to lie at least `gap` apart."""
    moved = list(heights)
    for _ in range(50):
        for i in range(len(moved) - 1):
            overlap = gap - (moved[i + 1] - moved[i])
            if overlap > 0:
                moved[i] -= overlap / 2
                moved[i + 1] += overlap / 2
    return moved
