"""Elementwise work on a block of pairs, between two matrix products; each one pass if compiled.

A block is given by its folded ``h`` (`triangle.unfold`), the scalars of its rows ``(8, n, 1)`` and
columns ``(8, 1, m)`` (the fields of `Radial` and `Exponentials`), and the curvature ``c`` ``(1,)``.

The functions return sums by rows. What the caller has to sum by columns they leave in buffers: a
compiler makes one loop only if there are no sums in two directions, and memory that is reused stays
in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.invariants import ANGLES
from lorentzkit._geometry.triangle import (
    Exponentials,
    Partials,
    Radial,
    Triangle,
    legs_at_x,
    legs_at_y,
    sines,
    triangle,
    unfold,
    values,
    vjp,
)

# The sign that turns a value into a logit: in the pair's row, and in its column.
SIGNS = {"angles": (-1, 1), "exterior": (-1, -1), "distance": (-1, -1), "cosine": (1, 1)}
Scalars = Tensor | Sequence[Tensor]


class Sums(NamedTuple):
    """`Partials` and the derivative by the scale, summed by rows: ``(n, 1)``."""

    h: Tensor
    a: Tensor
    c: Tensor
    scale: Tensor


def _sums(partials: Partials, scale: Tensor, out: tuple[Tensor, Tensor]) -> Sums:
    """Leaves the derivatives by h and b in `out`: written over h they would make two loops."""
    out[0].copy_(partials.h)
    out[1].copy_(partials.b)
    return Sums(*(t.sum(1, keepdim=True) for t in (partials.h, partials.a, partials.c, scale)))


class _Unfolded(NamedTuple):
    h: Tensor
    g: Tensor
    triangle: Triangle
    x: Radial
    y: Radial


def _unfolded(kind: str, folded: Tensor, x: Scalars, y: Scalars) -> _Unfolded:
    h, g = unfold(folded) if kind in ANGLES else (folded, folded)
    (*p, a, b, c), (*q, d, e, f) = x, y
    x_radial, y_radial = Radial(*p), Radial(*q)
    tri = triangle(h, x_radial, y_radial, Exponentials(a, b, c), Exponentials(d, e, f))
    return _Unfolded(h, g, tri, x_radial, y_radial)


def all_values(kind: str, folded: Tensor, x: Scalars, y: Scalars, c: Tensor) -> tuple[Tensor, ...]:
    """The values of all pairs: two for "angles", else one."""
    return values(kind, *_unfolded(kind, folded, x, y), c)


def all_partials(
    kind: str,
    folded: Tensor,
    x: Scalars,
    y: Scalars,
    c: Tensor,
    grad_outputs: Sequence[Tensor],
) -> Partials:
    """Derivatives of ``(grad_outputs[0] * all_values[0]).sum() + ...``, pair by pair."""
    return vjp(kind, *_unfolded(kind, folded, x, y), c, grad_outputs)


# --- Matrices -----------------------------------------------------------------------------------


def matrix(kind: str, folded: Tensor, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    value: Tensor = values(kind, *_unfolded(kind, folded, x, y), c)[0]
    return value


def matrix_vjp(
    kind: str,
    folded: Tensor,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    c: Tensor,
    grad_output: Tensor,
) -> Sums:
    """Derivatives of ``(grad_output * matrix).sum()``."""
    unfolded = _unfolded(kind, folded, x, y)
    return _sums(vjp(kind, *unfolded, c, (grad_output,)), torch.zeros_like(grad_output), out)


def score(kind: str, apex: str, folded: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A number that orders pairs as the distance does, or the exterior angle, and costs less.

    That of the angle goes from 0 to 2.
    """
    h, g, tri, x_radial, y_radial = _unfolded(kind, folded, x, y)
    if kind != "exterior":
        T: Tensor = tri.T
        return T
    legs = legs_at_x if apex == "x" else legs_at_y
    n, m = legs(h, sines(h, g)[0], tri, x_radial, y_radial)
    share = n / (n + m.abs())
    return torch.where(tri.T > 0, torch.where(m < 0, 2 - share, share), 0.0)


# --- Log-sum-exps -------------------------------------------------------------------------------


def write_values(
    similarity: str, buffers: tuple[Tensor, Tensor], x: Tensor, y: Tensor, c: Tensor
) -> None:
    """Writes the values over the folded h; for "angles" the second ones into the next buffer.

    A loop of its own: exponentials in the same loop would wait for the values, one by one.
    """
    value = values(similarity, *_unfolded(similarity, buffers[0], x, y), c)
    for buffer, v in zip(buffers, value, strict=False):
        buffer.copy_(v)


def log_sums(
    similarity: str,
    values: tuple[Tensor, Tensor],
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Log-sum-exps of the rows ``(n, 1)`` and columns ``(1, m)``, without pairs of equal ids."""
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    row_value, column_value = _row_and_column_values(similarity, values)
    return (
        log_sum(torch.where(same, -math.inf, row * scale * row_value), 1),
        log_sum(torch.where(same, -math.inf, column * scale * column_value), 0),
    )


def log_sum(logit: Tensor, dim: int) -> Tensor:
    largest = logit.amax(dim, keepdim=True)
    shift = torch.where(largest == -math.inf, 0.0, largest)
    return shift + (logit - shift).exp().sum(dim, keepdim=True).log()


def exponential_sums(
    similarity: str,
    buffers: tuple[Tensor, Tensor],
    scale: Tensor,
    middle: Tensor,
    ids: tuple[Tensor, Tensor],
) -> Tensor:
    """Sums of the exponentials, if no value is so far from `middle` that its exponential is lost.

    Returns the sums by rows. The exponentials to be summed by columns go to the first buffer.
    """
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    row_value, column_value = _row_and_column_values(similarity, buffers)
    row_exp = torch.where(same, 0.0, (row * scale * (row_value - middle)).exp())
    column_exp = row_exp
    if row != column:
        column_exp = torch.where(same, 0.0, (column * scale * (column_value - middle)).exp())
    buffers[0].copy_(column_exp)
    return row_exp.sum(1, keepdim=True)


def _row_and_column_values(similarity: str, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The values that make the logits of rows, and those of columns."""
    return values if similarity == "angles" else (values[0], values[0])


def log_sums_vjp(
    similarity: str,
    folded: Tensor,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    log_sums: tuple[Tensor, Tensor],
    grad_sums: tuple[Tensor, Tensor],
) -> Sums:
    """Derivatives of ``grad_sums[0] . rows + grad_sums[1] . columns``.

    ``log_sums`` are those over all blocks.
    """
    unfolded = _unfolded(similarity, folded, x, y)
    value = values(similarity, *unfolded, c)
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    row_weight = grad_sums[0] * (row * scale * value[0] - log_sums[0]).exp()
    column_weight = grad_sums[1] * (column * scale * value[-1] - log_sums[1]).exp()
    # The derivative by each value, without the scale.
    row_weight, column_weight = (
        torch.where(same, 0.0, sign * weight)
        for sign, weight in ((row, row_weight), (column, column_weight))
    )
    grad_scale = row_weight * value[0] + column_weight * value[-1]
    weights = (row_weight, column_weight) if len(value) > 1 else (row_weight + column_weight,)
    value_grads = tuple(scale * w for w in weights)
    return _sums(vjp(similarity, *unfolded, c, value_grads), grad_scale, out)
