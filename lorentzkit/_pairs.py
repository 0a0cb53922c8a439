"""The quantities of one or two points that every op is made of, without cancellation.

Notation as in docs/numerics.md: ``r = |x|``, ``u = x/r``, ``C = sqrt(1 + c r**2) = cosh a``,
``x0 = sqrt(1/c + r**2)`` the time component, ``w = u - v``, ``h = |w|**2 / 2 = 1 - cos(theta)``.

Values come from polar coordinates, where all is a sum of non-negative terms; so does the derivative
with respect to the curvature. Polar coordinates are not smooth at the origin, and their derivatives
cancel, so the derivatives with respect to the points come from *increments*: ``f(x) - f(x')`` with
``x' = x.detach()``, written so that every term has a factor like ``x - x'``. An increment is
exactly zero, its derivative with respect to ``c`` is exactly zero, and its derivatives with respect
to ``x``, of every order, are those of ``f``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._numerics import carry, dot, hypot, norm, polar, scale_of, smallest_length


def time_of(x: Tensor, c: Tensor) -> Tensor:
    """Time component ``x0 = sqrt(1/c + |x|**2)``, ``(..., 1)``."""
    return _root_of_sum(1 / c, torch.ones_like(c), x, c.rsqrt())


def cosh_of(x: Tensor, c: Tensor) -> Tensor:
    """``cosh a = sqrt(1 + c |x|**2)``, ``(..., 1)``; it stays finite as ``c -> 0``."""
    return _root_of_sum(torch.ones_like(c), c, x, torch.ones_like(c))


def _root_of_sum(constant: Tensor, factor: Tensor, x: Tensor, least: Tensor) -> Tensor:
    """``sqrt(constant + factor |x|**2)``, scaled so that its gradient, as small as ``1/|x|**2``,
    does not underflow on the way."""
    scale = torch.maximum(x.abs().amax(-1, keepdim=True), least).detach()
    z = x / scale
    return scale * (constant / scale / scale + factor * dot(z, z)).sqrt()


class Polar(NamedTuple):
    """Two points in polar coordinates: radii, unit vectors, and accurate differences of both."""

    rx: Tensor
    u: Tensor
    ry: Tensor
    v: Tensor
    dr: Tensor
    """``rx - ry``"""
    w: Tensor
    """``u - v``"""
    h: Tensor
    """``1 - cos(theta)``"""


def polar_pair(x: Tensor, y: Tensor) -> Polar:
    """Polar coordinates of a pair; the differences keep relative accuracy for close points."""
    rx, u = polar(x)
    ry, v = polar(y)
    near = (rx < 2 * ry) & (ry < 2 * rx)
    # x - y is exact enough where the radii are within a factor of two (Sterbenz).
    difference = x - y
    total = torch.where(near, rx + ry, 1.0)
    dr = torch.where(near, dot(difference / total, x + y), rx - ry)
    w = torch.where(near, (difference - v * dr) / torch.where(near, rx, 1.0), u - v)
    w = torch.where((u == v).all(-1, keepdim=True), 0.0, w)
    dr, w = carry(dr, rx - ry), carry(w, u - v)
    return Polar(rx, u, ry, v, dr, w, dot(w, w) / 2)


def sinh_difference(p: Polar, fx: Tensor, fy: Tensor) -> Tensor:
    """``rx fy - ry fx``: ``sinh(a - b)`` if f is the time, ``sinh(a - b)/sqrt(c)`` if f is cosh."""
    total = p.rx + p.ry
    divisible = total > smallest_length(total.dtype)
    total = torch.where(divisible, total, 1.0)
    part_x = torch.where(divisible, p.rx / total, 0.5)
    part_y = torch.where(divisible, p.ry / total, 0.5)
    return p.dr / (part_x * fy + part_y * fx)


def squared_chord_increment(x: Tensor, y: Tensor, c: Tensor, scale: Tensor | float) -> Tensor:
    """Increment of ``|x - y|**2 - (x0 - y0)**2``, over ``scale**2``.

    Its x-derivative is ``2 (x y0/x0 - y)``: of close points it is made of their differences, which
    are exact; of others of the two products, since differences would swamp the smaller point.
    """
    x_, y_ = x.detach(), y.detach()
    x0_, y0_ = time_of(x_, c), time_of(y_, c)
    x_sum, y_sum = time_of(x, c) + x0_, time_of(y, c) + y0_
    rx, ry = norm(x_), norm(y_)
    close = (rx <= 2 * ry) & (ry <= 2 * rx)

    d, d_ = (x - y) / scale, (x_ - y_) / scale
    rise = dot((x - x_) / scale, x + x_) / x_sum - dot((y - y_) / scale, y + y_) / y_sum
    time_difference = dot(d_, x_ + y_) / (x0_ + y0_)
    of_close = dot(d - d_, d + d_) - rise * (2 * time_difference + rise)

    unit = torch.where(close, (rx + ry).clamp_min(smallest_length(x.dtype)), scale)
    xs, ys, xs_, ys_ = x / unit, y / unit, x_ / unit, y_ / unit
    times = dot(xs - xs_, xs + xs_) * ((y_sum - y0_) / x_sum) + dot(ys - ys_, ys + ys_) * (
        x0_ / y_sum
    )
    product = dot(xs, ys)
    of_far = 2 * (times - (product - product.detach()))
    return torch.where(close, of_close, of_far)


def chord(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Minkowski length of ``x - y``: ``(2/sqrt(c)) sinh(sqrt(c) d / 2)``; gradient 0 at x = y."""
    x_, y_ = x.detach(), y.detach()
    p = polar_pair(x_, y_)
    t = sinh_difference(p, cosh_of(x_, c), cosh_of(y_, c))
    radial = t / ((1 + (1 + c * t * t).sqrt()) / 2).sqrt()
    length = hypot(radial, p.rx.sqrt() * p.ry.sqrt() * norm(p.w))
    scale = torch.where(length > 0, length, 1.0).detach().clamp_min(smallest_length(x.dtype))
    square = (length / scale) ** 2 + squared_chord_increment(x, y, c, scale)
    apart = square > 0
    return torch.where(apart, scale * torch.where(apart, square, 1.0).sqrt(), 0.0)


