"""Is what the kernels compute on this device right? A line for each check; status 1 if one failed.

    python benchmarks/gpu/check.py [PART ...]     # all parts but "step"
    python benchmarks/gpu/check.py step --small   # one step of everything, for compute-sanitizer

The truth is float64 on the same device: the elementwise ops' formulas, whose own exactness the
tests prove against multi-precision arithmetic.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path += [str(folder) for folder in Path(__file__).parents[:2]]

from usual_formulas import LOSSES

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = {
    "inner": ops.pairwise_inner,
    "dist": ops.pairwise_dist,
    "exterior_angle": ops.pairwise_exterior_angle,
}
STEP = 2.0**-24  # a rounding of float32
ROUNDINGS = 16  # docs/kernels.md
SMALL = [(1, 1, 3), (1, 7, 40), (7, 1, 40), (70, 50, 33)]
REHEARSED = [(1, 7, 3), (40, 70, 18)]
LARGE = [(64, 64, 16), (252, 1023, 20), (507, 9, 130), (1000, 777, 1000), (2048, 4096, 512)]

failed: list[str] = []
started = time.monotonic()


def check(name: str, good: bool, text: str = "") -> None:
    if not good:
        failed.append(name)
    elapsed = time.monotonic() - started
    print(f"{'ok  ' if good else 'FAIL'} {elapsed:5.0f} s {name} {text}", flush=True)


def points(n: int, D: int, seed: int, radius: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=-1)
    return (unit * radius * torch.rand(n, 1, generator=generator)).to(DEVICE)


def point_sets(N: int, M: int, D: int) -> tuple[Tensor, Tensor]:
    """With a duplicate, an exact opposite and the origin among them."""
    x, y = points(N, D, 0), points(M, D, 1)
    x[0], y[-1] = y[0], -2 * x[-1]
    if min(N, M) > 3:
        x[1], y[1], x[2] = 0, 0, 0
    return x, y


def results(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """The value, and the gradients of its sum with fixed weights."""
    leaves = [t.detach().to(dtype).clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    grad_output = torch.ones_like(out) if out.dim() == 0 else weights
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_output, materialize_grads=True)]


def share_allowed(outputs: list[Tensor], exact: list[Tensor], relative: float) -> float:
    """The largest error by what is allowed: of each result, so much of its largest entry."""
    shares = (
        (a.double() - b).abs().max() / (relative * b.abs().max().clamp_min(1))
        for a, b in zip(outputs, exact, strict=True)
    )
    return max(float(share.nan_to_num(math.inf)) for share in shares)


# --- Parts ----------------------------------------------------------------------------------------


def matrices(small: bool) -> None:
    for N, M, D in REHEARSED if small else SMALL + LARGE:
        for name, op in OPS.items():
            tensors = *point_sets(N, M, D), torch.tensor(0.7, device=DEVICE)
            outputs = results(lambda *z, op=op: op(*z, impl="triton"), tensors, torch.float32)
            exact = results(lambda *z, op=op: op(*z, impl="reference"), tensors, torch.float64)
            most = ROUNDINGS * STEP * math.sqrt(max(N, M))
            share = share_allowed(outputs, exact, most)
            check(f"matrix {name} {N} x {M} x {D}", share <= 1, f"{share:.2f} of what is allowed")


def losses(small: bool) -> None:
    sizes = [(40, 18)] if small else [(1, 3), (130, 70), (513, 512)]
    precisions = {"highest": 3e-5} if small else {"highest": 3e-5, "high": 5e-3, "medium": 5e-3}
    for N, D in sizes:
        for similarity, options in LOSSES.items():
            for precision, relative in precisions.items():
                tensors = points(N, D, 0), points(N, D, 1), *_numbers(20.0)
                outputs = results(
                    lambda *z, options=options, p=precision: contrastive_loss(
                        *z, **options, impl="triton", precision=p
                    ),
                    tensors,
                    torch.float32,
                )
                exact = results(
                    lambda *z, options=options: contrastive_loss(*z, **options, impl="streaming"),
                    tensors,
                    torch.float64,
                )
                share = share_allowed(outputs, exact, relative)
                name = f"loss {similarity} {precision} {N} x {D}"
                check(name, share <= 1, f"{share:.2f} of what is allowed")


def _numbers(scale: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(1.0, device=DEVICE), torch.tensor(scale, device=DEVICE)


def large(small: bool) -> None:
    """Some rows of a large loss, against the same rows in float64."""
    N, D, count = (70, 18, 40) if small else (131072, 64, 256)
    x, y = points(N, D, 0), points(N, D, 1)
    numbers = _numbers(20.0)
    with torch.no_grad():
        of_x, _ = contrastive_loss(x, y, *numbers, reduction="none", impl="triton")
        rows = (z.double() for z in (x[:count], y, *numbers))
        exact, _ = contrastive_loss(*rows, targets=0, reduction="none", impl="streaming")
    off = float((of_x[:count] - exact).abs().max() / exact.abs().max())
    check(f"rows of a loss of {N}", off < 1e-5, f"off by {off:.1e}")
    leaves = [z.requires_grad_() for z in (x, y)]
    whole = torch.autograd.grad(contrastive_loss(x, y, *numbers, impl="triton"), leaves)
    check(f"gradients of a loss of {N}", all(bool(g.isfinite().all()) for g in whole))


def search(small: bool) -> None:
    x, y = points(37, 20, 0), points(150 if small else 50000, 20, 1)
    y[100] = y[7]
    for k in (10,) if small else (1, 10, 40, 128):
        exact = ops.pairwise_dist(x.double(), y.double()).topk(k, largest=False).values
        distances, i = ops.pairwise_topk(x, y, k=k, impl="triton")
        off = float((distances.double() - exact).abs().max())
        distinct = all(len(set(row)) == k for row in i.tolist())
        check(f"topk k={k}", off < 2e-6 and distinct, f"off by {off:.1e}")


def nearly_parallel(small: bool) -> None:
    """Clusters: nearly all pairs are computed again."""
    D = 20 if small else 512
    centre = points(3, D, 0).double()
    x, y = (
        (centre[torch.arange(n, device=DEVICE) % 3] * (1 + 1e-3 * points(n, D, s))).float()
        for n, s in ((60, 1), (60 if small else 300, 2))
    )
    distances = ops.pairwise_dist(x, y, impl="triton").double()
    exact = ops.pairwise_dist(x.double(), y.double())
    most = ROUNDINGS * STEP * 3
    check("clusters", bool(((distances - exact).abs() <= most).all()))


def nan(small: bool) -> None:
    for name, op in OPS.items():
        x, y = points(9, 20, 0), points(8, 20, 1)
        x[3, 5] = math.nan
        seen = op(x, y, impl="triton").isnan()
        check(f"NaN in {name}", bool(seen[3].all()) and int(seen.sum()) == 8)


def repeated(small: bool) -> None:
    """The same digits on every run, also where fresh memory is filled with NaN."""
    N, D = (40, 18) if small else (300, 100)
    tensors = points(N, D, 0), points(N, D, 1), *_numbers(14.0)
    run = lambda: results(lambda *z: contrastive_loss(*z, impl="triton"), tensors, torch.float32)  # noqa: E731
    first, same = run(), True
    for _ in range(1 if small else 20):
        same &= all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    check("the same digits on every run", same)
    torch.use_deterministic_algorithms(True)
    try:
        filled = all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)
    check("nothing is left unwritten", filled)


def graph(small: bool) -> None:
    """A step as a CUDA graph, replayed with other points."""
    leaves = [points(512, 128, 0), points(512, 128, 1), *_numbers(14.0)]
    for leaf in leaves:
        leaf.requires_grad_()

    def step() -> list[Tensor]:
        loss = contrastive_loss(*leaves, impl="triton")
        return [loss, *torch.autograd.grad(loss, leaves)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        out = step()
    with torch.no_grad():
        leaves[0].copy_(points(512, 128, 7))
    recorded.replay()
    check("a CUDA graph", all(torch.equal(a, b) for a, b in zip(out, step(), strict=True)))


def stream(small: bool) -> None:
    """On a stream that waits for its arguments."""
    x, y = points(700, 300, 0), points(700, 300, 1)
    expected = ops.pairwise_dist(x, y, impl="triton")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        busy = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            busy = (busy @ busy) * 1e-3
        distances = ops.pairwise_dist(x + 0 * busy[0, 0].nan_to_num(0, 0, 0), y, impl="triton")
    side.synchronize()
    check("another stream", torch.equal(distances, expected))


def elementwise(small: bool) -> None:
    """Values and gradients of ops side by side, near and far."""
    for name in ("dist", "exterior_angle", "inner"):
        for radius in (1e-3, 2.0, 1e3):
            D = 3 if small else 40
            x, y = points(90, D, 0, radius), points(90, D, 1, radius)
            tensors = x, y, torch.tensor(0.7, device=DEVICE)
            op = getattr(ops, name)
            outputs = results(op, tensors, torch.float32)
            exact = results(op, tensors, torch.float64)
            shares = [
                float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
                for a, b in zip(outputs, exact, strict=True)
            ]
            worst = max(shares)
            check(f"{name} at radius {radius:g}", worst < ROUNDINGS * STEP, f"off by {worst:.1e}")


def step(small: bool) -> None:
    """One small step of everything that launches a kernel."""
    for N, M, D in [(40, 20, 18), (5, 6, 3)]:
        x, y = point_sets(N, M, D)
        for op in OPS.values():
            tensors = x, y, torch.tensor(0.7, device=DEVICE)
            results(lambda *z, op=op: op(*z, impl="triton"), tensors, torch.float32)
        ops.pairwise_topk(x, y, k=3, impl="triton")
        n = min(N, M)
        for precision in ("highest", "high"):
            results(
                lambda *z, p=precision: contrastive_loss(*z, impl="triton", precision=p),
                (x[:n], y[:n], *_numbers(5.0)),
                torch.float32,
            )
    check("a step", True)


PARTS = {
    f.__name__: f
    for f in (matrices, losses, large, search, nearly_parallel, nan, repeated, elementwise)
}
ON_A_GPU = {f.__name__: f for f in (graph, stream)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    if DEVICE == "cpu":
        from interpreter import quicken

        quicken()
    parts = PARTS | (ON_A_GPU if DEVICE == "cuda" else {})
    for name in args.parts or parts:
        try:
            (parts | {"step": step})[name](args.small)
        except Exception:
            traceback.print_exc(limit=4)
            check(name, False, "raised")
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"{len(failed)} failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
