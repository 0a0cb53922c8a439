"""The rows of run.py under pytest-benchmark, to work on one of them.

    pytest benchmarks/bench_steps.py -k "dist and not compiled and not later" --benchmark-autosave
    pytest benchmarks/bench_steps.py -k "dist and not compiled and not later" --benchmark-compare

Competitors are timed one after the other, so a machine that changes its pace favours some of them:
figures to quote are run.py's, which takes turns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from measure import THREADS
from suites import KINDS, Row

SIZES = {"elementwise": (1024, 64), "import": ()}
SMALL = (256, 64)  # of pairs: from 512 x 512 on, ours is compiled
ROWS = [Row(s, kind, *SIZES.get(s, SMALL)) for s in KINDS if s != "memory" for kind in KINDS[s]]


@pytest.fixture(autouse=True, scope="module")
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


CASES = [
    pytest.param(row, name, id=f"{row.suite}-{row.kind}-{name}")
    for row in ROWS
    for name in row.names()
]


@pytest.mark.parametrize(("row", "name"), CASES)
def test_step(row: Row, name: str, benchmark: Any) -> None:
    """Forward and backward together."""
    benchmark.group = f"{row.suite} {row.key}"
    benchmark(row.steps([])[name])
