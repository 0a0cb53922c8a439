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

from lorentzkit._numerics import (
    carry,
    differentiable,
    dot,
    exact_product,
    hypot,
    norm,
    polar,
    power_of_two,
    root_one_plus,
    scale_of,
    smallest_length,
)


class Root(NamedTuple):
    """``sqrt(constant + factor |x|**2)`` as a constant scale times a root of size 1.

    Far out the number is so large that derivatives in it underflow; those in the root do not.
    """

    scale: Tensor
    root: Tensor

    def value(self) -> Tensor:  # no property: torch 2.6 does not compile those of a tuple
        return self.scale * self.root

    def times(self, value: Tensor) -> Tensor:
        return value * self.scale * self.root

    def over(self, value: Tensor) -> Tensor:
        """``value`` divided by this."""
        return value / self.scale / self.root


def time_root(x: Tensor, c: Tensor) -> Root:
    """Time component ``x0 = sqrt(1/c + |x|**2)``, ``(..., 1)``."""
    return _root_of_sum(1 / c, torch.ones_like(c), x, c.rsqrt())


def cosh_root(x: Tensor, c: Tensor) -> Root:
    """``cosh a = sqrt(1 + c |x|**2)``, ``(..., 1)``; it stays finite as ``c -> 0``."""
    return _root_of_sum(torch.ones_like(c), c, x, torch.ones_like(c))


def time_of(x: Tensor, c: Tensor) -> Tensor:
    """`time_root` as a number."""
    return time_root(x, c).value()


def cosh_of(x: Tensor, c: Tensor) -> Tensor:
    """`cosh_root` as a number."""
    return cosh_root(x, c).value()


def _root_of_sum(constant: Tensor, factor: Tensor, x: Tensor, least: Tensor) -> Root:
    scale = torch.maximum(x.abs().amax(-1, keepdim=True), least).detach()
    z = x / scale
    return Root(scale, (constant / scale / scale + factor * dot(z, z)).sqrt())


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
    dr = carry(radius_difference(x, y, rx, ry), rx - ry)
    # From the exact sine: at small angles the plain differences have lost h and w.
    sine = transverse(x.detach(), y.detach()) / torch.where(ry > 0, ry, 1.0)
    cosine = dot(u, v)
    h = torch.where(cosine > 0, dot(sine, sine) / (1 + cosine.abs()), 1 - cosine)
    h = torch.where((rx > 0) & (ry > 0), h, dot(u - v, u - v) / 2)
    w = carry(torch.where((rx > 0) & (ry > 0), u * h - sine, u - v), u - v)
    return Polar(rx, u, ry, v, dr, w, carry(h, dot(w, w) / 2))


def radius_difference(x: Tensor, y: Tensor, rx: Tensor, ry: Tensor) -> Tensor:
    """``rx - ry``, with relative accuracy for close points."""
    near = (rx < 2 * ry) & (ry < 2 * rx)
    # x - y is exact enough where the radii are within a factor of two (Sterbenz).
    total = torch.where(near, rx + ry, 1.0)
    return torch.where(near, dot((x - y) / total, x + y), rx - ry)


def transverse(x: Tensor, y: Tensor) -> Tensor:
    """The part of y across x, by exact products: it has relative accuracy at any angle.

    ``y - x y_k/x_k``, with k the largest entry of x, differs from it by a multiple of x only.
    """
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    k = x.abs().argmax(-1, keepdim=True)
    scale_x, scale_y = power_of_two(x), power_of_two(y)
    x, y = x / scale_x, y / scale_y
    xk, yk = x.gather(-1, k), y.gather(-1, k)
    (p, p_rest), (q, q_rest) = exact_product(y, xk), exact_product(x, yk)
    skew = ((p - q) + (p_rest - q_rest)) / torch.where(xk == 0, 1.0, xk)
    across = skew - x * (dot(x, skew) / dot(x, x).clamp_min(0.25))
    return scale_y * torch.where(xk == 0, y, across)


