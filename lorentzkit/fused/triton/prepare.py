"""The two sets of points as the kernels want them, and gradients from what the kernels return.

As in `operands`, directions less their common mean; but the half squares are added after the
product, whose digits they would not survive. The product is of float16 numbers, which tensor cores
take twice as fast as tf32: a spread times 2**13 is the sum of two of them, but for its last digit.
For precisions below "highest" it is one. Everything is derived from what is left, so that h is
exact for slightly moved points: the rounded direction then has a length ``rho`` that is not 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit._geometry.special import TINY_LENGTH
from lorentzkit.fused.operands import FEW_DIMENSIONS, recompute_below
from lorentzkit.fused.problems import LossProblem, PairwiseProblem
from lorentzkit.fused.triton.config import FEW_WIDTH, WIDTH, programs
from lorentzkit.fused.triton.elementary import or_one
from lorentzkit.fused.triton.row_formulas import norm_limit, valid_curvature

UNIT = tl.constexpr(2.0**13)  # of the spreads' numbers: the largest is 2, and 2**16 too large
_INVERSE = tl.constexpr(2.0**-13)
_TINY = tl.constexpr(TINY_LENGTH[torch.float32])
_ROWS, _BLOCK = 16, 64  # of a program at a time


class Operands(NamedTuple):
    """The rows of both, those of x first, of each of B matrices."""

    high: Tensor
    """Directions less the mean, times `UNIT`, in float16, ``(B, N + M, width)``, zeros beyond D"""
    low: Tensor
    """What is left of them, the same; of one part, anything"""
    scalars: Tensor
    """``(B, 8, N + M)``: what the kernels read of each point, see `points.load_radial`"""
    length: Tensor
    """``(B, N + M)``, float64"""
    mean: Tensor
    """``(B, D)``"""
    c: Tensor
    """B numbers"""
    scale: Tensor
    N: int
    parts: int
    """Of which the spreads are sums; 0 where there is no product but differences"""


@triton.jit
def matrix_and_program(programs):
    """Of so many programs a matrix: the matrix, and which of its programs this is.

    On one axis of the grid, whose other two have at most 65,535.
    """
    return (tl.program_id(0) // programs).to(tl.int64), tl.program_id(0) % programs


@triton.jit
def _entries(X, Y, i, k, N, M, D):
    """Of the i-th of all points, in float64."""
    within = (k < D)[None, :]
    of_x, of_y = within & (i < N)[:, None], within & ((i >= N) & (i < N + M))[:, None]
    x = tl.load(X + i[:, None] * D + k[None, :], mask=of_x, other=0.0)
    y = tl.load(Y + (i - N)[:, None] * D + k[None, :], mask=of_y, other=0.0)
    return (x + y).to(tl.float64)


@triton.jit
def lengths_kernel(
    X, Y, length, partials, N, M, D, share, programs, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """``partials (B, programs, D)`` of the mean: a program has so large a share of the rows."""
    b, program = matrix_and_program(programs)
    X, Y, length = X + b * N * D, Y + b * M * D, length + b * (N + M)
    first = program.to(tl.int64) * share
    last = tl.minimum(first + share, N + M)
    for start in range(first, last, ROWS):
        i = start + tl.arange(0, ROWS)
        square = tl.zeros((ROWS,), tl.float64)
        for k in range(0, D, BLOCK):
            z = _entries(X, Y, i, k + tl.arange(0, BLOCK), N, M, D)
            square += tl.sum(z * z, 1)
        tl.store(length + i, tl.sqrt(square), mask=i < last)
    tl.debug_barrier()  # other threads read what these have written
    for k_start in range(0, D, BLOCK):
        k = k_start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, ROWS):
            i = start + tl.arange(0, ROWS)
            norm = tl.load(length + i, mask=i < last, other=float("inf"))
            unit = (
                _entries(X, Y, i, k, N, M, D)
                * (tl.where(i < N, 0.5 / N, 0.5 / M) / or_one(norm))[:, None]
            )
            total += tl.sum(tl.where((norm < float("inf"))[:, None], unit, 0.0), 0)  # without NaN
        tl.store(partials + (b * programs + program) * D + k, total, mask=k < D)


@triton.jit
def split_kernel(
    X, Y, length, mean, C, high, low, scalars, N, M, D, width, reach,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b, program = matrix_and_program(tl.cdiv(N + M, ROWS))
    X, Y, length = X + b * N * D, Y + b * M * D, length + b * (N + M)
    mean, C, scalars = mean + b * D, C + b, scalars + b * 8 * (N + M)
    high, low = high + b * (N + M) * width, low + b * (N + M) * width
    i = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    norm = tl.load(length + i, mask=i < N + M, other=1.0)
    half, square = tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64)
    for start in range(0, width, BLOCK):
        k = start + tl.arange(0, BLOCK)
        middle = tl.load(mean + k, mask=k < D, other=0.0).to(tl.float64)[None, :]
        unit = _entries(X, Y, i, k, N, M, D) / or_one(norm)[:, None]
        wanted = ((unit - middle) * UNIT).to(tl.float32)
        address, within = (
            i[:, None] * width + k[None, :],
            (i < N + M)[:, None] & (k < width)[None, :],
        )
        first = wanted.to(tl.float16)
        spread = first.to(tl.float64)
        tl.store(high + address, first, mask=within)
        if PARTS != 1:
            second = (wanted - first.to(tl.float32)).to(tl.float16)
            spread += second.to(tl.float64)
            tl.store(low + address, second, mask=within)
        spread = spread * _INVERSE
        half += 0.5 * tl.sum(spread * spread, 1)
        square += tl.sum((middle + spread) * (middle + spread), 1)
    c = valid_curvature(tl.load(C).to(tl.float64))
    root, limit = tl.sqrt(c), norm_limit(c)
    s = tl.where(norm < _TINY, _TINY, norm)
    s = root * tl.where(s > limit, limit, s)
    cosh, rho = tl.sqrt(1 + s * s), tl.sqrt(square)
    exp_neg = 1 / (s + cosh)
    address = scalars + i
    count, within = N + M, i < N + M
    tl.store(address, half.to(tl.float32), mask=within)
    if PARTS == 1:  # the origin has no direction
        tl.store(address + count, tl.where(norm == 0, 1.0, rho).to(tl.float32), mask=within)
    else:
        tl.store(address + count, 1.0, mask=within)
    tl.store(address + 2 * count, s.to(tl.float32), mask=within)
    tl.store(address + 3 * count, tl.sqrt(s + cosh).to(tl.float32), mask=within)
    tl.store(address + 4 * count, exp_neg.to(tl.float32), mask=within)
    tl.store(
        address + 5 * count, ((s + s * (s / (1 + cosh))) * exp_neg).to(tl.float32), mask=within
    )
    tl.store(address + 6 * count, tl.where(norm == 0, 0.0, 1.0), mask=within)
    of_square = tl.where(half < 5e-4, 1e-3, 2 * half)
    tl.store(address + 7 * count, (reach * of_square).to(tl.float32), mask=within)


def _block(width: int) -> int:
    return min(_BLOCK, int(triton.next_power_of_2(width)))


def prepared_operands(
    problem: PairwiseProblem | LossProblem, scale: Tensor | None = None
) -> Operands:
    """The operands of a problem, of one matrix or of a batch, in three launches."""
    for z in (problem.x, problem.y):
        if z.dtype == torch.float64:
            raise ValueError(
                "impl: 'triton' computes in float32, got float64; use impl='streaming'"
            )
    x, y, c = (z.float().contiguous() for z in (problem.x, problem.y, problem.c))
    *batch, N, D = x.shape
    B, M = math.prod(batch), y.shape[-2]
    few = D <= FEW_DIMENSIONS
    parts = 0 if few else 2 if problem.precision == "highest" else 1
    step = FEW_WIDTH if few else WIDTH
    width = -(-D // step) * step
    length = x.new_empty(B, N + M, dtype=torch.float64)
    share = triton.cdiv(triton.cdiv(N + M, 4 * programs(x.device)), _ROWS) * _ROWS
    shares = triton.cdiv(N + M, share)
    partials = x.new_empty(B, shares, D, dtype=torch.float64)
    lengths_kernel[(B * shares,)](
        x, y, length, partials, N, M, D, share, shares,
        ROWS=_ROWS, BLOCK=_block(width), num_warps=4,
    )  # fmt: skip
    mean = partials.sum(1, dtype=torch.float32)
    spreads = x.new_empty(1 if parts == 1 else 2, B, N + M, width, dtype=torch.float16)
    scalars = x.new_empty(B, 8, N + M, dtype=torch.float32)
    split_kernel[(B * triton.cdiv(N + M, _ROWS),)](
        x, y, length, mean, c, spreads[0], spreads[-1], scalars, N, M, D, width,
        math.sqrt(recompute_below(D, 1e-3)) / 1e-3,
        PARTS=parts, ROWS=_ROWS, BLOCK=_block(width), num_warps=4,
    )  # fmt: skip
    scale = c if scale is None else scale
    return Operands(spreads[0], spreads[-1], scalars, length, mean, c, scale, N, parts)


# --- Gradients ------------------------------------------------------------------------------------


@triton.jit
def gradient_kernel(
    high, low, scalars, length, mean, C, sums, sums_matrix, total, out, number, D, width, count,
    PARTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``(sum_j W_ij (u_i cos - v_j)) / |x| + u_i da_i``; see `gradient`."""
    b, program = matrix_and_program(tl.cdiv(number, ROWS))
    high, low = high + b * count * width, low + b * count * width
    scalars, length = scalars + b * 8 * count, length + b * count
    mean, C, sums = mean + b * D, C + b, sums + b * sums_matrix
    total, out = total + b * number * D, out + b * number * D
    i = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    within = i < number
    norm = tl.load(length + i, mask=within, other=1.0)
    rho = tl.load(scalars + count + i, mask=within, other=1.0).to(tl.float64)
    s = tl.load(scalars + 2 * count + i, mask=within, other=0.0).to(tl.float64)
    weight = tl.load(sums + i, mask=within, other=0.0).to(tl.float64)
    radius = tl.load(sums + number + i, mask=within, other=0.0).to(tl.float64)
    c = valid_curvature(tl.load(C).to(tl.float64))
    along = tl.zeros((ROWS,), tl.float64)
    for start in range(0, D, BLOCK):
        unit, unit_gradient = _unit_and_gradient(
            high, low, mean, total, weight, rho, i, start, number, D, width, PARTS, BLOCK
        )
        along += tl.sum(unit * unit_gradient, 1)
    outwards = tl.where(norm > norm_limit(c), 0.0, radius * tl.sqrt(c) / tl.sqrt(1 + s * s))
    across = 1 / tl.where(norm < _TINY, _TINY, norm)
    for start in range(0, D, BLOCK):
        unit, unit_gradient = _unit_and_gradient(
            high, low, mean, total, weight, rho, i, start, number, D, width, PARTS, BLOCK
        )
        k = start + tl.arange(0, BLOCK)
        by = unit_gradient * across[:, None] + unit * (outwards - along * across)[:, None]
        tl.store(
            out + i[:, None] * D + k[None, :],
            by.to(tl.float32),
            mask=within[:, None] & (k < D)[None, :],
        )


