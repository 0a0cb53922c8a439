"""What is done to a block of pairs between two matrix products, each in one pass if compiled.

A block is given by its folded ``h`` (`triangle.unfold`), the scalars of its rows ``(8, n, 1)`` and
columns ``(8, 1, m)``, those of `Radial` and `Exponentials` in their order, and the curvature ``c``
``(1,)``. Sums by rows are returned. What is to be summed by columns is left in buffers: a compiler
makes one loop of it only if there are no sums in two directions, and memory that is used again
stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.triangle import (
    Change,
    Exponentials,
    Radial,
    Triangle,
    change,
    legs,
    sines,
    triangle,
    unfold,
    values,
)

# Similarities as logits: the sign of a pair's value in its row, and in its column.
SIGNS = {"angle": (-1, 1), "distance": (-1, -1), "cosine": (1, 1)}
Scalars = Tensor | Sequence[Tensor]


class Sums(NamedTuple):
    """A `Change` summed by rows, ``(n, 1)``."""

    h: Tensor
    a: Tensor
    c: Tensor
    scale: Tensor


def _sums(of: Change, scale: Tensor, out: tuple[Tensor, Tensor]) -> Sums:
    """Leaves the changes in h and b in `out`: not in the place of h, or it would be two loops."""
    out[0].copy_(of.h)
    out[1].copy_(of.b)
    return Sums(*(t.sum(1, keepdim=True) for t in (of.h, of.a, of.c, scale)))


class _Opened(NamedTuple):
    h: Tensor
    g: Tensor
    triangle: Triangle
    x: Radial
    y: Radial


def _opened(kind: str, folded: Tensor, x: Scalars, y: Scalars) -> _Opened:
    h, g = unfold(folded) if kind == "angle" else (folded, folded)
    (*of_x, a, b, c), (*of_y, d, e, f) = x, y
    x_, y_ = Radial(*of_x), Radial(*of_y)
    tri = triangle(h, x_, y_, Exponentials(a, b, c), Exponentials(d, e, f))
    return _Opened(h, g, tri, x_, y_)


def all_values(kind: str, folded: Tensor, x: Scalars, y: Scalars, c: Tensor) -> tuple[Tensor, ...]:
    """Of "angle" two, else one."""
    return values(kind, *_opened(kind, folded, x, y), c)


def all_changes(
    kind: str,
    folded: Tensor,
    x: Scalars,
    y: Scalars,
    c: Tensor,
    at: Sequence[Tensor],
) -> Change:
    """Of the derivative of ``(at[0] * all_values[0]).sum() + ...``, term by term."""
    return change(kind, *_opened(kind, folded, x, y), c, at)


# --- Matrices -----------------------------------------------------------------------------------


def matrix(kind: str, folded: Tensor, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    value: Tensor = values(kind, *_opened(kind, folded, x, y), c)[0]
    return value


def matrix_change(
    kind: str,
    folded: Tensor,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    c: Tensor,
    at: Tensor,
) -> Sums:
    """Of the derivative of ``(at * matrix).sum()``."""
    opened = _opened(kind, folded, x, y)
    return _sums(change(kind, *opened, c, (at,)), torch.zeros_like(at), out)


def score(kind: str, folded: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Grows with the distance, or with the exterior angle (from 0 to 2), and costs less."""
    h, g, tri, x_, y_ = _opened(kind, folded, x, y)
    if kind != "angle":
        T: Tensor = tri.T
        return T
    leg = legs(h, sines(h, g)[0], tri, x_, y_)
    share = leg.n_x / (leg.n_x + leg.m_x.abs())
    return torch.where(tri.T > 0, torch.where(leg.m_x < 0, 2 - share, share), 0.0)


# --- Log-sum-exps -------------------------------------------------------------------------------


def found(similarity: str, buffers: tuple[Tensor, Tensor], x: Tensor, y: Tensor, c: Tensor) -> None:
    """Puts the values into the buffers: of "angle" both, else one, in the place of the folded h.

    A loop of its own: exponentials in the same one would wait for the values, element by element.
    """
    value = values(similarity, *_opened(similarity, buffers[0], x, y), c)
    for buffer, v in zip(buffers, value, strict=False):
        buffer.copy_(v)


def log_sums(
    similarity: str,
    values: tuple[Tensor, Tensor],
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of the rows ``(n, 1)`` and columns ``(1, m)``, pairs of equal ids left out."""
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    of_row, of_column = _two(similarity, values)
    return (
        log_sum(torch.where(same, -math.inf, row * scale * of_row), 1),
        log_sum(torch.where(same, -math.inf, column * scale * of_column), 0),
    )


def log_sum(logit: Tensor, dim: int) -> Tensor:
    largest = logit.amax(dim, keepdim=True)
    shift = torch.where(largest == -math.inf, 0.0, largest)
    return shift + (logit - shift).exp().sum(dim, keepdim=True).log()


def exponentials(
    similarity: str,
    buffers: tuple[Tensor, Tensor],
    scale: Tensor,
    middle: Tensor,
    ids: tuple[Tensor, Tensor],
) -> Tensor:
    """The sums of `log_sums`, where no value is so far from `middle` that its exponential is lost.

    Those by rows are returned; what is to be summed by columns is left in the first buffer.
    """
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    at_x, at_y = _two(similarity, buffers)
    of_row = torch.where(same, 0.0, (row * scale * (at_x - middle)).exp())
    of_column = of_row
    if row != column:
        of_column = torch.where(same, 0.0, (column * scale * (at_y - middle)).exp())
    buffers[0].copy_(of_column)
    return of_row.sum(1, keepdim=True)


def _two(similarity: str, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What rows see and what columns see."""
    return values if similarity == "angle" else (values[0], values[0])


def log_sums_change(
    similarity: str,
    folded: Tensor,
    out: tuple[Tensor, Tensor],
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    log_sums: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
) -> Sums:
    """Of the derivative of ``at[0] . rows + at[1] . columns``; `log_sums` as over all blocks."""
    opened = _opened(similarity, folded, x, y)
    value = values(similarity, *opened, c)
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    of_row = at[0] * (row * scale * value[0] - log_sums[0]).exp()
    of_column = at[1] * (column * scale * value[-1] - log_sums[1]).exp()
    # What each value is multiplied by in the sum, without the scale.
    of_row, of_column = (
        torch.where(same, 0.0, sign * of) for sign, of in ((row, of_row), (column, of_column))
    )
    by_scale = of_row * value[0] + of_column * value[-1]
    weights = (of_row, of_column) if len(value) > 1 else (of_row + of_column,)
    at_values = tuple(scale * w for w in weights)
    return _sums(change(similarity, *opened, c, at_values), by_scale, out)
