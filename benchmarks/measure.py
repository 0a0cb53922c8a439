"""How the benchmarks measure: competitors in turns in one process, memory in a fresh one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

# The workers of a parallel compiler start beside the first steps that are timed.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry import compilation

T = TypeVar("T")
Step = Callable[[], tuple[float, float]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREADS = 2
LEAST_ROUNDS, MOST_ROUNDS = 3, 25

# --- Time -----------------------------------------------------------------------------------------


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    started = now()
    out = function(*inputs)
    between = now()
    if out.requires_grad:
        torch.autograd.grad(out, inputs, torch.ones_like(out), allow_unused=True)
    return between - started, now() - between


def floor_step(floor: Any, backward: bool) -> tuple[float, float]:
    started = now()
    floor.forward()
    between = now()
    if backward:
        floor.backward()
    return between - started, now() - between


def earning(work: float, run: Step) -> tuple[float, float]:
    """A step in which an op's rows are compiled once they have done so much work."""
    with mock.patch.object(compilation, "_EARNS_COMPILING", work):
        return run()


def fresh_process(statement: str) -> tuple[float, float]:
    """Seconds that a new interpreter takes to run the statement and end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - started, 0.0


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def keep_memory() -> None:
    """Lets this process keep the memory that a step frees, as far as glibc allows.

    Otherwise it is chance whether a step reuses its 8 MB or gets new ones, zeroed page by page.
    Zeroing takes longer than the work on them: the times of one row varied by a factor of four.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: more is refused


def in_turns(steps: dict[str, Step], budget_s: float) -> dict[str, dict[str, list[float]]]:
    """Quantiles 20, 50, 80 of the milliseconds, by competitor and by part.

    One turn of each warms up and is not counted. Turns go on for about `budget_s` seconds,
    but there are at least LEAST_ROUNDS and at most MOST_ROUNDS of them.
    """
    for warm_up in steps.values():
        warm_up()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    started = time.perf_counter()
    for round_ in range(MOST_ROUNDS):
        if round_ >= LEAST_ROUNDS and time.perf_counter() - started > budget_s:
            break
        for name, run in steps.items():
            times[name].append(run())
    return {name: _quantiles(1e3 * np.array(t)) for name, t in times.items()}


def _quantiles(times: np.ndarray[Any, Any]) -> dict[str, list[float]]:
    parts = {"forward": times[:, 0], "backward": times[:, 1], "both": times.sum(1)}
    return {
        part: [round(float(q), 4) for q in np.percentile(t, [20, 50, 80])]
        for part, t in parts.items()
        if t.any()
    }


# --- Memory ---------------------------------------------------------------------------------------


def installed_memory() -> int:
    if DEVICE == "cuda":
        return torch.cuda.mem_get_info()[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def added_by(run: Callable[[], object]) -> int:
    """The most MB that `run` adds to this process."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) >> 20
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free already would hide a part of the peak
    # Reset the process's own peak. That of `getrusage` would be inherited from the parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return (_resident("VmHWM") - before) >> 10


def _resident(name: str) -> int:
    """A field of the process's status in kB, as the kernel reports it."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1])


# --- Where ----------------------------------------------------------------------------------------


def environment(*packages: str) -> dict[str, Any]:
    return {
        "machine": torch.cuda.get_device_name() if DEVICE == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{p: version(p) for p in ("torch", "geoopt", "numpy", "lorentzkit", *packages)},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