@triton.jit
def _unit_and_gradient(
    high, low, mean, total, weight, rho, i, start, number, D, width,
    PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Directions, and the gradients by them but for the part along them."""
    k = start + tl.arange(0, BLOCK)
    within = (i < number)[:, None] & (k < D)[None, :]
    middle = tl.load(mean + k, mask=k < D, other=0.0).to(tl.float64)[None, :]
    spread = tl.load(high + i[:, None] * width + k[None, :], mask=within, other=0.0).to(tl.float64)
    if PARTS != 1:
        rest = tl.load(low + i[:, None] * width + k[None, :], mask=within, other=0.0)
        spread += rest.to(tl.float64)
    sums = tl.load(total + i[:, None] * D + k[None, :], mask=within, other=0.0).to(tl.float64)
    unit = (middle + spread * _INVERSE) / rho[:, None]
    return unit, -rho[:, None] * (sums * _INVERSE + weight[:, None] * middle)


def gradient(operands: Operands, rows: slice, total: Tensor, sums: Tensor) -> Tensor:
    """By the points ``rows`` of all, in the place of ``total``.

    Args:
        total: ``(B, n, D)``, of each point the sum of W times the other side's spreads. W is the
            derivative by h, divided by the lengths rho of both directions.
        sums: ``(B, 2 or more, n)``, of W and of the derivatives by the radius.
    """
    (B, number, D), (count, width) = total.shape, operands.high.shape[1:]
    gradient_kernel[(B * triton.cdiv(number, _ROWS),)](
        operands.high[:, rows], operands.low[:, rows], operands.scalars[:, 0, rows],
        operands.length[:, rows], operands.mean, operands.c,
        sums, sums.stride(0), total, total, number, D, width, count,
        PARTS=operands.parts, ROWS=_ROWS, BLOCK=_block(width), num_warps=4,
    )  # fmt: skip
    return total
