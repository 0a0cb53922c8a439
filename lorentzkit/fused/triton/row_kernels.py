"""Kernels of an op on rows of vectors, and of its gradients.

A program has some short rows, or one long one, and goes over their entries three times: for
products, for what is left of y across x, and to write sums of the vectors. Between these are the
scalars of `row_formulas` and `row_maps`. The entries are float32 or half, all else is float64.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from lorentzkit.fused.triton.elementary import or_one
from lorentzkit.fused.triton.row_formulas import (
    Along,
    Measures,
    Sum,
    exterior_angles,
    length_of,
    norm_limit,
    sine_square,
    valid_curvature,
)
from lorentzkit.fused.triton.row_maps import coefficients, slopes, value


class Products(NamedTuple):
    xx: tl.tensor
    yy: tl.tensor
    uu: tl.tensor
    xy: tl.tensor
    xu: tl.tensor
    yu: tl.tensor
    xg: tl.tensor
    yg: tl.tensor
    ug: tl.tensor


class Inside(NamedTuple):
    """By how much x and y are shortened, to be no longer than the limit."""

    x: tl.tensor
    y: tl.tensor


@triton.jit
def entries(V, row_stride, column_stride, i, start, N, D, BLOCK: tl.constexpr):
    k = start + tl.arange(0, BLOCK)
    address = V + i[:, None] * row_stride + k[None, :].to(tl.int64) * column_stride
    block = tl.load(address, mask=(i < N)[:, None] & (k < D)[None, :], other=0.0)
    return block.to(tl.float32).to(tl.float64)


@triton.jit
def _products(
    X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, G, g_row, g_column, i, N, D,
    VECTORS: tl.constexpr, GIVEN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    none = tl.zeros((ROWS, BLOCK), tl.float64)
    xx, yy, uu, xy, xu, yu, xg, yg, ug = none, none, none, none, none, none, none, none, none
    for start in range(0, D, BLOCK):
        x = entries(X, x_row, x_column, i, start, N, D, BLOCK)
        xx += x * x
        if VECTORS > 1:
            y = entries(Y, y_row, y_column, i, start, N, D, BLOCK)
            yy += y * y
            xy += x * y
        if VECTORS > 2:
            u = entries(U, u_row, u_column, i, start, N, D, BLOCK)
            uu += u * u
            xu += x * u
            yu += y * u
        if GIVEN:
            g = entries(G, g_row, g_column, i, start, N, D, BLOCK)
            xg += x * g
            if VECTORS > 1:
                yg += y * g
            if VECTORS > 2:
                ug += u * g
    return Products(
        tl.sum(xx, 1), tl.sum(yy, 1), tl.sum(uu, 1), tl.sum(xy, 1), tl.sum(xu, 1), tl.sum(yu, 1),
        tl.sum(xg, 1), tl.sum(yg, 1), tl.sum(ug, 1),
    )  # fmt: skip


@triton.jit
def _across(
    X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, i, N, D, products,
    VECTORS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of the part of y across x: its square and its product with u. See `_wide_measures`."""
    k = products.xy / or_one(products.xx)  # its error lies along x, and is taken off again
    whole = tl.where(tl.abs(k - 1) < 0.5, 1.0, 0.0)  # close vectors: their difference first
    none = tl.zeros((ROWS, BLOCK), tl.float64)
    xw, ww, uw = none, none, none
    for start in range(0, D, BLOCK):
        x = entries(X, x_row, x_column, i, start, N, D, BLOCK)
        y = entries(Y, y_row, y_column, i, start, N, D, BLOCK)
        w = (y - whole[:, None] * x) - (k - whole)[:, None] * x
        xw += x * w
        ww += w * w
        if VECTORS > 2:
            uw += w * entries(U, u_row, u_column, i, start, N, D, BLOCK)
    along_x = tl.sum(xw, 1)
    along = along_x / or_one(products.xx)
    return tl.sum(ww, 1) - along * along_x, tl.sum(uw, 1) - along * products.xu


