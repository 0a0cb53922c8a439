"""The tile of pairs of a program: where it is, and its ``h = 1 - cos(theta)``."""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import ALIGNED
from lorentzkit.fused.triton.prepare import UNIT

STRIPS = tl.constexpr(4)
ALIGNMENT = tl.constexpr(
    32
)  # of each program's part of `scratch`, which begins with a line of cache
_GROUP = tl.constexpr(8)  # row tiles that follow one another, so that they share columns' cache
_NOISE = tl.constexpr(2.0**-45)  # what the mean's rounding leaves of exactly opposite directions
_SQUARE = tl.constexpr(2.0**-26)  # of 1 / UNIT
_AT_ONCE, _STEP = tl.constexpr(32), tl.constexpr(16)  # pairs that are recomputed; their dimensions


@triton.jit
def place(tile, row_tiles, column_tiles):
    """Row tile and column tile of one of all."""
    per_group = _GROUP * column_tiles
    first = (tile // per_group) * _GROUP
    height = tl.minimum(row_tiles - first, _GROUP)
    return first + (tile % per_group) % height, (tile % per_group) // height


@triton.jit
def operands_of(b, XH, XL, YH, YL, x_scalars, y_scalars, mean, C, D, width, count):
    """Where those of the b-th matrix begin, and its curvature."""
    first = b * count
    XH, XL, YH, YL = XH + first * width, XL + first * width, YH + first * width, YL + first * width
    x_scalars, y_scalars = x_scalars + 8 * first, y_scalars + 8 * first
    return XH, XL, YH, YL, x_scalars, y_scalars, mean + b * D, tl.load(C + b)


@triton.jit
def indices(tile, SIZE: tl.constexpr):
    """In 64 bits, for products with strides."""
    return (tl.arange(0, SIZE) + tile * SIZE).to(tl.int64)


@triton.jit
def _products(
    XH, XL, YH, YL, i, j, width,
    PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``x_i . y_j``: of the parts' products all but that of the lows."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    k = tl.arange(0, DEPTH)
    x_at, y_at = i[:, None] * width + k[None, :], j[None, :] * width + k[:, None]
    for _ in range(0, width, DEPTH):  # a multiple of it
        x, y = tl.load(XH + x_at), tl.load(YH + y_at)
        if PARTS == 2:
            total = tl.dot(x, tl.load(YL + y_at), total)
            total = tl.dot(tl.load(XL + x_at), y, total)
        total = tl.dot(x, y, total)
        x_at += DEPTH
        y_at += DEPTH
    return total * _SQUARE


@triton.jit
def _differences(
    XH, XL, YH, YL, mean, i, j, D, width, opposite, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """``|x_i - y_j|**2 / 2``, and where `opposite` ``|x_i + y_j|**2 / 2``."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(D):
        x = tl.load(XH + i * width + k).to(tl.float32) + tl.load(XL + i * width + k).to(tl.float32)
        y = tl.load(YH + j * width + k).to(tl.float32) + tl.load(YL + j * width + k).to(tl.float32)
        sums = x[:, None] + (y + tl.load(mean + k) * (2 * UNIT))[None, :]
        d = tl.where(opposite, sums, x[:, None] - y[None, :])
        total += d * d
    return total * (0.5 * _SQUARE)


@triton.jit
def _normalised(square, x_rho, y_rho, PARTS: tl.constexpr):
    """``1 - cos`` from the half square of the difference of directions, ``1 + cos`` from the sum's.

    Of rounded directions, whose lengths are ``rho``.
    """
    if PARTS == 1:
        cosh_diff = x_rho - y_rho
        square = square - 0.5 * cosh_diff * cosh_diff
        square = tl.where(square < 0, 0.0, square) / (x_rho * y_rho)
    return square


@triton.jit
def _folded(exact, opposite):
    return tl.where(opposite, -tl.where(exact < _NOISE, 0.0, exact) - ALIGNED, exact)


@triton.jit
def _halves(tile):
    two = tl.reshape(tile, (tile.shape[0], 2, tile.shape[1] // 2))
    return tl.split(tl.permute(two, (0, 2, 1)))


@triton.jit
def strips(tile):
    """The tile's columns in 4 parts, one after the other.

    The registers of a thread hold the h of a whole tile, but its pairs' scalars only of a part.
    """
    left, right = _halves(tile)
    a, b = _halves(left)
    c, d = _halves(right)
    return a, b, c, d


@triton.jit
def _any_of_rows(counts, scratch, size, ROWS: tl.constexpr):
    """Whether one is not 0; by way of memory.

    For sm_100 Triton 3.7 gives a product's layout to all that follows from it, and to a sum of a
    sum one that it rejects: `TritonNvidiaGPUOptimizeTMemLayoutsPass` fails with "parent layout must
    have at least rank >= 2".
    """
    address = scratch + tl.program_id(0).to(tl.int64) * size + tl.arange(0, ROWS)
    tl.store(address, counts)
    tl.debug_barrier()  # other threads read what these have written
    total = tl.sum(tl.load(address), 0)
    tl.debug_barrier()  # and write there again
    return total > 0


@triton.jit
def folded_cosines(
    XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, column_tile,
    N, M, D, width, count, OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``1 - cos`` of the tile's pairs; if OPPOSITES, where cos is nearly -1, ``-(1 + cos)``.

    Beyond the last point, that of the last. What the product has lost is computed again, pair by
    pair, in the memory `scratch` of ``2 * ROWS * COLUMNS + ALIGNMENT`` numbers a program.
    """
    i = tl.minimum(indices(row_tile, ROWS), N - 1)
    j = tl.minimum(indices(column_tile, COLUMNS), M - 1)
    if PARTS == 0:
        nowhere = tl.zeros((ROWS, COLUMNS), tl.int1)
        h = _differences(XH, XL, YH, YL, mean, i, j, D, width, nowhere, ROWS, COLUMNS)
        if OPPOSITES:
            opposite = h > 1
            if tl.max(tl.max(opposite.to(tl.int32), 1), 0) > 0:
                opposites = _differences(
                    XH, XL, YH, YL, mean, i, j, D, width, opposite, ROWS, COLUMNS
                )
                h = _folded(opposites, opposite)
        return h
    product = _products(XH, XL, YH, YL, i, j, width, PARTS, ROWS, COLUMNS, DEPTH)
    h = tl.load(x_scalars + i)[:, None] + tl.load(y_scalars + j)[None, :] - product
    x_rho, y_rho = tl.load(x_scalars + count + i), tl.load(y_scalars + count + j)
    h = _normalised(h, x_rho[:, None], y_rho[None, :], PARTS)
    reach = (
        tl.load(x_scalars + 7 * count + i)[:, None] * tl.load(y_scalars + 7 * count + j)[None, :]
    )
    lost = h < reach
    if OPPOSITES:
        lost |= h > 2 - reach
    within = (indices(row_tile, ROWS) < N)[:, None] & (indices(column_tile, COLUMNS) < M)[None, :]
    lost &= within
    if _any_of_rows(tl.sum(lost.to(tl.int32), 1), scratch, 2 * ROWS * COLUMNS + ALIGNMENT, ROWS):
        h = _recomputed(
            h, lost, XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, column_tile,
            N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS,
        )  # fmt: skip
    return h


@triton.jit
def _recomputed(
    h, lost, XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, column_tile,
    N, M, D, width, count,
    OPPOSITES: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """h where it is not lost; else anew. The lost pairs are listed, and taken some at a time."""
    pairs = scratch + tl.program_id(0).to(tl.int64) * (2 * ROWS * COLUMNS + ALIGNMENT)
    results, counter = pairs + ROWS * COLUMNS, pairs + 2 * ROWS * COLUMNS
    tl.store(counter, 0)
    tl.debug_barrier()  # here and below, other threads read what these have written
    # 0, but not to the compiler: it would keep all places in registers, from one tile to the next.
    nothing = tl.load(counter)
    of_h, of_lost = strips(h), strips(lost.to(tl.int32))
    for strip in tl.static_range(STRIPS):
        columns = nothing + tl.arange(0, COLUMNS // STRIPS) + strip * (COLUMNS // STRIPS)
        index = (nothing + tl.arange(0, ROWS))[:, None] * COLUMNS + columns[None, :]
        # Their order is no one's concern: of each pair the digits are the same.
        place_in_list = tl.atomic_add(counter + tl.zeros_like(index), 1, mask=of_lost[strip] > 0)
        index = tl.where((of_h[strip] > 1) & OPPOSITES, index + ROWS * COLUMNS, index)
        tl.store(pairs + place_in_list, index, mask=of_lost[strip] > 0)
    tl.debug_barrier()
    known = tl.load(counter)
    for start in range(0, known, _AT_ONCE):
        within = start + tl.arange(0, _AT_ONCE) < known
        pair = tl.load(pairs + start + tl.arange(0, _AT_ONCE), mask=within, other=0)
        opposite = pair >= ROWS * COLUMNS
        pair = pair % (ROWS * COLUMNS)
        i = tl.minimum(row_tile * ROWS + pair // COLUMNS, N - 1).to(tl.int64)
        j = tl.minimum(column_tile * COLUMNS + pair % COLUMNS, M - 1).to(tl.int64)
        total = tl.zeros((_AT_ONCE, _STEP), tl.float32)
        for k_start in range(0, width, _STEP):
            k = k_start + tl.arange(0, _STEP)
            x_at, y_at = i[:, None] * width + k[None, :], j[:, None] * width + k[None, :]
            x, y = tl.load(XH + x_at).to(tl.float32), tl.load(YH + y_at).to(tl.float32)
            if PARTS == 2:
                x += tl.load(XL + x_at).to(tl.float32)
                y += tl.load(YL + y_at).to(tl.float32)
            twice = tl.load(mean + k, mask=k < D, other=0.0)[None, :] * (2 * UNIT)
            d = tl.where(opposite[:, None], x + (y + twice), x - y)
            total += d * d
        exact = tl.sum(total, 1) * (0.5 * _SQUARE)
        x_rho, y_rho = tl.load(x_scalars + count + i), tl.load(y_scalars + count + j)
        exact = _folded(_normalised(exact, x_rho, y_rho, PARTS), opposite)
        tl.store(results + pair, exact.to(tl.int32, bitcast=True), mask=within)
    tl.debug_barrier()
    nothing = tl.load(counter) - known
    place_in_list = results + (nothing + tl.arange(0, ROWS))[:, None] * COLUMNS
    place_in_list += (nothing + tl.arange(0, COLUMNS))[None, :]
    return tl.where(
        lost, tl.load(place_in_list, mask=lost, other=0).to(tl.float32, bitcast=True), h
    )


@triton.jit
def unfold(folded, OPPOSITES: tl.constexpr):
    """``1 - cos`` and ``1 + cos``; the latter only if OPPOSITES."""
    if OPPOSITES:
        return tl.where(folded < 0, 2 + folded, folded), tl.where(folded < 0, -folded, 2 - folded)
    return folded, folded
