"""Matrix products of a precision of their own: that of torch is a global setting."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.triton.config import CONFIGS, PROGRAMS
from lorentzkit.fused.triton.tiles import indices


@triton.jit
def product_kernel(
    A, B, C, R, K, width, a_row, a_inner, share, ADD: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``C[s] (R, width) = A (R, K) B (K, width)``, or added to C, over the s-th share of K."""
    i, j = indices(tl.program_id(0), ROWS), indices(tl.program_id(1), COLUMNS)
    split = tl.program_id(2).to(tl.int64)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    last = tl.minimum((split + 1) * share, K)
    for start in range(split * share, last, DEPTH):
        k = start + tl.arange(0, DEPTH)
        a_at = A + i[:, None] * a_row + k[None, :] * a_inner
        a = tl.load(a_at, mask=(i < R)[:, None] & (k < last)[None, :], other=0.0)
        b_at = B + k[:, None] * width + j[None, :]
        b = tl.load(b_at, mask=(k < last)[:, None] & (j < width)[None, :], other=0.0)
        if PRECISION == "bf16":
            total = tl.dot(a, b, total)
        else:
            total = tl.dot(a, b, total, input_precision=PRECISION)
    out = C + (split * R + i[:, None]) * width + j[None, :]
    mask = (i < R)[:, None] & (j < width)[None, :]
    if ADD:
        total += tl.load(out, mask=mask, other=0.0)
    tl.store(out, total, mask=mask)


def add_product(out: Tensor, a: Tensor, b: Tensor, precision: str) -> None:
    """``out += a @ b`` for contiguous ``out`` and ``b``; a long inner dimension is split."""
    (use,) = CONFIGS["product"]
    (R, K), width = a.shape, b.shape[1]
    tiles = triton.cdiv(R, use.rows), triton.cdiv(width, use.columns)
    splits = max(1, min(PROGRAMS // (tiles[0] * tiles[1]), triton.cdiv(K, 16 * use.depth)))
    share = triton.cdiv(triton.cdiv(K, splits), use.depth) * use.depth
    splits = triton.cdiv(K, share)
    into = out if splits == 1 else torch.empty(splits, *out.shape, device=out.device)
    product_kernel[(*tiles, splits)](
        a, b, into, R, K, width, a.stride(0), a.stride(1), share,
        ADD=splits == 1, PRECISION="tf32x3" if precision == "differences" else precision,
        ROWS=use.rows, COLUMNS=use.columns, DEPTH=use.depth,
        num_warps=use.warps, num_stages=use.stages,
    )  # fmt: skip
    if splits > 1:
        out += into.sum(0)
