"""Draws the diagrams of docs/kernels.md: `python docs/tools/kernel_diagrams.py`"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

IMAGES = Path(__file__).parents[1] / "images"
PRODUCT, RECOMPUTE, PASS, SUMS = "#9ecae9", "#dddddd", "#fdd49e", "#b7e1cd"
STYLE = {"font.size": 13, "svg.hashsalt": "lorentzkit"}  # the same file on every run


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes in inches."""
    figure = pyplot.figure(figsize=(width, height), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


# --- What is held ---------------------------------------------------------------------------------


def memory() -> Figure:
    figure, ax = canvas(7.2, 3.9)
    size, layers = 1.7, 7
    ax.text(1.75, 3.75, "usual: whole matrices", ha="center", va="top", weight="bold")
    for layer in reversed(range(layers)):
        layer_corner = 0.5 + 0.13 * layer, 0.55 + 0.13 * layer
        square(ax, *layer_corner, size, size, PASS)
    ax.text(0.5 + size / 2, 0.55 + size / 2, "inner\nproducts,\nN × M", ha="center", va="center")
    ax.text(1.75, 0.4, "one more for every step\nfrom there to the loss", ha="center", va="top")

    ax.text(5.35, 3.75, "lorentzkit: a block at a time", ha="center", va="top", weight="bold")
    left, bottom, whole, block = 4.3, 0.55, 2.1, 0.6
    square(ax, left, bottom, whole, whole, "none", linestyle=":")
    square(ax, left - 0.4, bottom, 0.3, whole, PRODUCT)
    square(ax, left, bottom + whole + 0.1, whole, 0.3, PRODUCT)
    square(ax, left + whole + 0.1, bottom, 0.15, whole, SUMS)
    square(ax, left, bottom - 0.25, whole, 0.15, SUMS)
    corner = left + 2 * block, bottom + whole - 2 * block
    for line in (1, 2, 3):
        ax.plot([left + line * block] * 2, [bottom, bottom + whole], ":", color="gray", lw=0.8)
        ax.plot(
            [left, left + whole], [bottom + whole - line * block] * 2, ":", color="gray", lw=0.8
        )
    square(ax, *corner, block, block, PASS)
    centre = corner[0] + block / 2, corner[1] + block / 2
    ax.text(*centre, "block", ha="center", va="center", size=11)
    ax.text(left - 0.25, bottom + whole / 2, "x: N × D", rotation=90, ha="center", va="center")
    ax.text(left + whole / 2, bottom + whole + 0.25, "y: M × D", ha="center", va="center")
    ax.text(left + whole + 0.35, bottom + whole / 2, "sums", rotation=90, ha="left", va="center")
    ax.text(left + whole / 2, bottom - 0.27, "sums", ha="center", va="top")
    return figure


def square(
    ax: Axes, x: float, y: float, width: float, height: float, colour: str, linestyle: str = "-"
) -> None:
    edge = "gray" if linestyle == ":" else "black"
    ax.add_patch(Rectangle((x, y), width, height, fc=colour, ec=edge, ls=linestyle))


# --- What is done with a block --------------------------------------------------------------------

FORWARD = [
    ("1  product: h = 1 - cos θ", PRODUCT),
    ("2  recompute: lost h,\nfrom differences", RECOMPUTE),
    ("3  one pass: values, and\ntheir exponentials", PASS),
    ("sums by rows, by columns", SUMS),
]
BACKWARD = [
    ("1  the same product", PRODUCT),
    ("2  the same recompute", RECOMPUTE),
    ("3  one pass: values, weights\nW = ∂L/∂h; sums for radii,\ncurvature, scale", PASS),
    ("4  two products: W v of rows,\nWᵀ u of columns, added up", PRODUCT),
]


def passes() -> Figure:
    figure, ax = canvas(7.2, 5.6)
    lines = [4.45, 3.5, 2.45, 1.4]
    for x, title, steps in ((1.8, "forward", FORWARD), (5.4, "backward", BACKWARD)):
        ax.text(x, 5.45, f"{title}, for each block", ha="center", va="top", weight="bold")
        for y, (text, colour) in zip(lines, steps, strict=True):
            box(ax, x, y, text, colour)
        for above, below in pairwise(lines):
            arrow(ax, (x, above - 0.38), (x, below + 0.38))
    box(ax, 1.8, 0.45, "log-sum-exps of all blocks,\nwith the positives: the loss", SUMS)
    arrow(ax, (1.8, 1.02), (1.8, 0.83))
    ax.plot([3.38, 3.6, 3.6], [0.45, 0.45, 2.45], color="black")
    arrow(ax, (3.6, 2.45), (3.82, 2.45))
    box(ax, 5.4, 0.45, "gradients: across the rays by\nW v, Wᵀ u; along by the sums", SUMS)
    arrow(ax, (5.4, 1.02), (5.4, 0.83))
    return figure


def box(ax: Axes, x: float, y: float, text: str, colour: str) -> None:
    style = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x - 1.58, y - 0.38), 3.16, 0.76, style, fc=colour, ec="black"))
    ax.text(x, y, text, ha="center", va="center", size=12)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>", "color": "black", "shrinkA": 0, "shrinkB": 0},
    )


def main() -> None:
    with pyplot.rc_context(STYLE):
        for name, figure in (("memory", memory()), ("passes", passes())):
            figure.savefig(IMAGES / f"kernels-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
