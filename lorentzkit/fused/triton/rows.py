"""An op on rows of vectors in one launch, and its gradients in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from lorentzkit.fused.triton.devices import on_device
from lorentzkit.fused.triton.row_apart import apart_kernel, apart_vjp_kernel
from lorentzkit.fused.triton.row_kernels import rows_kernel, rows_vjp_kernel


class Op(NamedTuple):
    vectors: int
    points: int
    """How many of the vectors are points, the first ones: these are kept to the largest radius"""
    scalar: bool
    """Whether the result is one number a row, of "angles" two: at x and at y"""
    angle: bool = True
    """Whether it takes more than the products of the vectors"""
    apart: bool = False
    """Whether one coordinate is not like the others, see `row_apart`"""


OPS = {
    "dist": Op(2, 2, True),
    "inner": Op(2, 2, True),
    "exterior_angle": Op(2, 2, True),
    "interior_angle": Op(2, 2, True),
    "angles": Op(2, 2, True),
    "cosine": Op(2, 2, True),
    "entailment_residual": Op(2, 2, True),
    "dist0": Op(1, 1, True, False),
    "time": Op(1, 1, True, False),
    "half_aperture": Op(1, 1, True, False),
    "tangent_norm": Op(2, 1, True),
    "tangent_inner": Op(3, 1, True),
    "expmap": Op(2, 1, False),
    "logmap": Op(2, 2, False),
    "expmap0": Op(1, 0, False, False),
    "logmap0": Op(1, 1, False, False),
    "to_klein": Op(1, 1, False, False),
    "to_poincare": Op(1, 1, False, False),
    "from_klein": Op(1, 0, False, False),
    "from_poincare": Op(1, 0, False, False),
    "to_halfspace": Op(1, 1, False, False, True),
    "from_halfspace": Op(1, 0, False, False, True),
    "add_time": Op(1, 1, False, False, True),
    "geodesic": Op(2, 2, False),
    "transp": Op(3, 2, False),
    "transp0": Op(2, 1, False, False),
    "transp0back": Op(2, 1, False, False),
    "egrad2rgrad": Op(2, 1, False, False),
}

_LONG, _ENTRIES = 64, 256  # a longer row has a warp for itself, which takes so many entries at once
_ROWS = 32  # of short ones a warp has one for each of its threads, or scalars would spill


def values(
    op: str,
    vectors: Sequence[Tensor],
    c: Tensor | float,
    t: Tensor | None = None,
    cone: tuple[float, float] = (0.1, 1.0),
) -> Tensor:
    """Rows of one number ``(N,)`` or of `width` numbers, in float32.

    Args:
        vectors: ``(N, D)`` each, float32 or half, of any strides.
        c: a number, or ``(1,)`` or ``(N,)``.
        t: of `ops.geodesic`, ``(1,)`` or ``(N,)``.
        cone: ``min_radius`` and ``aperture_scale``, see `ops.entailment_residual`.
    """
    x, numbers = vectors[0], width(op, vectors[0].shape[1])
    out = x.new_empty((len(x), numbers) if numbers else len(x), dtype=torch.float32)
    if OPS[op].apart:
        _launch_apart(apart_kernel, op, x, c, (out,))
    else:
        _launch(rows_kernel, op, vectors, c, t, cone, (out,))
    return out


def width(op: str, D: int) -> int:
    """How many numbers a row of the result has; 0 where it is but a number."""
    if OPS[op].scalar:
        return 2 if op == "angles" else 0
    return D + 1 if op == "add_time" else D


class Gradients(NamedTuple):
    """By the vectors, by c and by t, each like what it is by; None of what is not needed."""

    vectors: list[Tensor | None]
    c: Tensor | None
    t: Tensor | None


def gradients(
    op: str,
    vectors: Sequence[Tensor],
    c: Tensor | float,
    grad_output: Tensor,
    needed: Sequence[bool],
    t: Tensor | None = None,
    cone: tuple[float, float] = (0.1, 1.0),
) -> Gradients:
    """Of ``(at * values).sum()``.

    Args:
        needed: which of them, the vectors first, then c and t.
    """
    *by_vectors, by_c, by_t = needed
    vector_gradients = [
        torch.empty_like(v, memory_format=torch.contiguous_format) if need else None
        for v, need in zip(vectors, by_vectors, strict=True)
    ]
    numbers = [z if isinstance(z, Tensor) and need else None for z, need in ((c, by_c), (t, by_t))]
    wide = grad_output.new_empty(2, len(grad_output), dtype=torch.float64)
    of_c, of_t = by_row = [_by_row(z, wide[k]) for k, z in enumerate(numbers)]
    strides = (grad_output.stride(0), grad_output.stride(1) if grad_output.dim() > 1 else 0)
    if OPS[op].apart:
        _launch_apart(
            apart_vjp_kernel, op, vectors[0], c, (grad_output, *strides, vector_gradients[0], of_c)
        )
    else:
        outputs = (
            grad_output,
            *strides,
            *vector_gradients,
            *[None] * (3 - len(vector_gradients)),
            of_c,
            of_t,
        )
        _launch(rows_vjp_kernel, op, vectors, c, t, cone, outputs)
    return Gradients(vector_gradients, *_summed(numbers, by_row, wide))


def _by_row(number: Tensor | None, wide: Tensor) -> Tensor | None:
    """Where the derivative by it goes, row by row: in float64 if it is to be summed or rounded."""
    if number is None or len(number) == 1 or number.dtype != torch.float32:
        return None if number is None else wide
    return torch.empty_like(wide, dtype=torch.float32)


def _summed(
    numbers: Sequence[Tensor | None], by_row: Sequence[Tensor | None], wide: Tensor
) -> list[Tensor | None]:
    """By one number, the sum over the rows; by two of one dtype, both in one launch."""
    dtypes = [z.dtype for z in numbers if z is not None and len(z) == 1]
    if len(dtypes) == 2 and dtypes[0] == dtypes[1]:
        sums = wide.sum(1, keepdim=True).to(dtypes[0])
        return [sums[0], sums[1]]
    return [
        None
        if z is None or total is None
        else (total.sum(0, keepdim=True) if len(z) == 1 else total).to(z.dtype)
        for z, total in zip(numbers, by_row, strict=True)
    ]


def _launch(
    kernel: Any,
    op: str,
    vectors: Sequence[Tensor],
    c: Tensor | float,
    t: Tensor | None,
    cone: tuple[float, float],
    outputs: tuple[Any, ...],
) -> None:
    (N, D), signature = vectors[0].shape, OPS[op]
    rows, block = _sizes(D, vectors)
    operands = [p for v in vectors for p in (v, *v.stride())] + [None, 0, 0] * (3 - len(vectors))
    numbers = [p for number in (c, t) for p in (number, _row_stride(number))]
    with on_device(vectors[0]):
        kernel[(triton.cdiv(N, rows),)](
            *operands, *numbers, *_halves(2 * cone[0]), *_halves(cone[1]), *outputs, N, D,
            OP=op, VECTORS=signature.vectors, POINTS=signature.points, SCALAR=signature.scalar,
            ANGLE=signature.angle,
            ONE_FOR_ALL=isinstance(c, float), ROWS=rows, BLOCK=block, num_warps=1,
        )  # fmt: skip


def _launch_apart(
    kernel: Any, op: str, x: Tensor, c: Tensor | float, outputs: tuple[Any, ...]
) -> None:
    N, D = x.shape
    rows, block = _sizes(D)
    with on_device(x):
        kernel[(triton.cdiv(N, rows),)](
            x, *x.stride(), c, _row_stride(c), *outputs, N, D,
            OP=op, ONE_FOR_ALL=isinstance(c, float), ROWS=rows, BLOCK=block, num_warps=1,
        )  # fmt: skip


def _row_stride(number: Tensor | float | None) -> int:
    """0 of one for all rows."""
    return number.stride(0) if isinstance(number, Tensor) and len(number) > 1 else 0


def _sizes(D: int, vectors: Sequence[Tensor] = ()) -> tuple[int, int]:
    """How many rows a program has, and how many entries of each it takes at a time.

    Args:
        vectors: those whose entries are taken from the first to the last, all D.
    """
    if D > _LONG:
        return 1, min(_ENTRIES, triton.next_power_of_2(D))
    # Each thread goes along its row, and by 16 bytes where Triton sees that they are aligned.
    aligned = all(v.stride(0) % 16 == 0 and v.stride(1) == 1 for v in vectors)
    return _ROWS, 4 if vectors and aligned else 1


def _halves(number: float) -> tuple[float, float]:
    """As a sum of two float32 numbers, for a kernel takes no others."""
    high = float(np.float32(number))
    return high, number - high