@triton.jit
def _measured(products, ww, uw, c, POINTS: tl.constexpr):
    rx, ry = length_of(products.xx), length_of(products.yy)
    cosine, sine2 = products.xy / or_one(rx * ry), sine_square(ww, products.xx, products.yy)
    small = sine2 / (1 + tl.abs(cosine))
    h, g = tl.where(cosine > 0, small, 1 - cosine), tl.where(cosine > 0, 1 + cosine, small)
    limit, shrink_x, shrink_y = norm_limit(c), tl.zeros_like(c) + 1, tl.zeros_like(c) + 1
    if POINTS > 0:
        shrink_x = tl.where(rx > limit, limit / or_one(rx), 1.0)
        rx = tl.where(rx > limit, limit, rx)
    if POINTS > 1:
        shrink_y = tl.where(ry > limit, limit / or_one(ry), 1.0)
        ry = tl.where(ry > limit, limit, ry)
        near = (rx <= 2 * ry) & (ry <= 2 * rx) & (cosine > 0)
        close = tl.where(near, 1.0, 0.0)
    else:
        close = tl.zeros_like(c)
    across = tl.where(sine2 == 0, 0.0, uw * shrink_y)  # of aligned vectors only noise is left
    m = Measures(
        rx, ry, rx - ry, cosine, sine2, h, g, close,
        products.xy * shrink_x * shrink_y, products.xu * shrink_x, products.yu * shrink_y,
        products.uu, across,
    )  # fmt: skip
    return m, Inside(shrink_x, shrink_y)


@triton.jit
def curvature(C, c_row, i, N, ONE_FOR_ALL: tl.constexpr):
    if ONE_FOR_ALL:
        c = tl.zeros_like(i).to(tl.float32) + C
    else:
        c = tl.load(C + i * c_row, mask=i < N, other=1.0).to(tl.float32)
    return valid_curvature(c.to(tl.float64))


@triton.jit
def _parameter(T, t_row, i, N, c):
    if T is None:
        return tl.zeros_like(c)
    else:
        return tl.load(T + i * t_row, mask=i < N, other=0.0).to(tl.float32).to(tl.float64)


