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
    Exponentials,
    Partials,
    Radial,
    Triangle,
    legs,
    sines,
    triangle,
    unfold,
    values,
    vjp,
)

# Similarities as logits: the sign of a pair's value in its row, and in its column.
SIGNS = {"angle": (-1, 1), "distance": (-1, -1), "cosine": (1, 1)}
Scalars = Tensor | Sequence[Tensor]


class Sums(NamedTuple):
    """`Partials` summed by rows, ``(n, 1)``."""

    h: Tensor
    a: Tensor
    c: Tensor
    scale: Tensor


def _sums(partials: Partials, scale: Tensor, out: tuple[Tensor, Tensor]) -> Sums:
    """Leaves the partials in h and b in `out`: not in the place of h, or it would be two loops."""
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
    h, g = unfold(folded) if kind == "angle" else (folded, folded)
    (*x_radial, a, b, c), (*y_radial, d, e, f) = x, y
    x_, y_ = Radial(*x_radial), Radial(*y_radial)
    tri = triangle(h, x_, y_, Exponentials(a, b, c), Exponentials(d, e, f))
    return _Unfolded(h, g, tri, x_, y_)


def all_values(kind: str, folded: Tensor, x: Scalars, y: Scalars, c: Tensor) -> tuple[Tensor, ...]:
    """Of "angle" two, else one."""
    return values(kind, *_unfolded(kind, folded, x, y), c)


def all_vjp(
    kind: str,
    folded: Tensor,
    x: Scalars,
    y: Scalars,
    c: Tensor,
    grad_output: Sequence[Tensor],
) -> Partials:
    """Of the derivative of ``(grad_outputs[0] * all_values[0]).sum() + ...``, term by term."""
    return vjp(kind, *_unfolded(kind, folded, x, y), c, grad_output)


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
    """Of the derivative of ``(grad_output * matrix).sum()``."""
    unfolded = _unfolded(kind, folded, x, y)
    return _sums(vjp(kind, *unfolded, c, (grad_output,)), torch.zeros_like(grad_output), out)


def score(kind: str, folded: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Grows with the distance, or with the exterior angle (from 0 to 2), and costs less."""
    h, g, tri, x_, y_ = _unfolded(kind, folded, x, y)
    if kind != "angle":
        T: Tensor = tri.T
        return T
    leg = legs(h, sines(h, g)[0], tri, x_, y_)
    share = leg.n_x / (leg.n_x + leg.m_x.abs())
    return torch.where(tri.T > 0, torch.where(leg.m_x < 0, 2 - share, share), 0.0)


# --- Log-sum-exps -------------------------------------------------------------------------------


def fill_values(
    similarity: str, buffers: tuple[Tensor, Tensor], x: Tensor, y: Tensor, c: Tensor
) -> None:
    """Puts the values into the buffers: of "angle" both, else one, in the place of the folded h.

    A loop of its own: exponentials in the same one would wait for the values, element by element.
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
    """log-sum-exp of the rows ``(n, 1)`` and columns ``(1, m)``, pairs of equal ids left out."""
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    row_terms, column_terms = _row_and_column_values(similarity, values)
    return (
        log_sum(torch.where(same, -math.inf, row * scale * row_terms), 1),
        log_sum(torch.where(same, -math.inf, column * scale * column_terms), 0),
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
    x_values, y_values = _row_and_column_values(similarity, buffers)
    row_terms = torch.where(same, 0.0, (row * scale * (x_values - middle)).exp())
    column_terms = row_terms
    if row != column:
        column_terms = torch.where(same, 0.0, (column * scale * (y_values - middle)).exp())
    buffers[0].copy_(column_terms)
    return row_terms.sum(1, keepdim=True)


def _row_and_column_values(similarity: str, values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What rows see and what columns see."""
    return values if similarity == "angle" else (values[0], values[0])


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
    grad_output: tuple[Tensor, Tensor],
) -> Sums:
    """Of the derivative of ``grad_output[0] . rows + grad_output[1] . columns``.

    `log_sums` are those over all blocks.
    """
    unfolded = _unfolded(similarity, folded, x, y)
    value = values(similarity, *unfolded, c)
    same, (row, column) = ids[0] == ids[1], SIGNS[similarity]
    row_terms = grad_output[0] * (row * scale * value[0] - log_sums[0]).exp()
    column_terms = grad_output[1] * (column * scale * value[-1] - log_sums[1]).exp()
    # What each value is multiplied by in the sum, without the scale.
    row_terms, column_terms = (
        torch.where(same, 0.0, sign * terms)
        for sign, terms in ((row, row_terms), (column, column_terms))
    )
    grad_scale = row_terms * value[0] + column_terms * value[-1]
    weights = (row_terms, column_terms) if len(value) > 1 else (row_terms + column_terms,)
    grad_values = tuple(scale * w for w in weights)
    return _sums(vjp(similarity, *unfolded, c, grad_values), grad_scale, out)
