"""The losses of a batch's points in few launches: small batches wait for those.

A point's loss, of the log-sum-exp o of its negatives' logits and its n positives' p_1, ..., is
``softplus(o - P) + P - mean(p)``, P = logsumexp(p): 0 but for the first term if n is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import LogSums, LossGradients, LossProblem
from lorentzkit.fused.triton import chosen, launch, rows
from lorentzkit.fused.triton.devices import on_device
from lorentzkit.fused.triton.elementary import log1p
from lorentzkit.fused.triton.positives import Positives

_BLOCK = 256


class Losses(NamedTuple):
    """Of all points of x and y; and what the gradient needs."""

    losses: Tensor
    """``(N + M,)``; 0 where there is no positive"""
    sums: Tensor
    """``(2, 2)``, float64: of x and of y the sum of the losses, and how many have positives"""
    row_sums: Tensor
    """Log-sum-exps of the negatives, ``(N,)``"""
    column_sums: Tensor
    values: Tensor
    """Of the positives, ``(P,)``; of "angles" ``(P, 2)``"""
    log_positives: Tensor
    """``(N + M,)``, float64: log-sum-exps of the positives"""


@triton.jit
def anchors_kernel(
    row_sums, column_sums, values, scale, by_column, ends, offset,
    losses, log_positives, partials, N, M, P,
    ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, COUNT: tl.constexpr,
    LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    of_row, within = k < N, k < N + M
    by_value = tl.where(of_row, ROW_SIGN, COLUMN_SIGN) * tl.load(scale).to(tl.float64)
    start, count = anchor_range(ends, offset, k, N, M, P, LISTED)
    some = count > 0
    log_positive, total = sums_of_positives(
        values, by_value, by_column, start, count, of_row, COUNT, LISTED, BLOCK
    )
    log_positive = tl.where(some, log_positive, 0.0)
    excess = others(row_sums, column_sums, k, N, M) - log_positive
    rest = log_positive - total / tl.where(some, count, 1).to(tl.float64)
    loss = tl.where(some, _softplus(excess) + rest, 0.0)
    tl.store(losses + k, loss.to(tl.float32), mask=within)
    tl.store(log_positives + k, log_positive, mask=within)
    address = partials + 4 * tl.program_id(0)
    tl.store(address, tl.sum(tl.where(of_row, loss, 0.0), 0))
    tl.store(address + 1, tl.sum((of_row & some).to(tl.float64), 0))
    tl.store(address + 2, tl.sum(tl.where(of_row, 0.0, loss), 0))
    tl.store(address + 3, tl.sum(((of_row == 0) & some).to(tl.float64), 0))


@triton.jit
def sums_of_positives(
    values, by_value, by_column, start, count, of_row,
    COUNT: tl.constexpr, LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each anchor's positives: the log-sum-exp of their logits, -inf of none, and the sum."""
    most = tl.max(count, 0)
    largest = tl.full((BLOCK,), -float("inf"), tl.float64)
    total, powers = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for step in range(0, most):
        known = step < count
        place = place_of(by_column, start + step, of_row, known, COUNT, LISTED)
        logit = logit_at(by_value, values, place, known)
        largest = tl.where(known & (logit > largest), logit, largest)
        total += tl.where(known, logit, 0.0)
    for step in range(0, most):
        known = step < count
        place = place_of(by_column, start + step, of_row, known, COUNT, LISTED)
        logit = logit_at(by_value, values, place, known)
        powers += tl.where(known, tl.exp(logit - largest), 0.0)
    some = count > 0
    return tl.where(some, largest + tl.log(tl.where(some, powers, 1.0)), -float("inf")), total


@triton.jit
def logit_at(by_value, values, place, known):
    """In the precision of ``by_value``."""
    value = tl.load(values + place, mask=known, other=0.0)
    return (by_value * value).to(tl.float64)


@triton.jit
def anchor_range(ends, offset, k, N, M, P, LISTED: tl.constexpr):
    """Where the positives of row k, or of column k - N, begin in their order, and how many."""
    of_row, within = k < N, k < N + M
    if LISTED:
        start = tl.load(ends + k - 1, mask=within & (k > 0), other=0)
        count = tl.where(within, tl.load(ends + k, mask=within, other=0) - start, 0)
        return tl.where(of_row, start, start - P), count
    start = tl.where(of_row, k, k - N - offset)
    return start, (within & (start >= 0) & (start < N)).to(tl.int64)


@triton.jit
def place_of(
    by_column, place, of_row, known, COUNT: tl.constexpr, LISTED: tl.constexpr
):  # fmt: skip
    """Where the value is of an anchor's positive at this place in its order."""
    if LISTED:
        of_column = tl.load(by_column + place, mask=known & (of_row == 0), other=0)
        place = tl.where(of_row, place, of_column)
    return COUNT * place + tl.where(of_row, 0, COUNT - 1)


