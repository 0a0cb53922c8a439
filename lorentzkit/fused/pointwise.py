"""What is done to a block of pairs between two matrix products, each in one pass if compiled.

A block is given by its folded ``h`` (`formulas.unfold`), the scalars of its rows and columns, and
the curvature ``c`` ``(1,)``. Results are reduced as far as the block can be.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit.fused.formulas import (
    Change,
    Radial,
    change,
    legs,
    sines,
    triangle,
    unfold,
    values,
)

# Similarities as logits: the sign of a pair's value in its row, and in its column.
SIGNS = {"angle": (-1, 1), "distance": (-1, -1), "cosine": (1, 1)}


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


def _sums(of: Change, scale: Tensor) -> Sums:
    rows = [t.sum(1, keepdim=True) for t in (of.h, of.a, of.c, scale)]
    return Sums(of.h, of.b, *rows)


# --- Matrices -----------------------------------------------------------------------------------


def matrix(kind: str, folded: Tensor, x: Radial, y: Radial, c: Tensor) -> Tensor:
    h, g = _unfolded(kind, folded)
    return values(kind, h, g, triangle(h, x, y), x, y, c)[0]


def matrix_change(kind: str, folded: Tensor, x: Radial, y: Radial, c: Tensor, at: Tensor) -> Sums:
    h, g = _unfolded(kind, folded)
    return _sums(change(kind, h, g, triangle(h, x, y), x, y, c, (at,)), torch.zeros_like(h))


def score(kind: str, folded: Tensor, x: Radial, y: Radial) -> Tensor:
    """Grows with the distance, or with the exterior angle (from 0 to 2), and costs less."""
    h, g = _unfolded(kind, folded)
    tri = triangle(h, x, y)
    if kind != "angle":
        return tri.T
    leg = legs(h, sines(h, g)[0], tri, x, y)
    share = leg.n_x / (leg.n_x + leg.m_x.abs())
    return torch.where(tri.T > 0, torch.where(leg.m_x < 0, 2 - share, share), 0.0)


def _unfolded(kind: str, folded: Tensor) -> tuple[Tensor, Tensor]:
    return unfold(folded) if kind == "angle" else (folded, folded)


# --- Log-sum-exps -------------------------------------------------------------------------------


def log_sums(
    similarity: str,
    folded: Tensor,
    x: Radial,
    y: Radial,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of the rows ``(n, 1)`` and columns ``(1, m)``, pairs of equal ids left out."""
    h, g = _unfolded(similarity, folded)
    value = values(similarity, h, g, triangle(h, x, y), x, y, c)
    row, column = SIGNS[similarity]
    same = ids[0] == ids[1]
    return (
        _log_sum(torch.where(same, -math.inf, row * scale * value[0]), 1),
        _log_sum(torch.where(same, -math.inf, column * scale * value[-1]), 0),
    )


def _log_sum(logit: Tensor, dim: int) -> Tensor:
    largest = logit.amax(dim, keepdim=True)
    shift = torch.where(largest == -math.inf, 0.0, largest)
    return shift + (logit - shift).exp().sum(dim, keepdim=True).log()


def log_sums_change(
    similarity: str,
    folded: Tensor,
    x: Radial,
    y: Radial,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    log_sums: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
) -> Sums:
    """Derivative of ``at[0] . rows + at[1] . columns``; `log_sums` as over all blocks."""
    h, g = _unfolded(similarity, folded)
    tri = triangle(h, x, y)
    value = values(similarity, h, g, tri, x, y, c)
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
    return _sums(change(similarity, h, g, tri, x, y, c, at_values), by_scale)
