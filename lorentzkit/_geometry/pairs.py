"""Distances, angles and inner products of paired points ``(x[i], y[i])``, with their derivatives.

The formulas of `triangle`, at exact lengths and angles. `lorentzkit.ops` gives these values; a loss
takes them of its positive pairs, and a search of the pairs that it selected.
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
from lorentzkit._geometry.invariants import ANGLES, Measures, measured
from lorentzkit._geometry.special import TINY_LENGTH, values_at_hand
from lorentzkit._geometry.triangle import Radial, Triangle, exact_triangle, radial, values, vjp
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


def row_values(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``(..., K)`` in the points' dtype; K is 2 for "angles" (at x and at y) and else 1."""
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    if not eager(x):
        return smooth.row_values(kind, x, y, c)
    shape = torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])  # type: ignore[no-untyped-call]
    x, y = (flat(v.expand(*shape, v.shape[-1])) for v in (x, y))
    c = c.reshape(1, 1) if c.numel() == 1 else c.expand(*shape, 1).reshape(-1, 1)
    result: Tensor = run(_RowValues, kind, x, y, c)
    return result.view(*shape, result.shape[-1])


class _RowValues(Function):
    @staticmethod
    def compute(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        result: Tensor = values_and_measures(kind, x, y, c)[0]
        return result

    @staticmethod
    def forward(ctx: Any, kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        result: Tensor
        result, *measures = earned(values_and_measures, kind, x)(kind, x, y, c)
        ctx.kind = kind
        ctx.save_for_backward(x, y, c, *measures)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, *measures = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            inputs = [t.view_as(t) if t.requires_grad else t.requires_grad_() for t in (x, y, c)]
            result = smooth.row_values(ctx.kind, *inputs)
            return (None, *torch.autograd.grad(result, inputs, grad, create_graph=True))
        wanted = ctx.needs_input_grad[3]
        function = earned(gradients if wanted else point_gradients, ctx.kind, x)
        grad_c, grad_x, grad_y = function(ctx.kind, x, y, c, grad, *measures)
        return (None, grad_x, grad_y, grad_c.sum_to_size(c.shape).to(c.dtype) if wanted else None)


def values_and_measures(kind: str, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """The values of rows ``(N, D)``, and the rows' `Measures`."""
    measures = measured(x, y)
    blocks = []
    for rows in row_blocks(measures[0]):
        block, number = _block_numbers(x, measures, c, rows)
        p = _pair(kind, block, x, number, 0.0)
        columns = [as_tensor(v) for v in values(kind, p.h, p.g, p.triangle, p.x, p.y, p.c)]
        blocks.append((torch.cat(columns, 1) if len(columns) > 1 else columns[0],))
    return joined(blocks)[0].to(x.dtype), *measures


class _Curvature(NamedTuple):
    c: Numbers
    limit: Numbers
    """The largest norm of a point"""


def _block_numbers(
    x: Tensor, measures: Sequence[Tensor], c: Tensor, rows: slice
) -> tuple[Measures, _Curvature]:
    """The measures and the curvature of these rows; as NumPy arrays, if the rows are few."""
    block, parameters = [m[rows] for m in measures], [c, norm_limit(c)]
    numbers: list[Numbers]
    if values_at_hand(c) and c.numel() == 1:
        numbers = [float(z) for z in parameters]
    else:
        numbers = [z.to(block[0].dtype)[rows if len(z) > 1 else ...] for z in parameters]
    if values_at_hand(x) and wide_dtype(x) != x.dtype:  # without a wider type, torch has to scale
        *block, c, limit = as_arrays(*block, *numbers)
        return Measures(*block), _Curvature(c, limit)
    return Measures(*block), _Curvature(*numbers)


def gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, grad: Tensor, *numbers: Tensor, by_c: bool = True
) -> tuple[Tensor, ...]:
    """Derivatives of ``(grad * values).sum()`` by c, row by row, and by the rows of x and y.

    ``numbers`` are the rows' `Measures`.
    """
    measures, blocks = Measures(*numbers), []
    for rows in row_blocks(measures.rx):
        block, number = _block_numbers(x, measures, c, rows)
        weights = grad[rows].to(measures.rx.dtype)
        if not isinstance(block.rx, Tensor):
            weights = weights.numpy()
        partials = _row_vjp(kind, block, x, number, weights, by_c)
        blocks.append(tuple(map(as_tensor, partials)))
    grad_c, close, *slopes = joined(blocks)
    if wide_dtype(x) == x.dtype:
        scale_x, scale_y = _scales(measures, close)
        x, y = x / scale_x, y / scale_y
    if torch.compiler.is_compiling():  # or inductor would compute them again for each column
        close, *slopes = map(stored, (close, *slopes))
    return grad_c, *expand([x, y], close, slopes[:2], slopes[2:])


def point_gradients(*args: Any) -> tuple[Tensor, ...]:
    """`gradients` by x and y alone."""
    return gradients(*args, by_c=False)


def _scales(m: Measures, close: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two that points without a wider type are divided by, or coefficients underflow.

    Two close points are divided by the same one.
    """
    scale_x = power_of_two([m.rx])
    return scale_x, torch.where(close, scale_x, power_of_two([m.ry]))


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """`row_values` of the pairs (i, j), ``(P, K)``: positives of a loss, results of a search."""
    blocks = []
    for block in row_blocks(x, len(i)):
        p, q = x.index_select(0, i[block]), y.index_select(0, j[block])
        blocks.append((earned(values_and_measures, kind, p)(kind, p, q, c)[0],))
    return joined(blocks)[0]


def add_selected_gradients(
    kind: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    i: Tensor,
    j: Tensor,
    grad: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
) -> Tensor:
    """Adds the derivatives of ``(grad * selected).sum()`` by x and y; returns that by c."""
    grad_c = torch.zeros(1, dtype=wide_dtype(x), device=x.device)
    for block in row_blocks(x, len(i)):
        p, q = x.index_select(0, i[block]), y.index_select(0, j[block])
        numbers = earned(measured, "2", p)(p, q)
        block_c, grad_p, grad_q = earned(gradients, kind, p)(kind, p, q, c, grad[block], *numbers)
        grad_x.index_add_(0, i[block], grad_p)
        grad_y.index_add_(0, j[block], grad_q)
        grad_c += block_c.sum()
    return grad_c.to(c.dtype)


class _Pair(NamedTuple):
    x: Radial
    y: Radial
    h: Tensor
    g: Tensor
    triangle: Triangle
    c: Numbers
    inside: tuple[Numbers, Numbers] | None
    """Whether the points are within ``max_radius``; None if all are"""


def _pair(kind: str, m: Measures, x: Tensor, curvature: _Curvature, least: float) -> _Pair:
    rx, ry, dr, inside, number = m.rx, m.ry, m.dr, None, curvature.c
    if not _all_inside(m, curvature.limit):
        inside = ~(rx > curvature.limit), ~(ry > curvature.limit)
        rx, ry = (where(r > curvature.limit, curvature.limit, r) for r in (rx, ry))
        dr = where(inside[0] & inside[1], dr, rx - ry)
    root = number**0.5
    apexes = kind in ANGLES or kind == "cosine"  # other kinds do not use them
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
    """Whether no point has to be moved to ``max_radius``; False where the answer takes waiting."""
    if not isinstance(limit, float) or len(m.rx) == 0:
        return False
    return float(maximum(m.rx, m.ry).max()) < limit


def _row_vjp(
    kind: str, m: Measures, x: Tensor, curvature: _Curvature, grad: Numbers, by_c: bool
) -> tuple[Numbers, ...]:
    """The derivative by c, row by row; whether the points are close; coefficients for `expand`."""
    pair = _pair(kind, m, x, curvature, TINY_LENGTH[x.dtype])
    wide = wide_dtype(x) != x.dtype
    weights = [grad[:, i : i + 1] for i in range(grad.shape[1])]
    arguments = pair.h, pair.g, pair.triangle, pair.x, pair.y, pair.c
    partials = vjp(kind, *arguments, weights, by_c=by_c, wide=wide)
    if not wide:  # for aligned points h has no derivative, and its factor may have overflown
        partials = partials._replace(h=where((m.sine2 == 0) & (m.ry > 0), 0.0, partials.h))
    rx, ry = (_at_least(r, TINY_LENGTH[x.dtype]) for r in m[:2])
    root = pair.c**0.5
    along_x, along_y = partials.a * (root * pair.x.sech), partials.b * (root * pair.y.sech)
    if pair.inside is not None:
        along_x = where(pair.inside[0], along_x, 0.0)
        along_y = where(pair.inside[1], along_y, 0.0)
    close = m.close()
    scaled_rx, scaled_ry = rx, ry
    if not wide:
        scale_x, scale_y = _scales(m, close)
        scaled_rx, scaled_ry = rx / scale_x, ry / scale_y
    # The gradient of h by x is minus the part of y across x: y less a multiple of x, or for close
    # points the difference less a small multiple of x.
    across_x, across_y = partials.h / rx, partials.h / ry
    multiple_x = where(close, -(m.dr / ry + pair.h), m.cosine)
    multiple_y = where(close, m.dr / rx - pair.h, m.cosine)
    own_x = (along_x + across_x * multiple_x) / scaled_rx
    own_y = (along_y + across_y * multiple_y) / scaled_ry
    cross_x, cross_y = across_y / scaled_rx, across_x / scaled_ry
    x_in_grad_y = where(close, own_y, -cross_x)
    grad_c = partials.c / (2 * pair.c)
    return grad_c, close, own_x, -cross_y, x_in_grad_y, where(close, own_y + cross_x, own_y)
