"""The mean loss of few pairs (x[i], y[i]) and its gradient in NumPy, all of it in float64.

A small batch takes nearly all of its time to start operations, and NumPy starts one in a third of
torch's time. float64 products of unit vectors are exact enough for ``1 - cos(theta)`` of all pairs,
so none is recomputed.
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
from lorentzkit._geometry.special import TINY_LENGTH
from lorentzkit._geometry.triangle import Radial, exact_triangle, radial, values, vjp
from lorentzkit.fused.batch_compiled import Loss, Run
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import Batch

_MOST_PAIRS, _MOST_NUMBERS = 2**16, 2**18  # NumPy has one thread
_LEAST_LENGTH = TINY_LENGTH[torch.float32]  # so that derivatives have their limit at the origin
_LEAST_H = 1e-15  # smaller values are the rounding that aligned points leave
_REACH = 64.0  # logits in so small a range need one maximum subtracted, not that of each row


def prepared(batch: Batch, differentiable: bool) -> Run | None:
    """A function that computes the loss; None if the pairs are many or the points far out."""
    if len(batch.x) ** 2 > _MOST_PAIRS or batch.x.numel() > _MOST_NUMBERS:
        return None
    with torch.no_grad(), np.errstate(all="ignore"):
        pairs = _Pairs.from_batch(batch)
    return None if pairs is None else partial(_loss, batch, pairs, differentiable)


# --- All pairs ------------------------------------------------------------------------------------


class _Points(NamedTuple):
    """One side of a batch."""

    unit: np.ndarray
    """``(N, D)``; 0 for the origin"""
    length: np.ndarray
    """``(N, 1)``, at least `_LEAST_LENGTH`"""
    apart: np.ndarray
    """``(N, 1)``: whether it is not the origin"""

    @classmethod
    def from_tensor(cls, x: Tensor) -> _Points:
        wide = x.numpy().astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
        longer = np.maximum(length, _LEAST_LENGTH)
        return cls(wide / longer, longer, length >= _LEAST_LENGTH)

    def gradient(self, unit_grad: np.ndarray, length_grad: Numbers) -> Tensor:
        along = np.einsum("nd,nd->n", unit_grad, self.unit)[:, None]
        grad = (unit_grad - (along - length_grad * self.length) * self.unit) / self.length
        return torch.from_numpy(grad.astype(np.float32))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """By torch: the threads of NumPy's BLAS would block torch's for milliseconds."""
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


class _Pairs(NamedTuple):
    """All pairs."""

    similarity: str
    points: tuple[_Points, _Points]
    numbers: tuple[Any, Any, Any, Any, Any, Any]
    """Arguments of `triangle.values` and `triangle.vjp`"""
    values: tuple[np.ndarray, ...]
    """``(N, N)``: two for "angles", at x and at y, and else one"""

    @classmethod
    def from_batch(cls, batch: Batch) -> _Pairs | None:
        """None if a point is so far out that products lose its distances, or is not finite."""
        c, similarity = float(batch.c), batch.similarity
        x, y = _Points.from_tensor(batch.x), _Points.from_tensor(batch.y)
        if not max(c * points.length.max() ** 2 for points in (x, y)) <= NEAR:
            return None
        h = 1 - _product(x.unit, y.unit.T)
        h[h < _LEAST_H] = 0.0
        # Positives, whose loss may be tiny, from differences.
        difference = x.unit - y.unit
        np.fill_diagonal(h, 0.5 * np.einsum("nd,nd->n", difference, difference))
        p, q = (radial(c**0.5 * z.length, z.apart * 1.0) for z in (x, y))
        q = Radial(*(z.T for z in q))
        tri: Any = None  # a cosine does not need it
        if similarity != "cosine":
            h *= x.apart | y.apart.T  # points at the origin coincide
            tri = exact_triangle(h, c**0.5 * (x.length - y.length.T), p, q, wide=True)
        numbers = (h, 2 - h, tri, p, q, c)
        return cls(similarity, (x, y), numbers, values(similarity, *numbers))

    def gradients(self, weights: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, float]:
        """Derivatives of ``(weights[0] * values[0]).sum() + ...`` by x, y and c."""
        partials = vjp(self.similarity, *self.numbers, grad_outputs=weights, wide=True)
        (x, y), (*_, p, q, c) = self.points, self.numbers
        x_radii: Numbers = 0.0
        y_radii: Numbers = 0.0
        grad_c = 0.0
        if self.similarity != "cosine":
            x_radii = c**0.5 * p.sech * partials.a.sum(axis=1, keepdims=True)
            y_radii = (c**0.5 * q.sech * partials.b.sum(axis=0)).T
            grad_c = float(partials.c.sum()) / (2 * c)
        x_units, y_units = _product(-partials.h, y.unit), _product(-partials.h.T, x.unit)
        return x.gradient(x_units, x_radii), y.gradient(y_units, y_radii), grad_c


# --- The loss -------------------------------------------------------------------------------------


class _Negatives(NamedTuple):
    """The logits of the negatives along one axis."""

    exponentials: np.ndarray
    """``exp(logit - largest)``; 0 for positives"""
    sums: np.ndarray
    """Over that axis, kept"""
    largest: np.ndarray

    @classmethod
    def from_logits(cls, logits: np.ndarray, axis: int) -> _Negatives:
        least = logits.min()
        np.fill_diagonal(logits, -np.inf)
        largest = logits.max()
        if not largest - least <= _REACH:
            largest = logits.max(axis=axis, keepdims=True)
        largest = np.where(largest == -np.inf, 0.0, largest)
        exponentials = np.exp(logits - largest)
        return cls(exponentials, exponentials.sum(axis=axis, keepdims=True), largest)

    def across(self) -> _Negatives:
        """The same logits along the other axis, if ``largest`` is that of all of them."""
        return self._replace(sums=self.exponentials.sum(axis=0, keepdims=True))

    def excess(self, positives: np.ndarray) -> np.ndarray:
        """The log-sum-exps less the positives' logits, ``(N,)``."""
        difference: np.ndarray = (np.log(self.sums) + self.largest).ravel() - positives
        return difference

    def vjp(self, grad: np.ndarray) -> np.ndarray:
        """Derivatives of ``(grad * excess).sum()`` by all logits."""
        sums = np.maximum(self.sums, np.finfo(np.float64).tiny)
        grads: np.ndarray = self.exponentials * (grad.reshape(sums.shape) / sums)
        np.fill_diagonal(grads, -grad)
        return grads


