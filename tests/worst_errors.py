"""Print the worst condition-scaled error of each op over many random cases.

    python tests/worst_errors.py [--examples 300] [op ...]

A row is an op: float32 and float64, values, then gradients by argument. See `condition.py` for
what the numbers mean and `tolerances.py` for how large they may be; `*` marks what is larger.
"""

from __future__ import annotations

import argparse
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from condition import OPS
from exactness import DTYPES, gradients_of, value_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tolerances import tolerance

Row = tuple[str, torch.dtype, float, dict[str, float]]


def worst(op: str, dtype: torch.dtype, examples: int) -> Row:
    value, gradient = 0.0, Counter()

    @settings(
        max_examples=examples,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def search(data):
        nonlocal value
        value = max(value, value_of(op, data, dtype))
        for name, error in gradients_of(op, data, dtype).items():
            gradient[name] = max(gradient[name], error)

    search()
    return op, dtype, value, dict(gradient)


def line(op: str, dtype: torch.dtype, value: float, gradient: dict[str, float]) -> str:
    def show(error: float, what: str) -> str:
        return f"{error:.3g}{'*' if error > tolerance(op, what, dtype) else ''}"

    parts = [f"{name} {show(error, 'gradient')}" for name, error in gradient.items()]
    return f"{op:20} {str(dtype)[6:]:8} {show(value, 'value'):>9}   {', '.join(parts)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("ops", nargs="*", metavar="op", help="the ops to measure; all by default")
    parser.add_argument("--examples", type=int, default=300, help="cases per op and dtype")
    args = parser.parse_args()
    jobs = [(op, dtype) for op in args.ops or OPS for dtype in DTYPES]
    print(f"{'op':20} {'dtype':8} {'value':>9}   gradient in each argument")
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for row in [pool.submit(worst, *job, args.examples) for job in jobs]:
            print(line(*row.result()), flush=True)


if __name__ == "__main__":
    main()
