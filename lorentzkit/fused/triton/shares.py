"""What the anchors of a batch spread over processes know of their pairs, share by share.

Of n anchors ``(4, n)``, the fields of `losses.anchors.Anchors`: log-sum-exps of the negatives' and
of the positives' logits, the sum of the latter, their number. Logits are rounded to float32, and so
are these: a single positive's stay equal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.problems import LogSums, LossGradients, LossProblem
from lorentzkit.fused.triton import launch
from lorentzkit.fused.triton.anchors import (
    add_gradients,
    anchor_range,
    logit_at,
    others,
    settings,
    sums_of_positives,
    values_of,
)
from lorentzkit.fused.triton.devices import on_device
from lorentzkit.fused.triton.elementary import log1p
from lorentzkit.fused.triton.positives import Positives

_BLOCK = 256


@triton.jit
def _joined(a, b):
    """``logaddexp``"""
    larger, smaller = tl.where(a > b, a, b), tl.where(a > b, b, a)
    some = larger > -float("inf")
    difference = tl.where(some, smaller - tl.where(some, larger, 0.0), 0.0)
    return tl.where(larger == -float("inf"), larger, larger + log1p(tl.exp(difference)))


@triton.jit
def merge_kernel(
    row_sums, column_sums, values, scale, by_column, ends, of_rows, of_columns, N, M, P,
    ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, COUNT: tl.constexpr,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds a share's to those of the rows ``(4, N)`` and of its columns ``(4, M)``."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    of_row, within = k < N, k < N + M
    by_value = tl.where(of_row, ROW_SIGN, COLUMN_SIGN) * tl.load(scale)
    start, count = anchor_range(ends, 0, k, N, M, P, LISTED)
    positives, total = sums_of_positives(
        values, by_value, by_column, start, count, of_row, COUNT, LISTED, BLOCK
    )
    address = tl.where(of_row, of_rows + k, of_columns + (k - N))
    step = tl.where(of_row, N, M)
    negatives = _joined(
        tl.load(address, mask=within, other=0.0).to(tl.float64),
        others(row_sums, column_sums, k, N, M),
    )
    positives = _joined(tl.load(address + step, mask=within, other=0.0).to(tl.float64), positives)
    total += tl.load(address + 2 * step, mask=within, other=0.0)
    number = tl.load(address + 3 * step, mask=within, other=0.0) + count.to(tl.float32)
    tl.store(address, negatives.to(tl.float32), mask=within)
    tl.store(address + step, positives.to(tl.float32), mask=within)
    tl.store(address + 2 * step, total.to(tl.float32), mask=within)
    tl.store(address + 3 * step, number, mask=within)


@triton.jit
def merge_vjp_kernel(
    values, scale, i, j, of_rows, of_columns, grad_rows, grad_columns, by_values, by_scale, N, M, P,
    ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, COUNT: tl.constexpr,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives by the positives' values; ``by_scale``: of each program the sum."""
    q = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = tl.load(i + q, mask=q < P, other=0), tl.load(j + q, mask=q < P, other=0)
    s = tl.load(scale)
    of_x = _by_logit(ROW_SIGN * s, values, COUNT * q, q < P, of_rows, grad_rows, row, N)
    last = COUNT * q + COUNT - 1
    of_y = _by_logit(COLUMN_SIGN * s, values, last, q < P, of_columns, grad_columns, column, M)
    value_x = tl.load(values + COUNT * q, mask=q < P, other=0.0).to(tl.float64)
    value_y = tl.load(values + last, mask=q < P, other=0.0).to(tl.float64)
    of_x, of_y = ROW_SIGN * of_x, COLUMN_SIGN * of_y
    if COUNT == 2:
        tl.store(by_values + 2 * q, (s * of_x).to(tl.float32), mask=q < P)
        tl.store(by_values + 2 * q + 1, (s * of_y).to(tl.float32), mask=q < P)
    else:
        tl.store(by_values + q, (s * (of_x + of_y)).to(tl.float32), mask=q < P)
    tl.store(by_scale + tl.program_id(0), tl.sum(of_x * value_x + of_y * value_y, 0))


@triton.jit
def _by_logit(by_value, values, place, within, anchors, grads, anchor, number):
    """From the derivatives by the anchor's positives and their sum; 0 of pairs that are not."""
    logit = logit_at(by_value, values, place, within)
    positives = tl.load(anchors + number + anchor, mask=within, other=0.0).to(tl.float64)
    by_positives = tl.load(grads + number + anchor, mask=within, other=0.0).to(tl.float64)
    by_total = tl.load(grads + 2 * number + anchor, mask=within, other=0.0).to(tl.float64)
    return by_positives * tl.exp(logit - positives) + by_total


def empty(like: Tensor) -> Tensor:
    """Of anchors that have met no share yet, one for each point."""
    of_none = like.new_zeros(4, len(like))
    of_none[:2] = -torch.inf
    return of_none


def merge(
    problem: LossProblem, positives: Positives, of_rows: Tensor, of_columns: Tensor
) -> Tensor:
    """Adds what the problem's pairs are to its anchors; the positives' values."""
    row_sums, column_sums = launch.log_sums(problem)
    values = values_of(problem, positives)
    N, M = len(problem.x), len(problem.y)
    with on_device(problem.x):
        merge_kernel[(triton.cdiv(N + M, _BLOCK),)](
            row_sums, column_sums, values, problem.scale, positives.by_column, positives.ends,
            of_rows, of_columns, N, M, len(values), BLOCK=_BLOCK, **settings(problem, positives),
        )  # fmt: skip
    return values


def gradients(
    problem: LossProblem,
    positives: Positives,
    values: Tensor,
    anchors: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor],
) -> LossGradients:
    """Of the problem's pairs, from the anchors' and the derivatives by them, ``(4, n)`` each."""
    sums, grad_sums = LogSums(*(z[0] for z in anchors)), LogSums(*(z[0] for z in grads))
    by = launch.log_sums_gradients(problem, sums, grad_sums)
    if not len(values):
        return by
    by_values, programs = torch.empty_like(values), triton.cdiv(len(values), _BLOCK)
    by_scale = values.new_empty(programs, dtype=torch.float64)
    with on_device(problem.x):
        merge_vjp_kernel[(programs,)](
            values, problem.scale, positives.i, positives.j, *anchors, *grads, by_values, by_scale,
            len(problem.x), len(problem.y), len(values),
            BLOCK=_BLOCK, **settings(problem, positives),
        )  # fmt: skip
    by_c = add_gradients(problem, positives, by_values, by.x, by.y)
    return by._replace(c=by.c + by_c, scale=by.scale + by_scale.sum(dtype=torch.float32))


__all__ = ["empty", "gradients", "merge"]
