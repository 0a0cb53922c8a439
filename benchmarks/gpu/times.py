"""How fast on this device: the tables of docs/benchmarks.md, and what only a GPU can show.

    python benchmarks/gpu/times.py --seconds 240     # $OUT/gpu-times.json

All competitors of a row run in turns; figures are quantiles of milliseconds between device events.
A row that has no time left is not measured, and missing in the result. The most telling come first.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor, nn

sys.path += [str(folder) for folder in Path(__file__).parents[:2]]

from usual_formulas import LOSSES, MERU, USUAL, usual_loss

from lorentzkit import __version__, ops
from lorentzkit.fused.triton.config import CONFIGS, Config
from lorentzkit.losses import contrastive_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MOST_USUAL = 32768  # pairs a side, of which a formula makes a dozen matrices of 4 GB
# What `CONFIGS` may hold instead: timed with the rest, for a person to choose from.
CANDIDATES = {
    "log_sums": [(128, 64, 32, 8, 3), (128, 128, 32, 8, 3), (64, 64, 32, 4, 3)],
    "vjp": [(64, 64, 32, 8, 3), (128, 64, 32, 8, 3), (128, 64, 32, 8, 2)],
    "product": [(128, 128, 64, 8, 3), (128, 128, 32, 8, 3), (64, 128, 64, 4, 3)],
}

Run = Callable[[], object]


class Clock:
    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.rows: dict[str, Any] = {}

    def row(self, name: str, runs: dict[str, Run], limit: float = 1.5, **extras: Any) -> None:
        """Of each competitor the quantiles; of one that fails, why."""
        if time.monotonic() > self.end:
            return
        times: dict[str, list[float]] = {key: [] for key in runs}
        errors: dict[str, str] = {}
        for key, run in runs.items():  # to warm up; what is compiled, is now
            try:
                run()
                _wait()
            except Exception as error:
                errors[key] = f"{type(error).__name__}: {str(error)[:120]}"
        until = min(self.end, time.monotonic() + limit)
        for done in range(25 if DEVICE == "cuda" else 1):
            if done >= 3 and time.monotonic() > until:
                break
            for key in runs.keys() - errors.keys():
                times[key].append(_milliseconds(runs[key]))
        quantiles = {
            key: [round(float(q), 4) for q in np.percentile(t, [20, 50, 80])]
            for key, t in times.items()
            if t
        }
        self.rows[name] = {"ms": quantiles, "errors": errors, **extras}
        medians = {key: values[1] for key, values in quantiles.items()}
        print(f"{name}: {medians} {extras or ''} {errors or ''}", flush=True)


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _milliseconds(run: Run) -> float:
    if DEVICE != "cuda":
        started = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - started)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    _wait()
    return first.elapsed_time(last)


def _added_mb(run: Run) -> float | None:
    """What a step takes at most besides what is there."""
    if DEVICE != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    _wait()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20)


def points_and_scalars(N: int, D: int, seed: int = 0) -> list[Tensor]:
    """Pairs of points, the curvature and the scale; all learned."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    x = torch.randn(N, D, device=DEVICE, generator=generator)
    y = x + torch.randn(N, D, device=DEVICE, generator=generator)
    for z in (x, y):
        z *= 2 * torch.rand(N, 1, device=DEVICE, generator=generator) / z.norm(dim=1, keepdim=True)
    numbers = [torch.tensor(value, device=DEVICE) for value in (1.0, 14.0)]
    return [z.requires_grad_() for z in (x, y, *numbers)]


def step(loss: Callable[..., Tensor], inputs: list[Tensor]) -> object:
    return torch.autograd.grad(loss(*inputs).sum(), inputs, allow_unused=True)


# --- Parts ----------------------------------------------------------------------------------------


def losses(clock: Clock, small: bool) -> None:
    D = 18 if small else 512
    for N in (40,) if small else (4096, 32768, 1024, 131072):
        for similarity in ("angle",) if small or N == 131072 else LOSSES:
            inputs = points_and_scalars(N, D)
            usual = partial(usual_loss, **LOSSES[similarity])
            runs: dict[str, Run] = {}
            for precision in ("highest",) if small else ("highest", "high"):
                ours = partial(contrastive_loss, precision=precision, **LOSSES[similarity])
                runs[precision] = partial(step, ours, inputs)
            if small or N <= MOST_USUAL:
                runs["usual"] = partial(step, usual, inputs)
                if not small:
                    runs["compiled"] = partial(step, torch.compile(usual), inputs)
            mb = _added_mb(runs["highest"])
            clock.row(f"loss {similarity} {N} {D}", runs, mb=mb)


def graphs(clock: Clock, small: bool) -> None:
    """A step as a CUDA graph: without the time that launches take."""
    if DEVICE != "cuda":
        return
    for N in (256, 4096):
        run = partial(step, contrastive_loss, points_and_scalars(N, 512))
        run()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded):
            run()
        clock.row(f"graph angle {N} 512", {"graph": recorded.replay, "eager": run})


def clusters(clock: Clock, small: bool) -> None:
    """Nearly parallel pairs in every tile: what it costs to compute them again."""
    N, D = (40, 18) if small else (16384, 512)
    x, y, *_ = (z.detach() for z in points_and_scalars(N, D))
    centres = torch.randn(100, D, device=DEVICE)
    u, v = (
        centres[torch.randint(100, (N,), device=DEVICE)] + 0.05 * torch.randn(N, D, device=DEVICE)
        for _ in "uv"
    )
    pairs = {"spread": (x, y), "once more": (x, x), "100 clusters": (u, v)}
    runs: dict[str, Run] = {
        name: partial(ops.pairwise_dist, *points, impl="triton") for name, points in pairs.items()
    }
    clock.row(f"clusters {N} {D}", runs)


