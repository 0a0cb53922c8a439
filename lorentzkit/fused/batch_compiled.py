"""The mean loss of a batch of pairs (x[i], y[i]) and its gradient, as one compiled function.

All pairs are one matrix here, and the cost of starting an operation is paid once. The formulas are
those of `streaming` and, for the positives, of `_geometry.pairs`.
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
from lorentzkit._geometry.invariants import ANGLES
from lorentzkit._geometry.precision import full_precision
from lorentzkit._geometry.special import TINY_LENGTH, dot
from lorentzkit._geometry.vectors import cpu_op, stored
from lorentzkit.fused import operands, pointwise
from lorentzkit.fused.folding import recompute
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import Batch

_MOST_PAIRS = 2**22  # a few matrices of all pairs are held: some 100 MB
_CALL = 2**17  # the fixed cost of a call, in numbers of x
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
    # Both an eager call and this compilation take some five times as long as `earns` counts.
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
        if similarity not in _traced:  # if N = D, the compiler must not take that for granted
            stack.enter_context(_config.patch(use_duck_shape=False))  # type: ignore[attr-defined]
            _traced.add(similarity)
        value, *gradients = function(similarity, *inputs)
    return Loss(value, tuple(gradients))


# --- The function ---------------------------------------------------------------------------------


class _Side(NamedTuple):
    """Points ``(N, D)``."""

    unit: Tensor
    spread: Tensor
    """As in `operands.Operand`"""
    length: Tensor
    scalars: list[Tensor]
    """As in `operands.Operand`: ``(N, 1)`` for the rows, ``(1, N)`` for the columns"""


def loss(similarity: str, x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """The loss of points ``(N, D)`` and ``(N, D)``; its derivatives by them, c and the scale."""
    # `stored`: a compiler would compute these again wherever they are used.
    (u, x_length), (v, y_length) = (map(stored, operands.polar(z)) for z in (x, y))
    mean = stored(0.5 * (u.mean(0) + v.mean(0)))
    x_side = _Side(u, u - mean, x_length, _scalars(x_length, c))
    y_side = _Side(v, mean - v, y_length, [z.mT for z in _scalars(y_length, c)])
    h = _folded(similarity, x_side, y_side, mean)
    values = [
        stored(value)
        for value in pointwise.all_values(similarity, h, x_side.scalars, y_side.scalars, c)
    ]
    positives, *measures = pairs.values_and_measures(similarity, x, y, c)
    value, value_grads, positive_grads = _loss_and_grads(similarity, values, positives, scale)
    grad_scale = sum((grad * v).sum() for grad, v in zip(value_grads, values, strict=True))
    grad_scale = grad_scale + (positive_grads * positives).sum()
    partials = pointwise.all_partials(
        similarity, h, x_side.scalars, y_side.scalars, c, [scale * grad for grad in value_grads]
    )
    x_directions = partials.h @ y_side.spread - partials.h.sum(1, keepdim=True) * mean
    y_directions = -(partials.h.mT @ x_side.spread) - partials.h.sum(0)[:, None] * mean
    positive_c, positive_x, positive_y = pairs.gradients(
        similarity, x, y, c, scale * positive_grads, *measures
    )
    grad_c = partials.c.sum() / (2 * c) + positive_c.sum()
    return (
        value,
        _gradient(x_side, x_directions, partials.a.sum(1, keepdim=True), c) + positive_x,
        _gradient(y_side, y_directions, partials.b.sum(0)[:, None], c) + positive_y,
        grad_c.to(c.dtype),
        grad_scale,
    )


def _scalars(length: Tensor, c: Tensor) -> list[Tensor]:
    return [stored(z) for z in operands.scalars(length, c)]


def _folded(similarity: str, x: _Side, y: _Side, mean: Tensor) -> Tensor:
    """The folded h of all pairs, ``(N, N)``."""
    halves = [0.5 * dot(z.spread, z.spread) for z in (x, y)]
    h = x.spread @ y.spread.mT + halves[0] + halves[1].mT
    most = halves[0].amax() * halves[1].amax()
    torch.ops.lorentzkit.recompute(h, x.spread, y.spread, mean, most, similarity in ANGLES)
    return h


@cpu_op(
    "recompute(Tensor(a!) h, Tensor x, Tensor y, Tensor mean, Tensor most, bool opposites) -> ()",
    lambda *_: None,
)
def _recompute(
    h: Tensor, x: Tensor, y: Tensor, mean: Tensor, most: Tensor, opposites: bool
) -> None:
    recompute(h, x, y, mean, operands.threshold(len(mean), float(most)), opposites)


def _loss_and_grads(
    similarity: str, values: Sequence[Tensor], positives: Tensor, scale: Tensor
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The loss from the values of all pairs and of the positives ``(N, K)``; derivatives by both.

    The derivatives lack the factor of the scale; those by the values are 0 on the diagonal.
    """
    N = positives.shape[0]
    diagonal = torch.eye(N, dtype=torch.bool)
    loss, value_grads, positive_grads = scale.new_zeros(()), [], []
    for sign, k, dim in zip(SIGNS[similarity], (0, -1), (1, 0), strict=True):
        logits = torch.where(diagonal, -torch.inf, sign * scale * values[k])
        log_sums = pointwise.log_sum(logits, dim)
        excess = log_sums.flatten() - sign * scale * positives[:, k]
        loss = loss + torch.logaddexp(excess, torch.zeros_like(excess)).sum() / (2 * N)
        weight = sign / (2 * N) * excess.sigmoid()
        value_grads.append(weight.unsqueeze(dim) * (logits - log_sums).exp())
        positive_grads.append(-weight)
    if len(values) == 1:
        return (
            loss,
            [value_grads[0] + value_grads[1]],
            (positive_grads[0] + positive_grads[1])[:, None],
        )
    return loss, value_grads, torch.stack(positive_grads, 1)


def _gradient(side: _Side, direction_grad: Tensor, radius_grad: Tensor, c: Tensor) -> Tensor:
    """As `operands.Operand.gradient`, from the derivatives by the unit vectors and by the radii."""
    inside = ~(side.length > norm_limit(c))
    cosh = side.scalars[1].reshape(side.length.shape)
    along = torch.where(inside, radius_grad * (c.sqrt() / cosh), 0.0)
    across = stored(1 / side.length.clamp_min(TINY_LENGTH[side.length.dtype]))
    direction_grad = stored(direction_grad)
    return direction_grad * across + side.unit * stored(
        along - dot(side.unit, direction_grad) * across
    )
