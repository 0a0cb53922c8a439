"""The specification: every fused op as plain PyTorch, with its N x M matrices in the open.

What is implemented elsewhere block by block is here one formula each, differentiable by autograd to
any order. It serves where others cannot (`impl="reference"`, second derivatives), and tests compare
the others with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._checks import clamp_norm, norm_limit
from lorentzkit._numerics import (
    arsinh_length,
    carry,
    dot,
    hypot,
    norm,
    root_one_plus,
    values_known,
)
from lorentzkit._pairs import Root, apex, chord, cosh_excess, sinh_difference, time_of
from lorentzkit.fused.clouds import FEW_DIMENSIONS, TINY, mend_below
from lorentzkit.fused.pointwise import SIGNS


def matrix(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``(..., N, D), (..., M, D) -> (..., N, M)``; c is ``(..., 1)``."""
    return _values(kind, x, y, c.unsqueeze(-1))[0]


def log_sums(
    similarity: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of the logits that rows and columns see, the log-sum-exps; pairs of equal ids left out."""
    value = _values(similarity, x, y, c)
    same = row_ids[:, None] == column_ids
    row, column = (
        sign * scale * v for sign, v in zip(SIGNS[similarity], value[:1] + value[-1:], strict=True)
    )
    return (
        row.masked_fill(same, -torch.inf).logsumexp(1),
        column.masked_fill(same, -torch.inf).logsumexp(0),
    )


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The values of the pairs (i, j): ``(P, K)``."""
    x, y = (clamp_norm(z, norm_limit(c.detach())) for z in (x, y))
    x, y = x[i], y[j]
    if kind == "angle":
        at_x, at_y = torch.atan2(*apex(x, y, c)), torch.atan2(*apex(y, x, c))
        return torch.cat([at_x, at_y], -1)
    if kind == "distance":
        return 2 * arsinh_length(chord(x, y, c) / 2, c)
    if kind == "inner":
        return -(1 + cosh_excess(x, y, c)) / c
    return dot(*(unit(z)[0] for z in (x, y)))


def _values(kind: str, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """As in `lorentzkit.ops`, with the angles at the origin from a product of unit vectors."""
    x, y = (clamp_norm(z, norm_limit(c.detach())) for z in (x, y))
    (u, rx), (v, ry) = unit(x), unit(y)
    ry = ry.mT
    if kind == "cosine":
        return (u @ v.mT,)
    h, g = half_chords(u, v)
    cosh_x, cosh_y = root_one_plus(c.sqrt() * rx), root_one_plus(c.sqrt() * ry)
    roots = Root(torch.ones_like(cosh_x), cosh_x), Root(torch.ones_like(cosh_y), cosh_y)
    if kind == "angle":
        sine, back = root(h * g), (roots[1], roots[0])
        alpha = _angle(ry, rx, sine, h, cosh_x, back, rx > 0)
        beta = _angle(rx, ry, sine, h, cosh_y, roots, ry > 0)
        return alpha, torch.where(rx > 0, beta, beta.detach())
    turn = sinh_difference(rx, ry, rx - ry, *roots)  # sinh(a - b)/sqrt(c)
    radial = turn / ((1 + root_one_plus(c.sqrt() * turn)) / 2).sqrt()
    across = rx.clamp_min(TINY[x.dtype]).sqrt() * ry.clamp_min(TINY[x.dtype]).sqrt() * root(2 * h)
    chord_ = _at_origin(hypot(radial, across), x, y, rx, ry, c)
    if kind == "distance":
        return (2 * arsinh_length(chord_ / 2, c),)
    return (_inner(x, y, c, chord_),)


def _at_origin(chord_: Tensor, x: Tensor, y: Tensor, rx: Tensor, ry: Tensor, c: Tensor) -> Tensor:
    """With the derivatives in points at the origin, where polar coordinates have none.

    What is added to the square is 0, and so is its derivative in all else.
    """
    x0, y0, least = time_of(x, c), time_of(y, c).mT, c.rsqrt()
    rise = torch.where(rx == 0, dot(x, x) / (x0 + least) * y0, 0.0)
    rise = rise + torch.where(ry == 0, dot(y, y).mT / (y0 + least) * x0, 0.0)
    size = torch.where(chord_ > 0, chord_, 1.0).detach()
    square = (chord_ / size) ** 2 + 2 * ((rise - x @ y.mT) / size / size)
    return torch.where((rx == 0) | (ry == 0), size * root(square), chord_)


def _angle(
    far: Tensor,
    near: Tensor,
    sine: Tensor,
    h: Tensor,
    cosh: Tensor,
    roots: tuple[Root, Root],
    exists: Tensor,
) -> Tensor:
    """At the apex of radius `near`; `roots` are those of the other point and of the apex."""
    scales = (far * sine, sinh_difference(far, near, far - near, *roots).abs(), cosh * far * h)
    size = torch.maximum(torch.maximum(*scales[:2]), scales[2]).detach()
    exists = exists & (size > 0)
    # Divided term by term: in the derivatives a square of the size would overflow.
    size = torch.where(exists, size, 1.0)
    out = sinh_difference(far, near, (far - near) / size, *roots) - cosh * (far / size) * h
    n = torch.where(exists, far / size * sine, 0.0)
    return torch.atan2(n, torch.where(exists, out, 1.0))


def _inner(x: Tensor, y: Tensor, c: Tensor, chord_: Tensor) -> Tensor:
    """Its derivative in c is that of the product of times alone."""
    half = chord_.detach() * (chord_.detach() / 2)
    times = time_of(x, c) @ time_of(y, c).mT
    return carry(-1 / c - half, x @ y.mT - times)


def root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    r = norm(x)
    return torch.where(r > 0, x / r.clamp_min(TINY[r.dtype]), 0.0), r


def half_chords(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``1 - cos`` and ``1 + cos`` of all pairs; from differences where the product loses them."""
    D = u.shape[-1]
    # Which pairs those are is not known inside torch.func or a compiler: then it is all.
    if D <= FEW_DIMENSIONS or not values_known(u):
        u, v = u.unsqueeze(-2), v.unsqueeze(-3)
        return dot(u - v, u - v)[..., 0] / 2, dot(u + v, u + v)[..., 0] / 2
    cosine = u @ v.mT
    return _mended(1 - cosine, u, v), _mended(1 + cosine, u, -v)


def _mended(h: Tensor, u: Tensor, v: Tensor) -> Tensor:
    *batch, i, j = (h < mend_below(u.shape[-1])).nonzero(as_tuple=True)
    d = u[(*batch, i)] - v[(*batch, j)]
    return h.index_put((*batch, i, j), dot(d, d)[..., 0] / 2)
