"""The mean loss of a batch of pairs (x[i], y[i]), in few launches: small batches wait for those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import LogSums, LossGradients, LossProblem
from lorentzkit.fused.triton import launch, rows
from lorentzkit.fused.triton.chosen import OPS
from lorentzkit.fused.triton.elementary import log1p

_BLOCK = 256


class Loss(NamedTuple):
    mean: Tensor
    """Over all x and all y, 0-dim"""
    row_sums: Tensor
    """Log-sum-exps of the negatives, ``(N,)``"""
    column_sums: Tensor
    values: Tensor
    """Of the pairs, ``(N,)``; of "angles" ``(N, 2)``"""
    by_sums: Tensor
    """Derivatives of the mean, by rows and by columns, ``(2, N)``"""
    by_values: Tensor


@triton.jit
def paired_kernel(
    row_sums, column_sums, values, scale, losses, by_sums, by_values, N,
    ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s = tl.load(scale).to(tl.float64)
    of_row = _excess(row_sums, values, ROW_SIGN * s, i, N, COUNT)
    of_column = _excess(column_sums, values + COUNT - 1, COLUMN_SIGN * s, i, N, COUNT)
    tl.store(losses + i, _softplus(of_row).to(tl.float32), mask=i < N)
    tl.store(losses + N + i, _softplus(of_column).to(tl.float32), mask=i < N)
    by_row, by_column = 0.5 / (N * (1 + tl.exp(-of_row))), 0.5 / (N * (1 + tl.exp(-of_column)))
    tl.store(by_sums + i, by_row.to(tl.float32), mask=i < N)
    tl.store(by_sums + N + i, by_column.to(tl.float32), mask=i < N)
    grad_alpha, grad_beta = -ROW_SIGN * s * by_row, -COLUMN_SIGN * s * by_column
    if COUNT == 2:
        tl.store(by_values + 2 * i, grad_alpha.to(tl.float32), mask=i < N)
        tl.store(by_values + 2 * i + 1, grad_beta.to(tl.float32), mask=i < N)
    else:
        tl.store(by_values + i, (grad_alpha + grad_beta).to(tl.float32), mask=i < N)


@triton.jit
def _excess(sums, values, by_value, i, N, COUNT: tl.constexpr):
    """By how much the negatives' log-sum-exp exceeds the positive's logit."""
    others = tl.load(sums + i, mask=i < N, other=0.0).to(tl.float64)
    return others - by_value * tl.load(values + COUNT * i, mask=i < N, other=0.0).to(tl.float64)


@triton.jit
def _softplus(z):
    return tl.where(z > 0, z, 0.0) + log1p(tl.exp(-tl.abs(z)))


def loss(problem: LossProblem) -> Loss:
    x, similarity = problem.x, problem.similarity
    row_sums, column_sums = launch.log_sums(problem)
    values = rows.values(OPS[similarity], (x, problem.y), problem.c)
    losses, by_sums = x.new_empty(2, 2, len(x))
    by_values = values.new_empty(values.shape)
    row_sign, column_sign = SIGNS[similarity]
    with launch.on_device(x):
        paired_kernel[(triton.cdiv(len(x), _BLOCK),)](
            row_sums, column_sums, values, problem.scale, losses, by_sums, by_values, len(x),
            ROW_SIGN=row_sign, COLUMN_SIGN=column_sign, COUNT=values[:1].numel(), BLOCK=_BLOCK,
        )  # fmt: skip
    return Loss(losses.mean(), row_sums, column_sums, values, by_sums, by_values)


def gradients(problem: LossProblem, saved: Sequence[Tensor], grad_output: Tensor) -> LossGradients:
    """Derivatives of ``grad_output`` times the mean, of which `loss` has found all else."""
    x, y, c, scale = problem.x, problem.y, problem.c, problem.scale
    row_sums, column_sums, values, by_sums, by_values = saved
    by_sums, by_values = grad_output * by_sums, grad_output * by_values
    sums, of_sums = LogSums(row_sums, column_sums), LogSums(*by_sums)
    log_sum_gradients = launch.log_sums_gradients(problem, sums, of_sums)
    needed = True, True, True, False
    own = rows.gradients(OPS[problem.similarity], (x, y), c, by_values, needed)
    for total, by in zip(log_sum_gradients[:2], own.vectors, strict=True):
        assert by is not None
        total += by
    assert own.c is not None
    by_scale = log_sum_gradients.scale + (by_values * values).sum() / scale
    return log_sum_gradients._replace(c=log_sum_gradients.c + own.c, scale=by_scale)
