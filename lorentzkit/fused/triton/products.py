"""Matrix products of the derivatives by h with directions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.triton.config import config, programs
from lorentzkit.fused.triton.prepare import matrix_and_program
from lorentzkit.fused.triton.tiles import indices

_MOST = tl.constexpr(14)  # the largest number of a row is brought to less than 2**15
_LEFT = tl.constexpr(2.0**11)  # by which what is left of it is made as large


@triton.jit
def product_kernel(
    A, high, low, out, R, K, D, width, a_matrix, a_row, a_inner, b_matrix, out_split, out_matrix,
    share, ADD: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``out[s] (R, D) = A (R, K) (high + low) (K, width)`` over the s-th share of K, or added.

    Of each matrix of a batch.
    """
    matrix, row_tile = matrix_and_program(tl.cdiv(R, ROWS))
    A, high, low = A + matrix * a_matrix, high + matrix * b_matrix, low + matrix * b_matrix
    i, j = indices(row_tile, ROWS), indices(tl.program_id(1), COLUMNS)
    split = tl.program_id(2).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    last = tl.minimum((split + 1) * share, K)
    for start in range(split * share, last, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a_at = A + i[:, None] * a_row + k[None, :] * a_inner
        a = tl.load(a_at, mask=(i < R)[:, None] & (k < last)[None, :], other=0.0)
        b_at = k[:, None] * width + j[None, :]
        within = (k < last)[:, None] & (j < width)[None, :]
        b = tl.load(high + b_at, mask=within, other=0.0)
        power, inverse = _powers(tl.max(tl.abs(a), 1))
        a = a * inverse[:, None]
        a_high = a.to(tl.float16)
        if PARTS == 1:
            part = tl.dot(a_high, b)
        else:
            a_low = ((a - a_high.to(tl.float32)) * _LEFT).to(tl.float16)
            part = tl.dot(a_low, b) * (1 / _LEFT)
            part = tl.dot(a_high, tl.load(low + b_at, mask=within, other=0.0), part)
            part = tl.dot(a_high, b, part)
        total += part * power[:, None]
    address = out + split * out_split + matrix * out_matrix + i[:, None] * D + j[None, :]
    within = (i < R)[:, None] & (j < D)[None, :]
    if ADD:
        total += tl.load(address, mask=within, other=0.0)
    tl.store(address, total, mask=within)


@triton.jit
def _powers(largest):
    """The power of 2 that float16 holds the row in units of, and its inverse."""
    bits = largest.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.where(bits < (32 << 23), 32 << 23, bits)
    bits -= _MOST << 23
    return bits.to(tl.float32, bitcast=True), ((254 << 23) - bits).to(tl.float32, bitcast=True)


def product(
    out: Tensor, a: Tensor, high: Tensor, low: Tensor, parts: int, add: bool = False
) -> None:
    """``out (B, R, D) = a (B, R, K) (high + low) (B, K, width)``, or added; a long K is split."""
    use = config("product")
    (B, R, K), (D, width) = a.shape, (out.shape[2], high.shape[2])
    tiles = B * triton.cdiv(R, use.rows), triton.cdiv(D, use.columns)
    splits = max(1, min(programs(a.device) // (tiles[0] * tiles[1]), triton.cdiv(K, 8 * use.depth)))
    share = triton.cdiv(triton.cdiv(K, splits), use.depth) * use.depth
    splits = triton.cdiv(K, share)
    into = out[None] if splits == 1 else out.new_empty(splits, *out.shape)
    product_kernel[(*tiles, splits)](
        a, high, low, into, R, K, D, width, *a.stride(), high.stride(0), *into.stride()[:2], share,
        ADD=add and splits == 1, PARTS=parts,
        ROWS=use.rows, COLUMNS=use.columns, DEPTH=use.depth,
        num_warps=use.warps, num_stages=use.stages,
    )  # fmt: skip
    if splits > 1 and add:
        out += into.sum(0)
    elif splits > 1:
        torch.sum(into, 0, out=out)