@triton.jit
def others(row_sums, column_sums, k, N, M):
    of_row = tl.load(row_sums + k, mask=k < N, other=0.0)
    of_column = tl.load(column_sums + (k - N), mask=(k >= N) & (k < N + M), other=0.0)
    return (of_row + of_column).to(tl.float64)


@triton.jit
def _softplus(z):
    return tl.where(z > 0, z, 0.0) + log1p(tl.exp(-tl.abs(z)))


@triton.jit
def anchors_vjp_kernel(
    row_sums, column_sums, values, scale, ends, offset, i, j, log_positives, sums,
    grad_rows, grad_columns, row_stride, column_stride, by_sums, by_values, by_scale, N, M, P,
    ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, COUNT: tl.constexpr,
    LISTED: tl.constexpr, REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives by the negatives' log-sum-exps ``(N + M,)`` and by the positives' values.

    ``by_scale``: of each program the sum, of its positives' part.
    """
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s = tl.load(scale).to(tl.float64)
    log_positive = tl.load(log_positives + k, mask=k < N + M, other=0.0)
    share = _share(others(row_sums, column_sums, k, N, M) - log_positive)
    count = anchor_range(ends, offset, k, N, M, P, LISTED)[1]
    grad = _grad(grad_rows, grad_columns, row_stride, column_stride, sums, k, N, M, REDUCTION)
    by_sum = tl.where(count > 0, grad * share, 0.0)
    tl.store(by_sums + k, by_sum.to(tl.float32), mask=k < N + M)
    # The same numbers k as pairs.
    row, column = k, k + offset
    if LISTED:
        row = tl.load(i + k, mask=k < P, other=0)
        column = tl.load(j + k, mask=k < P, other=0)
    value_x = tl.load(values + COUNT * k, mask=k < P, other=0.0).to(tl.float64)
    value_y = tl.load(values + COUNT * k + COUNT - 1, mask=k < P, other=0.0).to(tl.float64)
    of_x = ROW_SIGN * _by_logit(
        ROW_SIGN * s * value_x, row, k < P, row_sums, column_sums, ends, offset, log_positives,
        sums, grad_rows, grad_columns, row_stride, column_stride, N, M, P, LISTED, REDUCTION,
    )  # fmt: skip
    of_y = COLUMN_SIGN * _by_logit(
        COLUMN_SIGN * s * value_y, N + column, k < P, row_sums, column_sums, ends, offset,
        log_positives, sums, grad_rows, grad_columns, row_stride, column_stride, N, M, P,
        LISTED, REDUCTION,
    )  # fmt: skip
    if COUNT == 2:
        tl.store(by_values + 2 * k, (s * of_x).to(tl.float32), mask=k < P)
        tl.store(by_values + 2 * k + 1, (s * of_y).to(tl.float32), mask=k < P)
    else:
        tl.store(by_values + k, (s * (of_x + of_y)).to(tl.float32), mask=k < P)
    of_scale = tl.where(k < P, of_x * value_x + of_y * value_y, 0.0)
    tl.store(by_scale + tl.program_id(0), tl.sum(of_scale, 0))


@triton.jit
def _share(excess):
    """Of the negatives in all."""
    return 1 / (1 + tl.exp(-excess))


@triton.jit
def _grad(
    grad_rows, grad_columns, row_stride, column_stride, sums, k, N, M, REDUCTION: tl.constexpr
):  # fmt: skip
    """By the loss of an anchor."""
    of_row, of_column = k < N, (k >= N) & (k < N + M)
    if REDUCTION == "none":
        by_row = tl.load(grad_rows + k * row_stride, mask=of_row, other=0.0)
        by_column = tl.load(grad_columns + (k - N) * column_stride, mask=of_column, other=0.0)
        return (by_row + by_column).to(tl.float64)
    half = 0.5 * tl.load(grad_rows).to(tl.float64)
    if REDUCTION == "mean":
        return half / tl.where(of_row, tl.load(sums + 1), tl.load(sums + 3))
    return tl.where(of_row | of_column, half, 0.0)


@triton.jit
def _by_logit(
    logit, k, within, row_sums, column_sums, ends, offset, log_positives, sums,
    grad_rows, grad_columns, row_stride, column_stride, N, M, P,
    LISTED: tl.constexpr, REDUCTION: tl.constexpr,
):  # fmt: skip
    """By that of a positive of anchor k: a small share keeps its digits if there is no other."""
    k = tl.where(within, k, 0)
    log_positive = tl.load(log_positives + k)
    negatives = _share(others(row_sums, column_sums, k, N, M) - log_positive)
    count = anchor_range(ends, offset, k, N, M, P, LISTED)[1]
    share = tl.exp(logit - log_positive)
    rest = share - 1 / tl.where(count > 0, count, 1).to(tl.float64)
    grad = _grad(grad_rows, grad_columns, row_stride, column_stride, sums, k, N, M, REDUCTION)
    return grad * (rest - negatives * share)


# --- Losses and their gradients -------------------------------------------------------------------


def losses(problem: LossProblem, positives: Positives) -> Losses:
    x, N, M = problem.x, len(problem.x), len(problem.y)
    row_sums, column_sums = launch.log_sums(problem)
    values = values_of(problem, positives)
    out, log_positives = x.new_empty(N + M), x.new_empty(N + M, dtype=torch.float64)
    programs = triton.cdiv(N + M, _BLOCK)
    partials = x.new_empty(programs, 2, 2, dtype=torch.float64)
    with on_device(x):
        anchors_kernel[(programs,)](
            row_sums, column_sums, values, problem.scale, positives.by_column, positives.ends,
            positives.offset, out, log_positives, partials, N, M, len(values),
            BLOCK=_BLOCK, **settings(problem, positives),
        )  # fmt: skip
    return Losses(out, partials.sum(0), row_sums, column_sums, values, log_positives)


def reduced(found: Losses, reduction: str, N: int) -> tuple[Tensor, ...]:
    """The losses of x and of y; or, of another reduction than "none", one number."""
    if reduction == "none":
        return found.losses[:N], found.losses[N:]
    total, count = found.sums.unbind(1)
    return ((total / count if reduction == "mean" else total).mean(dtype=torch.float32),)


def gradients(
    problem: LossProblem,
    positives: Positives,
    found: Losses,
    grad_outputs: tuple[Tensor, ...],
    reduction: str,
) -> LossGradients:
    """Derivatives of ``grad_outputs`` times what is `reduced`."""
    x, N, M, values = problem.x, len(problem.x), len(problem.y), found.values
    by_sums, by_values = x.new_empty(N + M), torch.empty_like(values)
    grad_rows, grad_columns = grad_outputs[0], grad_outputs[-1]
    strides = [g.stride(0) if g.dim() else 0 for g in (grad_rows, grad_columns)]
    programs = triton.cdiv(max(N + M, len(values)), _BLOCK)
    by_scale = x.new_empty(programs, dtype=torch.float64)
    with on_device(x):
        anchors_vjp_kernel[(programs,)](
            found.row_sums, found.column_sums, values, problem.scale,
            positives.ends, positives.offset, positives.i, positives.j,
            found.log_positives, found.sums, grad_rows, grad_columns, *strides,
            by_sums, by_values, by_scale, N, M, len(values),
            REDUCTION=reduction, BLOCK=_BLOCK, **settings(problem, positives),
        )  # fmt: skip
    sums, grad_sums = LogSums(found.row_sums, found.column_sums), LogSums(by_sums[:N], by_sums[N:])
    by = launch.log_sums_gradients(problem, sums, grad_sums)
    by_c = add_gradients(problem, positives, by_values, by.x, by.y)
    return by._replace(c=by.c + by_c, scale=by.scale + by_scale.sum(dtype=torch.float32))


def settings(problem: LossProblem, positives: Positives) -> dict[str, object]:
    row_sign, column_sign = SIGNS[problem.similarity]
    return {
        "ROW_SIGN": row_sign,
        "COLUMN_SIGN": column_sign,
        "COUNT": 2 if problem.similarity == "angles" else 1,
        "LISTED": positives.i is not None,
    }


def values_of(problem: LossProblem, positives: Positives) -> Tensor:
    x, y, c, kind = problem.x, problem.y, problem.c, problem.similarity
    if positives.i is not None and positives.j is not None:
        if not len(positives.i):
            return x.new_empty(0, 2 if kind == "angles" else 1)
        return chosen.selected(kind, x, y, c, positives.i, positives.j)
    return rows.values(chosen.OPS[kind], (x, y[positives.offset :][: len(x)]), c)


def add_gradients(
    problem: LossProblem, positives: Positives, grad_values: Tensor, grad_x: Tensor, grad_y: Tensor
) -> Tensor:
    """Adds those of the positives by x and y; returns that by c."""
    x, y, c, kind = problem.x, problem.y, problem.c, problem.similarity
    if positives.i is not None and positives.j is not None:
        pairs = positives.i, positives.j
        return chosen.add_gradients(kind, x, y, c, *pairs, grad_values, grad_x, grad_y)
    own = slice(positives.offset, positives.offset + len(x))
    by = rows.gradients(chosen.OPS[kind], (x, y[own]), c, grad_values, (True, True, True, False))
    for total, by_vector in zip((grad_x, grad_y[own]), by.vectors, strict=True):
        assert by_vector is not None
        total += by_vector
    assert by.c is not None
    return by.c


__all__ = [
    "Losses",
    "add_gradients",
    "anchor_range",
    "gradients",
    "logit_at",
    "losses",
    "others",
    "place_of",
    "reduced",
    "settings",
    "sums_of_positives",
    "values_of",
]
