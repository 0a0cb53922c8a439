"""The values of chosen pairs, by the exact elementwise forms, with analytic derivatives.

These are the positives of a loss and the winners of a search: few, and worth every digit. Gathered
copies of the points would be as large as the pairs are many, so their lengths and angles are
measured some at a time, or compiled; the rest is scalars. All is computed in float64. For float32
points that is so much wider that inner products give every angle; float64 points take the exact
products of `_pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._checks import norm_limit
from lorentzkit._numerics import dot, polar
from lorentzkit._pairs import radius_difference, transverse
from lorentzkit.fused import compilation
from lorentzkit.fused.clouds import TINY
from lorentzkit.fused.compilation import row_blocks
from lorentzkit._geometry.triangle import Radial, Triangle, change, exact_triangle, radial, values

_LEAST = TINY[torch.float64]
_CHUNK = 2**16  # elements: larger temporaries are handed back to the system, and fetched again
_COMPILED_CHUNK = 2**20  # there are no temporaries but the result


class _Measures(NamedTuple):
    """Of the pairs, ``(P, 1)``: lengths and their difference, cosine and squared sine."""

    rx: Tensor
    ry: Tensor
    dr: Tensor
    cosine: Tensor
    square: Tensor


class _Side(NamedTuple):
    length: Tensor
    true_length: Tensor
    """Before the point was moved to ``max_radius``; never 0"""
    beyond: Tensor
    """Whether it was"""
    radial: Radial


class _Pairs(NamedTuple):
    x: _Side
    y: _Side
    cosine: Tensor
    h: Tensor
    g: Tensor
    triangle: Triangle


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The values of the pairs (i, j): ``(P, K)``, K = 2 for "angle": at x and at y; else 1."""
    a, b, _, h, g, triangle = _pairs(x, y, c, i, j, _LEAST)
    return torch.cat(values(kind, h, g, triangle, a.radial, b.radial, c.double()), -1).to(x.dtype)


def selected_gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``(at * selected).sum()`` by x, y and c."""
    by_c, *slopes = _slopes(kind, x, y, c, i, j, at)
    step, by_curv = _fused(_steps, x, i), (by_c.sum() / (2 * c)).to(c.dtype)
    room = _CHUNK if step is _steps else _COMPILED_CHUNK
    if x.numel() <= room and _in_order(x, i) and _in_order(y, j):  # nothing to add up
        by_x, by_y = step("", x, y, i, j, *slopes)
        return by_x, by_y, by_curv
    totals = [torch.zeros_like(z) for z in (x, y)]
    for some in row_blocks(len(i), max(1, room // x.shape[-1])):
        steps = step("", x, y, i[some], j[some], *(s[some] for s in slopes))
        for total, of, gradient in zip(totals, (i, j), steps, strict=True):
            total.index_add_(0, of[some], gradient)
    return totals[0], totals[1], by_curv


def _in_order(x: Tensor, i: Tensor) -> bool:
    """Whether i is ``arange(len(x))``; not asked on a GPU, where the answer would be waited for."""
    return (
        len(i) == len(x) and not x.is_cuda and torch.equal(i, torch.arange(len(x), device=i.device))
    )


def _fused(function: Callable[..., Any], x: Tensor, i: Tensor) -> Callable[..., Any]:
    """Compiled, if that pays; but not exact products, which a compiler would make inexact."""
    if x.dtype == torch.float64:
        return function
    return compilation.fused(function, "", x, len(i) * x.shape[-1])


def _slopes(
    kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, at: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivative by c times ``2 c``; what each point, its partner across it is multiplied by."""
    # Smaller radii count as this one, or the gradients of angles overflow.
    a, b, cosine, h, g, triangle = _pairs(x, y, c, i, j, TINY[x.dtype])
    weights = at.double().tensor_split(at.shape[-1], -1)
    by = change(kind, h, g, triangle, a.radial, b.radial, c.double(), weights)
    along_x, along_y = _along(by.a, a, c), _along(by.b, b, c)
    steep = by.h / (a.true_length * b.true_length)
    if x.dtype == torch.float32:
        # Across p is q less a multiple of p: one of each, all in all. float64 has no such room.
        along_x = along_x + steep * cosine * b.true_length / a.true_length
        along_y = along_y + steep * cosine * a.true_length / b.true_length
    return by.c, along_x, along_y, steep


