"""Ops on rows of vectors: by one kernel where there is a GPU, else by a torch function.

The kernels give first derivatives; second derivatives come from the torch function. No op waits for
the GPU: so only the torch functions on a CPU reject invalid values, and a kernel returns NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lorentzkit._geometry.arguments import (
    check_broadcast,
    curvature,
    vectors,
    working_dtype,
)
from lorentzkit._geometry.rowwise import differentiated, near_rows
from lorentzkit._geometry.vectors import eager
from lorentzkit.fused import traced
from lorentzkit.fused.devices import interpreted, why_no_kernels
from lorentzkit.fused.traced import in_torch

_INTERPRETED = interpreted() and not torch.cuda.is_available()
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rows(
    op: str,
    curv: float | Tensor,
    *,
    t: float | Tensor | None = None,
    cone: tuple[float, float] | None = None,
    **named: Tensor,
) -> Tensor:
    """An op by a kernel, by Gram numbers if all is near the origin, or by its `in_torch` function.

    Args:
        op: one of `lorentzkit.fused.triton.rows.OPS`.
        curv: a number or a tensor ``(...)``.
        t: the parameter of "geodesic".
        cone: ``min_radius`` and ``aperture_scale``, for ops on cones.
        named: the vectors ``(..., D)`` in the op's order, by the names that errors give them.
    """
    plain = traced.plain(op, cone)
    tensors = list(named.values())
    if by_kernel([curv, *([] if t is None else [t])], tensors) and op in _kernels().OPS:
        return _run_kernel(op, plain, curv, t, cone or (0.1, 1.0), named)
    if torch.compiler.is_compiling():
        if traced.serves(op, tensors, curv, t):
            return traced.call(op, named, curv, t, cone)
    else:
        near = near_rows(op, plain, curv, t, cone[0] if cone else 0.0, named)
        if near is not None:
            return near
    return plain(*([] if t is None else [t]), *tensors, curv)


def _run_kernel(
    op: str,
    plain: Callable[..., Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    cone: tuple[float, float],
    named: dict[str, Tensor],
) -> Tensor:
    tensors = vectors(**named)
    device = tensors[0].device
    if isinstance(curv, Tensor):
        curv = curv.to(device)
    else:
        curv = float(curvature(curv, torch.float32, torch.device("cpu")))
    if t is not None:
        x = tensors[0]
        t = t.to(device) if isinstance(t, Tensor) else x.new_full((), t, dtype=torch.float32)
    leading = {name: v.shape[:-1] for name, v in zip(named, tensors, strict=True)}
    curv_shape, t_shape = (z.shape if isinstance(z, Tensor) else () for z in (curv, t))
    check_broadcast(curv_shape, t_shape, **leading)
    shape = torch.broadcast_shapes(curv_shape, t_shape, *leading.values())  # type: ignore[no-untyped-call]
    flat = [v.expand(*shape, v.shape[-1]).reshape(-1, v.shape[-1]) for v in tensors]
    c, t = (
        (z.reshape(1) if z.numel() == 1 else z.expand(shape).reshape(-1))
        if isinstance(z, Tensor)
        else z
        for z in (curv, t)
    )
    values: Tensor = _Rows.apply(op, plain, cone, c, t, *flat)  # type: ignore[no-untyped-call]
    return values.view((*shape, *values.shape[1:]))


def by_kernel(numbers: list[float | Tensor], tensors: list[Tensor]) -> bool:
    """Whether there is a kernel for such rows of vectors, curvature and parameter."""
    if torch.compiler.is_compiling() or not all(isinstance(v, Tensor) for v in tensors):
        return False
    if tensors[0].is_cpu != _INTERPRETED or not eager(tensors[0]):
        return False
    device = tensors[0].device
    if why_no_kernels(device):
        return False
    for z in numbers:
        if isinstance(z, Tensor) and (
            not z.is_floating_point()
            or z.numel() == 0
            or working_dtype(*tensors, z) != torch.float32
            or (z.device != device and z.dim() > 0)
        ):
            return False
    return all(
        v.dtype in _DTYPES
        and v.device == device
        and v.numel() > 0
        and not is_traceable_wrapper_subclass(v)
        for v in tensors
    )


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.rows")


class _Rows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        op: str,
        plain: Callable[..., Tensor],
        cone: tuple[float, float],
        c: Tensor | float,
        t: Tensor | None,
        *vectors: Tensor,
    ) -> Tensor:
        ctx.op, ctx.plain, ctx.cone = op, plain, cone
        ctx.number = None if isinstance(c, Tensor) else c
        ctx.save_for_backward(c if isinstance(c, Tensor) else None, t, *vectors)
        values: Tensor = _kernels().values(op, vectors, c, t, cone)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_c, by_t, *by_vectors = ctx.needs_input_grad[3:]
        c, t, *vectors = ctx.saved_tensors
        c = ctx.number if c is None else c
        if torch.is_grad_enabled():
            needed = [by_c, by_t, *by_vectors]
            grad_c, grad_t, *vector_grads = differentiated(
                ctx.plain, [c, t, *vectors], grad, needed
            )
        else:
            needed = [*by_vectors, by_c, by_t]
            grads = _kernels().gradients(ctx.op, vectors, c, grad, needed, t, ctx.cone)
            vector_grads, grad_c, grad_t = grads
        return (None, None, None, grad_c, grad_t, *vector_grads)


__all__ = ["by_kernel", "in_torch", "rows"]
