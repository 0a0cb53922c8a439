"""Kernels of ops that single out a coordinate, and their gradients: half-space maps, `add_time`.

A row is a vector v and its last coordinate, of half-space coordinates the height; that of
`add_time` is v alone. The result is ``growth v`` and a number, again the last coordinate or, of
`add_time`, the first one. Otherwise as in `row_kernels`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from lorentzkit.fused.triton.elementary import or_one
from lorentzkit.fused.triton.row_formulas import length_of, norm_limit, norm_limit_partial
from lorentzkit.fused.triton.row_kernels import curvature, entries, write


class Result(NamedTuple):
    """With derivatives by ``|v|**2``, by the last coordinate and by c."""

    growth: tl.tensor
    growth_by_square: tl.tensor
    growth_by_last: tl.tensor
    growth_by_c: tl.tensor
    number: tl.tensor
    number_by_square: tl.tensor
    number_by_last: tl.tensor
    number_by_c: tl.tensor


# --- Formulas -------------------------------------------------------------------------------------


@triton.jit
def add_time(square, c):
    none, time = tl.zeros_like(c), tl.sqrt(1 / c + square)
    return Result(1 + (c - c), none, none, none, time, 0.5 / time, none, -0.5 / (c * c * time))


@triton.jit
def to_halfspace(square, last, c):
    root, time = tl.sqrt(c), tl.sqrt(1 / c + (square + last * last))
    # 1/(c (time - last)), where that difference cancels from the other light-like coordinate
    total = time + tl.abs(last)
    height = tl.where(last > 0, total / (1 + c * square), 1 / (c * total))
    ratio = height / time
    by_square, by_c = -0.5 * c * height * ratio, height * (0.5 * ratio - 1) / c
    return Result(
        root * height, root * by_square, root * ratio, 0.5 * height * (ratio - 1) / root,
        height, by_square, ratio, by_c,
    )  # fmt: skip


@triton.jit
def from_halfspace(square, height, c):
    """With the number times the height first: ``last``, and with v then ``size``."""
    t, s = tl.where(height > 0, height, float("nan")), 1 / tl.sqrt(c)
    high = (t - s) * (t + s)
    last = 0.5 * (high + square)
    size2 = square / c + last * last
    size, limit = tl.sqrt(size2), norm_limit(c)
    beyond, size2 = size > limit * t, or_one(size2)
    factor = tl.where(beyond, limit / or_one(size), 1 / t)
    # The derivatives of its logarithm; at the largest radius that of the number has no multiple.
    by_square = tl.where(beyond, -0.5 * (1 / c + last) / size2, 0.0)
    by_t = tl.where(beyond, -last * t / size2, -1 / t)
    by_c = tl.where(beyond, norm_limit_partial(c) + 0.5 * (square - last) / (c * c * size2), 0.0)
    number_by_square = tl.where(beyond, 0.25 * (square - high) / (c * size2), 0.5)
    number_by_t = tl.where(beyond, t * (square / c) / size2, t - last / t)
    along = 0.5 * square * (1 / c + last) / (c * c * size2) + last * norm_limit_partial(c)
    number_by_c = tl.where(beyond, along, 0.5 / (c * c))
    growth = s * factor
    return Result(
        growth, growth * by_square, growth * by_t, growth * (by_c - 0.5 / c),
        factor * last, factor * number_by_square, factor * number_by_t, factor * number_by_c,
    )  # fmt: skip


@triton.jit
def _result(OP: tl.constexpr, square, last, c):
    if OP == "add_time":
        return add_time(square, c)
    elif OP == "to_halfspace":
        return to_halfspace(square, last, c)
    else:
        return from_halfspace(square, last, c)


# --- Rows -----------------------------------------------------------------------------------------


@triton.jit
def _places(D, OP: tl.constexpr):
    """Length of v; length of the result, and where its part of v and its number begin."""
    if OP == "add_time":
        return D, D + 1, 1, 0
    else:
        return D - 1, D, 0, D - 1


class Row(NamedTuple):
    square: tl.tensor
    last: tl.tensor
    shrink: tl.tensor
    """By how much both are shortened, to be no longer than is computed with"""
    along: tl.tensor
    """Product of v with the gradient of its part of the result"""


@triton.jit
def _row(
    X, x_row, x_column, G, g_row, g_column, i, N, K, c,
    OP: tl.constexpr, GIVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    none = tl.zeros((ROWS, BLOCK), tl.float64)
    xx, xg = none, none
    for start in range(0, K, BLOCK):
        x = entries(X, x_row, x_column, i, start, N, K, BLOCK)
        xx += x * x
        if GIVEN:
            xg += x * entries(G, g_row, g_column, i, start, N, K, BLOCK)
    square, last, most = tl.sum(xx, 1), tl.zeros_like(c), norm_limit(c)
    if OP != "add_time":
        address = X + i * x_row + (tl.zeros_like(i) + K) * x_column
        last = tl.load(address, mask=i < N, other=1.0).to(tl.float32).to(tl.float64)
    if OP == "from_halfspace":
        most = 2 * most  # farther out is beyond the largest radius
    r = length_of(square + last * last)
    shrink = tl.where(r > most, most / or_one(r), 1.0) + (r - r)  # of NaN all is NaN
    return Row(square * shrink * shrink, last * shrink, shrink, tl.sum(xg, 1) * shrink)


@triton.jit
def apart_kernel(
    X, x_row, x_column, C, c_row, out, N, D,
    OP: tl.constexpr, ONE_FOR_ALL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = curvature(C, c_row, i, N, ONE_FOR_ALL)
    K, length, first, number = _places(D, OP)
    row = _row(X, x_row, x_column, None, 0, 0, i, N, K, c, OP, False, ROWS, BLOCK)
    result = _result(OP, row.square, row.last, c)
    tl.store(out + i * length + number, result.number.to(tl.float32), mask=i < N)
    growth = result.growth * row.shrink
    for start in range(0, K, BLOCK):
        x = entries(X, x_row, x_column, i, start, N, K, BLOCK)
        write(out + first, length, growth[:, None] * x, i, start, N, K, BLOCK)


@triton.jit
def apart_vjp_kernel(
    X, x_row, x_column, C, c_row, G, g_row, g_column, by_x, by_c, N, D,
    OP: tl.constexpr, ONE_FOR_ALL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients for that with respect to the result, G; those that are None are left out."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = curvature(C, c_row, i, N, ONE_FOR_ALL)
    K, _, first, number = _places(D, OP)
    grad_output = G + i * g_row + (tl.zeros_like(i) + number) * g_column
    grad_output = tl.load(grad_output, mask=i < N, other=0.0).to(tl.float64)
    G += first * g_column
    row = _row(X, x_row, x_column, G, g_row, g_column, i, N, K, c, OP, True, ROWS, BLOCK)
    result = _result(OP, row.square, row.last, c)
    of_x = 2 * (row.along * result.growth_by_square + grad_output * result.number_by_square)
    of_last = row.along * result.growth_by_last + grad_output * result.number_by_last
    of_c = row.along * result.growth_by_c + grad_output * result.number_by_c
    # What was moved to the largest length has no gradient radially, but by that length.
    moved = row.shrink < 1
    radial = result.growth * row.along + of_x * row.square + of_last * row.last
    radial_part = tl.where(moved, radial / or_one(row.square + row.last * row.last), 0.0)
    if OP == "from_halfspace":
        of_c += tl.where(moved, radial * norm_limit_partial(c), 0.0)
    if by_c is not None:
        tl.store(by_c + i, of_c.to(by_c.dtype.element_ty), mask=i < N)
    if by_x is not None:
        of_g, of_x = row.shrink * result.growth, row.shrink * row.shrink * (of_x - radial_part)
        for start in range(0, K, BLOCK):
            x = entries(X, x_row, x_column, i, start, N, K, BLOCK)
            g = entries(G, g_row, g_column, i, start, N, K, BLOCK)
            total = of_x[:, None] * x + of_g[:, None] * g
            write(by_x, D, total, i, start, N, K, BLOCK)
        if OP != "add_time":
            of_last = row.shrink * (of_last - radial_part * row.last)
            of_last = of_last.to(tl.float32).to(by_x.dtype.element_ty)
            tl.store(by_x + i * D + K, of_last, mask=i < N)
