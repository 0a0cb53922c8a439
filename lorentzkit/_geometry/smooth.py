"""Formulas with derivatives of every order, also where polar coordinates have none.

A value comes from lengths and angles, where all is a sum of terms of one sign; so does its
derivative with respect to the curvature. Its derivatives with respect to the points come from their
products, which are smooth everywhere, by *increments*: ``f(p) - f(p')`` with ``p' = p.detach()``,
written so that every term has a factor like ``p - p'``. An increment is exactly zero, its derivative
with respect to c is exactly zero, and its derivatives with respect to p, of every order, are f's.

``x0 = sqrt(1/c + |x|**2)`` is the time component and ``C = sqrt(1 + c |x|**2) = cosh a``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._checks import clamp_norm, norm_limit
from lorentzkit._geometry.invariants import Measures, Products, products
from lorentzkit._numerics import (
    arsinh_length,
    carry,
    hypot,
    root_one_plus,
    smallest_length,
)


class Root(NamedTuple):
    """``sqrt(constant + factor r**2)`` as a constant scale times a root of size 1.

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


def time_root(r: Tensor, c: Tensor) -> Root:
    """``x0``, of the length r."""
    scale = torch.maximum(r, c.rsqrt()).detach()
    return Root(scale, (1 / c / scale / scale + (r / scale) ** 2).sqrt())


def cosh_root(r: Tensor, c: Tensor) -> Root:
    """``C``, of the length r; it stays finite as ``c -> 0``."""
    scale = r.clamp_min(1.0).detach()
    return Root(scale, (1 / scale / scale + c * (r / scale) ** 2).sqrt())


def sinh_difference(m: Measures, dr: Tensor, fx: Root, fy: Root) -> Tensor:
    """``dr (rx + ry) / (rx fy + ry fx)``: with ``rx - ry`` for dr, ``sinh(a - b)`` if f is the time,
    and ``sinh(a - b)/sqrt(c)`` if f is the hyperbolic cosine.
    """
    total = m.rx + m.ry
    divisible = total > smallest_length(total.dtype)
    total = torch.where(divisible, total, 1.0)
    part_x = torch.where(divisible, m.rx / total, 0.5)
    part_y = torch.where(divisible, m.ry / total, 0.5)
    return dr / (fy.times(part_x) + fx.times(part_y))


# --- Increments -----------------------------------------------------------------------------------


def rise(p: Tensor) -> Tensor:
    """0, with the derivatives of p."""
    return p - p.detach()


class Roots(NamedTuple):
    """``sqrt(constant + factor |x|**2)``: without derivatives in x, and its increment."""

    value: Tensor
    rise: Tensor


def roots(constant: Tensor | float, factor: Tensor | float, xx: Tensor) -> Roots:
    value = (constant + factor * xx.detach()).sqrt()
    return Roots(value, factor * rise(xx) / ((constant + factor * xx).sqrt() + value))


def coshes(xx: Tensor, c: Tensor) -> Roots:
    return roots(1.0, c, xx)


def times(xx: Tensor, c: Tensor) -> Roots:
    return roots(1 / c, 1.0, xx)


def product_rise(p: Products, m: Measures) -> Tensor:
    """The increment of ``x.y``."""
    return p.rise + torch.where(m.close(), 0.5 * (rise(p.xx) + rise(p.yy)), 0.0)


def excess_rise(p: Products, m: Measures, c: Tensor) -> Tensor:
    """The increment of ``cosh(sqrt(c) d) - 1 = C_x C_y - 1 - c x.y``.

    Its x-derivative is ``c (x y0/x0 - y)``: of close points it is made of their difference, by
    ``(c |x - y|**2 - (C_x - C_y)**2) / 2``, and of others from the two products.
    """
    x, y = coshes(p.xx, c), coshes(p.yy, c)
    gap = c * m.dr * (m.rx + m.ry) / (x.value + y.value)  # C_x - C_y
    widens = x.rise - y.rise
    of_close = -0.5 * widens * (2 * gap + widens)
    of_far = x.rise * (y.value + y.rise) + x.value * y.rise
    return torch.where(m.close(), of_close, of_far) - c * p.rise


# --- Pairs ----------------------------------------------------------------------------------------


def excess(p: Products, m: Measures, c: Tensor) -> Tensor:
    """``E = cosh(sqrt(c) d) - 1``; smooth everywhere."""
    t = sinh_difference(m, m.dr, time_root(m.rx, c), time_root(m.ry, c))
    value = t * (t / (1 + root_one_plus(t))) + c * m.rx * m.ry * m.h()
    return value + excess_rise(p, m, c)


