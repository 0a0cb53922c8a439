"""Results as tables in the documents, between marks that bear the name of their suite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markers import filled
from suites import IMPORTS, KINDS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = "benchmarks.md"
ALSO = {"retrieval": "tutorials/retrieval.md"}  # other pages with the table of a suite
SUITES = [*KINDS, "retrieval"]
ENVIRONMENT = ("machine", "threads", "torch")
Result = dict[str, Any]

PAIRS = {
    "floor": "x floor",
    "usual": "usual formulas",
    "compiled": "compiled",
    "reference": "reference",
    "geoopt": "geoopt",
}
ELEMENTWISE = {
    "floor": "x copies",
    "auto_compiled": "compiled",
    "usual": "MERU",
    "compiled": "MERU, compiled",
    "geoopt": "geoopt",
    "geoopt_compiled": "geoopt, compiled",
}
MEMORY = ["memory, MB: lorentzkit", "usual"]
HEADS = {
    "elementwise": ["op", "N", "D", "forward, ms", "backward, ms", *ELEMENTWISE.values()],
    "import": ["", "ms", "beyond torch, ms"],
    "retrieval": ["", "M", "D", "lorentzkit, s", "usual", "faiss", *MEMORY, "faiss"],
}
PAIR_HEADS = ["", "N = M", "D", "lorentzkit, ms", *PAIRS.values(), *MEMORY]


def figure(number: float) -> str:
    """Two digits, or all before the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}" if number < 1 else f"{number:.1f}"


def median(times: dict[str, list[float]], part: str = "both") -> float:
    return times.get(part, [0.0, 0.0, 0.0])[1]


def slower(ms: dict[str, Any], names: dict[str, str]) -> list[str]:
    """What ours takes of the floor, and the others of ours."""
    time_of = {name: median(parts) for name, parts in ms.items()}
    auto = time_of["auto"]
    ratios = {n: auto / t if n == "floor" else t / auto for n, t in time_of.items()}
    return [
        "" if n not in ratios else f"{ratios[n]:.2f}" if n == "floor" else f"{figure(ratios[n])}x"
        for n in names
    ]


def line(suite: str, row: Result) -> str:
    """One row of a table, as markdown; of imports, all of them."""
    if suite == "import":
        return "\n".join(_imports(row["ms"]))
    about = [row["kind"], f"{row['N']:,}", str(row["D"])]
    if suite == "memory":
        cells = [f"{row['peak_mb']} MB"]
    elif suite == "elementwise":
        auto = row["ms"]["auto"]
        cells = [figure(median(auto, part)) for part in ("forward", "backward")]
        cells += slower(row["ms"], ELEMENTWISE)
    elif suite == "retrieval":
        cells = _searches(row)
    else:
        cells = [figure(median(row["ms"]["auto"])), *slower(row["ms"], PAIRS)]
        cells += [str(row["peak_mb"].get(name, "")) for name in ("auto", "usual")]
    return f"| {' | '.join([*about, *cells])} |"


def _imports(ms: dict[str, Any]) -> Iterator[str]:
    for name, parts in ms.items():
        beyond = median(parts) - median(ms["torch"])
        cell = f"{beyond:.0f}" if name.startswith("lorentzkit") else ""
        yield f"| `{IMPORTS[name]}` | {median(parts):.0f} | {cell} |"


def _searches(row: Result) -> list[str]:
    ours = median(row["ms"]["auto"]) / 1e3
    ratios = [
        f"{median(row['ms'][n]) / 1e3 / ours:.2f}x" if n in row["ms"] else ""
        for n in ("usual", "faiss")
    ]
    return [
        figure(ours),
        *ratios,
        *(str(row["peak_mb"].get(n, "")) for n in ("auto", "usual", "faiss")),
    ]


def table(suite: str, results: Result) -> Iterator[str]:
    machine, threads, torch_ = (results["environment"][k] for k in ENVIRONMENT)
    rows = sorted(results["rows"].values(), key=lambda r: (r["kind"], r["D"], r["N"]))
    if suite == "memory":
        megabytes = [f"{r['kind']} {r['peak_mb']} MB" for r in rows]
        yield f"Memory that one step of the loss adds at N = M = {rows[0]['N']:,}, "
        yield f"D = {rows[0]['D']}: {', '.join(megabytes)}."
        return
    yield f"{machine}, {threads} threads, torch {torch_}:"
    yield ""
    heads = HEADS.get(suite, PAIR_HEADS)
    yield f"| {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"
    yield from (line(suite, row) for row in rows)
    if results.get("recall"):
        yield ""
        yield from _recalls(results["recall"])


def _recalls(cases: list[Result]) -> Iterator[str]:
    yield "| distances of the neighbours, about | faiss | its first 100, ordered by `ops.dist` |"
    yield "| ---: | ---: | ---: |"
    for case in cases:
        yield f"| {case['spread']:g} | {case['faiss']:.3f} | {case['reranked']:.3f} |"


def files(suite: str, results: Path) -> list[Path]:
    return sorted(results.glob(f"{suite}-*.json"))


def text(suite: str, results: Path) -> str:
    """All that was measured of a suite, on every kind of device."""
    tables_ = [
        "\n".join(table(suite, json.loads(file.read_text("utf-8"))))
        for file in files(suite, results)
    ]
    return "\n\n".join(tables_) or "Not measured yet."


def write_pages(results: Path, docs: Path) -> None:
    page = docs / PAGE
    written = page.read_text("utf-8")
    for suite in SUITES:
        picture = f"images/benchmarks/{suite}.png"
        shown = f"![{ALT[suite]}]({picture})\n\n" if (docs / picture).exists() else ""
        written = filled(written, shown + text(suite, results), marks(suite), page)
    page.write_text(written, "utf-8")
    for suite, name in ALSO.items():
        other = docs / name
        content = filled(other.read_text("utf-8"), text(suite, results), marks(suite), other)
        other.write_text(content, "utf-8")


def marks(suite: str) -> tuple[str, str]:
    return f"<!-- {suite}:begin -->", f"<!-- {suite}:end -->"


_BY_SIZE = "time of the others by that of lorentzkit, over the number of points"
ALT = {
    "elementwise": "Time of the others by that of lorentzkit, for every op",
    "loss": f"The loss of angles, distances and cosines: {_BY_SIZE}",
    "pairwise": f"Pairwise angles, distances and inner products: {_BY_SIZE}",
    "topk": f"The nearest by angle, distance and inner product: {_BY_SIZE}",
    "import": "Milliseconds of imports in fresh processes",
    "memory": "",
    "retrieval": "Recall of inner products in float32, over the distance of the neighbours",
}
