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
from lorentzkit.fused.problems import LogSums, LossProblem, LossTerms, flat
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
            part = _part(problem, y_, ids)
            terms = registry.loss_terms(part, impl)
            of_rows, of_columns = part.logits(terms.values)
            rows = rows.joined(terms.rows, of_rows, part.i)
            # The columns' sums travel with their share, and are home after the last round.
            columns = columns.joined(terms.columns, of_columns, part.j)
            columns = Anchors(*ring.hand_on(*columns)())
        ctx.impl, ctx.ring = impl, ring
        ctx.settings = problem.similarity, problem.precision
        tensors = x, y, problem.c, problem.scale, *problem.ids, problem.i, problem.j
        ctx.save_for_backward(*tensors, *rows, *columns)
        ctx.mark_non_differentiable(rows.number, columns.number)
        return (*rows, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *at: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        problem = LossProblem(*tensors, *ctx.settings)
        ring: Ring = ctx.ring
        rows, at_rows = Anchors(*saved[:_ANCHORS]), Anchors(*at[:_ANCHORS])
        dx, dy, dc, dscale = (torch.zeros_like(t) for t in tensors[:4])
        share = (problem.y, problem.column_ids, *saved[_ANCHORS:], *at[_ANCHORS:])
        for y, ids, *of_columns in ring.round(*share):
            part = _part(problem, y, ids)
            columns, at_columns = Anchors(*of_columns[:_ANCHORS]), Anchors(*of_columns[_ANCHORS:])
            logits = part.logits(registry.selected(part.positives))
            at_logits = (
                _at_logits(rows, at_rows, logits[0], part.i),
                _at_logits(columns, at_columns, logits[1], part.j),
            )
            signs = SIGNS[part.similarity]
            at_values = [s * part.scale * a for s, a in zip(signs, at_logits, strict=True)]
            if part.similarity != "angle":  # one value is both logits'
                at_values = [at_values[0] + at_values[1]]
            sums = LogSums(rows.others, columns.others)
            at_terms = LossTerms(at_rows.others, at_columns.others, torch.stack(at_values, 1))
            by = registry.loss_terms_gradients(part, sums, at_terms, ctx.impl)
            dx += by.x
            dc += by.c
            dscale += by.scale
            for logit, at_logit in zip(logits, at_logits, strict=True):
                dscale += (at_logit * logit).sum() / part.scale
            (dy,) = ring.hand_on(dy + by.y)()
        return None, None, dx, dy, dc, dscale, *[None] * (len(tensors) - 4), None, None, None


def _part(problem: LossProblem, y: Tensor, ids: Tensor) -> LossProblem:
    """The same rows against another share of columns."""
    i, j = equal_pairs(problem.row_ids, ids)
    return replace(problem, y=y, column_ids=ids, i=i, j=j)


def _at_logits(anchors: Anchors, at: Anchors, logits: Tensor, of: Tensor) -> Tensor:
    """The cotangents of positives' logits, from those of their anchors."""
    share = (logits - anchors.positives[of]).exp()
    return at.positives[of] * share + at.total[of]


__all__ = ["anchors"]
