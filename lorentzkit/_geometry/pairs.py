"""Distances, angles and inner products of points side by side, with analytic derivatives.

The formulas of `triangle` at measures that are exact: what `lorentzkit.ops` gives, and in a loss
its positives, in a search its winners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry import smooth
from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.array_functions import Numbers, as_arrays, as_tensor, maximum, where
from lorentzkit._geometry.compilation import earned
from lorentzkit._geometry.invariants import Measures, measured
from lorentzkit._geometry.special import values_at_hand
from lorentzkit._geometry.triangle import Radial, Triangle, change, exact_triangle, radial, values
from lorentzkit._geometry.vectors import (
    eager,
    expand,
    flat,
    joined,
    power_of_two,
    row_blocks,
    run,
    stored,
    wide_dtype,
)

# Radii under this one count as the origin's, in whose place derivatives take their limit.
TINY = {torch.float32: 2.0**-66, torch.float64: 2.0**-330}


def of_rows(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``(..., K)``, K = 2 for "angles" (at x and at y) and else 1; in the points' dtype."""
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    if not eager(x):
        return smooth.of_rows(kind, x, y, c)
    shape = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])  # type: ignore[no-untyped-call]
    x, y = (flat(v.expand(*shape, v.shape[-1])) for v in (x, y))
    c = c.reshape(1, 1) if c.numel() == 1 else c.expand(*shape, 1).reshape(-1, 1)
    of: Tensor = run(_OfRows, kind, x, y, c)
    return of.view(*shape, of.shape[-1])


