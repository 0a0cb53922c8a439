"""Where float32 loses a distance or an angle: maps of the error over radius and angle.

    python benchmarks/error_map.py                   # two minutes; brings all into docs/numerics.md
    python benchmarks/error_map.py --cells 10 --docs /tmp/copy-of-docs --results /tmp/results

A cell is like a row of accuracy.py: the median relative error of a few random pairs at this radius
and this angle, against 150 digits at the same float32 inputs. The script writes error_map.png and
error_map_distance.png to DOCS/images, and the figures to RESULTS/error_map.json and between the
marks of DOCS/numerics.md.
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import geoopt
import matplotlib
import numpy as np
import torch
from accuracy import (
    LARGEST_RADIUS,
    exact_angle,
    exact_dist,
    geoopt_dist,
    meru_angle,
    meru_dist,
    relative_errors,
    rounding_errors,
)
from mpmath import mp
from report import DOCS, RESULTS
from report.markers import write

from lorentzkit import ops

matplotlib.use("Agg")

from matplotlib import colormaps, pyplot
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

Maps = dict[str, np.ndarray[Any, Any]]
RADII, ANGLES = (1e-4, LARGEST_RADIUS), (1e-7, 3.14)
LARGE_ERROR = 0.1
NOT_FINITE_COLOUR = "#D55E00"  # orange: no colour of cividis, which goes from blue to yellow
MARKERS = "<!-- error_map:begin -->", "<!-- error_map:end -->"
# By panel, in reading order: the function that gives the errors of random pairs at a radius and an
# angle.
PANELS = {
    "distance, MERU's formula": partial(relative_errors, meru_dist, exact_dist),
    "exterior angle, MERU's formula": partial(relative_errors, meru_angle, exact_angle),
    "distance, geoopt": partial(relative_errors, geoopt_dist, exact_dist),
    "exterior angle, inputs rounded once more": partial(rounding_errors, exact_angle),
    "distance, lorentzkit": partial(relative_errors, ops.dist, exact_dist),
    "exterior angle, lorentzkit": partial(relative_errors, ops.exterior_angle, exact_angle),
}


def axes(cells: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The radii and the angles of the cells."""
    return np.geomspace(*RADII, cells), np.geomspace(*ANGLES, cells)


def maps(cells: int, pairs: int) -> Maps:
    """The median errors ``(radii, angles)`` of each panel."""
    radii, angles = axes(cells)
    return {
        name: np.array([[median(errors_at((a, t), pairs)) for t in angles] for a in radii])
        for name, errors_at in PANELS.items()
    }


def aggregates(error_maps: Maps) -> dict[str, dict[str, float]]:
    """By panel: the median and the worst finite cell, and shares of large and infinite errors."""
    return {
        name: {
            "median": float(f"{np.median(errors):.2g}"),
            "worst": float(f"{errors[np.isfinite(errors)].max():.2g}"),
            "lost": round(float((errors > LARGE_ERROR).mean()), 3),
            "not finite": round(float(np.isinf(errors).mean()), 3),
        }
        for name, errors in error_maps.items()
    }


def table(panels: dict[str, dict[str, float]]) -> str:
    """The aggregates as markdown."""
    lines = ["| | median | worst finite | off by over 10 % | not finite |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, panel in panels.items():
        errors = (re.sub(r"e\+?(-?)0", r"e\1", f"{panel[key]:.0e}") for key in ("median", "worst"))
        shares = (f"{100 * panel[key]:.1f} %" for key in ("lost", "not finite"))
        lines.append(f"| {' | '.join([name, *errors, *shares])} |")
    return "\n".join(lines)


def all_panels(error_maps: Maps) -> Figure:
    """The picture of docs/numerics.md: every panel."""
    cells = len(next(iter(error_maps.values())))
    radii, angles = axes(cells)
    colours = colormaps["cividis"].with_extremes(bad=NOT_FINITE_COLOUR)
    figure, grid = pyplot.subplots(
        3, 2, figsize=(7.2, 7.6), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, errors) in zip(grid.flat, error_maps.items(), strict=True):
        clipped = np.ma.masked_invalid(errors).clip(1e-8, 1)
        image = ax.pcolormesh(angles, radii, clipped, cmap=colours, norm=LogNorm(1e-8, 1))
        ax.set(xscale="log", yscale="log", title=name.replace(", ", "\n"))
        ax.set_xticks([1e-6, 1e-4, 1e-2, 1])
        ax.set_yticks([1e-4, 1e-2, 1])
    figure.supxlabel("angle between the points, seen from the origin", fontsize=13)
    figure.supylabel("radius: √c · distance to the origin", fontsize=13)
    bar = figure.colorbar(image, ax=grid, location="top", aspect=45, shrink=0.9)
    bar.set_label("relative error in float32; orange: not finite")
    return figure


def distance_panels(error_maps: Maps) -> Figure:
    """The picture of the README: the distance alone, side by side."""
    names = ["distance, MERU's formula", "distance, geoopt", "distance, lorentzkit"]
    radii, angles = axes(len(error_maps[names[0]]))
    colours = colormaps["cividis"].with_extremes(bad=NOT_FINITE_COLOUR)
    figure, grid = pyplot.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    for ax, name in zip(grid, names, strict=True):
        clipped = np.ma.masked_invalid(error_maps[name]).clip(1e-8, 1)
        image = ax.pcolormesh(angles, radii, clipped, cmap=colours, norm=LogNorm(1e-8, 1))
        ax.set(xscale="log", yscale="log", title=name.removeprefix("distance, "))
        ax.set_xticks([1e-6, 1e-4, 1e-2, 1])
    grid[0].set_yticks([1e-4, 1e-2, 1])
    figure.supxlabel("angle between the points", fontsize=13)
    grid[0].set_ylabel("distance to the origin")
    bar = figure.colorbar(image, ax=grid, shrink=0.95)
    bar.set_label("relative error of the distance,\nfloat32")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cells", type=int, default=40, help="of each axis")
    parser.add_argument("--pairs", type=int, default=3, help="random pairs per cell")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    mp.dps = 150
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # geoopt scripts with torch.jit
    error_maps = maps(args.cells, args.pairs)
    panels = aggregates(error_maps)
    metadata = {"cells": args.cells, "pairs": args.pairs}
    metadata |= {"torch": torch.__version__, "geoopt": geoopt.__version__}
    text = json.dumps(metadata | {"panels": panels}, indent=1)
    (args.results / "error_map.json").write_text(text + "\n", "utf-8")
    with pyplot.rc_context({"font.size": 13, "axes.titlesize": 13}):
        all_panels(error_maps).savefig(args.docs / "images" / "error_map.png", dpi=120)
        distances = args.docs / "images" / "error_map_distance.png"
        distance_panels(error_maps).savefig(distances, dpi=110)
    print(table(panels))
    write(args.docs / "numerics.md", table(panels), MARKERS)


if __name__ == "__main__":
    main()
