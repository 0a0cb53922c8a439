"""Results as tables in the documents, between marks that bear the name of their suite."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from suites import IMPORTS, KINDS

from .markers import filled

PAGE = "benchmarks.md"
ALSO = {"retrieval": "tutorials/retrieval.md"}  # other pages with the table of a suite
SUITES = [*KINDS, "retrieval"]
SUMMARY = "summary"  # of the elementwise ops that have a rival
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
    "auto_later": "later calls",
    "auto_compiled": "compiled",
    "usual": "MERU",
    "compiled": "MERU, compiled",
    "geoopt": "geoopt",
    "geoopt_compiled": "geoopt, compiled",
}
LATER = {"first": "auto", "later": "auto_later"}
RIVALS = {  # and as which they are compiled
    "usual": ("MERU", "compiled"),
    "geoopt": ("geoopt", "geoopt_compiled"),
}
MEANS = {
    "floor": "x copies",
    "usual": "usual formula",
    "contrastive": "contrastive loss, both angles",
}
OPTIMISER = {"floor": "x copies", "auto_later": "later steps", "geoopt": "geoopt's Lorentz"}
MEMORY = ["memory, MB: lorentzkit", "usual"]
HEADS = {
    "elementwise": ["op", "N", "D", "forward, ms", "backward, ms", *ELEMENTWISE.values()],
    "means": ["", "N", "D", "lorentzkit, ms", *MEANS.values(), *MEMORY],
    "optimiser": ["", "N", "D", "first steps, ms", *OPTIMISER.values()],
    "import": ["", "ms", "beyond torch, ms"],
    "retrieval": ["", "M", "D", "lorentzkit, s", "usual", "faiss", *MEMORY, "faiss"],
}
PAIR_HEADS = ["", "N = M", "D", "lorentzkit, ms", *PAIRS.values(), *MEMORY]
SUMMARY_HEADS = [
    "against",
    "first calls",
    "later calls",
    "both under `torch.compile`",
    "first calls, float64",
    "later calls, float64",
]


def rounded(number: float) -> str:
    """Two digits, or all those before the point."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}" if number < 1 else f"{number:.1f}"


def median(times: dict[str, list[float]], part: str = "both") -> float:
    return times.get(part, [0.0, 0.0, 0.0])[1]


def ratio_cells(ms: dict[str, Any], names: dict[str, str]) -> list[str]:
    """The time of ours over the floor's, and the times of the others over ours."""
    times = {name: median(parts) for name, parts in ms.items()}
    auto = times["auto"]
    ratios = {n: auto / t if n == "floor" else t / auto for n, t in times.items()}
    return [
        "" if n not in ratios else f"{ratios[n]:.2f}" if n == "floor" else f"{rounded(ratios[n])}x"
        for n in names
    ]


def line(suite: str, row: Result) -> str:
    """One row of a table, as markdown; of imports, all of them."""
    if suite == "import":
        return "\n".join(_imports(row["ms"]))
    return _line(cells(suite, row))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def cells(suite: str, row: Result) -> list[str]:
    row_cells = [row["kind"], f"{row['N']:,}", str(row["D"])]
    if suite == "memory":
        return [*row_cells, f"{row['peak_mb']} MB"]
    if suite == "retrieval":
        return [*row_cells, *_searches(row)]
    auto = row["ms"]["auto"]
    parts = ("forward", "backward") if suite == "elementwise" else ("both",)
    names = {"elementwise": ELEMENTWISE, "means": MEANS, "optimiser": OPTIMISER}.get(suite, PAIRS)
    row_cells += [rounded(median(auto, part)) for part in parts]
    row_cells += ratio_cells(row["ms"], names)
    if "peak_mb" in row:
        row_cells += [str(row["peak_mb"].get(name, "")) for name in ("auto", "usual")]
    return row_cells


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
        rounded(ours),
        *ratios,
        *(str(row["peak_mb"].get(n, "")) for n in ("auto", "usual", "faiss")),
    ]


def table(suite: str, results: Result) -> Iterator[str]:
    rows = sorted(results["rows"].values(), key=lambda r: (r["kind"], r["D"], r["N"]))
    if suite == "memory":
        megabytes = [f"{r['kind']} {r['peak_mb']} MB" for r in rows]
        yield f"Memory that one step of the loss adds at N = M = {rows[0]['N']:,}, "
        yield f"D = {rows[0]['D']}: {', '.join(megabytes)}."
        return
    yield from _where(results)
    if suite == "elementwise":
        yield from _by_dtype(rows)
        return
    if suite == "batches":
        yield from _batches(rows)
        return
    yield from _head(HEADS.get(suite, PAIR_HEADS))
    yield from (line(suite, row) for row in rows)
    if results.get("recall"):
        yield ""
        yield from _recalls(results["recall"])


def _batches(rows: list[Result]) -> Iterator[str]:
    """The time of the usual formulas over ours: a line for each size, with all similarities."""
    ms = {(r["D"], r["N"], r["kind"]): r["ms"] for r in rows}
    kinds = sorted({kind for *_, kind in ms})
    heads = [f"{kind}, {calls} calls" for kind in kinds for calls in LATER]
    yield from _head(["pairs", "D", *heads])
    for D, N in sorted({(D, N) for D, N, _ in ms}):
        ms_of_kinds = (ms.get((D, N, kind), {}) for kind in kinds)
        ratios = (_ratio(times, "usual", name) for times in ms_of_kinds for name in LATER.values())
        yield _line([f"{N:,}", str(D), *ratios])