def inner(p: Products, m: Measures, c: Tensor) -> Tensor:
    """``x.y - x0 y0``; its derivative in c is that of the times alone."""
    c_ = c.detach()
    value = -(1 + excess(p, m, c_).detach()) / c_
    x, y = times(p.xx, c), times(p.yy, c)
    return carry(value, -x.value * y.value) - excess_rise(p, m, c) / c


def distance(p: Products, m: Measures, c: Tensor) -> Tensor:
    """The gradient is 0 where the points coincide."""
    # By the chord, (2/sqrt(c)) sinh(sqrt(c) d/2), which c hardly enters.
    turn = sinh_difference(m, m.dr, cosh_root(m.rx, c), cosh_root(m.ry, c))
    radial = turn / ((1 + root_one_plus(c.sqrt() * turn)) / 2).sqrt()
    length = hypot(radial, m.rx.sqrt() * m.ry.sqrt() * (2 * m.h()).sqrt())
    scale = torch.where(length > 0, length, 1.0).detach().clamp_min(smallest_length(c.dtype))
    square = (length / scale) ** 2 + 2 / c * excess_rise(p, m, c) / scale / scale
    apart = square != 0
    chord = torch.where(apart, scale * torch.where(apart, square, 1.0).sqrt(), 0.0)
    return 2 * arsinh_length(chord / 2, c)


def exterior_legs(p: Products, m: Measures, c: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of the exterior angle at x, up to a common positive factor.

    ``|y| sin(theta)`` and ``(C_x x.y - C_y |x|**2) / |x|``.
    """
    x, y = coshes(p.xx, c), coshes(p.yy, c)
    cosh_x, cosh_y, h = cosh_root(m.rx, c), cosh_root(m.ry, c), m.h()
    turn = sinh_difference(m, m.dr, cosh_x, cosh_y)
    size = (m.ry * m.sine2.sqrt() + turn.abs() + cosh_x.times(m.ry * h)).detach()
    exists = (size > smallest_length(size.dtype)) & (m.rx > smallest_length(size.dtype))
    size = torch.where(exists, size, 1.0)
    rx, ry = torch.where(exists, m.rx, 1.0), torch.where(exists & (m.ry > 0), m.ry, 1.0)
    # Increments of the products of unit vectors.
    xx, yy = rise(p.xx) / rx / rx, rise(p.yy) / ry / ry
    xy = product_rise(p, m) / rx / ry
    square = m.sine2 + (xx + yy + xx * yy - xy * (2 * m.cosine + xy))
    aligned = (m.sine2 == 0) | (m.ry == 0)
    sine = torch.where(aligned, 0.0, ry / size * torch.where(aligned, 1.0, square).sqrt())
    cosine = -sinh_difference(m, m.dr / size, cosh_x, cosh_y) - cosh_x.times(h * (m.ry / size))
    along = x.rise * (m.cosine + xy) + x.value * xy
    across = xx * (y.value + y.rise) + y.rise
    cosine = cosine + (along * (ry / size) - across * (rx / size))
    return torch.where(exists, sine, 0.0), torch.where(exists, cosine, 1.0)


def cosine(p: Products, m: Measures) -> Tensor:
    """Of the angle at the origin; 0 where a point is the origin."""
    exists = (m.rx > 0) & (m.ry > 0)
    rx, ry = torch.where(exists, m.rx, 1.0), torch.where(exists, m.ry, 1.0)
    xx, yy = rise(p.xx) / rx / rx, rise(p.yy) / ry / ry
    of = (m.cosine + product_rise(p, m) / rx / ry) / (1 + xx).sqrt() / (1 + yy).sqrt()
    return torch.where(exists, of, 0.0)


def of_rows(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """`pairs.of_rows`, with derivatives of every order."""
    limit = norm_limit(c.detach())
    p, m, _ = products(clamp_norm(x, limit), clamp_norm(y, limit))
    wide = c.to(p.xx.dtype)
    if kind == "distance":
        of = distance(p, m, wide)
    elif kind == "inner":
        of = inner(p, m, wide)
    elif kind == "cosine":
        of = cosine(p, m)
    else:
        sine, along = exterior_legs(p, m, wide)
        of = torch.atan2(sine, -along if kind == "interior" else along)
        if kind == "angle":
            of = torch.cat([of, torch.atan2(*exterior_legs(*exchanged(p, m), wide))], -1)
    return of.to(x.dtype)


def exchanged(p: Products, m: Measures) -> tuple[Products, Measures]:
    """Of y and x."""
    return Products(p.yy, p.xx, p.rise), m._replace(rx=m.ry, ry=m.rx, dr=-m.dr)
