"""The tile of pairs of a program: where it is, and its ``h = 1 - cos(theta)``."""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import ALIGNED

STRIPS = tl.constexpr(4)
_GROUP = tl.constexpr(8)  # row tiles that follow one another, so that they share columns' cache
_NOISE = tl.constexpr(2.0**-45)  # what the mean's rounding leaves of exactly opposite directions


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
def products(
    X, Y, row_tile, column_tile, N, M, width,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``x_i . y_j``; beyond the last point, that of the last. For "differences", 0."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    if PRECISION != "differences":
        k = tl.arange(0, DEPTH)
        i, j = (
            tl.minimum(indices(row_tile, ROWS), N - 1),
            tl.minimum(indices(column_tile, COLUMNS), M - 1),
        )
        x_at = X + i[:, None] * width + k[None, :]
        y_at = Y + j[None, :] * width + k[:, None]
        for _ in range(0, width, DEPTH):  # a multiple of it
            if PRECISION == "bf16":
                total = tl.dot(tl.load(x_at), tl.load(y_at), total)
            else:
                total = tl.dot(tl.load(x_at), tl.load(y_at), total, input_precision=PRECISION)
            x_at += DEPTH
            y_at += DEPTH
    return total


@triton.jit
def _half_squares(X, Y, mean, i, j, D, width, opposite):
    """``|x_i - y_j|**2 / 2``, and where `opposite` ``|x_i + y_j|**2 / 2``."""
    x_at, y_at = X + i * width, Y + j * width
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for k in range(D):
        x, y = tl.load(x_at + k).to(tl.float32), tl.load(y_at + k).to(tl.float32)
        sums = x[:, None] + (y + 2 * tl.load(mean + k))[None, :]
        d = tl.where(opposite, sums, x[:, None] - y[None, :])
        total += d * d
    return 0.5 * total


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
def folded_cosines(
    product, X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
    OPPOSITES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``1 - cos`` of the pairs ``i, j``; if OPPOSITES, where cos is nearly -1, ``-(1 + cos)``.

    What the product has lost is computed again, in the few tiles where there is such a pair.
    """
    rounded: tl.constexpr = PRECISION == "tf32" or PRECISION == "bf16"
    i, j = tl.minimum(i, N - 1), tl.minimum(j, M - 1)
    x_rho, y_rho = tl.load(x_scalars + N + i)[:, None], tl.load(y_scalars + M + j)[None, :]
    if PRECISION == "differences":
        h = _half_squares(X, Y, mean, i, j, D, width, product > 0)
        lost = (h > 1) & OPPOSITES
    else:
        h = tl.load(x_scalars + i)[:, None] + tl.load(y_scalars + j)[None, :] - product
        h = _normalised(h, x_rho, y_rho, rounded)
        threshold = tl.load(constants + 3)
        lost = h < threshold
        if OPPOSITES:
            lost |= h > 2 - threshold
    if tl.max(tl.max(lost.to(tl.int32), 1), 0) > 0:
        opposite = h > 1
        exact = _half_squares(X, Y, mean, i, j, D, width, opposite)
        exact = _normalised(exact, x_rho, y_rho, rounded)
        other = -tl.where(exact < _NOISE, 0.0, exact) - ALIGNED
        h = tl.where(lost, tl.where(opposite, other, exact), h)
    return h


@triton.jit
def unfold(folded, OPPOSITES: tl.constexpr):
    """``1 - cos`` and ``1 + cos``; the latter only if OPPOSITES."""
    if OPPOSITES:
        return tl.where(folded < 0, 2 + folded, folded), tl.where(folded < 0, -folded, 2 - folded)
    return folded, folded


@triton.jit
def _halves(tile):
    two = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(two, (0, 2, 1)))


@triton.jit
def strips(tile):
    """The tile's columns in 4 parts, one after the other.

    The registers of a thread hold a product of a whole tile, but its pairs' scalars only of a part.
    """
    left, right = _halves(tile)
    a, b = _halves(left)
    c, d = _halves(right)
    return a, b, c, d
