"""Top-k: each program keeps the best of its rows while it goes through some columns."""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import columns_of, load_point, rows_of, score, triangle
from lorentzkit.fused.triton.tiles import folded_cosines, indices, products, unfold

_LEAST = tl.constexpr(-(2**63))


@triton.jit
def _key(value, j):
    """A number that sorts as the value does, and of equal ones the first column first."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - j)


@triton.jit
def topk_kernel(
    X, Y, x_scalars, y_scalars, mean, constants, out, N, M, D, width, sign, tiles,
    KIND: tl.constexpr, BEST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``out (splits, N, BEST)``: keys of each row's largest ``sign * score`` in ``tiles`` tiles."""
    i = indices(tl.program_id(0), ROWS)
    x = rows_of(load_point(x_scalars, i, N))
    best = tl.full((ROWS, BEST), _LEAST, tl.int64)
    first = tl.program_id(1) * tiles
    for tile in range(first, tl.minimum(first + tiles, tl.cdiv(M, COLUMNS))):
        j = indices(tile, COLUMNS)
        product = products(
            X, Y, tl.program_id(0), tile, N, M, width, PRECISION, ROWS, COLUMNS, DEPTH
        )
        folded = folded_cosines(
            product, X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
            KIND == "angle", PRECISION,
        )  # fmt: skip
        h, g = unfold(folded, KIND == "angle")
        y = columns_of(load_point(y_scalars, j, M))
        key = _key(sign * score(KIND, h, g, triangle(h, x, y), x, y), j[None, :])
        key = tl.where((j < M)[None, :], key, _LEAST)
        # Of the later tiles, few have anything to add.
        if tl.max((tl.max(key, 1) > tl.min(best, 1)).to(tl.int32), 0) > 0:
            both = tl.join(best, tl.topk(key, BEST))
            best = tl.topk(tl.reshape(both, (ROWS, 2 * BEST)), BEST)
    at = (tl.program_id(1).to(tl.int64) * N + i)[:, None] * BEST + tl.arange(0, BEST)[None, :]
    tl.store(out + at, best, mask=(i < N)[:, None])
