"""What is done to a block of pairs between two matrix products, each in one pass if compiled.

A block is given by its folded ``h`` (`formulas.unfold`), the scalars of its rows and columns, and
the curvature ``c`` ``(1,)``. Results are reduced as far as the block can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit.fused.formulas import (
    Change,
    Radial,
    angle_change,
    angles,
    distance,
    distance_change,
    legs,
    sines,
    triangle,
    unfold,
)


class Sums(NamedTuple):
    """A `Change` summed by rows, ``(n, 1)``; what is to be summed by columns is left whole.

    A compiler makes one loop of it only if there are no sums in two directions.
    """

    h: Tensor
    b: Tensor
    h_rows: Tensor
    a_rows: Tensor
    c_rows: Tensor
    scale_rows: Tensor


def _sums(change: Change, scale: Tensor | None = None) -> Sums:
    rows = [t.sum(1, keepdim=True) for t in (change.h, change.a, change.c)]
    scale_rows = torch.zeros_like(rows[0]) if scale is None else scale.sum(1, keepdim=True)
    return Sums(change.h, change.b, *rows, scale_rows)


# --- Matrices -----------------------------------------------------------------------------------


def inner_value(h: Tensor, x: Radial, y: Radial, c: Tensor) -> Tensor:
    return -(1 + 2 * triangle(h, x, y).T) / c


def distance_value(h: Tensor, x: Radial, y: Radial, c: Tensor) -> Tensor:
    return distance(triangle(h, x, y)) / c.sqrt()


def angle_value(folded: Tensor, x: Radial, y: Radial, c: Tensor) -> Tensor:
    h, g = unfold(folded)
    return angles(h, g, triangle(h, x, y), x, y)[0]


def inner_sums(h: Tensor, x: Radial, y: Radial, c: Tensor, at: Tensor) -> Sums:
    at = at / c
    m_x, m_y = legs(h, h, triangle(h, x, y), x, y)[2:]
    ratios = x.cosh * y.sech + y.cosh * x.sech
    change = Change(-at * x.sinh * y.sinh, at * m_x, at * m_y, at * ratios)
    return _sums(change)


def distance_sums(h: Tensor, x: Radial, y: Radial, c: Tensor, at: Tensor) -> Sums:
    change = distance_change(h, triangle(h, x, y), x, y, at / c.sqrt())
    return _sums(change)


def angle_sums(folded: Tensor, x: Radial, y: Radial, c: Tensor, at: Tensor) -> Sums:
    h, g = unfold(folded)
    return _sums(angle_change(h, g, triangle(h, x, y), x, y, at, None))


# --- Order-preserving scores, without an inverse function -----------------------------------------


def distance_score(h: Tensor, x: Radial, y: Radial) -> Tensor:
    """Grows with the distance."""
    return triangle(h, x, y).T


def angle_score(folded: Tensor, x: Radial, y: Radial) -> Tensor:
    """Grows with the exterior angle, from 0 to 2; resolves small angles."""
    h, g = unfold(folded)
    tri = triangle(h, x, y)
    leg = legs(h, sines(h, g)[0], tri, x, y)
    share = leg.n_x / (leg.n_x + leg.m_x.abs())
    return torch.where(tri.T > 0, torch.where(leg.m_x < 0, 2 - share, share), 0.0)


# --- Log-sum-exps -------------------------------------------------------------------------------
# The logits of rows and of columns, and what their cotangents say of the pair.


class Logits(NamedTuple):
    """Every pair's logit in its row and in its column; ``scale`` is a 0-dim tensor."""

    values: Callable[[Tensor, Radial, Radial, Tensor], tuple[Tensor, Tensor]]
    sums: Callable[[Tensor, Radial, Radial, Tensor, Tensor, Tensor], Sums]


def _angle_logits(
    folded: Tensor, x: Radial, y: Radial, scale: Tensor
) -> tuple[Tensor, Tensor]:
    h, g = unfold(folded)
    alpha, beta = angles(h, g, triangle(h, x, y), x, y)
    return -scale * alpha, scale * beta


def _angle_logit_sums(
    folded: Tensor, x: Radial, y: Radial, scale: Tensor, at_row: Tensor, at_column: Tensor
) -> Sums:
    h, g = unfold(folded)
    tri = triangle(h, x, y)
    alpha, beta = angles(h, g, tri, x, y)
    change = angle_change(h, g, tri, x, y, -scale * at_row, scale * at_column)
    return _sums(change, at_column * beta - at_row * alpha)


def _distance_logits(
    h: Tensor, x: Radial, y: Radial, scale: Tensor
) -> tuple[Tensor, Tensor]:
    logit = -scale * distance(triangle(h, x, y))
    return logit, logit


def _distance_logit_sums(
    h: Tensor, x: Radial, y: Radial, scale: Tensor, at_row: Tensor, at_column: Tensor
) -> Sums:
    tri, at = triangle(h, x, y), at_row + at_column
    return _sums(distance_change(h, tri, x, y, -scale * at), -at * distance(tri))


def _cosine_logits(
    h: Tensor, x: Radial, y: Radial, scale: Tensor
) -> tuple[Tensor, Tensor]:
    logit = scale * (1 - h) * (x.apex * y.apex)
    return logit, logit


def _cosine_logit_sums(
    h: Tensor, x: Radial, y: Radial, scale: Tensor, at_row: Tensor, at_column: Tensor
) -> Sums:
    at = (at_row + at_column) * (x.apex * y.apex)
    none = torch.zeros_like(h)
    return _sums(Change(-scale * at, none, none, none), at * (1 - h))


LOGITS = {
    "angle": Logits(_angle_logits, _angle_logit_sums),
    "distance": Logits(_distance_logits, _distance_logit_sums),
    "cosine": Logits(_cosine_logits, _cosine_logit_sums),
}


def log_sums(
    similarity: str, folded: Tensor, x: Radial, y: Radial, scale: Tensor, ids: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of the rows ``(n, 1)`` and columns ``(1, m)``, pairs of equal ids left out."""
    row, column = LOGITS[similarity].values(folded, x, y, scale)
    same = ids[0] == ids[1]
    return _log_sum(row, same, 1), _log_sum(column, same, 0)


def _log_sum(logit: Tensor, same: Tensor, dim: int) -> Tensor:
    logit = torch.where(same, -math.inf, logit)
    largest = logit.amax(dim, keepdim=True)
    shift = torch.where(largest == -math.inf, 0.0, largest)
    return shift + (logit - shift).exp().sum(dim, keepdim=True).log()


def log_sums_change(
    similarity: str,
    folded: Tensor,
    x: Radial,
    y: Radial,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    log_sums: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
) -> Sums:
    """Derivative of ``at[0] . rows + at[1] . columns``; `log_sums` as over all blocks."""
    logits, same = LOGITS[similarity], ids[0] == ids[1]
    row, column = logits.values(folded, x, y, scale)
    at_row = torch.where(same, 0.0, at[0] * (row - log_sums[0]).exp())
    at_column = torch.where(same, 0.0, at[1] * (column - log_sums[1]).exp())
    return logits.sums(folded, x, y, scale, at_row, at_column)
