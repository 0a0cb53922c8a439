"""How fast: losses and pairwise matrices, forward and backward, against what is used now.

    python benchmarks/run.py loss                              # the table of docs/kernels.md
    python benchmarks/run.py pairwise --sizes 512 4096
    python benchmarks/run.py loss --sizes 512 --dimensions 64 --kinds distance --seconds 10

All competitors of a row run in one process, in turns, after one turn for warming up; figures are
quantiles over the turns. "floor" is the time of the row's matrix products alone. Peak memory is
what one step adds to a fresh process. A competitor whose matrices would not fit is left out. Rows
replace those of the same name in the file of results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rivals import USUAL, Floor, geoopt_dist, usual_loss
from torch import Tensor

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

RESULTS = Path(__file__).parent / "results"
KINDS = {"loss": ["angle", "distance", "cosine"], "pairwise": ["exterior_angle", "dist", "inner"]}
OURS = ("auto", "reference")
MATRICES = {"usual": 40, "compiled": 12, "reference": 70}  # held at once by the angle loss
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


class Row(NamedTuple):
    suite: str
    kind: str
    N: int
    D: int

    def inputs(self) -> list[Tensor]:
        """Texts and images as a trained model has them: in pairs, at radii up to 2."""
        torch.manual_seed(0)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        x = torch.randn(self.N, self.D, device=device)
        y = x + torch.randn(self.N, self.D, device=device)
        for z in (x, y):
            z *= 2 * torch.rand(self.N, 1, device=device) / z.norm(dim=1, keepdim=True)
        scalars = [1.0, 14.0] if self.suite == "loss" else [1.0]
        tensors = [x, y, *(torch.tensor(s, device=device) for s in scalars)]
        return [t.requires_grad_() for t in tensors]

    def functions(self) -> dict[str, Callable[..., Tensor]]:
        if self.suite == "loss":
            usual = partial(usual_loss, similarity=self.kind)
            ours = partial(contrastive_loss, similarity=self.kind)
        else:
            usual, ours = USUAL[self.kind], getattr(ops, f"pairwise_{self.kind}")
        every = {name: partial(ours, impl=name) for name in OURS}
        every |= {"usual": usual, "compiled": torch.compile(usual)}
        if self.kind == "dist":
            every["geoopt"] = geoopt_dist
        return {name: f for name, f in every.items() if self.fits(name)}

    def fits(self, name: str) -> bool:
        if name == "geoopt":
            return 0.7 * _memory() > self.N * self.N * self.D * 4 * 8
        return self.N * self.N * 4 * MATRICES.get(name, 0) < 0.7 * _memory()


def _memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- Time -----------------------------------------------------------------------------------------


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    started = _now()
    out = function(*inputs)
    between = _now()
    torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    return between - started, _now() - between


def floor_step(floor: Floor) -> tuple[float, float]:
    started = _now()
    floor.forward()
    between = _now()
    floor.backward()
    return between - started, _now() - between


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(row: Row, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Quantiles 20, 50, 80 of milliseconds, by competitor and by part."""
    inputs = row.inputs()
    floor = Floor(*inputs[:2], again=row.suite == "loss")
    steps = {name: partial(step, f, inputs) for name, f in row.functions().items()}
    steps["floor"] = partial(floor_step, floor)
    for warm in steps.values():
        warm()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    started = time.perf_counter()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name, run in steps.items():
            times[name].append(run())
    return {name: _quantiles(1e3 * np.array(t)) for name, t in times.items()}


def _quantiles(times: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    parts = {"forward": times[:, 0], "backward": times[:, 1], "both": times.sum(1)}
    return {
        part: [round(float(q), 3) for q in np.percentile(t, [20, 50, 80])]
        for part, t in parts.items()
    }


# --- Memory ---------------------------------------------------------------------------------------


def peak(row: Row, name: str) -> int:
    """MB that a step adds, after a small one has loaded what it needs."""
    if torch.cuda.is_available():
        step(row.functions()[name], row.inputs())
        inputs = row.inputs()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(row.functions()[name], inputs)
        return (torch.cuda.max_memory_allocated() - before) >> 20
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak_of_process, row, name).result()


def _peak_of_process(row: Row, name: str) -> int:
    torch.set_num_threads(2)
    step(row.functions()[name], row._replace(N=512).inputs())
    inputs = row.inputs()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(row.functions()[name], inputs)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10


# --- Output ---------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "geoopt", "numpy", "lorentzkit")},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: medians of forward and backward, and what the others take compared to ours."""
    names = ["auto", "floor", "usual", "compiled", "reference", "geoopt"]
    heads = ["lorentzkit, ms", "x floor", "usual formulas", "compiled", "reference", "geoopt"]
    yield f"| | N = M | D | {' | '.join(heads)} | memory, MB: lorentzkit | usual |"
    yield "| --- " * (len(heads) + 5) + "|"
    for row in rows:
        time_of = {name: parts["both"][1] for name, parts in row["ms"].items()}
        ours = time_of["auto"]
        cells = [f"{ours:.0f}", f"{ours / time_of['floor']:.2f}"]
        cells += [f"{time_of[n] / ours:.1f}x" if n in time_of else "" for n in names[2:]]
        cells += [str(row["peak_mb"].get(name, "")) for name in ("auto", "usual")]
        yield f"| {row['kind']} | {row['N']:,} | {row['D']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=KINDS)
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 2048, 4096])
    parser.add_argument("--dimensions", nargs="+", type=int, default=[512])
    parser.add_argument("--seconds", type=float, default=40, help="for the turns of one row")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/SUITE-DEVICE.json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = args.out or RESULTS / f"{args.suite}-{device}.json"
    rows: dict[str, dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else {}
    for kind in args.kinds or KINDS[args.suite]:
        for N in args.sizes:
            for D in args.dimensions:
                row = Row(args.suite, kind, N, D)
                torch.compiler.reset()
                x = row.inputs()[0]
                rows[f"{kind} {N} {D}"] = {
                    "kind": kind,
                    "N": N,
                    "D": D,
                    "impl": ops.pairwise_impl(x, x),
                    "ms": measure(row, args.seconds),
                    "peak_mb": {n: peak(row, n) for n in ("auto", "usual") if row.fits(n)},
                }
                print(*list(table([rows[f"{kind} {N} {D}"]]))[2:], flush=True)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
    print("\n".join(table(list(rows.values()))))


if __name__ == "__main__":
    main()
