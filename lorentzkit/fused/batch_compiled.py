"""The mean loss of a batch of pairs (x[i], y[i]) and its gradient as one function for a compiler.

All pairs are one matrix here, and what it takes to start an operation is paid once. The formulas
are those of `streaming` and, of the positives, of `_geometry.pairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental import _config

from lorentzkit._geometry import compilation, pairs
from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.precision import full_precision
from lorentzkit._geometry.special import dot
from lorentzkit._geometry.vectors import cpu_op, stored
from lorentzkit.fused import operands, pointwise
from lorentzkit.fused.folding import mend
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import Batch

_MOST_PAIRS = 2**22  # whose matrices are held: some 100 MB
_CALL = 2**17  # what a call costs besides, in numbers of x
_traced: set[str] = set()


class Loss(NamedTuple):
    """The mean over all x and all y of their losses; its derivatives, if they were asked for."""

    value: Tensor
    gradients: tuple[Tensor, ...]
    """By x, y, c and the scale"""


Run = Callable[[], Loss]


def earned(batch: Batch) -> Run | None:
    """The compiled loss of these points; None until such batches have earned its compilation."""
    x, (N, D) = batch.x, batch.x.shape
    if D <= operands.FEW_DIMENSIONS or not 1 < N * N <= _MOST_PAIRS:
        return None
    # An eager call takes some five times as long as this says, and so does this compilation.
    if not compilation.earns(loss, batch.similarity, x, _CALL + 2 * N * (N + D)):
        return None
    return partial(_run, batch)


def _run(batch: Batch) -> Loss:
    similarity = batch.similarity
    inputs = [z.detach() for z in (batch.x, batch.y, batch.c, batch.scale)]
    function = compilation.compiled(loss, similarity, batch.x.dtype)
    with ExitStack() as stack:
        stack.enter_context(full_precision())
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if similarity not in _traced:  # where N = D, which is not to be part of the code
            stack.enter_context(_config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
            _traced.add(similarity)
        value, *gradients = function(similarity, *inputs)
    return Loss(value, tuple(gradients))


# --- The function ---------------------------------------------------------------------------------


class _Side(NamedTuple):
    """Points ``(N, D)``."""

    unit: Tensor
    spread: Tensor
    """As of `operands.Cloud`"""
    length: Tensor
    scalars: list[Tensor]
    """As of `operands.Cloud`, each ``(N, 1)``; of columns ``(1, N)``"""


def loss(similarity: str, x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Of points ``(N, D)`` and ``(N, D)``; and its derivatives by them, c and the scale."""
    # Stored is what a compiler would compute anew for each of its uses.
    (u, x_length), (v, y_length) = (map(stored, operands.polar(z)) for z in (x, y))
    mean = stored(0.5 * (u.mean(0) + v.mean(0)))
    of_x = _Side(u, u - mean, x_length, _scalars(x_length, c))
    of_y = _Side(v, mean - v, y_length, [z.mT for z in _scalars(y_length, c)])
    h = _products(similarity, of_x, of_y, mean)
    values = [
        stored(value)
        for value in pointwise.all_values(similarity, h, of_x.scalars, of_y.scalars, c)
    ]
    found, *measures = pairs.of_blocks(similarity, x, y, c)
    value, of_values, of_found = _of_values(similarity, values, found, scale)
    by_scale = sum((of * v).sum() for of, v in zip(of_values, values, strict=True))
    by_scale = by_scale + (of_found * found).sum()
    by = pointwise.all_changes(
        similarity, h, of_x.scalars, of_y.scalars, c, [scale * of for of in of_values]
    )
    by_x = by.h @ of_y.spread - by.h.sum(1, keepdim=True) * mean
    by_y = -(by.h.mT @ of_x.spread) - by.h.sum(0)[:, None] * mean
    own_c, own_x, own_y = pairs.gradients(similarity, x, y, c, scale * of_found, *measures)
    by_c = by.c.sum() / (2 * c) + own_c.sum()
    return (
        value,
        _gradient(of_x, by_x, by.a.sum(1, keepdim=True), c) + own_x,
        _gradient(of_y, by_y, by.b.sum(0)[:, None], c) + own_y,
        by_c.to(c.dtype),
        by_scale,
    )


def _scalars(length: Tensor, c: Tensor) -> list[Tensor]:
    return [stored(z) for z in operands.scalars(length, c)]


def _products(similarity: str, x: _Side, y: _Side, mean: Tensor) -> Tensor:
    """The folded h of all pairs, ``(N, N)``."""
    halves = [0.5 * dot(z.spread, z.spread) for z in (x, y)]
    h = x.spread @ y.spread.mT + halves[0] + halves[1].mT
    most = halves[0].amax() * halves[1].amax()
    torch.ops.lorentzkit.mend(h, x.spread, y.spread, mean, most, similarity == "angle")
    return h


@cpu_op(
    "mend(Tensor(a!) h, Tensor x, Tensor y, Tensor mean, Tensor most, bool opposites) -> ()",
    lambda *_: None,
)
def _mend(h: Tensor, x: Tensor, y: Tensor, mean: Tensor, most: Tensor, opposites: bool) -> None:
    mend(h, x, y, mean, operands.threshold(len(mean), float(most)), opposites)


def _of_values(
    similarity: str, values: Sequence[Tensor], found: Tensor, scale: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss, of the values of all pairs and of positives ``(N, K)``; its derivatives by them.

    The derivatives are less the scale, and those by the values have zeros in their diagonals.
    """
    N = found.shape[0]
    diagonal = torch.eye(N, dtype=torch.bool)
    loss, of_values, of_found = scale.new_zeros(()), [], []
    for sign, k, dim in zip(SIGNS[similarity], (0, -1), (1, 0), strict=True):
        logits = torch.where(diagonal, -torch.inf, sign * scale * values[k])
        log_sums = pointwise.log_sum(logits, dim)
        excess = log_sums.flatten() - sign * scale * found[:, k]
        loss = loss + torch.logaddexp(excess, torch.zeros_like(excess)).sum() / (2 * N)
        slope = sign / (2 * N) * excess.sigmoid()
        of_values.append(slope.unsqueeze(dim) * (logits - log_sums).exp())
        of_found.append(-slope)
    if len(values) == 1:
        return loss, [of_values[0] + of_values[1]], (of_found[0] + of_found[1])[:, None]
    return loss, of_values, torch.stack(of_found, 1)


def _gradient(of: _Side, change: Tensor, by_radius: Tensor, c: Tensor) -> Tensor:
    """As `operands.Cloud.gradient`, of the derivatives by the unit vectors and by the radii."""
    inside = ~(of.length > norm_limit(c))
    cosh = of.scalars[1].reshape(of.length.shape)
    along = torch.where(inside, by_radius * (c.sqrt() / cosh), 0.0)
    across = stored(1 / of.length.clamp_min(operands.TINY[of.length.dtype]))
    change = stored(change)
    return change * across + of.unit * stored(along - dot(of.unit, change) * across)
