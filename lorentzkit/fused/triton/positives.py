"""Which pairs of a loss are positive, for the kernels: in few launches, whatever the targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.triton.devices import on_device

_BLOCK = 256


class Positives(NamedTuple):
    """The pairs (i, i + offset); or, of labels, those listed row by row."""

    row_ids: Tensor
    """``(N,)``, int32, that of a column where the pair is positive"""
    column_ids: Tensor
    """``(M,)``"""
    offset: int = 0
    i: Tensor | None = None
    """``(P,)``, int64: the rows of the pairs"""
    j: Tensor | None = None
    """``(P,)``: their columns"""
    by_column: Tensor | None = None
    """``(P,)``: the places in this list, column by column"""
    ends: Tensor | None = None
    """``(N + M,)``: where those of a row end, and, P later, those of a column among `by_column`"""

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Their rows and columns."""
        if self.i is not None and self.j is not None:
            return self.i, self.j
        i = torch.arange(len(self.row_ids), device=self.row_ids.device)
        return i, i + self.offset


def of_offset(N: int, M: int, offset: int, device: torch.device) -> Positives:
    ids = torch.arange(M, device=device, dtype=torch.int32)
    return Positives(ids[offset : offset + N], ids, offset)


def of_labels(x_labels: Tensor, y_labels: Tensor) -> Positives:
    """Of equal labels, ``(N,)`` and ``(M,)``. Waits for their number."""
    N, M = len(x_labels), len(y_labels)
    x_sorted, x_order = x_labels.sort(stable=True)
    y_sorted, y_order = y_labels.sort(stable=True)
    ids, counts = (x_labels.new_empty(N + M, dtype=dtype) for dtype in (torch.int32, torch.int64))
    first = torch.empty_like(counts)
    programs = triton.cdiv(N + M, _BLOCK)
    with on_device(x_labels):
        ranges_kernel[(programs,)](
            x_labels, y_labels, x_sorted, y_sorted, ids, first, counts, N, M, BLOCK=_BLOCK
        )
        ends = counts.cumsum(0)
        P = int(ends[N - 1])
        i, j, by_column = torch.empty(3, P, dtype=torch.int64, device=x_labels.device)
        if P:
            pairs_kernel[(triton.cdiv(2 * P, _BLOCK),)](
                x_order, y_order, first, counts, ends, i, j, by_column, N, M, P, BLOCK=_BLOCK
            )
    return Positives(ids[:N], ids[N:], 0, i, j, by_column, ends)


@triton.jit
def _place(numbers, start, end, wanted, active, BEYOND: tl.constexpr):
    """How many of ``numbers[start:end]``, which ascend, are less than wanted; BEYOND: no larger."""
    low, high = start, tl.where(active, end, start)
    while tl.max((low < high).to(tl.int32), 0) > 0:
        middle = (low + high) // 2
        number = tl.load(numbers + middle, mask=low < high, other=0)
        further = (number <= wanted) if BEYOND else (number < wanted)
        open_ = low < high
        low = tl.where(open_ & further, middle + 1, low)
        high = tl.where(open_ & (further == 0), middle, high)
    return low


@triton.jit
def ranges_kernel(
    x_labels, y_labels, x_sorted, y_sorted, ids, first, counts, N, M, BLOCK: tl.constexpr
):
    """Of each row and column, N + M: its id, where its equals begin in the other's order, how many.

    The id is the place of the first column with that label; of a row without any it is -1.
    """
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = k * 0
    of_row, of_column = k < N, (k >= N) & (k < N + M)
    label = tl.load(x_labels + k, mask=of_row, other=0)
    label += tl.load(y_labels + (k - N), mask=of_column, other=0)
    in_y = _place(y_sorted, zero, zero + M, label, of_row | of_column, False)
    beyond_y = _place(y_sorted, zero, zero + M, label, of_row, True)
    in_x = _place(x_sorted, zero, zero + N, label, of_column, False)
    beyond_x = _place(x_sorted, zero, zero + N, label, of_column, True)
    count = tl.where(of_row, beyond_y - in_y, beyond_x - in_x)
    number = tl.where(of_row & (count == 0), -1, in_y)
    within = of_row | of_column
    tl.store(ids + k, number.to(tl.int32), mask=within)
    tl.store(first + k, tl.where(of_row, in_y, in_x), mask=within)
    tl.store(counts + k, count, mask=within)


@triton.jit
def pairs_kernel(
    x_order, y_order, first, counts, ends, i, j, by_column, N, M, P, BLOCK: tl.constexpr
):
    """The pairs by rows, as numbers 0 to P; and, as numbers P to 2 P, their places by columns."""
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    zero = q * 0
    of_row, of_column = q < P, (q >= P) & (q < 2 * P)
    within = of_row | of_column
    k = _place(ends, zero, zero + N + M, q, within, True)
    start = tl.load(ends + k, mask=within, other=0) - tl.load(counts + k, mask=within, other=0)
    place = tl.load(first + k, mask=within, other=0) + q - start
    column = tl.load(y_order + place, mask=of_row, other=0)
    tl.store(i + q, k, mask=of_row)
    tl.store(j + q, column, mask=of_row)
    # The row's pairs are its columns in ascending order, as equal labels are.
    row = tl.load(x_order + place, mask=of_column, other=0)
    row_count = tl.load(counts + row, mask=of_column, other=0)
    row_first = tl.load(first + row, mask=of_column, other=0)
    rank = _place(y_order, row_first, row_first + row_count, k - N, of_column, False) - row_first
    row_start = tl.load(ends + row, mask=of_column, other=0) - row_count
    tl.store(by_column + (q - P), row_start + rank, mask=of_column)


__all__ = ["Positives", "of_labels", "of_offset"]