def _loss(batch: Batch, pairs: _Pairs, differentiable: bool) -> Loss:
    with np.errstate(all="ignore"):
        value, *gradients = _loss_and_grads(batch, pairs, differentiable)
    loss = batch.x.new_full((), value)
    if not differentiable:
        return Loss(loss, ())
    grad_x, grad_y, grad_c, grad_scale = gradients
    parameter_grads = torch.full_like(batch.c, grad_c), torch.full_like(batch.scale, grad_scale)
    return Loss(loss, (grad_x, grad_y, *parameter_grads))


def _loss_and_grads(batch: Batch, pairs: _Pairs, differentiable: bool) -> tuple[Any, ...]:
    N, scale = len(batch.x), float(batch.scale)
    ends = [scale * sign for sign in SIGNS[batch.similarity]]
    both = pairs.values[0], pairs.values[-1]
    rows = _Negatives.from_logits(ends[0] * both[0], 1)
    shared = both[0] is both[1] and rows.largest.ndim == 0
    sides = rows, rows.across() if shared else _Negatives.from_logits(ends[1] * both[1], 0)
    excess = [
        side.excess(end * value.diagonal())
        for side, end, value in zip(sides, ends, both, strict=True)
    ]
    loss = float(np.logaddexp(0.0, excess).sum()) / (2 * N)
    if not differentiable:
        return (loss,)
    weights = [
        end * side.vjp(1 / (1 + np.exp(-e)) / (2 * N))
        for side, end, e in zip(sides, ends, excess, strict=True)
    ]
    if len(pairs.values) == 1:
        weights = [weights[0] + weights[1]]
    grad_scale = sum(
        float(np.einsum("ij,ij->", w, value))
        for w, value in zip(weights, pairs.values, strict=True)
    )
    return loss, *pairs.gradients(weights), grad_scale / scale
