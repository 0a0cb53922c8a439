"""The loss of each point of a batch, its anchor, from sums over its negatives and its positives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit.fused.problems import LossProblem, LossTerms


class Anchors(NamedTuple):
    """What the losses of n anchors need to know of all their pairs, ``(n,)`` each."""

    negatives: Tensor
    """log-sum-exp of the negatives' logits"""
    positives: Tensor
    """that of the positives'; -inf if there is none"""
    total: Tensor
    """sum of the positives' logits"""
    positive_count: Tensor
    """of the positives"""

    @classmethod
    def empty(cls, like: Tensor) -> Anchors:
        """Of no pairs yet."""
        no_sum = torch.full_like(like, -torch.inf)
        return cls(no_sum, no_sum, torch.zeros_like(like), torch.zeros_like(like))

    @classmethod
    def paired(cls, problem: LossProblem, terms: LossTerms) -> list[Anchors]:
        """Of x and of y, where each has one positive: the other of its pair."""
        logits = problem.logits(terms.values)
        one = torch.ones_like(logits[0])
        return [cls(o, p, p, one) for o, p in zip(terms.sums, logits, strict=True)]

    def with_pairs(self, negatives: Tensor, logits: Tensor, anchor_index: Tensor) -> Anchors:
        """With more pairs: the log-sum-exp of further negatives, and further positives' logits.

        ``anchor_index`` says whose each positive is. A single positive stays exactly what it is.
        """
        largest = self.positives.detach().scatter_reduce(0, anchor_index, logits.detach(), "amax")
        shift = torch.where(largest == -torch.inf, 0.0, largest)
        terms = (logits - shift[anchor_index]).exp()
        sums = (self.positives - shift).exp().index_add(0, anchor_index, terms)
        has_positive = sums > 0
        return Anchors(
            torch.logaddexp(self.negatives, negatives),
            torch.where(
                has_positive, shift + torch.where(has_positive, sums, 1.0).log(), -torch.inf
            ),
            self.total.index_add(0, anchor_index, logits),
            self.positive_count.index_add(0, anchor_index, torch.ones_like(logits)),
        )

    def losses(self) -> Tensor:
        """``logsumexp(all) - logit``, the mean over the positives; 0 where there is none.

        As ``log(1 + exp(negatives - positives))``, it keeps its relative accuracy when it is small.
        So does its gradient: of a single positive the rest is left out, whose derivatives of 1 and
        -1 would leave a rounding.
        """
        has_positive = self.positive_count > 0
        positives = torch.where(has_positive, self.positives, 0.0)
        excess = torch.logaddexp(self.negatives - positives, torch.zeros_like(positives))
        rest = positives - self.total / self.positive_count.clamp_min(1)
        return torch.where(
            has_positive, excess + torch.where(self.positive_count > 1, rest, 0.0), 0.0
        )


def of_pairs(problem: LossProblem, terms: LossTerms) -> list[Anchors]:
    """Of x and of y, with any pairs (i, j) positive."""
    logits = problem.logits(terms.values)
    return [
        Anchors.empty(sums).with_pairs(sums, positives, index)
        for sums, positives, index in zip(terms.sums, logits, (problem.i, problem.j), strict=True)
    ]


def reduced(
    anchors: Sequence[Anchors], reduction: str, counts: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The losses of x and of y; or, of another reduction than "none", one number.

    Args:
        counts: by what the sums are divided for a mean; of x and y, those that have a positive.
    """
    losses = [side.losses() for side in anchors]
    if reduction == "none":
        return tuple(losses)
    if reduction == "sum":
        return ((losses[0].sum() + losses[1].sum()) / 2,)
    if counts is None:
        counts = [(side.positive_count > 0).sum() for side in anchors]
    return ((losses[0].sum() / counts[0] + losses[1].sum() / counts[1]) / 2,)


def check_positives(any_positive: bool) -> None:
    if not any_positive:
        raise ValueError(
            "targets: no label of x occurs among those of y; there is no positive pair"
        )


def equal_pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The places (i, j) of equal ids ``(N,)``, ``(M,)``, ordered by i."""
    order = columns.argsort(stable=True)
    ordered = columns[order]
    first = torch.searchsorted(ordered, rows)
    count = torch.searchsorted(ordered, rows, right=True) - first
    i = torch.arange(len(rows), device=rows.device).repeat_interleave(count)
    # The n-th positive of a row is n places after its first in the order of the columns.
    place = torch.arange(len(i), device=rows.device) - (count.cumsum(0) - count)[i]
    return i, order[first[i] + place]


__all__ = ["Anchors", "check_positives", "equal_pairs", "of_pairs", "reduced"]