class _OfRows(Function):
    @staticmethod
    def compute(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        found: Tensor = of_blocks(kind, x, y, c)[0]
        return found

    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        found: Tensor
        found, *measures = earned(of_blocks, kind, x)(kind, x, y, c)
        ctx.kind = kind
        ctx.save_for_backward(x, y, c, *measures)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, *measures = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            inputs = [t.view_as(t) if t.requires_grad else t.requires_grad_() for t in (x, y, c)]
            of = smooth.of_rows(ctx.kind, *inputs)
            return (None, *torch.autograd.grad(of, inputs, grad, create_graph=True))
        wanted = ctx.needs_input_grad[3]
        function = earned(gradients if wanted else point_gradients, ctx.kind, x)
        by_c, by_x, by_y = function(ctx.kind, x, y, c, grad, *measures)
        return (None, by_x, by_y, by_c.sum_to_size(c.shape).to(c.dtype) if wanted else None)


def of_blocks(kind: str, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """Of rows ``(N, D)``; and their `Measures`."""
    measures = measured(x, y)
    blocks = []
    for rows in row_blocks(measures[0]):
        some, number = _numbers(x, measures, c, rows)
        p = _pair(kind, some, x, number, 0.0)
        of = [as_tensor(v) for v in values(kind, p.h, p.g, p.triangle, p.x, p.y, p.c)]
        blocks.append((torch.cat(of, 1) if len(of) > 1 else of[0],))
    return joined(blocks)[0].to(x.dtype), *measures


class _Curvature(NamedTuple):
    c: Numbers
    limit: Numbers
    """The largest norm of a point"""


def _numbers(
    x: Tensor, measures: Sequence[Tensor], c: Tensor, rows: slice
) -> tuple[Measures, _Curvature]:
    """Of these rows; for NumPy, if they are few."""
    some, of = [m[rows] for m in measures], [c, norm_limit(c)]
    numbers: list[Numbers]
    if values_at_hand(c) and c.numel() == 1:
        numbers = [float(z) for z in of]
    else:
        numbers = [z.to(some[0].dtype)[rows if len(z) > 1 else ...] for z in of]
    if values_at_hand(x) and wide_dtype(x) != x.dtype:  # what has no wider type is torch's to scale
        *some, c, limit = as_arrays(*some, *numbers)
        return Measures(*some), _Curvature(c, limit)
    return Measures(*some), _Curvature(*numbers)


def gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, grad: Tensor, *numbers: Tensor, by_c: bool = True
) -> tuple[Tensor, ...]:
    """Derivatives of ``(grad * values).sum()`` by c, row by row, and by the rows of x and y.

    The numbers are the rows' `Measures`.
    """
    measures, blocks = Measures(*numbers), []
    for rows in row_blocks(measures.rx):
        some, number = _numbers(x, measures, c, rows)
        weights = grad[rows].to(measures.rx.dtype)
        if not isinstance(some.rx, Tensor):
            weights = weights.numpy()
        found = _slopes(kind, some, x, number, weights, by_c)
        blocks.append(tuple(map(as_tensor, found)))
    of_c, close, *slopes = joined(blocks)
    if wide_dtype(x) == x.dtype:
        of_x, of_y = _scales(measures, close)
        x, y = x / of_x, y / of_y
    if torch.compiler.is_compiling():  # lest inductor compute them anew for each column
        close, *slopes = map(stored, (close, *slopes))
    return of_c, *expand([x, y], close, slopes[:2], slopes[2:])


def point_gradients(*args: Any) -> tuple[Tensor, ...]:
    """`gradients` by x and y alone."""
    return gradients(*args, by_c=False)


def _scales(m: Measures, close: Tensor) -> tuple[Tensor, Tensor]:
    """What points without a wider type are divided by, lest their coefficients underflow.

    Close points by the same.
    """
    of_x = power_of_two([m.rx])
    return of_x, torch.where(close, of_x, power_of_two([m.ry]))


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """`of_rows` of the pairs (i, j), ``(P, K)``: positives of a loss, winners of a search."""
    blocks = []
    for some in row_blocks(x, len(i)):
        p, q = x.index_select(0, i[some]), y.index_select(0, j[some])
        blocks.append((earned(of_blocks, kind, p)(kind, p, q, c)[0],))
    return joined(blocks)[0]


def add_selected_gradients(
    kind: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    i: Tensor,
    j: Tensor,
    grad: Tensor,
    by_x: Tensor,
    by_y: Tensor,
) -> Tensor:
    """Adds the derivatives of ``(grad * selected).sum()`` by x and y; returns that by c."""
    by_c = torch.zeros(1, dtype=wide_dtype(x), device=x.device)
    for some in row_blocks(x, len(i)):
        p, q = x.index_select(0, i[some]), y.index_select(0, j[some])
        numbers = earned(measured, "2", p)(p, q)
        of_c, of_p, of_q = earned(gradients, kind, p)(kind, p, q, c, grad[some], *numbers)
        by_x.index_add_(0, i[some], of_p)
        by_y.index_add_(0, j[some], of_q)
        by_c += of_c.sum()
    return by_c.to(c.dtype)


class _Pair(NamedTuple):
    x: Radial
    y: Radial
    h: Tensor
    g: Tensor
    triangle: Triangle
    c: Numbers
    inside: tuple[Numbers, Numbers] | None
    """Whether the points are within ``max_radius``; None if all are"""


def _pair(kind: str, m: Measures, x: Tensor, of: _Curvature, least: float) -> _Pair:
    rx, ry, dr, inside, number = m.rx, m.ry, m.dr, None, of.c
    if not _all_inside(m, of.limit):
        inside = ~(rx > of.limit), ~(ry > of.limit)
        rx, ry = (where(r > of.limit, of.limit, r) for r in (rx, ry))
        dr = where(inside[0] & inside[1], dr, rx - ry)
    root = number**0.5
    apexes = kind in smooth.ANGLES or kind == "cosine"  # which other kinds do not look at
    p, q = (
        radial(root * (_at_least(r, least) if least else r), 1.0 * (r != 0) if apexes else r)
        for r in (rx, ry)
    )
    h = m.h()
    g = m.g() if apexes else h
    if least:  # two points at the origin coincide
        h = where(maximum(rx, ry) > 0, h, 0.0)
    wide = wide_dtype(x) != x.dtype
    return _Pair(p, q, h, g, exact_triangle(h, root * dr, p, q, wide), number, inside)


def _at_least(r: Numbers, least: float) -> Numbers:
    return where(r < least, least, r)


def _all_inside(m: Measures, limit: Numbers) -> bool:
    """Whether no point has to be moved to ``max_radius``; not asked if the answer takes waiting."""
    if not isinstance(limit, float) or len(m.rx) == 0:
        return False
    return float(maximum(m.rx, m.ry).max()) < limit


def _slopes(
    kind: str, m: Measures, x: Tensor, of: _Curvature, grad: Numbers, by_c: bool
) -> tuple[Numbers, ...]:
    """The derivative by c, row by row; whether the points are close; coefficients for `expand`."""
    pair = _pair(kind, m, x, of, TINY[x.dtype])
    wide = wide_dtype(x) != x.dtype
    weights = [grad[:, i : i + 1] for i in range(grad.shape[1])]
    given = pair.h, pair.g, pair.triangle, pair.x, pair.y, pair.c
    by = change(kind, *given, weights, by_c=by_c, wide=wide)
    if not wide:  # of aligned points h changes not at all, and its factor may have overflown
        by = by._replace(h=where((m.sine2 == 0) & (m.ry > 0), 0.0, by.h))
    rx, ry = (_at_least(r, TINY[x.dtype]) for r in m[:2])
    root = pair.c**0.5
    along_x, along_y = by.a * (root * pair.x.sech), by.b * (root * pair.y.sech)
    if pair.inside is not None:
        along_x = where(pair.inside[0], along_x, 0.0)
        along_y = where(pair.inside[1], along_y, 0.0)
    close = m.close()
    near_x, near_y = rx, ry
    if not wide:
        of_x, of_y = _scales(m, close)
        near_x, near_y = rx / of_x, ry / of_y
    # By h, x moves against the part of y across it, which is y less a multiple of x; of close
    # points that is their difference less a small multiple.
    across_x, across_y = by.h / rx, by.h / ry
    less_x = where(close, -(m.dr / ry + pair.h), m.cosine)
    less_y = where(close, m.dr / rx - pair.h, m.cosine)
    of_x = (along_x + across_x * less_x) / near_x
    of_y = (along_y + across_y * less_y) / near_y
    back_x, back_y = across_y / near_x, across_x / near_y
    x_of_y = where(close, of_y, -back_x)
    of_c = by.c / (2 * pair.c)
    return of_c, close, of_x, -back_y, x_of_y, where(close, of_y + back_x, of_y)
