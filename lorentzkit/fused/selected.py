"""The values of chosen pairs, by the exact elementwise forms, with analytic derivatives.

These are the positives of a loss and the winners of a search: few, and worth every digit. A
gathered copy of the points would be as large as the pairs are many: they are taken some at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._checks import norm_limit
from lorentzkit._numerics import dot, norm, polar
from lorentzkit._pairs import radius_difference, sinh_difference, time_root, transverse
from lorentzkit.fused.clouds import TINY, row_chunks
from lorentzkit.fused.formulas import Radial, Triangle, change, exact_triangle, radial, values


class _Side(NamedTuple):
    """Points, one for each pair: scalars ``(P, 1)``, vectors ``(P, D)``."""

    point: Tensor
    unit: Tensor
    length: Tensor
    inside: Tensor
    radial: Radial


class _Pair(NamedTuple):
    x: _Side
    y: _Side
    h: Tensor
    g: Tensor
    triangle: Triangle


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The values of the pairs (i, j): ``(P, K)``, K = 2 for "angle": at x and at y; else 1."""
    out = x.new_empty(len(i), 2 if kind == "angle" else 1)
    for some in row_chunks(len(i), x.shape[-1]):
        pair = _pair(x[i[some]], y[j[some]], c)
        value = values(kind, pair.h, pair.g, pair.triangle, pair.x.radial, pair.y.radial, c)
        out[some] = torch.cat(value, -1)
    return out


def selected_gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``(at * selected).sum()`` by x, y and c."""
    dx, dy, dc = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(c).double()
    for some in row_chunks(len(i), x.shape[-1]):
        pair = _pair(x[i[some]], y[j[some]], c)
        by = change(
            kind,
            pair.h,
            pair.g,
            pair.triangle,
            pair.x.radial,
            pair.y.radial,
            c,
            at[some].tensor_split(at.shape[-1], -1),
        )
        dx.index_add_(0, i[some], _gradient(by.h, by.a, pair.x, pair.y, c))
        dy.index_add_(0, j[some], _gradient(by.h, by.b, pair.y, pair.x, c))
        dc += by.c.sum()
    return dx, dy, (dc / (2 * c)).to(c.dtype)


def _pair(x: Tensor, y: Tensor, c: Tensor) -> _Pair:
    a, b = _side(x, c), _side(y, c)
    sine = _across(a, b)
    cosine = dot(a.unit, b.unit)
    both = (a.length > 0) & (b.length > 0)
    small = torch.where(both, dot(sine, sine), 1.0) / (1 + cosine.abs())
    h = torch.where(cosine > 0, small, 1 - cosine)
    g = torch.where(cosine > 0, 1 + cosine, small)
    rx, ry = norm(a.point), norm(b.point)
    dr = radius_difference(a.point, b.point, rx, ry)
    turn = sinh_difference(rx, ry, dr, time_root(a.point, c), time_root(b.point, c))
    return _Pair(a, b, h, g, exact_triangle(h, turn, a.radial, b.radial))


def _side(x: Tensor, c: Tensor) -> _Side:
    length, unit = polar(x)
    limit = norm_limit(c)
    inside = ~(length > limit)
    s = c.sqrt() * torch.minimum(length, limit).clamp_min(TINY[x.dtype])
    apex = (length != 0).to(x.dtype)
    return _Side(torch.where(inside, x, unit * limit), unit, length, inside, radial(s, apex))


def _across(a: _Side, b: _Side) -> Tensor:
    """The part of the direction of b across a: ``v - u cos(theta)``."""
    return transverse(a.point, b.point) / norm(b.point).clamp_min(TINY[b.point.dtype])


def _gradient(by_h: Tensor, by_radius: Tensor, a: _Side, b: _Side, c: Tensor) -> Tensor:
    along = torch.where(a.inside, by_radius * (c.sqrt() / a.radial.cosh), 0.0)
    return a.unit * along - _across(a, b) * (by_h / a.length.clamp_min(TINY[by_h.dtype]))
