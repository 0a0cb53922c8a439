"""The values of chosen pairs, by the exact elementwise forms, with analytic derivatives.

These are the positives of a loss and the winners of a search: few, and worth every digit. A
gathered copy of the points would be as large as the pairs are many: they are taken some at a time.
All is computed in float64. For float32 points that is so much wider that inner products give every
angle; float64 points take the exact products of `_pairs`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._checks import norm_limit
from lorentzkit._numerics import dot, polar
from lorentzkit._pairs import radius_difference, sinh_difference, time_root, transverse
from lorentzkit.fused.clouds import TINY, row_chunks
from lorentzkit.fused.formulas import Radial, Triangle, change, exact_triangle, radial, values


class _Side(NamedTuple):
    """Points, one for each pair: scalars ``(P, 1)``, vectors ``(P, D)``."""

    point: Tensor
    unit: Tensor
    length: Tensor
    true_length: Tensor
    """Before the point was moved to ``max_radius``; never 0"""
    radial: Radial


class _Pair(NamedTuple):
    x: _Side
    y: _Side
    h: Tensor
    g: Tensor
    triangle: Triangle
    across_x: Tensor
    """``v - u cos(theta)``"""
    across_y: Tensor


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The values of the pairs (i, j): ``(P, K)``, K = 2 for "angle": at x and at y; else 1."""
    out = x.new_empty(len(i), 2 if kind == "angle" else 1)
    for some in row_chunks(len(i), x.shape[-1]):
        pair = _pair(x[i[some]], y[j[some]], c)
        value = values(
            kind, pair.h, pair.g, pair.triangle, pair.x.radial, pair.y.radial, c.double()
        )
        out[some] = torch.cat(value, -1).to(out.dtype)
    return out


def selected_gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``(at * selected).sum()`` by x, y and c."""
    dx, dy, dc = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c).double()
    for some in row_chunks(len(i), x.shape[-1]):
        rows, columns = i[some], j[some]
        pair = _pair(x[rows], y[columns], c)
        by = change(
            kind,
            pair.h,
            pair.g,
            pair.triangle,
            pair.x.radial,
            pair.y.radial,
            c.double(),
            at[some].double().tensor_split(at.shape[-1], -1),
        )
        dx.index_add_(0, rows, _gradient(by.h, by.a, pair.x, pair.across_x, c).to(x.dtype))
        dy.index_add_(0, columns, _gradient(by.h, by.b, pair.y, pair.across_y, c).to(x.dtype))
        dc += by.c.sum()
    return dx, dy, (dc / (2 * c)).to(c.dtype)


def _pair(x: Tensor, y: Tensor, c: Tensor) -> _Pair:
    widened, limit = x.dtype != torch.float64, norm_limit(c).double()
    x, y, c = x.double(), y.double(), c.double()
    a, b = _side(x, c, limit, widened), _side(y, c, limit, widened)
    cosine = dot(a.unit, b.unit)
    if widened:
        across_x, across_y = b.unit - a.unit * cosine, a.unit - b.unit * cosine
        turn = torch.sinh(torch.asinh(a.radial.sinh) - torch.asinh(b.radial.sinh))
    else:
        across_x = transverse(a.point, b.point) / b.length.clamp_min(_LEAST)
        across_y = transverse(b.point, a.point) / a.length.clamp_min(_LEAST)
        dr = radius_difference(a.point, b.point, a.length, b.length)
        turn = sinh_difference(a.length, b.length, dr, time_root(a.point, c), time_root(b.point, c))
    square = dot(across_x, across_x)
    if widened:  # below that is float64's noise: no float32 point can tell it from 0
        square = torch.where(square < 1e-28, 0.0, square)
    both = (a.length > 0) & (b.length > 0)
    small = torch.where(both, square, 1.0) / (1 + cosine.abs())
    h = torch.where(cosine > 0, small, 1 - cosine)
    g = torch.where(cosine > 0, 1 + cosine, small)
    triangle = exact_triangle(h, turn, a.radial, b.radial)
    return _Pair(a, b, h, g, triangle, across_x, across_y)


_LEAST = TINY[torch.float64]


def _side(x: Tensor, c: Tensor, limit: Tensor, widened: bool) -> _Side:
    if widened:
        true_length = dot(x, x).sqrt()
        unit = x / true_length.clamp_min(_LEAST)
    else:
        true_length, unit = polar(x)
    length = torch.minimum(true_length, limit)
    point = x if widened else torch.where(true_length > limit, unit * limit, x)
    apex = (length != 0).to(x.dtype)
    of_radius = radial(c.sqrt() * length.clamp_min(_LEAST), apex)
    return _Side(point, unit, length, true_length.clamp_min(_LEAST), of_radius)


def _gradient(by_h: Tensor, by_radius: Tensor, a: _Side, across: Tensor, c: Tensor) -> Tensor:
    along = by_radius * (c.double().sqrt() / a.radial.cosh)
    along = torch.where(a.true_length > a.length.clamp_min(_LEAST), 0.0, along)
    return a.unit * along - across * (by_h / a.true_length)
