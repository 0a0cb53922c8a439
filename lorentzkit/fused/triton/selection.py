"""Top-k: each program keeps the best of its rows while it goes through some columns."""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import (
    columns_of,
    load_radial,
    rows_of,
    score,
    triangle,
)
from lorentzkit.fused.triton.tiles import folded_cosines, indices, unfold

_LEAST = tl.constexpr(-(2**63))


@triton.jit
def _key(value, j):
    """A number that sorts as the value does, and of equal ones the first column first."""
    bits = value.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - j)


@triton.jit
def topk_kernel(
    XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, out, sign, share, splits,
    N, M, D, width, count,
    KIND: tl.constexpr, APEX: tl.constexpr, BEST: tl.constexpr,
    OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``out (splits, N, BEST)``: keys of each row's largest ``sign * score`` in ``share`` tiles."""
    for block in range(tl.program_id(0), tl.cdiv(N, ROWS) * splits, tl.num_programs(0)):
        row_tile, split = block // splits, block % splits
        i = indices(row_tile, ROWS)
        x = rows_of(load_radial(x_scalars, i, N, count))
        best = tl.full((ROWS, BEST), _LEAST, tl.int64)
        last = tl.minimum((split + 1) * share, tl.cdiv(M, COLUMNS))
        for tile in range(split * share, last):
            folded = folded_cosines(
                XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, tile,
                N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS, DEPTH,
            )  # fmt: skip
            j = indices(tile, COLUMNS)
            y = columns_of(load_radial(y_scalars, j, M, count))
            h, g = unfold(folded, OPPOSITES)
            key = _key(sign * score(KIND, APEX, h, g, triangle(h, x, y), x, y), j[None, :])
            key = tl.where((j < M)[None, :], key, _LEAST)
            # Of the later tiles, few have anything to add.
            if tl.max((tl.max(key, 1) > tl.min(best, 1)).to(tl.int32), 0) > 0:
                both = tl.join(best, tl.topk(key, BEST))
                best = tl.topk(tl.reshape(both, (ROWS, 2 * BEST)), BEST)
        address = (tl.cast(split, tl.int64) * N + i)[:, None] * BEST + tl.arange(0, BEST)[None, :]
        tl.store(out + address, best, mask=(i < N)[:, None])
