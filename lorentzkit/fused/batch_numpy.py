"""The mean loss of few pairs (x[i], y[i]) and its gradient in NumPy, all of it in float64.

NumPy starts an operation in a third of torch's time, which is what a small batch takes. Products of
unit vectors in float64 hold ``1 - cos(theta)`` of all pairs, so that none needs a second look.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry.array_functions import Numbers
from lorentzkit._geometry.gram import NEAR
from lorentzkit._geometry.pairs import TINY
from lorentzkit._geometry.triangle import Radial, change, exact_triangle, radial, values
from lorentzkit.fused.batch_compiled import Loss, Run
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import Batch

_MOST_PAIRS, _MOST_NUMBERS = 2**16, 2**18  # NumPy has one thread
_LEAST_LENGTH = TINY[torch.float32]  # so that derivatives have their limit at the origin
_LEAST_H = 1e-15  # of aligned points less is left: a rounding
_REACH = 64.0  # of logits, whose exponentials hold all digits whatever is subtracted


def prepared(batch: Batch, differentiable: bool) -> Run | None:
    """What computes the loss; None of many pairs, and of points far out."""
    if len(batch.x) ** 2 > _MOST_PAIRS or batch.x.numel() > _MOST_NUMBERS:
        return None
    with torch.no_grad(), np.errstate(all="ignore"):
        pairs = _Pairs.of(batch)
    return None if pairs is None else partial(_loss, batch, pairs, differentiable)


# --- All pairs ------------------------------------------------------------------------------------


class _Points(NamedTuple):
    """One side of a batch."""

    unit: np.ndarray
    """``(N, D)``; of the origin, 0"""
    length: np.ndarray
    """``(N, 1)``, at least `_LEAST_LENGTH`"""
    apart: np.ndarray
    """``(N, 1)``: whether it is not the origin"""

    @classmethod
    def of(cls, x: Tensor) -> _Points:
        wide = x.numpy().astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
        longer = np.maximum(length, _LEAST_LENGTH)
        return cls(wide / longer, longer, length >= _LEAST_LENGTH)

    def gradient(self, by_unit: np.ndarray, by_length: Numbers) -> Tensor:
        along = np.einsum("nd,nd->n", by_unit, self.unit)[:, None]
        of = (by_unit - (along - by_length * self.length) * self.unit) / self.length
        return torch.from_numpy(of.astype(np.float32))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By torch: the threads of NumPy's BLAS would be in the way of torch's for milliseconds."""
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


class _Pairs(NamedTuple):
    """All pairs."""

    similarity: str
    points: tuple[_Points, _Points]
    numbers: tuple[Any, Any, Any, Any, Any, Any]
    """Arguments of `triangle.values` and `triangle.change`"""
    values: tuple[np.ndarray, ...]
    """``(N, N)``: of "angle" two, at x and at y"""

    @classmethod
    def of(cls, batch: Batch) -> _Pairs | None:
        """None if a point is so far out that products lose its distances, or is not finite."""
        c, similarity = float(batch.c), batch.similarity
        x, y = _Points.of(batch.x), _Points.of(batch.y)
        if not max(c * points.length.max() ** 2 for points in (x, y)) <= NEAR:
            return None
        h = 1 - _product(x.unit, y.unit.T)
        h[h < _LEAST_H] = 0.0
        # Positives, whose loss may be tiny, from differences.
        difference = x.unit - y.unit
        np.fill_diagonal(h, 0.5 * np.einsum("nd,nd->n", difference, difference))
        p, q = (radial(c**0.5 * z.length, z.apart * 1.0) for z in (x, y))
        q = Radial(*(z.T for z in q))
        tri: Any = None  # of which a cosine needs nothing
        if similarity != "cosine":
            h *= x.apart | y.apart.T  # points at the origin coincide
            tri = exact_triangle(h, c**0.5 * (x.length - y.length.T), p, q, wide=True)
        numbers = (h, 2 - h, tri, p, q, c)
        return cls(similarity, (x, y), numbers, values(similarity, *numbers))

    def gradients(self, weights: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, float]:
        """Derivatives of ``(weights[0] * values[0]).sum() + ...`` by x, y and c."""
        by = change(self.similarity, *self.numbers, at=weights, wide=True)
        (x, y), (*_, p, q, c) = self.points, self.numbers
        of_x: Numbers = 0.0
        of_y: Numbers = 0.0
        by_c = 0.0
        if self.similarity != "cosine":
            of_x = c**0.5 * p.sech * by.a.sum(axis=1, keepdims=True)
            of_y = (c**0.5 * q.sech * by.b.sum(axis=0)).T
            by_c = float(by.c.sum()) / (2 * c)
        by_x, by_y = _product(-by.h, y.unit), _product(-by.h.T, x.unit)
        return x.gradient(by_x, of_x), y.gradient(by_y, of_y), by_c