def sinh_difference(rx: Tensor, ry: Tensor, dr: Tensor, fx: Root, fy: Root) -> Tensor:
    """``rx fy - ry fx``: ``sinh(a - b)`` if f is the time, ``sinh(a - b)/sqrt(c)`` if f is cosh."""
    total = rx + ry
    divisible = total > smallest_length(total.dtype)
    total = torch.where(divisible, total, 1.0)
    part_x = torch.where(divisible, rx / total, 0.5)
    part_y = torch.where(divisible, ry / total, 0.5)
    return dr / (fy.times(part_x) + fx.times(part_y))


def squared_chord_increment(x: Tensor, y: Tensor, c: Tensor, scale: Tensor | float) -> Tensor:
    """Increment of ``|x - y|**2 - (x0 - y0)**2``, over ``scale**2``.

    Its x-derivative is ``2 (x y0/x0 - y)``: of close points it is made of their differences, which
    are exact; of others of the two products, since differences would swamp the smaller point.
    """
    if not differentiable(x, y):
        return x.new_zeros(())
    x_, y_ = x.detach(), y.detach()
    x0_, y0_ = time_of(x_, c), time_of(y_, c)
    x_sum, y_sum = time_of(x, c) + x0_, time_of(y, c) + y0_
    rx, ry = norm(x_), norm(y_)
    close = (rx <= 2 * ry) & (ry <= 2 * rx)

    d, d_ = (x - y) / scale, (x_ - y_) / scale
    rise = dot((x - x_) / scale, (x + x_) / x_sum) - dot((y - y_) / scale, (y + y_) / y_sum)
    time_difference = dot(d_, x_ + y_) / (x0_ + y0_)
    of_close = dot(d - d_, d + d_) - rise * (2 * time_difference + rise)

    unit = torch.where(close, (rx + ry).clamp_min(smallest_length(x.dtype)), scale)
    xs, ys, xs_, ys_ = x / unit, y / unit, x_ / unit, y_ / unit
    times = dot(xs - xs_, (xs + xs_) * ((y_sum - y0_) / x_sum))
    times = times + dot(ys - ys_, (ys + ys_) * (x0_ / y_sum))
    product = dot(xs, ys)
    of_far = 2 * (times - (product - product.detach()))
    return torch.where(close, of_close, of_far)


