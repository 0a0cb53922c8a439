"""The anchors of a batch spread over processes: every share of x meets every share of y."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lorentzkit.distributed import Ring
from lorentzkit.fused import registry
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.losses.anchors import Anchors, equal_pairs

_ANCHORS = len(Anchors._fields)


def anchors(
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    how: tuple[str, str, str],
    ring: Ring,
) -> tuple[Anchors, Anchors]:
    """Of this process's x and of its y.

    ``ids``, int32, are equal where a pair is positive; ``how``: similarity, impl, precision.
    """
    if torch.compiler.is_compiling():  # breaks the graph; the loss then runs eagerly
        raise RuntimeError("group: exchanges between processes are not compiled")
    out = _Anchors.apply(x, y, c, scale, *ids, how, ring)  # type: ignore[no-untyped-call]
    return Anchors(*out[:_ANCHORS]), Anchors(*out[_ANCHORS:])


class _Anchors(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        c: Tensor,
        scale: Tensor,
        row_ids: Tensor,
        column_ids: Tensor,
        how: tuple[str, str, str],
        ring: Ring,
    ) -> tuple[Tensor, ...]:
        rows, columns = Anchors.none(x[:, 0]), Anchors.none(y[:, 0])
        for y_, ids in ring.round(y, column_ids):
            others = registry.log_sums(x, y_, c, scale, row_ids, ids, *how)
            pairs = equal_pairs(row_ids, ids)
            logits = _logits(x, y_, c, scale, pairs, how[0])
            rows = rows.joined(others[0], logits[0], pairs[0])
            # The columns' sums travel with their share, and are home after the last round.
            columns = columns.joined(others[1], logits[1], pairs[1])
            columns = Anchors(*ring.hand_on(*columns)())
        ctx.how, ctx.ring = how, ring
        ctx.save_for_backward(x, y, c, scale, row_ids, column_ids, *rows, *columns)
        ctx.mark_non_differentiable(rows.number, columns.number)
        return (*rows, *columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *at: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, scale, row_ids, column_ids, *saved = ctx.saved_tensors
        ring: Ring = ctx.ring
        similarity = ctx.how[0]
        rows, at_rows = Anchors(*saved[:_ANCHORS]), Anchors(*at[:_ANCHORS])
        dx, dy = torch.zeros_like(x), torch.zeros_like(y)
        dc, dscale = torch.zeros_like(c), torch.zeros_like(scale)
        share = (y, column_ids, *saved[_ANCHORS:], *at[_ANCHORS:])
        for y_, ids, *of_columns in ring.round(*share):
            columns, at_columns = Anchors(*of_columns[:_ANCHORS]), Anchors(*of_columns[_ANCHORS:])
            sums, at_sums = (rows.others, columns.others), (at_rows.others, at_columns.others)
            negatives = registry.log_sums_gradients(
                x, y_, c, scale, row_ids, ids, *sums, *at_sums, *ctx.how
            )

            pairs = equal_pairs(row_ids, ids)
            logits = _logits(x, y_, c, scale, pairs, similarity)
            at_logits = (
                _at_logits(rows, at_rows, logits[0], pairs[0]),
                _at_logits(columns, at_columns, logits[1], pairs[1]),
            )
            at_values = [s * scale * a for s, a in zip(SIGNS[similarity], at_logits, strict=True)]
            if similarity != "angle":  # one value is both logits'
                at_values = [at_values[0] + at_values[1]]
            positives = registry.selected_gradients(
                x, y_, c, *pairs, torch.stack(at_values, 1), similarity
            )
            dx, dc = dx + negatives[0] + positives[0], dc + negatives[2] + positives[2]
            for logit, at_logit in zip(logits, at_logits, strict=True):
                dscale = dscale + (at_logit * logit).sum() / scale
            dscale = dscale + negatives[3]
            (dy,) = ring.hand_on(dy + negatives[1] + positives[1])()
        return dx, dy, dc, dscale, None, None, None, None


def _logits(
    x: Tensor, y: Tensor, c: Tensor, scale: Tensor, pairs: tuple[Tensor, Tensor], similarity: str
) -> tuple[Tensor, Tensor]:
    """Of pairs, as their rows and as their columns see them."""
    values = registry.selected(x, y, c, *pairs, similarity)
    row, column = SIGNS[similarity]
    return row * scale * values[:, 0], column * scale * values[:, -1]


def _at_logits(anchors: Anchors, at: Anchors, logits: Tensor, of: Tensor) -> Tensor:
    """The cotangents of positives' logits, from those of their anchors."""
    share = (logits - anchors.positives[of]).exp()
    return at.positives[of] * share + at.total[of]


__all__ = ["anchors"]