def pairwise(clock: Clock, small: bool) -> None:
    D = 18 if small else 512
    for N in (40,) if small else (4096, 16384):
        x, y, c, _ = points_and_scalars(N, D)
        for kind, usual in USUAL.items():
            ours = getattr(ops, f"pairwise_{kind}")
            runs: dict[str, Run] = {
                "auto": partial(step, ours, [x, y, c]),
                "usual": partial(step, usual, [x, y, c]),
            }
            if not small:
                runs["compiled"] = partial(step, torch.compile(usual), [x, y, c])
            clock.row(f"pairwise {kind} {N} {D}", runs)


def topk(clock: Clock, small: bool) -> None:
    N, M, D = (16, 70, 18) if small else (1024, 131072, 512)
    x, y = (z.detach() for z in (points_and_scalars(N, D)[0], points_and_scalars(M, D)[1]))
    curvature = torch.ones((), device=DEVICE)
    runs: dict[str, Run] = {
        "auto": lambda: ops.pairwise_topk(x, y, k=10),
        "usual": lambda: USUAL["dist"](x, y, curvature).topk(10, largest=False),
    }
    clock.row(f"topk dist {N} x {M} {D}", runs)


def elementwise(clock: Clock, small: bool) -> None:
    N, D = (64, 3) if small else (65536, 512)
    x, y, c, _ = points_and_scalars(N, D)
    for kind in ("dist", "exterior_angle", "inner", "expmap0", "logmap0", "entailment_residual"):
        inputs = [x, c] if kind in ("expmap0", "logmap0") else [x, y, c]
        op = getattr(ops, kind)
        runs: dict[str, Run] = {
            "auto": partial(step, lambda *z, op=op: op(*z[:-1], curv=z[-1]), inputs),
            "usual": partial(step, MERU[kind], inputs),
            "copies": lambda inputs=inputs: [z.clone() for z in inputs],
        }
        if not small:
            runs["compiled"] = partial(step, torch.compile(MERU[kind]), inputs)
        clock.row(f"elementwise {kind} {N} {D}", runs, 0.5)


def training(clock: Clock, small: bool) -> None:
    """A step of a ViT-B on random patches, with each loss: what the loss is of it."""
    batch, layers, width = (4, 1, 64) if small else (256, 12, 768)
    layer = nn.TransformerEncoderLayer(
        width, width // 64, 4 * width, activation="gelu", batch_first=True, norm_first=True
    )
    model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).to(DEVICE)
    patches = torch.randn(batch, 8 if small else 197, width, device=DEVICE)
    texts = torch.randn(batch, width, device=DEVICE) / width**0.5
    numbers = points_and_scalars(1, 1)[2:]

    def train_step(loss: Callable[..., Tensor] | None) -> object:
        with torch.autocast(DEVICE, torch.bfloat16):
            images = model(patches).mean(1)
        points = ops.expmap0(images.float() / width**0.5, numbers[0])
        value = images.float().square().mean() if loss is None else loss(texts, points, *numbers)
        value.backward()
        model.zero_grad(set_to_none=True)
        return value

    runs: dict[str, Run] = {"no loss": partial(train_step, None)}
    for similarity in LOSSES:
        runs[similarity] = partial(train_step, partial(contrastive_loss, **LOSSES[similarity]))
        usual = partial(usual_loss, **LOSSES[similarity])
        runs[f"{similarity}, usual"] = partial(train_step, usual)
    clock.row(f"ViT-B {batch}", runs, 6)


def tiles(clock: Clock, small: bool) -> None:
    """A step with other sizes of tiles: on a part of a large problem."""
    N, D = (40, 18) if small else (8192, 512)
    run = partial(step, partial(contrastive_loss, impl="triton"), points_and_scalars(N, D))
    for name, candidates in CANDIDATES.items():
        for use in candidates[:1] if small else candidates:
            kept = {capability: dict(configs) for capability, configs in CONFIGS.items()}
            for configs in CONFIGS.values():
                configs[name] = Config(*use)
            clock.row(f"tiles {name} {use}", {"step": run}, 0.3)
            for capability, configs in kept.items():
                CONFIGS[capability].update(configs)


PARTS = (losses, clusters, graphs, training, pairwise, topk, elementwise, tiles)


def environment() -> dict[str, Any]:
    machine = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor()
    versions = {"torch": torch.__version__, "triton": triton.__version__, "lorentzkit": __version__}
    return {"machine": machine, "python": platform.python_version(), **versions}


def in_time(clock: Clock) -> Iterator[Callable[[Clock, bool], None]]:
    for part in PARTS:
        if time.monotonic() < clock.end:
            yield part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=240)
    args = parser.parse_args()
    if DEVICE == "cpu":
        from interpreter import quicken

        quicken()
    clock, failed = Clock(args.seconds), {}
    for part in in_time(clock):
        try:
            part(clock, args.small)
        except Exception as error:
            failed[part.__name__] = f"{type(error).__name__}: {str(error)[:200]}"
            print(part.__name__, failed[part.__name__], flush=True)
        # After every part, so that a process that is ended leaves what it has.
        made = {"environment": environment(), "rows": clock.rows, "failed": failed}
        path = Path(os.environ.get("OUT", ".")) / "gpu-times.json"
        path.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