def _steps(
    _: str,
    x: Tensor,
    y: Tensor,
    i: Tensor,
    j: Tensor,
    along_x: Tensor,
    along_y: Tensor,
    steep: Tensor,
) -> list[Tensor]:
    """What each pair adds to the gradients of its points."""
    p, q = _points(x, i), _points(y, j)
    ways = (p, q, along_x), (q, p, along_y)
    return [
        (near * along - steep * (far if x.dtype == torch.float32 else transverse(near, far))).to(
            x.dtype
        )
        for near, far, along in ways
    ]


def _along(by_radius: Tensor, a: _Side, c: Tensor) -> Tensor:
    """What the point is multiplied by in its gradient: 0 beyond ``max_radius``."""
    along = by_radius * (c.double().sqrt() / a.radial.cosh) / a.true_length
    return torch.where(a.beyond, 0.0, along)


def _points(x: Tensor, i: Tensor) -> Tensor:
    return x.index_select(0, i).double()


def _pairs(x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, least: float) -> _Pairs:
    # Not the scalars after it: of so many operations in one loop, minutes to compile.
    m = _fused(_measured, x, i)("", x, y, i, j)
    c, limit = c.double(), norm_limit(c).double()
    a, b = (_side(r, c, limit, least) for r in (m.rx, m.ry))
    inside = (m.rx <= limit) & (m.ry <= limit)
    dr = torch.where(inside, m.dr, a.length - b.length)
    (sa, ca), (sb, cb) = a.radial[:2], b.radial[:2]
    turn = (sa + sb) * (c.sqrt() * dr / (sa * cb + ca * sb))
    small = m.square / (1 + m.cosine.abs())
    h = torch.where(m.cosine > 0, small, 1 - m.cosine)
    h = torch.where((m.rx > 0) | (m.ry > 0), h, 0.0)  # two points at the origin coincide
    g = torch.where(m.cosine > 0, 1 + m.cosine, small)
    return _Pairs(a, b, m.cosine, h, g, exact_triangle(h, turn, a.radial, b.radial))


def _measured(_: str, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> _Measures:
    measure = _exact_measures if x.dtype == torch.float64 else _wide_measures
    some = [measure(_points(x, i[s]), _points(y, j[s])) for s in _chunks(i, x)]
    return _Measures(*(torch.cat(column) for column in zip(*some, strict=True)))


def _chunks(i: Tensor, x: Tensor) -> list[slice]:
    if torch.compiler.is_compiling():  # which makes no temporaries
        return [slice(None)]
    chunks = list(row_blocks(len(i), max(1, _CHUNK // x.shape[-1])))
    return chunks or [slice(0, 0)]  # of no pairs, empty results


def _wide_measures(x: Tensor, y: Tensor) -> _Measures:
    """Of float32 points in float64."""
    xx, yy, xy = dot(x, x), dot(y, y), dot(x, y)
    rx, ry = xx.sqrt(), yy.sqrt()
    cosine = xy / rx.clamp_min(_LEAST) / ry.clamp_min(_LEAST)
    across = y - x * (xy / torch.where(rx > 0, xx, 1.0))
    square = dot(across, across) / torch.where(ry > 0, yy, 1.0)
    # Less is float64's noise: no two float32 directions are so close but equal ones.
    square = torch.where(square < 1e-28, 0.0, square)
    return _Measures(rx, ry, rx - ry, cosine, torch.where((rx > 0) & (ry > 0), square, 1.0))


def _exact_measures(x: Tensor, y: Tensor) -> _Measures:
    """Of float64 points."""
    (rx, u), (ry, v) = polar(x), polar(y)
    across = transverse(x, y) / ry.clamp_min(_LEAST)
    square = torch.where((rx > 0) & (ry > 0), dot(across, across), 1.0)
    return _Measures(rx, ry, radius_difference(x, y, rx, ry), dot(u, v), square)


def _side(true_length: Tensor, c: Tensor, limit: Tensor, least: float) -> _Side:
    length = torch.minimum(true_length, limit)
    of_radius = radial(c.sqrt() * length.clamp_min(least), (length != 0).double())
    return _Side(length, true_length.clamp_min(least), true_length > limit, of_radius)
