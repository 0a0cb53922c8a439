"""The loss of each point of a batch, its anchor, from sums over its negatives and its positives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit.fused.problems import LossProblem, LossTerms


class Anchors(NamedTuple):
    """What the losses of n anchors need to know of all their pairs, ``(n,)`` each."""

    others: Tensor
    """log-sum-exp of the negatives' logits"""
    positives: Tensor
    """that of the positives'; -inf if there is none"""
    total: Tensor
    """sum of the positives' logits"""
    number: Tensor
    """of the positives"""

    @classmethod
    def none(cls, like: Tensor) -> Anchors:
        """Of no pairs yet."""
        empty = torch.full_like(like, -torch.inf)
        return cls(empty, empty, torch.zeros_like(like), torch.zeros_like(like))

    @classmethod
    def paired(cls, problem: LossProblem, terms: LossTerms) -> list[Anchors]:
        """Of x and of y, where each has one positive: the other of its pair."""
        logits = problem.logits(terms.values)
        one = torch.ones_like(logits[0])
        return [cls(o, p, p, one) for o, p in zip(terms.sums, logits, strict=True)]

    def joined(self, others: Tensor, logits: Tensor, of: Tensor) -> Anchors:
        """With more pairs: the log-sum-exp of further negatives, and further positives' logits.

        ``of`` says whose each positive is. A single positive stays exactly what it is.
        """
        known = self.positives.detach()
        largest = known.scatter_reduce(0, of, logits.detach(), "amax")
        shift = torch.where(largest == -torch.inf, 0.0, largest)
        sums = (self.positives - shift).exp().index_add(0, of, (logits - shift[of]).exp())
        some = sums > 0
        return Anchors(
            torch.logaddexp(self.others, others),
            torch.where(some, shift + torch.where(some, sums, 1.0).log(), -torch.inf),
            self.total.index_add(0, of, logits),
            self.number.index_add(0, of, torch.ones_like(logits)),
        )

    def losses(self) -> Tensor:
        """``logsumexp(all) - logit``, the mean over the positives; 0 where there is none.

        As ``log(1 + exp(others - positives))``, it keeps its relative accuracy when it is small. So
        does its gradient: of a single positive the rest is left out, whose derivatives of 1 and -1
        would leave a rounding.
        """
        some = self.number > 0
        positives = torch.where(some, self.positives, 0.0)
        excess = torch.logaddexp(self.others - positives, torch.zeros_like(positives))
        rest = positives - self.total / self.number.clamp_min(1)
        return torch.where(some, excess + torch.where(self.number > 1, rest, 0.0), 0.0)


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


__all__ = ["Anchors", "equal_pairs"]
