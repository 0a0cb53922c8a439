"""Functions of single points: lengths, distances to the origin, apertures, maps at the origin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.elementary import atan2
from lorentzkit._geometry.special import (
    arsinh_length,
    asinhc,
    cosh_sinhc,
    norm,
    values_at_hand,
)
from lorentzkit._geometry.vectors import (
    combine,
    dot,
    eager,
    expand,
    flat,
    joined,
    or_one,
    parts,
    power_of_two,
    product,
    row_blocks,
    run,
    wide_dtype,
)


def length(x: Tensor) -> Tensor:
    """``|x|``, ``(..., 1)``; the gradient at 0 is 0."""
    if eager(x):
        lengths: Tensor = run(_Length, flat(x))
        return lengths.view(*x.shape[:-1], 1)
    return _plain_length(x)


def _plain_length(x: Tensor) -> Tensor:
    dtype = wide_dtype(x)
    if dtype == x.dtype:
        return norm(x)
    p = parts(x, dtype)
    square = dot(p, p)
    nonzero = square != 0  # so that NaN stays NaN
    return torch.where(nonzero, torch.where(nonzero, square, 1.0).sqrt(), 0.0)


class _Length(Function):
    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return joined([(_length(x[rows]),) for rows in row_blocks(x)])[0]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = _Length.compute(x)
        ctx.save_for_backward(x, r)
        return r

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, r = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            r = _plain_length(x)
        if r.dtype == x.dtype and not _moderate(r):  # for denormal numbers 1/r would overflow
            scale = power_of_two([x])
            x, r = x / scale, r / scale
        return expand([x], None, [torch.where(r == 0, 0.0, grad / or_one(r))])[0]


def _length(x: Tensor) -> Tensor:
    p = parts(x, wide_dtype(x))
    r = dot(p, p).sqrt()
    if p[0].dtype != x.dtype or _moderate(r):
        return r
    scale = power_of_two(p)
    p = [v / scale for v in p]
    return scale * dot(p, p).sqrt()


def _moderate(r: Tensor) -> bool:
    """Whether float64 lengths are known to be so moderate that their squares stay in range."""
    if r.dtype != torch.float64 or not values_at_hand(r) or r.numel() == 0:
        return False
    least, most = r.aminmax()
    return float(least) > 1e-20 and float(most) < 1e20


def time(x: Tensor, c: Tensor) -> Tensor:
    """``x0``"""
    xx = product(x, x)
    return (1 / c.to(xx.dtype) + xx).sqrt()


def cosh(x: Tensor, c: Tensor) -> Tensor:
    """``cosh a = sqrt(1 + c |x|**2)``"""
    xx = product(x, x)
    return (1 + c.to(xx.dtype) * xx).sqrt()


def distance(x: Tensor, c: Tensor) -> Tensor:
    """To the origin."""
    r = length(x)
    return arsinh_length(r, c.to(r.dtype), r.dtype != x.dtype).to(x.dtype)


def half_aperture(x: Tensor, c: Tensor, min_radius: float) -> Tensor:
    r, k2 = length(x), 2 * min_radius
    s = c.to(r.dtype).sqrt() * r
    cone = ~(s <= k2)
    s_cone = torch.where(cone, s, 2 * k2)
    cosine = (s_cone - k2).sqrt() * (s_cone + k2).sqrt()
    sine = torch.full_like(s, k2)
    angle = torch.where(cone, atan2(sine, cosine), torch.pi / 2)
    return (angle + (s - s)).to(x.dtype)  # infinity gives NaN


def expmap0(u: Tensor, c: Tensor) -> Tensor:
    uu, limit = product(u, u), norm_limit(c)
    _, sinhc, k = cosh_sinhc(c.to(uu.dtype) * uu, uu.dtype != u.dtype)
    # The longest vector allowed ends at the limit, unless rounding puts it beyond.
    growth = sinhc * k.exp()
    limit = limit.to(uu.dtype)
    beyond = growth.detach() * uu.detach().sqrt() > limit
    longest = limit / torch.where(beyond, uu, 1.0).sqrt()
    return combine([torch.where(beyond, longest, growth)], [u])


def logmap0(x: Tensor, c: Tensor) -> Tensor:
    xx = product(x, x)
    return combine([asinhc(c.to(xx.dtype) * xx, xx.dtype != x.dtype)], [x])
