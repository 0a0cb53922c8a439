"""How fast: losses and pairwise matrices, forward and backward, against what is used now.

    python benchmarks/run.py loss --sizes 512 4096
    python benchmarks/run.py pairwise
    python benchmarks/run.py topk
    python benchmarks/run.py loss --sizes 512 --dimensions 64 --kinds distance --seconds 10
    python benchmarks/run.py memory --sizes 32768 --kinds angle    # of the loss; no times
    python benchmarks/run.py table --write docs/kernels.md         # of all results; runs nothing

All competitors of a row run in one process, in turns, after one turn for warming up; figures are
quantiles over the turns. "floor" is the time of the row's matrix products alone. Peak memory is
what one step adds to a fresh process. A competitor whose matrices would not fit is left out. Rows
replace those of the same name in the file of results, and all rows of another machine.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import re
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
from markers import write
from rivals import USUAL, Floor, geoopt_dist, usual_loss
from torch import Tensor

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

RESULTS = Path(__file__).parent / "results"
KINDS = {
    "loss": ["angle", "distance", "cosine"],
    "pairwise": ["exterior_angle", "dist", "inner"],
    "topk": ["exterior_angle", "dist", "inner"],
    "memory": ["angle", "distance", "cosine"],
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARKERS = "<!-- speed:begin -->", "<!-- speed:end -->"
OURS = ("auto", "reference")
MATRICES = {"usual": 40, "compiled": 12, "reference": 70}  # held at once by the angle loss
ENVIRONMENT = ("machine", "threads", "torch")
LEAST_ROUNDS, MOST_ROUNDS = 3, 25


class Row(NamedTuple):
    suite: str
    kind: str
    N: int
    D: int

    def inputs(self) -> list[Tensor]:
        """Texts and images as a trained model has them: in pairs, at radii up to 2."""
        torch.manual_seed(0)
        x = torch.randn(self.N, self.D, device=DEVICE)
        y = x + torch.randn(self.N, self.D, device=DEVICE)
        for z in (x, y):
            z *= 2 * torch.rand(self.N, 1, device=DEVICE) / z.norm(dim=1, keepdim=True)
        scalars = [1.0, 14.0] if self.suite in ("loss", "memory") else [1.0]
        tensors = [x, y, *(torch.tensor(s, device=DEVICE) for s in scalars)]
        return [t.requires_grad_() for t in tensors]

    def functions(self) -> dict[str, Callable[..., Tensor]]:
        if self.suite in ("loss", "memory"):
            usual = partial(usual_loss, similarity=self.kind)
            ours = partial(contrastive_loss, similarity=self.kind)
        elif self.suite == "topk":
            usual = partial(usual_topk, kind=self.kind)
            ours = partial(nearest, kind=self.kind)
            return {"auto": ours, "usual": usual, "compiled": torch.compile(usual)}
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
    if out.requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    return between - started, _now() - between


def floor_step(floor: Floor, backward: bool) -> tuple[float, float]:
    started = _now()
    floor.forward()
    between = _now()
    if backward:
        floor.backward()
    return between - started, _now() - between


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def nearest(x: Tensor, y: Tensor, c: Tensor, kind: str) -> Tensor:
    return ops.pairwise_topk(x, y, 10, c, score=kind)[0]


@torch.no_grad()
def usual_topk(x: Tensor, y: Tensor, c: Tensor, kind: str) -> Tensor:
    return USUAL[kind](x, y, c).topk(10, largest=False)[0]


def measure(row: Row, seconds: float, without: list[str]) -> dict[str, dict[str, list[float]]]:
    """Quantiles 20, 50, 80 of milliseconds, by competitor and by part."""
    inputs = row.inputs()
    floor = Floor(*inputs[:2], again=row.suite == "loss")
    steps = {
        name: partial(step, f, inputs) for name, f in row.functions().items() if name not in without
    }
    steps["floor"] = partial(floor_step, floor, row.suite != "topk")
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
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide some of what is added
    # The process's own peak from here on: that of `getrusage` is inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step(row.functions()[name], inputs)
    return (_resident("VmHWM") - before) >> 10


def _resident(name: str) -> int:
    """kB, by the kernel."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


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


