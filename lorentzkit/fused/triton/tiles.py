"""The tile of pairs of a program: where it is, and its ``h = 1 - cos(theta)``."""

from __future__ import annotations

import triton
import triton.language as tl

_GROUP = tl.constexpr(8)  # row tiles that follow one another, so that they share columns' cache
_ALIGNED = tl.constexpr(1e-36)  # under what a sine takes for 0, but with a sign


@triton.jit
def place(row_tiles, column_tiles):
    """Row tile and column tile of this program."""
    program = tl.program_id(0)
    per_group = _GROUP * column_tiles
    first = (program // per_group) * _GROUP
    height = tl.minimum(row_tiles - first, _GROUP)
    return first + (program % per_group) % height, (program % per_group) // height


@triton.jit
def indices(tile, SIZE: tl.constexpr):
    """In 64 bits, for products with strides."""
    return (tile * SIZE + tl.arange(0, SIZE)).to(tl.int64)


@triton.jit
def _normalised(square, x_rho, y_rho, ROUNDED: tl.constexpr):
    """``1 - cos`` from the half square of the difference of directions, ``1 + cos`` from the sum's.

    Of rounded directions, whose lengths are ``rho``.
    """
    if ROUNDED:
        gap = x_rho - y_rho
        square = tl.maximum(square - 0.5 * gap * gap, 0.0) / (x_rho * y_rho)
    return square


@triton.jit
def _half_square(X, Y, mean, i, j, N, M, D, width, OPPOSITE: tl.constexpr):
    """``|x_i - y_j|**2 / 2``, or if OPPOSITE ``|x_i + y_j|**2 / 2``, dimension by dimension."""
    x_at, y_at = X + i * width, Y + j * width
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for k in range(D):
        x = tl.load(x_at + k, mask=i < N, other=0.0).to(tl.float32)
        y = tl.load(y_at + k, mask=j < M, other=0.0).to(tl.float32)
        if OPPOSITE:
            d = x[:, None] + (y + 2 * tl.load(mean + k))[None, :]
        else:
            d = x[:, None] - y[None, :]
        total += d * d
    return 0.5 * total


@triton.jit
def _product(X, Y, i, j, N, M, width, PRECISION: tl.constexpr, DEPTH: tl.constexpr):
    k = tl.arange(0, DEPTH)
    x_at = X + i[:, None] * width + k[None, :]
    y_at = Y + j[None, :] * width + k[:, None]
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for _ in range(0, width, DEPTH):  # a multiple of it
        x = tl.load(x_at, mask=i[:, None] < N, other=0.0)
        y = tl.load(y_at, mask=j[None, :] < M, other=0.0)
        if PRECISION == "bf16":
            total = tl.dot(x, y, total)
        else:
            total = tl.dot(x, y, total, input_precision=PRECISION)
        x_at += DEPTH
        y_at += DEPTH
    return total


@triton.jit
def cosines(
    X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
    OPPOSITES: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``1 - cos`` and ``1 + cos`` of the pairs ``i, j``; the latter exact where OPPOSITES."""
    rounded: tl.constexpr = PRECISION == "tf32" or PRECISION == "bf16"
    x_rho = tl.load(x_scalars + N + i, mask=i < N, other=1.0)[:, None]
    y_rho = tl.load(y_scalars + M + j, mask=j < M, other=1.0)[None, :]
    if PRECISION == "differences":
        h = _half_square(X, Y, mean, i, j, N, M, D, width, False)
        if OPPOSITES:
            g = _half_square(X, Y, mean, i, j, N, M, D, width, True)
            h = tl.where(h > 1, -g - _ALIGNED, h)
    else:
        x_half = tl.load(x_scalars + i, mask=i < N, other=0.0)[:, None]
        y_half = tl.load(y_scalars + j, mask=j < M, other=0.0)[None, :]
        h = x_half + y_half - _product(X, Y, i, j, N, M, width, PRECISION, DEPTH)
        h = _normalised(h, x_rho, y_rho, rounded)
        # What the product has lost is computed again, in the few tiles where there is such a pair.
        threshold = tl.load(constants + 3)
        within = (i < N)[:, None] & (j < M)[None, :]
        lowest = tl.min(tl.min(tl.where(within, h, 1.0), 1), 0)
        highest = tl.max(tl.max(tl.where(within, h, 1.0), 1), 0)
        if lowest < threshold:
            near = _half_square(X, Y, mean, i, j, N, M, D, width, False)
            h = tl.where(h < threshold, _normalised(near, x_rho, y_rho, rounded), h)
        if OPPOSITES:
            if highest > 2 - threshold:
                g = _half_square(X, Y, mean, i, j, N, M, D, width, True)
                g = _normalised(g, x_rho, y_rho, rounded)
                h = tl.where(h > 2 - threshold, -g - _ALIGNED, h)
    # Until here one number for both, which spares registers.
    if OPPOSITES:
        folded = h
        return tl.where(folded < 0, 2 + folded, folded), tl.where(folded < 0, -folded, 2 - folded)
    return h, h
