"""The anchors of a batch spread over processes: every share of x meets every share of y."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from types import ModuleType
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
    if impl.name == "triton":
        sides = _KernelAnchors.apply(ring, *flat(problem))  # type: ignore[no-untyped-call]
        return Anchors(*sides[0].unbind()), Anchors(*sides[1].unbind())
    out = _Anchors.apply(impl, ring, *flat(problem))  # type: ignore[no-untyped-call]
    return Anchors(*out[:_ANCHORS]), Anchors(*out[_ANCHORS:])


class _Anchors(Function):
    @staticmethod
    def forward(
        ctx: Any, impl: registry.Implementation, ring: Ring, *fields: Any
    ) -> tuple[Tensor, ...]:
        problem = LossProblem(*fields)
        x, y = problem.x, problem.y
        rows, columns = Anchors.empty(x[:, 0]), Anchors.empty(y[:, 0])
        for y_, ids in ring.round(y, problem.column_ids):
            part = _part(problem, y_, ids)
            terms = registry.loss_terms(part, impl)
            row_logits, column_logits = part.logits(terms.values)
            rows = rows.with_pairs(terms.rows, row_logits, part.i)
            # The columns' sums travel with their share, and are home after the last round.
            columns = columns.with_pairs(terms.columns, column_logits, part.j)
            columns = Anchors(*ring.hand_on(*columns)())
        ctx.impl, ctx.ring = impl, ring
        ctx.settings = problem.similarity, problem.precision
        tensors = x, y, problem.c, problem.scale, *problem.ids, problem.i, problem.j
        ctx.save_for_backward(*tensors, *rows, *columns)
        ctx.mark_non_differentiable(rows.positive_count, columns.positive_count)
        return (*rows, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
        problem = LossProblem(*tensors, *ctx.settings)
        ring: Ring = ctx.ring
        rows, grad_rows = Anchors(*saved[:_ANCHORS]), Anchors(*grad_outputs[:_ANCHORS])
        dx, dy, dc, dscale = (torch.zeros_like(t) for t in tensors[:4])
        share = (problem.y, problem.column_ids, *saved[_ANCHORS:], *grad_outputs[_ANCHORS:])
        for y, ids, *column_fields in ring.round(*share):
            part = _part(problem, y, ids)
            columns = Anchors(*column_fields[:_ANCHORS])
            grad_columns = Anchors(*column_fields[_ANCHORS:])
            logits = part.logits(registry.selected(part.positives))
            grad_logits = (
                _grad_of_logits(rows, grad_rows, logits[0], part.i),
                _grad_of_logits(columns, grad_columns, logits[1], part.j),
            )
            signs = SIGNS[part.similarity]
            grad_values = [s * part.scale * a for s, a in zip(signs, grad_logits, strict=True)]
            if part.similarity != "angles":  # one value is both logits'
                grad_values = [grad_values[0] + grad_values[1]]
            sums = LogSums(rows.negatives, columns.negatives)
            grad_terms = LossTerms(
                grad_rows.negatives, grad_columns.negatives, torch.stack(grad_values, 1)
            )
            gradients = registry.loss_terms_gradients(part, sums, grad_terms, ctx.impl)
            dx += gradients.x
            dc += gradients.c
            dscale += gradients.scale
            for logit, grad_logit in zip(logits, grad_logits, strict=True):
                dscale += (grad_logit * logit).sum() / part.scale
            (dy,) = ring.hand_on(dy + gradients.y)()
        return None, None, dx, dy, dc, dscale, *[None] * (len(tensors) - 4), None, None, None


class _KernelAnchors(Function):
    """The same in few launches, of rows ``(4, n)`` and of columns."""

    @staticmethod
    def forward(ctx: Any, ring: Ring, *fields: Any) -> tuple[Tensor, Tensor]:
        problem = LossProblem(*fields)
        shares, of_labels = _kernels("shares"), _kernels("positives").of_labels
        rows, columns = shares.empty(problem.x), shares.empty(problem.y)
        ctx.met = []
        for y, ids in ring.round(problem.y, problem.column_ids):
            positives = of_labels(problem.row_ids, ids)
            part = replace(problem, y=y, column_ids=ids)
            ctx.met.append((positives, shares.merge(part, positives, rows, columns)))
            (columns,) = ring.hand_on(columns)()
        ctx.ring, ctx.settings = ring, (problem.similarity, problem.precision)
        tensors = problem.x, problem.y, problem.c, problem.scale, *problem.ids
        ctx.save_for_backward(*tensors, problem.i, problem.j, rows, columns)
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, rows, columns = ctx.saved_tensors
        problem, ring = LossProblem(*tensors, *ctx.settings), ctx.ring
        dx, dy, dc, dscale = (torch.zeros_like(t) for t in tensors[:4])
        share = problem.y, problem.column_ids, columns, grad_columns.contiguous()
        grad_rows = grad_rows.contiguous()
        for (y, ids, of_columns, grads), (positives, values) in zip(
            ring.round(*share), ctx.met, strict=True
        ):
            part = replace(problem, y=y, column_ids=ids)
            by = _kernels("shares").gradients(
                part, positives, values, (rows, of_columns), (grad_rows, grads)
            )
            dx += by.x
            dc += by.c
            dscale += by.scale
            (dy,) = ring.hand_on(by.y.add_(dy))()
        return None, dx, dy, dc, dscale, *[None] * (len(tensors) - 4), None, None, None


def _kernels(name: str) -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module(f"lorentzkit.fused.triton.{name}")


def _part(problem: LossProblem, y: Tensor, ids: Tensor) -> LossProblem:
    """The same rows against another share of columns."""
    i, j = equal_pairs(problem.row_ids, ids)
    return replace(problem, y=y, column_ids=ids, i=i, j=j)


def _grad_of_logits(
    anchors: Anchors, grad_outputs: Anchors, logits: Tensor, anchor_index: Tensor
) -> Tensor:
    """The gradients of positives' logits, from those of their anchors."""
    share = (logits - anchors.positives[anchor_index]).exp()
    return grad_outputs.positives[anchor_index] * share + grad_outputs.total[anchor_index]


__all__ = ["anchors"]