def chord(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Minkowski length of ``x - y``: ``(2/sqrt(c)) sinh(sqrt(c) d / 2)``; gradient 0 at x = y."""
    x_, y_ = x.detach(), y.detach()
    p = polar_pair(x_, y_)
    t = sinh_difference(p.rx, p.ry, p.dr, cosh_root(x_, c), cosh_root(y_, c))
    radial = t / ((1 + root_one_plus(c.sqrt() * t)) / 2).sqrt()
    length = hypot(radial, p.rx.sqrt() * p.ry.sqrt() * norm(p.w))
    scale = torch.where(length > 0, length, 1.0).detach().clamp_min(smallest_length(x.dtype))
    square = (length / scale) ** 2 + squared_chord_increment(x, y, c, scale)
    apart = square != 0
    return torch.where(apart, scale * torch.where(apart, square, 1.0).sqrt(), 0.0)


def cosh_excess(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """``cosh(sqrt(c) d) - 1 = 2 sinh(sqrt(c) d / 2)**2``; smooth everywhere."""
    x_, y_ = x.detach(), y.detach()
    value = polar_excess(polar_pair(x_, y_), time_root(x_, c), time_root(y_, c), c)
    return value + (c / 2) * squared_chord_increment(x, y, c, 1.0)


def polar_excess(p: Polar, x0: Root, y0: Root, c: Tensor) -> Tensor:
    """`cosh_excess` with its derivatives in c alone, from polar coordinates and times."""
    t = sinh_difference(p.rx, p.ry, p.dr, x0, y0)
    return t * (t / (1 + root_one_plus(t))) + c * p.rx * p.ry * p.h


def apex(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of the exterior angle at x, up to a common positive factor."""
    # The gradient grows as 1/|x| and 1/|x - y|: where that would overflow it is left out.
    least = 2.0**-20 * smallest_length(x.dtype)
    x = torch.where(norm(x.detach()) > least, x, x.detach())
    p = polar_pair(x, y)
    cosh_x, cosh_y = cosh_root(x, c), cosh_root(y, c)
    across = carry(transverse(x.detach(), y.detach()), y - p.u * dot(p.u, y))
    radial = sinh_difference(p.rx, p.ry, p.dr, cosh_x, cosh_y)
    lean = cosh_x.times(p.ry * p.h)
    size = torch.maximum(norm(across), radial.abs() + lean).detach()
    angle = (size != 0) & (p.rx != 0)
    # Divided by the size term by term: in the gradient a square of the size would underflow. Where
    # the size is nothing beside cosh a |y| the gradient would overflow, and is left out.
    floor = least * cosh_x.times(p.ry).detach().clamp_min(1.0)
    size = torch.where(angle, torch.maximum(size, floor), 1.0)
    steady = ~(size > floor)
    radial = sinh_difference(p.rx, p.ry, p.dr / size, cosh_x, cosh_y)
    sine = torch.where(angle, norm(across) / size, 0.0)
    cosine = torch.where(angle, -radial - cosh_x.times(p.h * (p.ry / size)), 1.0)
    return torch.where(steady, sine.detach(), sine), torch.where(steady, cosine.detach(), cosine)


class Split(NamedTuple):
    """A tangent vector at x: radial coefficient and transverse part."""

    radial: Tensor
    transverse: Tensor


def split(x: Tensor, u: Tensor) -> Split:
    """``u = radial * x/|x| + transverse``, the transverse part with relative accuracy."""
    direction = polar(x)[1]
    radial = dot(direction, u)
    rest = u - direction * radial
    return Split(radial, carry(transverse(x.detach(), u.detach()), rest))


def tangent_scale(u: Tensor) -> Tensor:
    """`scale_of` for what is linear in u: its gradient, of size 1, passes through the scale."""
    return scale_of(u).clamp_min(smallest_length(u.dtype) ** 0.5)


def tangent_product(x: Tensor, u: Tensor, v: Tensor, c: Tensor) -> Tensor:
    """``u.v - (x.u)(x.v)/x0**2``, the Lorentzian inner product of tangent vectors at x.

    Far out that difference is noise, and the form in radial and transverse parts is used.
    """
    far, x_far = _far_out(x, c)
    u_near, v_near = torch.where(far, 0.0, u), torch.where(far, 0.0, v)  # there it could overflow
    x0, cosh = time_root(x, c), cosh_root(x_far, c)
    near = dot(u_near, v_near) - x0.over(dot(x, u_near)) * x0.over(dot(x, v_near))
    a, b = split(x_far, u), split(x_far, v)
    radial = cosh.over(a.radial) * cosh.over(b.radial)
    return torch.where(far, dot(a.transverse, b.transverse) + radial, near)


def squared_arc(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """``c tangent_product(x, u, u)``, with a derivative in c that does not cancel."""
    far, x_far = _far_out(x, c)
    u_near = torch.where(far, 0.0, u)
    near = c * (dot(u_near, u_near) - time_root(x, c).over(dot(x, u_near)) ** 2)
    a = split(x_far, u)
    apart = c * dot(a.transverse, a.transverse) + time_root(x_far, c).over(a.radial) ** 2
    return torch.where(far, apart, near)


def _far_out(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Whether ``sqrt(c) |x| > 1``, and x with some other point in place of those that are not."""
    far = c.sqrt() * norm(x) > 1
    return far, torch.where(far, x, torch.ones_like(x))
