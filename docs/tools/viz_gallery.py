"""All that `lorentzkit.viz` draws, in one picture: a taxonomy laid out in entailment cones.

    python docs/tools/viz_gallery.py
    python docs/tools/viz_gallery.py --out docs/images/viz.png

Every concept is placed one step further out than the one above it, inside that one's entailment
cone. The "images" of a concept with none below it are points drawn at random in its cone.
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
    heading = torch.atan2(parent[..., 1], parent[..., 0]) + angle
    direction = torch.stack([heading.cos(), heading.sin()], -1)
    return ops.expmap(parent, length * ops.transp0(parent, direction, CURV), CURV)


def within_cone(parent: Tensor, count: int, share: float = 0.62) -> Tensor:
    """Angles that divide the cone at `parent` evenly among `count` children."""
    aperture = ops.half_aperture(parent, CURV, min_radius=MIN_RADIUS)
    return share * aperture * torch.linspace(-1, 1, count, dtype=torch.float64)


def layout(generator: torch.Generator) -> tuple[dict[str, Tensor], list[tuple[str, str]]]:
    """The positions of the concepts, and the edges from general to specific."""
    positions, edges = {"[ROOT]": torch.zeros(2, dtype=torch.float64)}, []

    def add(parent: str, name: str, angle: Tensor | float, length: float) -> None:
        length *= 0.9 + 0.2 * torch.rand((), generator=generator).item()
        positions[name] = step_from(positions[parent], angle, length)
        edges.append((parent, name))

    for i, (top, kinds) in enumerate(TAXONOMY.items()):
        add("[ROOT]", top, math.pi / 2 - 2 * math.pi * i / len(TAXONOMY), 0.78)
        for kind, angle in zip(kinds, within_cone(positions[top], len(kinds)), strict=True):
            add(top, kind, angle, 0.95)
            for leaf, leaf_angle in zip(kinds[kind], within_cone(positions[kind], 2), strict=True):
                add(kind, leaf, leaf_angle, 0.9)
    return positions, edges


def images_of(leaf: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points at random in the cone of `leaf`."""
    aperture = ops.half_aperture(leaf, CURV, min_radius=MIN_RADIUS)
    angle, length = torch.rand(2, count, generator=generator, dtype=torch.float64)
    far_point = step_from(leaf.expand(count, 2), aperture * (2 * angle - 1), 1.0)
    return ops.geodesic(0.3 + 1.2 * length, leaf.expand(count, 2), far_point, CURV)


def draw(file: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    positions, edges = layout(generator)
    colour = dict(zip(TAXONOMY, COLOURS, strict=True))
    for general, specific in edges:  # the colour of the branch
        colour.setdefault(specific, colour.get(general, INK))
    parents = {general for general, _ in edges} - {"[ROOT]"}
    leaves = [name for _, name in edges if name not in parents]
    images = {leaf: images_of(positions[leaf], 14, generator) for leaf in leaves}

    figure = Figure(figsize=(12, 7.2), layout="constrained")
    figure.get_layout_engine().set(hspace=0.06, wspace=0.02)
    axes = figure.subplot_mosaic([["disk", "radii"], ["disk", "path"]], width_ratios=[1.75, 1])

    disk = viz.poincare_disk(axes["disk"])
    inner = [name for _, name in edges if name in parents]
    cones = {"color": [colour[name] for name in inner], "alpha": 0.14}
    apexes = torch.stack([positions[name] for name in inner])
    viz.cones(apexes, CURV, min_radius=MIN_RADIUS, ax=disk, **cones)
    general, specific = (torch.stack([positions[edge[side]] for edge in edges]) for side in (0, 1))
    colours = [colour[name] for _, name in edges]
    viz.geodesics(general, specific, CURV, ax=disk, color=colours, linewidth=1.2)
    viz.points(specific, CURV, ax=disk, s=30, c=colours, edgecolors="white", linewidths=0.8)
    for leaf, cloud in images.items():
        viz.points(cloud, CURV, ax=disk, s=5, c=colour[leaf], alpha=0.7, linewidths=0)
    for top in TAXONOMY:
        x, y = 1.05 * torch.nn.functional.normalize(positions[top], dim=0)
        side = "center" if abs(x) < 0.1 else "left" if x > 0 else "right"
        disk.text(x, y, top, color=colour[top], fontsize=13, ha=side, va="center")
    disk.set(xlim=(-1.25, 1.25), ylim=(-1.02, 1.1))

    path = draw_path(axes["path"], positions, images["husky"][5])
    viz.geodesics(path[0], path[-1], CURV, ax=disk, color=INK, linestyle="--", zorder=4)
    viz.points(path[0], CURV, ax=disk, s=110, c=INK, marker="*", edgecolors="white", zorder=5)
    viz.points(path[-1], CURV, ax=disk, s=50, c=INK, edgecolors="white", zorder=5)

    radii = {"concepts": specific, "images": torch.cat([*images.values()])}
    viz.radius_histogram(radii, CURV, ax=axes["radii"], bins=32)
    axes["radii"].set_title("the specific lies farther out", fontsize=11)
    axes["path"].set_title("from an image (the star) to the root", fontsize=11)
    figure.savefig(file, dpi=110)


def draw_path(axes: matplotlib.axes.Axes, positions: dict[str, Tensor], image: Tensor) -> Tensor:
    """Draws the most specific concept that holds each point of the path from image to root."""
    names, concepts = list(positions), torch.stack([*positions.values()])
    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    path = ops.geodesic(t, image, positions["[ROOT]"], CURV)
    holds = ops.entailment_residual(concepts, path[:, None], CURV, min_radius=MIN_RADIUS) == 0
    depth = torch.where(holds, ops.dist0(concepts, CURV), -1.0)
    viz.traversal([names[i] for i in depth.argmax(1)], t, ax=axes)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs", "viz.png"), metavar="FILE")
    picture = parser.parse_args().out
    picture.parent.mkdir(parents=True, exist_ok=True)
    draw(picture)
    print(f"picture: {picture}")