def _where(results: Result) -> Iterator[str]:
    machine, threads, torch_ = (results["environment"][k] for k in ENVIRONMENT)
    yield f"{machine}, {threads} threads, torch {torch_}:"
    yield ""


def _head(heads: list[str]) -> Iterator[str]:
    yield _line(heads)
    yield f"| --- |{' ---: |' * (len(heads) - 1)}"


def _by_dtype(rows: list[Result]) -> Iterator[str]:
    """A table for each dtype, without its empty columns."""
    for dtype in ("float32", "float64"):
        lines = [cells("elementwise", row) for row in rows if dtype_of(row) == dtype]
        if dtype == "float64" and lines:
            yield from ("", "In float64:", "")
        heads = HEADS["elementwise"]
        columns = [i for i in range(len(heads)) if any(line[i] for line in lines)]
        if lines:
            yield from _head([heads[i] for i in columns])
        yield from (_line([line[i] for i in columns]) for line in lines)


def dtype_of(row: Result) -> str:
    return row.get("dtype", "float32")  # type: ignore[no-any-return]


def largest(results: Result) -> tuple[int, int]:
    """The largest N and D that all ops are measured at. A few ops have larger sizes besides."""
    return max((r["N"], r["D"]) for r in results["rows"].values() if r["D"] > 32)


def summary(results: Result) -> Iterator[str]:
    """The times of the rivals over ours: first calls, later calls, and both compiled."""
    N, D = largest(results)
    rows = {
        (r["kind"], r["N"], dtype_of(r)): r["ms"] for r in results["rows"].values() if r["D"] == D
    }
    small = min(n for _, n, _ in rows)
    yield from _where(results)
    heads = [f"{calls} calls, {small:,} x {D}" for calls in ("first", "later")]
    yield from _head([f"op, {N:,} x {D}", *SUMMARY_HEADS, *heads])
    for op in sorted({kind for kind, *_ in rows}):
        float32, float64, float32_small = (
            rows.get((op, *key), {}) for key in [(N, "float32"), (N, "float64"), (small, "float32")]
        )
        for rival, (label, compiled) in RIVALS.items():
            ratios = [
                _ratio(float32, rival, "auto"),
                _ratio(float32, rival, "auto_later"),
                _ratio(float32, compiled, "auto_compiled"),
                _ratio(float64, rival, "auto"),
                _ratio(float64, rival, "auto_later"),
                _ratio(float32_small, rival, "auto"),
                _ratio(float32_small, rival, "auto_later"),
            ]
            if any(ratios):
                yield _line([op, label, *ratios])


def _ratio(ms: Result, theirs: str, ours: str) -> str:
    both_timed = theirs in ms and ours in ms
    return f"{rounded(median(ms[theirs]) / median(ms[ours]))}x" if both_timed else ""


def _recalls(cases: list[Result]) -> Iterator[str]:
    yield "| distances of the neighbours, about | faiss | its first 100, ordered by `ops.dist` |"
    yield "| ---: | ---: | ---: |"
    for case in cases:
        yield f"| {case['spread']:g} | {case['faiss']:.3f} | {case['reranked']:.3f} |"


def files(suite: str, results: Path) -> list[Path]:
    return sorted(results.glob(f"{suite}-*.json"))


def text(suite: str, results: Path) -> str:
    """The tables of a suite, one for every kind of device."""
    contents = [
        json.loads(file.read_text("utf-8"))
        for file in files("elementwise" if suite == SUMMARY else suite, results)
    ]
    tables = [
        "\n".join(summary(content) if suite == SUMMARY else table(suite, content))
        for content in contents
    ]
    return "\n\n".join(tables) or "Not measured yet."


def write_pages(results: Path, docs: Path) -> None:
    page = docs / PAGE
    page_text = page.read_text("utf-8")
    for suite in (SUMMARY, *SUITES):
        if marks(suite)[0] not in page_text and not files(suite, results):
            continue  # the page has no place for a suite that was never measured
        picture = f"images/benchmarks/{suite}.png"
        image = f"![{ALT[suite]}]({picture})\n\n" if (docs / picture).exists() else ""
        page_text = filled(page_text, image + text(suite, results), marks(suite), page)
    page.write_text(page_text, "utf-8")
    for suite, name in ALSO.items():
        other_page = docs / name
        page_text = other_page.read_text("utf-8")
        page_text = filled(page_text, text(suite, results), marks(suite), other_page)
        other_page.write_text(page_text, "utf-8")


def marks(suite: str) -> tuple[str, str]:
    return f"<!-- {suite}:begin -->", f"<!-- {suite}:end -->"


_BY_SIZE = "time of the others by that of lorentzkit, over the number of points"
ALT = {
    "elementwise": "Time of the others by that of lorentzkit, for every op",
    "loss": f"The loss of angles, distances and cosines: {_BY_SIZE}",
    "pairwise": f"Pairwise angles, distances and inner products: {_BY_SIZE}",
    "topk": f"The nearest by angle, distance and inner product: {_BY_SIZE}",
    "import": "Milliseconds of imports in fresh processes",
    **dict.fromkeys(("batches", "memory", "means", "optimiser", SUMMARY), ""),
    "retrieval": "Recall of inner products in float32, over the distance of the neighbours",
}
