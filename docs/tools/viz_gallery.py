"""All that `lorentzkit.viz` draws, in one picture: a taxonomy laid out in entailment cones.

    python docs/tools/viz_gallery.py
    python docs/tools/viz_gallery.py --out docs/images/viz.png

Every concept is put one step further out than the one above it, inside its entailment cone; around
every concept that has none below, the points of its "images" are drawn at random in its cone.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from lorentzkit import ops, viz

matplotlib.use("Agg")  # pictures go to files: no display is needed

from matplotlib.figure import Figure

CURV, MIN_RADIUS = 1.0, 0.35
TAXONOMY = {
    "animal": {"dog": ("beagle", "husky"), "bird": ("owl", "robin"), "fish": ("carp", "eel")},
    "vehicle": {"car": ("van", "taxi"), "boat": ("kayak", "ferry"), "train": ("tram", "metro")},
    "food": {"fruit": ("plum", "pear"), "bread": ("bun", "rye"), "cheese": ("brie", "feta")},
    "plant": {"tree": ("oak", "pine"), "flower": ("rose", "tulip"), "herb": ("mint", "sage")},
    "place": {"city": ("square", "port"), "coast": ("beach", "cliff"), "field": ("crop", "lawn")},
}
COLOURS = ("#2f6fb5", "#e07b27", "#3a9a4c", "#c23b3b", "#7d5bb0")
INK = "#22262b"


def step_from(parent: Tensor, angle: Tensor | float, length: float) -> Tensor:
    """The point `length` from `parent`, at `angle` to the ray that leads away from the origin."""
    turned = torch.atan2(parent[..., 1], parent[..., 0]) + angle
    direction = torch.stack([turned.cos(), turned.sin()], -1)
    return ops.expmap(parent, length * ops.transp0(parent, direction, CURV), CURV)


def within_cone(parent: Tensor, count: int, share: float = 0.62) -> Tensor:
    """Angles that part the cone at `parent` evenly among `count` children."""
    aperture = ops.half_aperture(parent, CURV, min_radius=MIN_RADIUS)
    return share * aperture * torch.linspace(-1, 1, count, dtype=torch.float64)


def layout(generator: torch.Generator) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """Where the concepts are, and the edges from general to specific."""
    at, edges = {"[ROOT]": torch.zeros(2, dtype=torch.float64)}, []

    def add(parent: str, name: str, angle: Tensor | float, length: float) -> None:
        length *= 0.9 + 0.2 * torch.rand((), generator=generator).item()
        at[name] = step_from(at[parent], angle, length)
        edges.append((parent, name))

    for i, (top, kinds) in enumerate(TAXONOMY.items()):
        add("[ROOT]", top, math.pi / 2 - 2 * math.pi * i / len(TAXONOMY), 0.78)
        for kind, angle in zip(kinds, within_cone(at[top], len(kinds)), strict=True):
            add(top, kind, angle, 0.95)
            for leaf, turn in zip(kinds[kind], within_cone(at[kind], 2), strict=True):
                add(kind, leaf, turn, 0.9)
    return at, edges


def images_of(leaf: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points at random in the cone of `leaf`."""
    aperture = ops.half_aperture(leaf, CURV, min_radius=MIN_RADIUS)
    angle, length = torch.rand(2, count, generator=generator, dtype=torch.float64)
    away = step_from(leaf.expand(count, 2), aperture * (2 * angle - 1), 1.0)
    return ops.geodesic(0.3 + 1.2 * length, leaf.expand(count, 2), away, CURV)


def draw(path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    at, edges = layout(generator)
    colour = dict(zip(TAXONOMY, COLOURS, strict=True))
    for general, specific in edges:  # the colour of the branch
        colour.setdefault(specific, colour.get(general, INK))
    with_more_below = {general for general, _ in edges} - {"[ROOT]"}
    leaves = [name for _, name in edges if name not in with_more_below]
    images = {leaf: images_of(at[leaf], 14, generator) for leaf in leaves}

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.02)
    axes = figure.subplot_mosaic([["disk", "radii"], ["disk", "way"]], width_ratios=[1.75, 1])

    disk = viz.poincare_disk(axes["disk"])
    inner = [name for _, name in edges if name in with_more_below]
    cones = {"color": [colour[name] for name in inner], "alpha": 0.14}
    apexes = torch.stack([at[name] for name in inner])
    viz.cones(apexes, CURV, min_radius=MIN_RADIUS, ax=disk, **cones)
    general, specific = (torch.stack([at[edge[side]] for edge in edges]) for side in (0, 1))
    colours = [colour[name] for _, name in edges]
    viz.geodesics(general, specific, CURV, ax=disk, color=colours, linewidth=1.2)
    viz.points(specific, CURV, ax=disk, s=30, c=colours, edgecolors="white", linewidths=0.8)
    for leaf, cloud in images.items():
        viz.points(cloud, CURV, ax=disk, s=5, c=colour[leaf], alpha=0.7, linewidths=0)
    for top in TAXONOMY:
        x, y = 1.05 * torch.nn.functional.normalize(at[top], dim=0)
        side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
        disk.text(x, y, top, color=colour[top], fontsize=13, ha=side, va="center")
    disk.set(xlim=(-1.25, 1.25), ylim=(-1.02, 1.1))

    way = show_way(axes["way"], at, images["husky"][5])
    viz.geodesics(way[0], way[-1], CURV, ax=disk, color=INK, linestyle="--", zorder=4)
    viz.points(way[0], CURV, ax=disk, s=110, c=INK, marker="*", edgecolors="white", zorder=5)
    viz.points(way[-1], CURV, ax=disk, s=50, c=INK, edgecolors="white", zorder=5)

    radii = {"concepts": specific, "images": torch.cat([*images.values()])}
    viz.radius_histogram(radii, CURV, ax=axes["radii"], bins=32)
    axes["radii"].set_title("the specific lies farther out", fontsize=11)
    axes["way"].set_title("from an image (the star) to the root", fontsize=11)
    figure.savefig(path, dpi=110)


def show_way(axes: matplotlib.axes.Axes, at: dict[str, Tensor], image: Tensor) -> Tensor:
    """From an image to the root: at each point the most specific concept whose cone holds it."""
    names, concepts = list(at), torch.stack([*at.values()])
    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    way = ops.geodesic(t, image, at["[ROOT]"], CURV)
    holds = ops.entailment_residual(concepts, way[:, None], CURV, min_radius=MIN_RADIUS) == 0
    depth = torch.where(holds, ops.dist0(concepts, CURV), -1.0)
    viz.traversal([names[i] for i in depth.argmax(1)], t, ax=axes)
    return way


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs", "viz.png"), metavar="FILE")
    picture = parser.parse_args().out
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture)
    print(f"picture: {picture}")
