"""Where float32 loses a distance or an angle: maps of the error over radius and angle.

    python benchmarks/error_map.py                   # two minutes; brings all into docs/numerics.md
    python benchmarks/error_map.py --cells 10 --docs /tmp/copy-of-docs --results /tmp/results

A cell is a row of accuracy.py: the median relative error of some random pairs at this radius and
this angle, against 150 digits at the same float32 inputs. Writes error_map.png and
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
    FARTHEST,
    exact_angle,
    exact_dist,
    geoopt_dist,
    meru_angle,
    meru_dist,
    relative_errors,
    rounding_shares,
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
RADII, ANGLES = (1e-4, FARTHEST), (1e-7, 3.14)
LOST = 0.1
ORANGE = "#D55E00"  # of what is not finite; cividis, blue to yellow, has no such colour
MARKERS = "<!-- error_map:begin -->", "<!-- error_map:end -->"
# By panel, in reading order: what gives the errors of some pairs at a radius and an angle.
PANELS = {
    "distance, MERU's formula": partial(relative_errors, meru_dist, exact_dist),
    "exterior angle, MERU's formula": partial(relative_errors, meru_angle, exact_angle),
    "distance, geoopt": partial(relative_errors, geoopt_dist, exact_dist),
    "exterior angle, inputs rounded once more": partial(rounding_shares, exact_angle),
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
        name: np.array([[median(errors((a, t), pairs)) for t in angles] for a in radii])
        for name, errors in PANELS.items()
    }


def aggregates(found: Maps) -> dict[str, dict[str, float]]:
    """Of each panel the median cell, the worst that is finite, and shares of the cells."""
    return {
        name: {
            "median": float(f"{np.median(of):.2g}"),
            "worst": float(f"{of[np.isfinite(of)].max():.2g}"),
            "lost": round(float((of > LOST).mean()), 3),
            "not finite": round(float(np.isinf(of).mean()), 3),
        }
        for name, of in found.items()
    }


def table(figures: dict[str, dict[str, float]]) -> str:
    """The aggregates as markdown."""
    lines = ["| | median | worst finite | off by over 10 % | not finite |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name, of in figures.items():
        errors = (re.sub(r"e\+?(-?)0", r"e\1", f"{of[key]:.0e}") for key in ("median", "worst"))
        shares = (f"{100 * of[key]:.1f} %" for key in ("lost", "not finite"))
        lines.append(f"| {' | '.join([name, *errors, *shares])} |")
    return "\n".join(lines)


def drawn(found: Maps) -> Figure:
    cells = len(next(iter(found.values())))
    radii, angles = axes(cells)
    colours = colormaps["cividis"].with_extremes(bad=ORANGE)
    figure, grid = pyplot.subplots(
        3, 2, figsize=(7.2, 7.6), sharex=True, sharey=True, layout="constrained"
    )
    for ax, (name, errors) in zip(grid.flat, found.items(), strict=True):
        shown = np.ma.masked_invalid(errors).clip(1e-8, 1)
        image = ax.pcolormesh(angles, radii, shown, cmap=colours, norm=LogNorm(1e-8, 1))
        ax.set(xscale="log", yscale="log", title=name.replace(", ", "\n"))
        ax.set_xticks([1e-6, 1e-4, 1e-2, 1])
        ax.set_yticks([1e-4, 1e-2, 1])
    figure.supxlabel("angle between the points, seen from the origin", fontsize=13)
    figure.supylabel("radius: √c · distance to the origin", fontsize=13)
    bar = figure.colorbar(image, ax=grid, location="top", aspect=45, shrink=0.9)
    bar.set_label("relative error in float32; orange: not finite")
    return figure


def strip(found: Maps) -> Figure:
    """The distance alone, side by side: the picture of the README."""
    names = ["distance, MERU's formula", "distance, geoopt", "distance, lorentzkit"]
    radii, angles = axes(len(found[names[0]]))
    colours = colormaps["cividis"].with_extremes(bad=ORANGE)
    figure, grid = pyplot.subplots(1, 3, figsize=(10.5, 3.4), sharey=True, layout="constrained")
    for ax, name in zip(grid, names, strict=True):
        shown = np.ma.masked_invalid(found[name]).clip(1e-8, 1)
        image = ax.pcolormesh(angles, radii, shown, cmap=colours, norm=LogNorm(1e-8, 1))
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
    found = maps(args.cells, args.pairs)
    figures = aggregates(found)
    about = {"cells": args.cells, "pairs": args.pairs}
    about |= {"torch": torch.__version__, "geoopt": geoopt.__version__}
    text = json.dumps(about | {"panels": figures}, indent=1)
    (args.results / "error_map.json").write_text(text + "\n", "utf-8")
    with pyplot.rc_context({"font.size": 13, "axes.titlesize": 13}):
        drawn(found).savefig(args.docs / "images" / "error_map.png", dpi=120)
        strip(found).savefig(args.docs / "images" / "error_map_distance.png", dpi=110)
    print(table(figures))
    write(args.docs / "numerics.md", table(figures), MARKERS)


if __name__ == "__main__":
    main()