@triton.jit
def rows_kernel(
    X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, C, c_row, T, t_row,
    k_high, k_low, scale_high, scale_low, out, N, D,
    OP: tl.constexpr, VECTORS: tl.constexpr, POINTS: tl.constexpr, SCALAR: tl.constexpr,
    ANGLE: tl.constexpr, ONE_FOR_ALL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    products = _products(
        X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, None, 0, 0, i, N, D,
        VECTORS, False, ROWS, BLOCK,
    )  # fmt: skip
    c = curvature(C, c_row, i, N, ONE_FOR_ALL)
    k, scale = tl.zeros_like(c) + k_high + k_low, tl.zeros_like(c) + scale_high + scale_low
    ww, uw = tl.zeros_like(c), tl.zeros_like(c)
    if ANGLE:
        ww, uw = _across(
            X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, i, N, D, products,
            VECTORS, ROWS, BLOCK,
        )  # fmt: skip
    m, inside = _measured(products, ww, uw, c, POINTS)
    if OP == "angles":
        angle_x, angle_y = exterior_angles(m, c)
        tl.store(out + 2 * i, angle_x.to(tl.float32), mask=i < N)
        tl.store(out + 2 * i + 1, angle_y.to(tl.float32), mask=i < N)
    elif SCALAR:
        of_row = value(OP, VECTORS, POINTS, m, c, k, scale)
        tl.store(out + i, of_row.to(tl.float32), mask=i < N)
    else:
        of_x, of_b, of_u = coefficients(OP, VECTORS, m, c, _parameter(T, t_row, i, N, c))
        for start in range(0, D, BLOCK):
            x = inside.x[:, None] * entries(X, x_row, x_column, i, start, N, D, BLOCK)
            total = of_x[:, None] * x
            if VECTORS > 1:
                y = inside.y[:, None] * entries(Y, y_row, y_column, i, start, N, D, BLOCK)
                total += of_b[:, None] * (y - m.close[:, None] * x)
            if VECTORS > 2:
                u = entries(U, u_row, u_column, i, start, N, D, BLOCK)
                total += of_u[:, None] * u
            write(out, D, total, i, start, N, D, BLOCK)


@triton.jit
def write(out, row, total, i, start, N, D, BLOCK: tl.constexpr):
    """D entries of a row that is so many numbers long."""
    k = start + tl.arange(0, BLOCK)
    rounded = total.to(tl.float32).to(out.dtype.element_ty)
    tl.store(out + i[:, None] * row + k[None, :], rounded, mask=(i < N)[:, None] & (k < D)[None, :])


@triton.jit
def rows_vjp_kernel(
    X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, C, c_row, T, t_row,
    k_high, k_low, scale_high, scale_low, G, g_row, g_column, by_x, by_y, by_u, by_c, by_t, N, D,
    OP: tl.constexpr, VECTORS: tl.constexpr, POINTS: tl.constexpr, SCALAR: tl.constexpr,
    ANGLE: tl.constexpr, ONE_FOR_ALL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients for that with respect to the result, G; those that are None are left out."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    products = _products(
        X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, G, g_row, g_column, i, N, D,
        VECTORS, not SCALAR, ROWS, BLOCK,
    )  # fmt: skip
    c = curvature(C, c_row, i, N, ONE_FOR_ALL)
    k, scale = tl.zeros_like(c) + k_high + k_low, tl.zeros_like(c) + scale_high + scale_low
    ww, uw = tl.zeros_like(c), tl.zeros_like(c)
    if ANGLE:
        ww, uw = _across(
            X, x_row, x_column, Y, y_row, y_column, U, u_row, u_column, i, N, D, products,
            VECTORS, ROWS, BLOCK,
        )  # fmt: skip
    m, inside = _measured(products, ww, uw, c, POINTS)
    along = Along(products.xg * inside.x, products.yg * inside.y, products.ug)
    grad_output, grad_beta = tl.zeros_like(c), tl.zeros_like(c)
    if SCALAR:
        grad_output = tl.load(G + i * g_row, mask=i < N, other=0.0).to(tl.float64)
    if OP == "angles":
        grad_beta = tl.load(G + i * g_row + g_column, mask=i < N, other=0.0).to(tl.float64)
    t = _parameter(T, t_row, i, N, c)
    by, of_t = slopes(OP, VECTORS, POINTS, SCALAR, m, c, k, scale, t, grad_output, grad_beta, along)
    of_x, of_y = by.x, by.y
    if POINTS > 0:
        of_x = _of_unmoved_x(of_x, m, along, inside.x)
    if POINTS > 1:
        of_y = _of_unmoved_y(of_y, m, along, inside.y)
    if by_c is not None:
        tl.store(by_c + i, by.c.to(by_c.dtype.element_ty), mask=i < N)
    if by_t is not None:
        tl.store(by_t + i, of_t.to(by_t.dtype.element_ty), mask=i < N)
    for start in range(0, D, BLOCK):
        x = inside.x[:, None] * entries(X, x_row, x_column, i, start, N, D, BLOCK)
        b, u, g = x, x, x
        if VECTORS > 1:
            y = inside.y[:, None] * entries(Y, y_row, y_column, i, start, N, D, BLOCK)
            b = y - m.close[:, None] * x
        if VECTORS > 2:
            u = entries(U, u_row, u_column, i, start, N, D, BLOCK)
        if not SCALAR:
            g = entries(G, g_row, g_column, i, start, N, D, BLOCK)
        if by_x is not None:
            write(by_x, D, _sum(of_x, x, b, u, g, VECTORS, SCALAR), i, start, N, D, BLOCK)
        if by_y is not None:
            write(by_y, D, _sum(of_y, x, b, u, g, VECTORS, SCALAR), i, start, N, D, BLOCK)
        if by_u is not None:
            write(by_u, D, _sum(by.u, x, b, u, g, VECTORS, SCALAR), i, start, N, D, BLOCK)


@triton.jit
def _sum(coefficients, x, b, u, g, VECTORS: tl.constexpr, SCALAR: tl.constexpr):
    total = coefficients.x[:, None] * x
    if VECTORS > 1:
        total += coefficients.b[:, None] * b
    if VECTORS > 2:
        total += coefficients.u[:, None] * u
    if not SCALAR:
        total += coefficients.g[:, None] * g
    return total


@triton.jit
def _of_unmoved_x(by, m, along, shrink):
    """The gradient with respect to the x that was moved to the limit: none radially."""
    xb = tl.where(m.close > 0, -m.rx * (m.dr + m.ry * m.h), m.xy)
    rest = by.b * xb + by.u * m.xu + by.g * along.x
    of_x = tl.where(shrink < 1, -rest / or_one(m.rx * m.rx), by.x)
    return Sum(shrink * of_x, shrink * by.b, shrink * by.u, shrink * by.g)


@triton.jit
def _of_unmoved_y(by, m, along, shrink):
    square = m.ry * m.ry
    yb = tl.where(m.close > 0, m.ry * (m.rx * m.h - m.dr), square)
    radial = by.x * m.xy + by.b * yb + by.u * m.yu + by.g * along.y
    radial_part = tl.where(shrink < 1, radial / or_one(square), 0.0)
    of_x, of_b = by.x - m.close * radial_part, by.b - radial_part
    return Sum(shrink * of_x, shrink * of_b, shrink * by.u, shrink * by.g)
