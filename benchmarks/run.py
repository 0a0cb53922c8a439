"""How fast: every op, losses and pairwise matrices, against what is used now.

    python benchmarks/run.py elementwise --sizes 4096 --seconds 2
    python benchmarks/run.py elementwise --dtype float64    # ops that have a rival, at 4,096
    python benchmarks/run.py loss --sizes 512 --dimensions 64 --kinds distance --seconds 10
    python benchmarks/run.py batches --seconds 3    # the loss of 32 to 4,096 pairs
    python benchmarks/run.py memory --sizes 32768 --kinds angle    # of the loss; no times
    python benchmarks/run.py loss --sizes 512 --compare            # with the results that are there
    python benchmarks/run.py page          # docs/benchmarks.md, of all results; measures nothing

All competitors of a row run in one process, in turns, after one turn to warm up. Figures are
quantiles over the turns; forward and backward are timed apart. "floor" is the time of the row's
matrix products alone, or, for elementwise ops, means and optimisers, of copying their inputs. An op
compiles its rows, and the loss a batch, once they have been enough work: "auto" are calls before
that, "auto_later" calls after it. Imports are timed in processes of their own, in turns as well.
Peak memory is what one step adds to a fresh process. A competitor whose matrices would not fit is
left out. Rows replace those of the same name in the file of results, and all rows of another
machine or version.

`--compare` measures the rows that the file has, writes nothing, and ends with status 1 if one of
ours is clearly slower: see report/compare.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure import DEVICE, THREADS, environment, in_turns, keep_memory
from report import DOCS, RESULTS, compare, plots, tables
from report.compare import Times
from suites import (
    ALSO,
    DIMENSIONS,
    FLOAT64_SIZES,
    KINDS,
    PAIRED,
    SIZES,
    USUAL_DIMENSIONS,
    USUAL_SIZES,
    WITH_RIVALS,
    Row,
)

from lorentzkit import ops


def measured(row: Row, budget_s: float, excluded: list[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"kind": row.kind, "N": row.N, "D": row.D, "dtype": row.dtype}
    if row.suite == "memory":
        return result | {"peak_mb": row.peaks()["auto"]}
    result |= {"ms": timed(row, budget_s, excluded)}
    if row.suite in PAIRED:
        x = row.inputs()[0]
        result |= {"impl": ops.pairwise_impl(x, x)}
    return result | ({"peak_mb": row.peaks()} if row.suite in (*PAIRED, "means") else {})


def timed(row: Row, budget_s: float, excluded: list[str]) -> Times:
    # Reset, as functions compiled for other rows count against a limit. Not for batches, which take
    # minutes to compile.
    if "torch._dynamo" in sys.modules and row.suite != "batches":
        torch.compiler.reset()
    keep_memory()
    return in_turns(row.steps(excluded), budget_s)


def rows(args: argparse.Namespace) -> Iterator[Row]:
    float64 = args.dtype == "float64"
    sizes = FLOAT64_SIZES if float64 else SIZES.get(args.suite, USUAL_SIZES)
    for kind in args.kinds or (WITH_RIVALS if float64 else KINDS[args.suite]):
        for N in args.sizes or sizes:
            for D in args.dimensions or DIMENSIONS.get(args.suite, USUAL_DIMENSIONS):
                yield Row(args.suite, kind, N, D, args.dtype)
        if not args.sizes and not float64:
            for N, D in ALSO.get((args.suite, kind), []):
                yield Row(args.suite, kind, N, D)


def run(args: argparse.Namespace) -> int:
    out = args.results / f"{args.suite}-{DEVICE}.json"
    previous = json.loads(out.read_text("utf-8")) if out.exists() else {}
    if args.compare:
        return compare_rows(args, previous)
    # Rows of another machine or of other versions are dropped: they cannot stand beside these.
    comparable = previous.get("environment") == environment()
    stored_rows: dict[str, Any] = previous["rows"] if comparable else {}
    for row in rows(args):
        stored_rows[row.key] = measured(row, args.seconds, args.without)
        print(tables.line(args.suite, stored_rows[row.key]), flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        content = {"environment": environment(), "rows": stored_rows}
        out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


def compare_rows(args: argparse.Namespace, previous: dict[str, Any]) -> int:
    if not previous or args.suite == "memory":
        raise SystemExit("--compare: no times to compare with")
    differences = compare.differences(environment(), previous["environment"])
    if differences:
        print(f"measured elsewhere ({differences}): of the times, only the ratios are compared")
    verdicts = []
    for row in rows(args):
        if row.key in previous["rows"]:
            fresh, earlier = timed(row, args.seconds, args.without), previous["rows"][row.key]["ms"]
            for name, verdict in compare.verdicts(fresh, earlier, ratios=bool(differences)):
                print(f"{row.key}, {name}: {verdict}", flush=True)
                verdicts.append(verdict)
    if not verdicts:
        raise SystemExit("--compare: none of these rows was measured before")
    return int(any(verdict.slower for verdict in verdicts))


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=[*KINDS, "page"])
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, help=f"default: {USUAL_SIZES}, {SIZES}")
    parser.add_argument(
        "--dimensions", nargs="+", type=int, help=f"default: {USUAL_DIMENSIONS}, {DIMENSIONS}"
    )
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--seconds", type=float, default=40, help="for the turns of one row")
    parser.add_argument("--without", nargs="+", default=[], help="competitors left out")
    parser.add_argument("--compare", action="store_true", help="with the results; writes nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of SUITE-DEVICE.json")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page is")
    args = parser.parse_args(argv)
    if args.dtype != "float32" and args.suite != "elementwise":
        parser.error("--dtype: only elementwise ops are measured in float64")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parsed(argv)
    if args.suite == "page":
        plots.draw(args.results, args.docs)
        tables.write_pages(args.results, args.docs)
        return 0
    torch.set_num_threads(THREADS)
    return run(args)


if __name__ == "__main__":
    raise SystemExit(main())
