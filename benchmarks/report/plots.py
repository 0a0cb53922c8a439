"""A figure for each suite: the times of the others, over that of lorentzkit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from suites import IMPORTS, KINDS

matplotlib.use("Agg")  # figures go to files: no display is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from . import tables

# Okabe and Ito 2008: colours that the colour-blind can tell apart; in print, markers do.
BLACK, ORANGE, GREEN, SKY = "#000000", "#E69F00", "#009E73", "#56B4E9"
BLUE, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"
STYLES = {
    "usual": (ORANGE, "o", "usual formulas"),
    "compiled": (RED, "s", "usual, compiled"),
    "geoopt": (GREEN, "^", "geoopt"),
    "geoopt_compiled": (PINK, "v", "geoopt, compiled"),
    "reference": (BLACK, "D", "reference"),
    "auto_later": (SKY, "X", "lorentzkit, later calls"),
    "auto_compiled": (BLUE, "P", "lorentzkit, compiled"),
}
D = 512  # of the figures over N
RATIO_LABEL = "time / lorentzkit's"
FIRST_CALLS_LABEL = "time / that of lorentzkit's first calls"
Result = dict[str, Any]


def ratio(row: Result, name: str) -> float:
    return tables.median(row["ms"][name]) / tables.median(row["ms"]["auto"])


def over_sizes(suite: str, results: Result) -> Figure:
    kinds = KINDS[suite]
    fig, axes = plt.subplots(1, len(kinds), figsize=(9, 3.2), sharey=True, layout="constrained")
    handles: dict[str, Any] = {}
    for kind, ax in zip(kinds, axes, strict=True):
        rows = [r for r in results["rows"].values() if r["kind"] == kind and r["D"] == D]
        rows.sort(key=lambda r: r["N"])
        for name, (colour, marker, label) in STYLES.items():
            timed = [r for r in rows if name in r["ms"]]
            if timed:
                counts, ratios = [r["N"] for r in timed], [ratio(r, name) for r in timed]
                (line,) = ax.plot(counts, ratios, marker + "-", color=colour, markersize=5)
                handles[label] = line
        ax.set(title=kind.replace("_", " "), xlabel=f"N = M (D = {D})", xscale="log", yscale="log")
        sizes = sorted({r["N"] for r in rows})
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes], rotation=30)
        ax.minorticks_off()
        _parity(ax.axhline, ax.yaxis)
    axes[0].set_ylabel(RATIO_LABEL)
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=5, frameon=False)
    return fig


def over_ops(results: Result) -> Figure:
    """A panel for each dtype."""
    size = tables.largest(results)
    rows = [r for r in results["rows"].values() if (r["N"], r["D"]) == size]
    ops = sorted({r["kind"] for r in rows}, reverse=True)
    dtypes = sorted({tables.dtype_of(r) for r in rows})
    height = 0.5 + 0.26 * len(ops)
    fig, axes = plt.subplots(
        1, len(dtypes), figsize=(8, height), sharey=True, squeeze=False, layout="constrained"
    )
    handles: dict[str, Any] = {}
    for dtype, ax in zip(dtypes, axes[0], strict=True):
        rows_by_op = {r["kind"]: r for r in rows if tables.dtype_of(r) == dtype}
        ax.set(title=f"{dtype}, N = {size[0]:,}, D = {size[1]}")
        ax.set(xlabel=FIRST_CALLS_LABEL, xscale="log")
        handles = _ops_panel(ax, ops, rows_by_op) | handles
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3, frameon=False)
    return fig


def _ops_panel(ax: Any, ops: list[str], rows: dict[str, Result]) -> dict[str, Any]:
    """The handles of the legend, by label."""
    handles = {}
    for name, (colour, marker, label) in STYLES.items():
        positions = [i for i, op in enumerate(ops) if op in rows and name in rows[op]["ms"]]
        if positions:
            ratios = [ratio(rows[ops[i]], name) for i in positions]
            (handles[label],) = ax.plot(ratios, positions, marker, color=colour, markersize=6)
    ax.set_yticks(range(len(ops)), ops)
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)
    _parity(ax.axvline, ax.xaxis)
    return handles


def imports(results: Result) -> Figure:
    (row,) = results["rows"].values()
    names = [*row["ms"]][::-1]
    low, middle, high = zip(*(row["ms"][name]["both"] for name in names), strict=True)
    errors = [
        [m - b for m, b in zip(middle, low, strict=True)],
        [a - m for a, m in zip(high, middle, strict=True)],
    ]
    fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
    colours = [BLUE if name.startswith("lorentzkit") else "0.6" for name in names]
    ax.barh([IMPORTS[name] for name in names], middle, xerr=errors, color=colours, capsize=3)
    ax.set(xlabel="ms of a fresh process (bars: quantiles 20 and 80)")
    return fig


def recall(results: Result) -> Figure:
    rows = results["recall"]
    fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    spreads = [row["spread"] for row in rows]
    reranked = [row["reranked"] for row in rows]
    ax.plot(spreads, reranked, "o-", color=BLUE, label="its first 100, ordered by ops.dist")
    by_faiss = [row["faiss"] for row in rows]
    ax.plot(spreads, by_faiss, "s-", color=RED, label="faiss, IndexFlatIP")
    ax.set(xscale="log", ylim=(0, 1.05), xlabel="distances of the neighbours, about")
    ax.set(ylabel="recall at 10")
    ax.legend(frameon=False)
    return fig


def _parity(line: Callable[..., Any], axis: Any) -> None:
    line(1, color="0.5", linewidth=1, zorder=0)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%gx"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


FIGURES: dict[str, Callable[[Result], Figure]] = {
    "elementwise": over_ops,
    **{s: (lambda r, s=s: over_sizes(s, r)) for s in ("loss", "pairwise", "topk")},
    "import": imports,
    "retrieval": recall,
}


def draw(results: Path, docs: Path) -> None:
    folder = docs / "images" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for suite, figure_of in FIGURES.items():
        for file in tables.files(suite, results)[:1]:
            fig = figure_of(json.loads(file.read_text("utf-8")))
            fig.savefig(folder / f"{suite}.png", dpi=110)
            plt.close(fig)
