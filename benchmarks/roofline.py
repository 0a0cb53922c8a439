"""The losses under the roof of this machine: its products' rate, its memory's, and what is moved.

    python benchmarks/roofline.py --measure    # on a quiet machine: results/roofline.json
    python benchmarks/roofline.py              # draws that, and brings it into docs/kernels.md

`--measure` times the two peaks and one step of each loss, forward and backward, in turns in one
process. Bytes are counted, not measured: every operation reads its arguments from memory and writes
its result there, but for tensors of at most a block of `streaming`, which stay in the cache. Of an
H100 there is only the data sheet, which is drawn without any measurement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import torch
from measure import THREADS, environment, step
from report import DOCS, RESULTS
from report.markers import write
from report.plots import BLUE, GREEN, ORANGE
from suites import Row
from torch import Tensor
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorentzkit.fused import streaming
from lorentzkit.fused.problems import LogSums, LossGradients, LossProblem, PairwiseProblem

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

NAMES = {"usual": "usual formulas", "compiled": "the same, compiled", "auto": "lorentzkit"}
COLOURS = {"usual": ORANGE, "compiled": GREEN, "auto": BLUE}
PARTS = {"forward": "o", "backward": "v"}
KINDS = {"both angles": "o", "distance": "^", "cosine": "s"}
BLOCK = 4 * streaming.ROWS * streaming.COLUMNS  # bytes
# Of NVIDIA's data sheet for the H100 SXM, without sparsity: bytes and FLOP a second.
# "highest" makes three products of one.
H100_MEMORY, H100 = 3.35e12, {"high": 989.4e12, "highest": 989.4e12 / 3}
COMPILED = Path(__file__).parent / "results" / "compiled.json"

MARKERS = "<!-- roofline:begin -->", "<!-- roofline:end -->"


def work(N: int, D: int) -> int:
    """FLOP that the loss needs: a product for its value, and two for its gradients."""
    return 3 * 2 * N * N * D


# --- Bytes ----------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write, of tensors larger than a block."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in function.name():
            large = (
                t
                for t in tree_leaves((args, out))
                if isinstance(t, Tensor) and t.untyped_storage().nbytes() > BLOCK
            )
            self.bytes += sum(t.numel() * t.element_size() for t in large)
        return out


def traffic(row: Row, name: str, function: Callable[..., Tensor]) -> int:
    """Bytes of one step."""
    inputs = row.inputs()
    if name == "compiled":  # as its compiler counts them, which it does where it finds none kept
        metrics.reset()
        inductor_metrics_log.setLevel("INFO")  # or it does not count
        with torch._inductor.config.patch(force_disable_caches=True):
            step(function, inputs)
        assert metrics.num_bytes_accessed
        return int(metrics.num_bytes_accessed)
    with Traffic() as counted, torch.compiler.set_stance("force_eager"):
        if name == "auto":
            blocks(row.kind, *inputs)
        else:
            step(function, inputs)
    return counted.bytes


@torch.no_grad()
def blocks(kind: str, x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> LossGradients:
    """What `contrastive_loss` does with all pairs, in plain sight: its own ops are opaque."""
    c, ids = c.reshape(1), (torch.arange(len(x)),) * 2
    kind = "angles" if kind == "both angles" else kind
    prepared = streaming.prepare(PairwiseProblem(x, y, c, kind, "highest"))
    problem = LossProblem(x, y, c, scale, *ids, *ids, kind, "highest", prepared)
    sums = streaming.log_sums(problem)
    return streaming.log_sums_gradients(problem, sums, LogSums(*map(torch.ones_like, sums)))


# --- Time -----------------------------------------------------------------------------------------


def peaks() -> dict[str, Callable[[], float]]:
    """A large product, in FLOP a second; a sum of large vectors, in bytes a second."""
    a, b, c = torch.randn(3, 2048, 2048)
    u, v, w = torch.randn(3, 2**25)
    product, total = partial(torch.mm, a, b, out=c), partial(torch.add, u, v, out=w)
    return {
        "product": lambda: 2 * 2048**3 / duration(product),
        "memory": lambda: 3 * 4 * 2**25 / duration(total),
    }


def duration(function: Callable[[], object]) -> float:
    return sum(step(lambda: torch.as_tensor(function()), []))


def measure(N: int, D: int, rounds: int) -> dict[str, Any]:
    moved, steps = {}, {}
    for kind in KINDS:
        row = Row("loss", kind, N, D)
        functions = row.functions()
        for name in NAMES:
            moved[kind, name] = traffic(row, name, functions[name])
            steps[kind, name] = partial(step, functions[name], row.inputs())
    for warm in steps.values():
        warm()
    roof = peaks()
    samples: dict[Any, list[float]] = {key: [] for key in (*roof, *steps)}
    for _ in range(rounds):
        for key, run in steps.items():
            for name, peak in roof.items():
                samples[name].append(peak())
            samples[key].append(sum(run()))
    return {
        "environment": environment(),
        "N": N,
        "D": D,
        "rounds": rounds,
        "peaks": {name: float(f"{np.percentile(samples[name], 80):.3g}") for name in roof},
        "steps": [
            {
                "kind": k,
                "name": n,
                "ms": round(1e3 * median(samples[k, n]), 1),
                "bytes": moved[k, n],
            }
            for k, n in steps
        ],
    }


# --- A GPU, by its data sheet ---------------------------------------------------------------------


def kernels(N: int, D: int, precision: str) -> dict[str, float]:
    """FLOP for each byte, as the code of `lorentzkit.fused.triton` moves them: N = M points.

    A launch reads each of its operands once: that a tile needs again is left to the cache.
    """
    from lorentzkit.fused.triton.config import CHUNK

    cloud, product = N * D * (4 if precision == "highest" else 2), 2 * N * N * D
    # The weights are written once and read twice. Each part of the rows takes the other cloud
    # twice, and adds to its gradient, 4 bytes a number.
    parts = -(-N // min(N, CHUNK // N))
    backward = 3 * 4 * N * N + 2 * cloud + parts * (2 * cloud + 2 * 4 * N * D)
    return {"forward": product / (2 * cloud), "backward": 3 * product / backward}


def bound(precision: str) -> dict[str, float]:
    """FLOP a second if no part of a kernel overlaps another, by its compiled code."""
    from compiled import D, N, serial

    rows = json.loads(COMPILED.read_text("utf-8"))["rows"]
    times = serial(rows, precision, "exterior")
    forward = times.pop("log_sums_kernel")
    product = 1e3 * 2 * N * N * D
    return {"forward": product / forward, "backward": 3 * product / sum(times.values())}


# --- The figure -----------------------------------------------------------------------------------


def draw_machine(ax: Axes, results: dict[str, Any]) -> None:
    N, D, peaks = results["N"], results["D"], results["peaks"]
    roof(ax, peaks["product"], peaks["memory"], (1, 300), "black")
    for entry in results["steps"]:
        position = work(N, D) / entry["bytes"], 1e-9 * work(N, D) / (1e-3 * entry["ms"])
        ax.plot(*position, KINDS[entry["kind"]], color=COLOURS[entry["name"]], markersize=10)
    for name, label in NAMES.items():
        ax.plot([], [], "s", color=COLOURS[name], label=label)
    for kind, marker in KINDS.items():
        ax.plot([], [], marker, color="black", markerfacecolor="none", label=kind)
    ax.legend(loc="lower right", ncols=2)
    machine, threads = (results["environment"][key] for key in ("machine", "threads"))
    ax.set_title(f"{machine}, {threads} threads\none step of the loss, N = M = {N:,}, D = {D}")
    ax.set(xlabel="FLOP needed, for each byte moved", ylabel="GFLOP needed, a second")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def draw_data_sheet(ax: Axes) -> None:
    N, D = 32768, 512
    for (precision, rate), colour in zip(H100.items(), COLOURS.values(), strict=False):
        roof(ax, rate, H100_MEMORY, (10, 1e4), colour, label=precision)
        for part, intensity in kernels(N, D, precision).items():
            most = 1e-9 * min(rate, intensity * H100_MEMORY)
            ax.plot(intensity, most, PARTS[part], color=colour, markersize=10, markerfacecolor="w")
            rate_bound = 1e-9 * bound(precision)[part]
            ax.plot(intensity, rate_bound, PARTS[part], color=colour, markersize=10)
    for part, marker in PARTS.items():
        ax.plot([], [], marker, color="black", markerfacecolor="none", label=f"{part}, at most")
        ax.plot([], [], marker, color="black", label="if nothing overlaps")
    ax.legend(loc="lower right", ncols=2)
    ax.set_title(f"not measured: H100, by its data sheet and compiled code\nN = M = {N:,}, D = {D}")
    ax.set(xlabel="FLOP done, for each byte moved", ylabel="GFLOP a second, at most")


def roof(
    ax: Axes, rate: float, memory: float, over: tuple[float, float], colour: str, label: str = ""
) -> None:
    """The most that can be done, in GFLOP a second, with so many FLOP for each byte."""
    x = np.geomspace(*over, 200)
    ax.loglog(x, 1e-9 * np.minimum(rate, memory * x), color=colour, label=label or None)


def section(results: dict[str, Any]) -> str:
    """The measured figure and its numbers, as markdown."""
    N, D, roof = results["N"], results["D"], results["peaks"]
    picture = "images/roofline.png"
    alt = "Nine losses under the roof of a CPU: the numbers are those of the table"
    lines = [f"[![{alt}]({picture})]({picture})", ""]
    lines += ["| loss | | GB moved | ms | at least, ms | share of the roof |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for entry in results["steps"]:
        least = 1e3 * max(work(N, D) / roof["product"], entry["bytes"] / roof["memory"])
        cells = [
            entry["kind"],
            NAMES[entry["name"]],
            f"{1e-9 * entry['bytes']:.1f}",
            f"{entry['ms']:.0f}",
        ]
        cells += [f"{least:.0f}", f"{100 * least / entry['ms']:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    machine, threads = (results["environment"][key] for key in ("machine", "threads"))
    made = f"{machine}, {threads} threads: {1e-9 * roof['product']:.0f} GFLOP/s of products, "
    return "\n".join([*lines, "", f"{made}{1e-9 * roof['memory']:.0f} GB/s of memory."])


def save(draw: Callable[[Axes], None], path: Path) -> None:
    figure, ax = pyplot.subplots(figsize=(7.2, 4.6), layout="constrained")
    draw(ax)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="time this machine first")
    parser.add_argument("--rounds", type=int, default=9, help="of all steps, in turns")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    file, images = args.results / "roofline.json", args.docs / "images"
    if args.measure:
        torch.set_num_threads(THREADS)
        file.write_text(json.dumps(measure(4096, 512, args.rounds), indent=1) + "\n", "utf-8")
    with pyplot.rc_context({"font.size": 13, "axes.titlesize": 13}):
        save(draw_data_sheet, images / "roofline-h100.png")
        if file.exists():
            results = json.loads(file.read_text("utf-8"))
            save(partial(draw_machine, results=results), images / "roofline.png")
            write(args.docs / "kernels.md", section(results), MARKERS)


if __name__ == "__main__":
    main()
