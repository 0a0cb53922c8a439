"""The anchors of a batch spread over processes: every share of x meets every share of y."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorentzkit.distributed import Ring
from lorentzkit.fused import registry
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import ChosenPairs, LogSums, LossProblem, flat
from lorentzkit.losses.anchors import Anchors, equal_pairs

_ANCHORS = len(Anchors._fields)


def anchors(
    problem: LossProblem, impl: registry.Implementation, ring: Ring
) -> tuple[Anchors, Anchors]:
    """Of this process's x and of its y; `problem` has its shares, and ids of the whole batch."""
    if torch.compiler.is_compiling():  # breaks the graph; the loss then runs eagerly
        raise RuntimeError("group: exchanges between processes are not compiled")
    out = _Anchors.apply(impl, ring, *flat(problem))  # type: ignore[no-untyped-call]
    return Anchors(*out[:_ANCHORS]), Anchors(*out[_ANCHORS:])


class _Anchors(Function):
    @staticmethod
    def forward(
        ctx: Any, impl: registry.Implementation, ring: Ring, *given: Any
    ) -> tuple[Tensor, ...]:
        problem = LossProblem(*given)
        x, y = problem.x, problem.y
        rows, columns = Anchors.none(x[:, 0]), Anchors.none(y[:, 0])
        for y_, ids in ring.round(y, problem.column_ids):
            part = replace(problem, y=y_, column_ids=ids)
            others = registry.log_sums(part, impl)
            pairs = _positives(part)
            logits = _logits(part, pairs, impl)
            rows = rows.joined(others.rows, logits[0], pairs.i)
            # The columns' sums travel with their share, and are home after the last round.
            columns = columns.joined(others.columns, logits[1], pairs.j)
            columns = Anchors(*ring.hand_on(*columns)())
        ctx.impl, ctx.ring = impl, ring
        ctx.settings = problem.similarity, problem.precision
        tensors = x, y, problem.c, problem.scale, *problem.ids
        ctx.save_for_backward(*tensors, *rows, *columns)
        ctx.mark_non_differentiable(rows.number, columns.number)
        return (*rows, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *at: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        problem = LossProblem(*tensors, *ctx.settings)
        ring: Ring = ctx.ring
        rows, at_rows = Anchors(*saved[:_ANCHORS]), Anchors(*at[:_ANCHORS])
        dx, dy, dc, dscale = (torch.zeros_like(t) for t in tensors[:4])
        share = (problem.y, problem.column_ids, *saved[_ANCHORS:], *at[_ANCHORS:])
        for y, ids, *of_columns in ring.round(*share):
            part = replace(problem, y=y, column_ids=ids)
            columns, at_columns = Anchors(*of_columns[:_ANCHORS]), Anchors(*of_columns[_ANCHORS:])
            sums = LogSums(rows.others, columns.others)
            at_sums = LogSums(at_rows.others, at_columns.others)
            negatives = registry.log_sums_gradients(part, sums, at_sums, ctx.impl)

            pairs = _positives(part)
            logits = _logits(part, pairs, ctx.impl)
            at_logits = (
                _at_logits(rows, at_rows, logits[0], pairs.i),
                _at_logits(columns, at_columns, logits[1], pairs.j),
            )
            signs = SIGNS[part.similarity]
            at_values = [s * part.scale * a for s, a in zip(signs, at_logits, strict=True)]
            if part.similarity != "angle":  # one value is both logits'
                at_values = [at_values[0] + at_values[1]]
            positives = registry.selected_gradients(pairs, torch.stack(at_values, 1))
            dx, dc = dx + negatives.x + positives.x, dc + negatives.c + positives.c
            for logit, at_logit in zip(logits, at_logits, strict=True):
                dscale = dscale + (at_logit * logit).sum() / part.scale
            dscale = dscale + negatives.scale
            (dy,) = ring.hand_on(dy + negatives.y + positives.y)()
        return None, None, dx, dy, dc, dscale, *[None] * (len(tensors) - 4), None, None, None


def _positives(problem: LossProblem) -> ChosenPairs:
    pairs = equal_pairs(*problem.ids)
    return ChosenPairs(problem.x, problem.y, problem.c, *pairs, problem.similarity)


def _logits(
    problem: LossProblem, pairs: ChosenPairs, impl: registry.Implementation
) -> tuple[Tensor, Tensor]:
    """Of pairs, as their rows and as their columns see them."""
    values = registry.selected(pairs, impl)
    row, column = SIGNS[problem.similarity]
    return row * problem.scale * values[:, 0], column * problem.scale * values[:, -1]


def _at_logits(anchors: Anchors, at: Anchors, logits: Tensor, of: Tensor) -> Tensor:
    """The cotangents of positives' logits, from those of their anchors."""
    share = (logits - anchors.positives[of]).exp()
    return at.positives[of] * share + at.total[of]


__all__ = ["anchors"]
