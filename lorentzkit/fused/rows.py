"""Ops on rows of vectors: by one kernel where there is a GPU, else by a torch function.

The kernels are of first derivatives; the second are those of the torch function. Invalid values,
which only the torch functions on a CPU look for, come out as NaN: no op waits for the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
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
from lorentzkit._geometry.invariants import eager

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rows(
    op: str,
    plain: Callable[..., Tensor],
    curv: float | Tensor,
    *,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
    **named: Tensor,
) -> Tensor:
    """``plain(*vectors, curv)``, by a kernel if there is one for such tensors.

    Args:
        op: one of `lorentzkit.fused.triton.rows.OPS`.
        plain: the op in torch: it checks its arguments, and has derivatives of every order.
        curv: a number or a tensor ``(...)``.
        min_radius, aperture_scale: of `ops.entailment_residual`; ``plain`` knows them.
        named: the vectors ``(..., D)`` in the op's order, by the names that errors give them.
    """
    if not _by_kernel(curv, list(named.values())):
        return plain(*named.values(), curv)
    tensors = vectors(**named)
    leading = {name: v[..., 0] for name, v in zip(named, tensors, strict=True)}
    if isinstance(curv, Tensor):
        check_broadcast(**leading, curv=curv)
        curv = curv.to(tensors[0].device)
        leading["curv"] = curv
    else:
        check_broadcast(**leading)
        curv = float(curvature(curv, torch.float32, torch.device("cpu")))
    shape = torch.broadcast_shapes(*(t.shape for t in leading.values()))  # type: ignore[no-untyped-call]
    flat = [v.expand(*shape, v.shape[-1]).reshape(-1, v.shape[-1]) for v in tensors]
    if isinstance(curv, Tensor):
        curv = curv.reshape(1) if curv.numel() == 1 else curv.expand(shape).reshape(-1)
    cone = (min_radius, aperture_scale)
    of: Tensor = _Rows.apply(op, plain, cone, curv, *flat)  # type: ignore[no-untyped-call]
    return of.view((*shape, *of.shape[1:]))


def _by_kernel(curv: object, tensors: list[Tensor]) -> bool:
    if not all(isinstance(v, Tensor) for v in tensors) or not eager(tensors[0]):
        return False
    device = tensors[0].device
    if device.type != ("cpu" if _INTERPRETED else "cuda") or not _triton_is_there():
        return False
    if isinstance(curv, Tensor):
        if not curv.is_floating_point() or working_dtype(*tensors, curv) != torch.float32:
            return False
        if curv.device != device and curv.dim() > 0:
            return False
    return all(
        v.dtype in _DTYPES
        and v.device == device
        and v.numel() > 0
        and not is_traceable_wrapper_subclass(v)
        for v in tensors
    )


@cache
def _triton_is_there() -> bool:
    return find_spec("triton") is not None


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
        *vectors: Tensor,
    ) -> Tensor:
        ctx.op, ctx.plain, ctx.cone = op, plain, cone
        ctx.number = None if isinstance(c, Tensor) else c
        ctx.save_for_backward(*vectors, *((c,) if isinstance(c, Tensor) else ()))
        of: Tensor = _kernels().values(op, vectors, c, *cone)
        return of

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_c, *by_vectors = ctx.needs_input_grad[3:]
        needed = [*by_vectors, by_c]
        inputs = [*ctx.saved_tensors, *(() if ctx.number is None else (ctx.number,))]
        if torch.is_grad_enabled():
            *found, of_c = _differentiated(ctx.plain, inputs, grad, needed)
        else:
            *tensors, c = inputs
            found, of_c = _kernels().gradients(ctx.op, tensors, c, grad, needed, *ctx.cone)
            if of_c is not None:
                of_c = (of_c.sum(0, keepdim=True) if len(c) == 1 else of_c).to(c.dtype)
        return (None, None, None, of_c, *found)


def _differentiated(
    plain: Callable[..., Tensor],
    inputs: list[Tensor | float],
    grad: Tensor,
    needed: list[bool],
) -> list[Tensor | None]:
    """The gradients, themselves differentiable."""
    leaves = [
        t.view_as(t) if isinstance(t, Tensor) and need else t
        for t, need in zip(inputs, needed, strict=True)
    ]
    wanted = [t for t, need in zip(leaves, needed, strict=True) if isinstance(t, Tensor) and need]
    found = iter(torch.autograd.grad(plain(*leaves), wanted, grad, create_graph=True))
    return [next(found) if need else None for need in needed]