# --- The loss -------------------------------------------------------------------------------------


class _Negatives(NamedTuple):
    """The logits of the negatives along one axis."""

    each: np.ndarray
    """Their exponentials, less the largest; 0 of positives"""
    sums: np.ndarray
    """Over that axis, kept"""
    largest: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, axis: int) -> _Negatives:
        least = logits.min()
        np.fill_diagonal(logits, -np.inf)
        largest = logits.max()
        if not largest - least <= _REACH:
            largest = logits.max(axis=axis, keepdims=True)
        largest = np.where(largest == -np.inf, 0.0, largest)
        each = np.exp(logits - largest)
        return cls(each, each.sum(axis=axis, keepdims=True), largest)

    def across(self) -> _Negatives:
        """Of the same logits along the other axis, if the largest is that of all."""
        return self._replace(sums=self.each.sum(axis=0, keepdims=True))

    def excess(self, positives: np.ndarray) -> np.ndarray:
        """The log-sum-exps less the positives' logits, ``(N,)``."""
        difference: np.ndarray = (np.log(self.sums) + self.largest).ravel() - positives
        return difference

    def change(self, grad: np.ndarray) -> np.ndarray:
        """Derivatives of ``(grad * excess).sum()`` by all logits."""
        sums = np.maximum(self.sums, np.finfo(np.float64).tiny)
        by: np.ndarray = self.each * (grad.reshape(sums.shape) / sums)
        np.fill_diagonal(by, -grad)
        return by


def _loss(batch: Batch, pairs: _Pairs, differentiable: bool) -> Loss:
    with np.errstate(all="ignore"):
        value, *gradients = _numbers(batch, pairs, differentiable)
    loss = batch.x.new_full((), value)
    if not differentiable:
        return Loss(loss, ())
    by_x, by_y, by_c, by_scale = gradients
    by = torch.full_like(batch.c, by_c), torch.full_like(batch.scale, by_scale)
    return Loss(loss, (by_x, by_y, *by))


def _numbers(batch: Batch, pairs: _Pairs, differentiable: bool) -> tuple[Any, ...]:
    N, scale = len(batch.x), float(batch.scale)
    ends = [scale * sign for sign in SIGNS[batch.similarity]]
    both = pairs.values[0], pairs.values[-1]
    rows = _Negatives.of(ends[0] * both[0], 1)
    same = both[0] is both[1] and rows.largest.ndim == 0
    sides = rows, rows.across() if same else _Negatives.of(ends[1] * both[1], 0)
    excess = [
        side.excess(end * value.diagonal())
        for side, end, value in zip(sides, ends, both, strict=True)
    ]
    loss = float(np.logaddexp(0.0, excess).sum()) / (2 * N)
    if not differentiable:
        return (loss,)
    weights = [
        end * side.change(1 / (1 + np.exp(-e)) / (2 * N))
        for side, end, e in zip(sides, ends, excess, strict=True)
    ]
    if len(pairs.values) == 1:
        weights = [weights[0] + weights[1]]
    by_scale = sum(
        float(np.einsum("ij,ij->", w, value))
        for w, value in zip(weights, pairs.values, strict=True)
    )
    return loss, *pairs.gradients(weights), by_scale / scale