NAMES = {
    "auto": "lorentzkit, ms",
    "floor": "x floor",
    "usual": "usual formulas",
    "compiled": "compiled",
    "reference": "reference",
    "geoopt": "geoopt",
}


def cells(row: dict[str, Any]) -> str:
    """Medians of forward and backward, and what the others take compared to ours."""
    time_of = {name: parts["both"][1] for name, parts in row["ms"].items()}
    ours = time_of["auto"]
    found = [f"{ours:.0f}" if ours >= 10 else f"{ours:.1f}", f"{ours / time_of['floor']:.2f}"]
    found += [f"{time_of[n] / ours:.1f}x" if n in time_of else "" for n in list(NAMES)[2:]]
    found += [str(row["peak_mb"].get(name, "")) for name in ("auto", "usual")]
    return f"| {row['kind']} | {row['N']:,} | {row['D']} | {' | '.join(found)} |"


def tables(folder: Path) -> Iterator[str]:
    """Markdown, of all results."""
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text())
        suite = path.stem.split("-")[0]
        rows = sorted(results["rows"].values(), key=lambda r: (r["kind"], r["D"], r["N"]))
        if suite == "memory":
            megabytes = [f"{r['kind']} {r['peak_mb']} MB" for r in rows]
            yield f"Memory that one step of the loss adds at N = M = {rows[0]['N']:,}, "
            yield f"D = {rows[0]['D']}: {', '.join(megabytes)}."
        else:
            machine, threads, torch_ = (results["environment"][k] for k in ENVIRONMENT)
            yield f"`{suite}`, {machine}, {threads} threads, torch {torch_}:"
            yield ""
            heads = ["", "N = M", "D", *NAMES.values(), "memory, MB: lorentzkit", "usual"]
            yield f"| {' | '.join(heads)} |"
            yield f"{'| --- ' * len(heads)}|"
            yield from map(cells, rows)
        yield ""


def results(row: Row, seconds: float, without: list[str]) -> dict[str, Any]:
    about = {"kind": row.kind, "N": row.N, "D": row.D}
    if row.suite == "memory":
        return about | {"peak_mb": peak(row, "auto")}
    torch.compiler.reset()
    x = row.inputs()[0]
    about |= {"impl": ops.pairwise_impl(x, x), "ms": measure(row, seconds, without)}
    return about | {"peak_mb": {n: peak(row, n) for n in ("auto", "usual") if row.fits(n)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=[*KINDS, "table"])
    parser.add_argument("--kinds", nargs="+", help="default: all")
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 2048, 4096])
    parser.add_argument("--dimensions", nargs="+", type=int, default=[512])
    parser.add_argument("--seconds", type=float, default=40, help="for the turns of one row")
    parser.add_argument("--without", nargs="+", default=[], help="competitors left out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of SUITE-DEVICE.json")
    parser.add_argument("--write", type=Path, metavar="FILE", help="file with the table's markers")
    args = parser.parse_args()
    torch.set_num_threads(2)
    if args.suite != "table":
        run(args)
    text = "\n".join(tables(args.results)).strip()
    print(text)
    if args.write:
        write(args.write, text, MARKERS)


def run(args: argparse.Namespace) -> None:
    out = args.results / f"{args.suite}-{DEVICE}.json"
    old = json.loads(out.read_text()) if out.exists() else {}
    # Rows of another machine, or of other versions, do not belong beside these.
    rows: dict[str, Any] = old["rows"] if old.get("environment") == environment() else {}
    for kind in args.kinds or KINDS[args.suite]:
        for N in args.sizes:
            for D in args.dimensions:
                row = results(Row(args.suite, kind, N, D), args.seconds, args.without)
                rows[f"{kind} {N} {D}"] = row
                if args.suite == "memory":
                    print(kind, N, D, row["peak_mb"], "MB", flush=True)
                else:
                    print(cells(row), flush=True)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