def cosh_excess(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``cosh(sqrt(c) d) - 1 = 2 sinh(sqrt(c) d / 2)**2``; smooth everywhere."""
    x_, y_ = x.detach(), y.detach()
    p = polar_pair(x_, y_)
    t = sinh_difference(p, time_of(x_, c), time_of(y_, c))
    value = t * (t / (1 + (1 + t * t).sqrt())) + c * p.rx * p.ry * p.h
    return value + (c / 2) * squared_chord_increment(x, y, c, 1.0)


class Split(NamedTuple):
    """A tangent vector at x: radial coefficient and transverse part."""

    radial: Tensor
    transverse: Tensor


def split(x: Tensor, u: Tensor) -> Split:
    """``u = radial * x/|x| + transverse``; exactly parallel vectors have no transverse part."""
    direction, along = polar(x)[1], polar(u)[1]
    radial = dot(direction, u)
    same, opposite = (along == direction).all(-1), (along == -direction).all(-1)
    rest = u - direction * radial
    transverse = torch.where((same | opposite).unsqueeze(-1), 0.0, rest)
    return Split(radial, carry(transverse, rest))


def tangent_scale(u: Tensor) -> Tensor:
    """`scale_of` for what is linear in u, with a gradient of size 1 that passes through the scale."""
    return scale_of(u).clamp_min(smallest_length(u.dtype) ** 0.5)


def tangent_product(x: Tensor, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """``u.v - (x.u)(x.v)/x0**2``, the Lorentzian inner product of tangent vectors at x.

    Far out that difference is noise, and the form in radial and transverse parts is used.
    """
    x0 = time_of(x, c)
    far = dot(x / x0, x / x0) > 0.5  # a > 0.88
    near = dot(u, v) - dot(x / x0, u) * dot(x / x0, v)
    x_far = torch.where(far, x, torch.ones_like(x))
    a, b, cosh = split(x_far, u), split(x_far, v), cosh_of(x_far, c)
    apart = dot(a.transverse, b.transverse) + (a.radial / cosh) * (b.radial / cosh)
    return torch.where(far, apart, near)


def squared_arc(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """``c tangent_product(x, u, u)``, with a derivative in c that does not cancel."""
    x0 = time_of(x, c)
    far = dot(x / x0, x / x0) > 0.5
    near = c * (dot(u, u) - dot(x / x0, u) ** 2)
    x_far = torch.where(far, x, torch.ones_like(x))
    a, time = split(x_far, u), time_of(x_far, c)
    return torch.where(far, c * dot(a.transverse, a.transverse) + (a.radial / time) ** 2, near)


def tangent_time(x: Tensor, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Time component ``x.u / x0`` of a tangent vector: its value and its increment."""
    x_ = x.detach()
    x0, x0_ = time_of(x, c), time_of(x_, c)
    product = dot(x, u)
    value = product.detach() / x0_
    rise = dot(x - x_, x + x_) / (x0 + x0_)
    return value, ((product - product.detach()) - value * rise) / x0
