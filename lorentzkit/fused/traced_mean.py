"""The Einstein midpoint under `torch.compile`, on a CPU: a custom op that looks at the values.

Which sum is exact depends on where the points are and on how many there are (`_geometry.means`). A
compiler does not see where they are, and one graph has to serve all sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry import means
from lorentzkit._geometry.elementary import is_exporting
from lorentzkit._geometry.vectors import by_autograd, cpu_op, run
from lorentzkit.fused.traced import no_transform


def midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """See `means.einstein_midpoint`."""
    compiling = torch.compiler.is_compiling() and not is_exporting()
    if not compiling or x.device.type != "cpu" or not no_transform():
        return means.einstein_midpoint(x, w, c)
    mean: Tensor = run(_Midpoint, x, w, c)
    return mean


class _Midpoint(Function):
    @staticmethod
    def compute(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        mean: Tensor = torch.ops.lorentzkit.midpoint(x, w, c)
        return mean

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(x, w, c)
        return _Midpoint.compute(x, w, c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad)
        grads = iter(torch.ops.lorentzkit.midpoint_gradients(*ctx.saved_tensors, grad, needed))
        return tuple(next(grads) if need else None for need in needed)


_POINTS = "Tensor x, Tensor w, Tensor c"


def _midpoint_fake(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    sets = torch.broadcast_shapes(x.shape[:-2], c.shape[:-2])  # type: ignore[no-untyped-call]
    return w.new_empty((*sets, 1, x.shape[-1]))


@cpu_op(f"midpoint({_POINTS}) -> Tensor", _midpoint_fake)
def _midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    return means.einstein_midpoint(x, w, c).contiguous()


def _gradients_fake(
    x: Tensor, w: Tensor, c: Tensor, grad: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    wanted = [z for z, need in zip((x, w, c), needed, strict=True) if need]
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in wanted]


@cpu_op(f"midpoint_gradients({_POINTS}, Tensor grad, bool[] needed) -> Tensor[]", _gradients_fake)
def _midpoint_gradients(
    x: Tensor, w: Tensor, c: Tensor, grad: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    grads = by_autograd(_differentiated, (x, w, c), grad, needed)
    return [g.contiguous() for g in grads]


def _differentiated(
    points: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [z.detach().requires_grad_(need) for z, need in zip(points, needed, strict=True)]
        mean = means.einstein_midpoint(*inputs)
        return torch.autograd.grad(mean, [z for z in inputs if z.requires_grad], grad)
