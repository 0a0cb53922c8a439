"""The specification: every fused op as plain PyTorch, with its N x M matrices in the open.

What is implemented elsewhere block by block is here one formula each, differentiable by autograd to
any order. It serves where others cannot (`impl="reference"`, second derivatives), and tests compare
the others with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._checks import clamp_norm, norm_limit, values_known
from lorentzkit._numerics import arsinh_length, carry, dot, norm
from lorentzkit._pairs import apex, chord, cosh_excess, time_of
from lorentzkit.fused.clouds import FEW_DIMENSIONS, TINY, mend_below
from lorentzkit.fused.formulas import legs, radial, triangle
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
    return dot(*(_unit(z)[0] for z in (x, y)))


def _values(kind: str, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    x, y = (clamp_norm(z, norm_limit(c.detach())) for z in (x, y))
    (u, rx), (v, ry) = _unit(x), _unit(y)
    if kind == "cosine":
        return (u @ v.mT,)
    h, g = _half_chords(u, v)
    a, b = (radial(c.sqrt() * r.clamp_min(TINY[r.dtype]), (r > 0).to(r.dtype)) for r in (rx, ry))
    b = b.columns()
    tri = triangle(h, a, b)
    # Polar coordinates are not smooth at the origin; there the other form does not cancel.
    excess = c * (time_of(x, c) @ time_of(y, c).mT - x @ y.mT) - 1
    T = torch.where((rx == 0) | (ry == 0).mT, carry(tri.T, excess / 2), tri.T)
    apart = T > 0
    if kind == "inner":
        return (-(1 + 2 * T) / c,)
    if kind == "distance":
        half = torch.asinh(torch.where(apart, T, 1.0).sqrt())
        return (torch.where(apart, 2 * half, 0.0) / c.sqrt(),)
    square = h * g
    sine = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    n_x, n_y, m_x, m_y = legs(h, sine, tri, a, b)
    return tuple(
        torch.atan2(torch.where(apart, n, 0.0), torch.where(apart, m, 1.0))
        for n, m in ((n_x, m_x), (n_y, m_y))
    )


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    r = norm(x)
    return x / r.clamp_min(TINY[r.dtype]), r


def _half_chords(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
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
