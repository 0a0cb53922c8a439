"""Formulas with derivatives of every order, also where polar coordinates have none.

A value comes from lengths and angles, by which it is a sum of terms of one sign; so does its
derivative with respect to the curvature. Its derivatives with respect to the points come from
their products, which are smooth everywhere, by *increments*: ``f(p) - f(p')`` with
``p' = p.detach()``, written so that every term has a factor like ``p - p'``. An increment is
exactly zero, and so is its derivative with respect to c. Its derivatives with respect to p, of
every order, are those of f.

``x0 = sqrt(1/c + |x|**2)`` is the time component and ``C = sqrt(1 + c |x|**2) = cosh a``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry import elementary
from lorentzkit._geometry.arguments import clamp_norm, norm_limit
from lorentzkit._geometry.elementary import asinh, atan2
from lorentzkit._geometry.invariants import ANGLES, Measures, Products, products
from lorentzkit._geometry.special import (
    arsinh_length,
    carry,
    differentiable,
    hypot,
    root_one_plus,
    smallest_length,
)
from lorentzkit._geometry.vectors import or_one, power_of_two, wide_dtype


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
    scale = (c.sqrt() * r).clamp_min(1.0).detach()
    return Root(scale, (1 / scale / scale + c / scale / scale * r * r).sqrt())


def sinh_difference(m: Measures, dr: Tensor, fx: Root, fy: Root) -> Tensor:
    """``dr (rx + ry) / (rx fy + ry fx)``.

    With ``rx - ry`` for dr, ``sinh(a - b)`` if f is the time, and ``sinh(a - b)/sqrt(c)`` if f is
    the hyperbolic cosine.
    """
    total = m.rx + m.ry
    divisible = total > smallest_length(total.dtype)
    total = torch.where(divisible, total, 1.0)
    part_x = torch.where(divisible, m.rx / total, 0.5)
    part_y = torch.where(divisible, m.ry / total, 0.5)
    return dr / (fy.times(part_x) + fx.times(part_y))


# --- Increments -----------------------------------------------------------------------------------


def rise(p: Tensor) -> Tensor:
    """The increment of p itself: 0, with the derivatives of p."""
    return p - p.detach()


class Roots(NamedTuple):
    """``sqrt(constant + factor |x|**2)``: without derivatives in x, and its increment."""

    value: Tensor
    rise: Tensor


def roots(constant: Tensor | float, factor: Tensor | float, xx: Tensor) -> Roots:
    value = (constant + factor * xx.detach()).sqrt()
    return Roots(value, factor / ((constant + factor * xx).sqrt() + value) * rise(xx))


def coshes(xx: Tensor, c: Tensor) -> Roots:
    return roots(1.0, c, xx)


def times(xx: Tensor, c: Tensor) -> Roots:
    return roots(1 / c, 1.0, xx)


def product_rise(p: Products, m: Measures) -> Tensor:
    """The increment of ``x.y``."""
    if not differentiable(p.xx, p.yy, p.rise):
        return p.rise
    return p.rise + torch.where(m.close(), 0.5 * (rise(p.xx) + rise(p.yy)), 0.0)


def excess_rise(p: Products, m: Measures, c: Tensor) -> Tensor:
    """The increment of ``cosh(sqrt(c) d) - 1 = C_x C_y - 1 - c x.y``.

    Its x-derivative is ``c (x y0/x0 - y)``. For close points the increment is made of their
    difference, by ``(c |x - y|**2 - (C_x - C_y)**2) / 2``, and for others of the two products.
    """
    x, y = coshes(p.xx, c), coshes(p.yy, c)
    cosh_diff = c * m.dr * (m.rx + m.ry) / (x.value + y.value)  # C_x - C_y
    widens = x.rise - y.rise
    close_rise = -0.5 * widens * (2 * cosh_diff + widens)
    far_rise = x.rise * (y.value + y.rise) + x.value * y.rise
    return torch.where(m.close(), close_rise, far_rise) - c * p.rise


# --- Pairs ----------------------------------------------------------------------------------------


def excess(p: Products, m: Measures, c: Tensor) -> Tensor:
    """``E = cosh(sqrt(c) d) - 1``; smooth everywhere."""
    sinh_diff = sinh_difference(m, m.dr, time_root(m.rx, c), time_root(m.ry, c))
    value: Tensor = (
        sinh_diff * (sinh_diff / (1 + root_one_plus(sinh_diff))) + c * m.rx * m.ry * m.h()
    )
    return value + excess_rise(p, m, c)


def inner(p: Products, m: Measures, c: Tensor) -> Tensor:
    """``x.y - x0 y0``; only the time components depend on c."""
    c_constant = c.detach()
    value = -(1 + excess(p, m, c_constant).detach()) / c_constant
    x, y = times(p.xx, c), times(p.yy, c)
    return carry(value, -x.value * y.value) - excess_rise(p, m, c) / c


def distance(p: Products, m: Measures, c: Tensor) -> Tensor:
    """The gradient is 0 where the points coincide."""
    # By the chord, (2/sqrt(c)) sinh(sqrt(c) d/2), which c hardly enters.
    sinh_diff = sinh_difference(m, m.dr, cosh_root(m.rx, c), cosh_root(m.ry, c))
    radial = sinh_diff / ((1 + root_one_plus(c.sqrt() * sinh_diff)) / 2).sqrt()
    length = hypot(radial, m.rx.sqrt() * m.ry.sqrt() * (2 * m.h()).sqrt())
    scale = torch.where(length > 0, length, 1.0).detach().clamp_min(smallest_length(c.dtype))
    square = (length / scale) ** 2 + 2 / c * excess_rise(p, m, c) / scale / scale
    apart = square != 0
    chord = torch.where(apart, scale * torch.where(apart, square, 1.0).sqrt(), 0.0)
    return 2 * arsinh_length(chord / 2, c)


class Relative(NamedTuple):
    """Increments of two points' products, divided by the lengths in them, so free of any scale."""

    xx: Tensor
    yy: Tensor
    xy: Tensor
    """For close points that of ``-|x - y|**2 / 2``, which is less by half of the other two"""


def relative(p: Products, m: Measures, scale: Tensor | float) -> Relative:
    """``p`` holds products of points over ``scale``. At the origin there is no increment."""
    x, y = (or_one(r / scale) for r in (m.rx, m.ry))
    return Relative(rise(p.xx) / x / x, rise(p.yy) / y / y, p.rise / x / y)


def exterior_legs(m: Measures, increments: Relative, c: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of the exterior angle at x, up to a common positive factor.

    ``|y| sin(theta)`` and ``-sinh(a - b)/sqrt(c) - C_x |y| h``, with the increments of the radii
    and of h: at the origin angles have no derivative anyway, and far out those of products cancel.
    """
    h, cosh_x, cosh_y = m.h(), cosh_root(m.rx, c), cosh_root(m.ry, c)
    sinh_diff = sinh_difference(m, m.dr, cosh_x, cosh_y)
    size = (m.ry * m.sine2.sqrt() + sinh_diff.abs() + cosh_x.times(m.ry * h)).detach()
    exists = (size > 0) & (m.rx > 0)
    # The gradient grows as 1/|x| and 1/|x - y|: where that would overflow it is left out.
    steady = ~(torch.minimum(size, m.rx) > smallest_length(size.dtype))
    size = torch.where(exists, size, 1.0)

    longer, by_h = 1 + _length_rise(increments.yy), _chord_rise(m, increments)
    aligned = (m.sine2 == 0) | (m.ry == 0)
    square = torch.where(aligned, 1.0, m.sine2 + by_h * (2 * m.cosine - by_h))
    sine = torch.where(aligned, 0.0, m.ry / size * longer * square.sqrt())

    (a, cosh_rise), (b, _) = _arc_rise(m.rx, increments.xx, c), _arc_rise(m.ry, increments.yy, c)
    cosh = root_one_plus(c.sqrt() * sinh_diff) / c.sqrt()
    radial = sinh_difference(m, m.dr / size, cosh_x, cosh_y) * elementary.cosh(a - b)
    radial = radial + cosh / size * elementary.sinh(a - b)
    across = m.ry / size * longer * (h + by_h)
    cosine = -radial - cosh_x.times(across) - cosh_rise * across
    sine, cosine = torch.where(exists, sine, 0.0), torch.where(exists, cosine, 1.0)
    return torch.where(steady, sine.detach(), sine), torch.where(steady, cosine.detach(), cosine)


def _length_rise(relative_rise: Tensor) -> Tensor:
    """The relative increment of a length, from that of its square."""
    return relative_rise / (1 + (1 + relative_rise).sqrt())


def _arc_rise(r: Tensor, relative_rise: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The increments of ``a = asinh(sqrt(c) r)`` and of its hyperbolic cosine."""
    sinh = c.sqrt() * r
    square = sinh * sinh
    cosh, grown = (1 + square).sqrt(), (1 + square + square * relative_rise).sqrt()
    # asinh(p) - asinh(q) = asinh((p^2 - q^2) / (p sqrt(1 + q^2) + q sqrt(1 + p^2)))
    # The factor first: a gradient divided by it before it is multiplied might underflow.
    step = sinh / (grown + (1 + relative_rise).sqrt() * cosh) * relative_rise
    return asinh(step), square / (grown + cosh) * relative_rise


def _chord_rise(m: Measures, increments: Relative) -> Tensor:
    """The increment of ``h = 1 - x.y/(|x| |y|) = (|x - y|**2 - (|x| - |y|)**2) / (2 |x| |y|)``."""
    x, y = _length_rise(increments.xx), _length_rise(increments.yy)
    grows = x + y + x * y
    rx, ry = or_one(m.rx), or_one(m.ry)
    gap = x * m.rx - y * m.ry
    close_rise = -increments.xy - 0.5 * (gap / rx) * ((2 * m.dr + gap) / ry) - m.h() * grows
    chord_rise = torch.where(m.close(), close_rise, m.cosine * grows - increments.xy) / (1 + grows)
    return torch.where((m.rx > 0) & (m.ry > 0), chord_rise, 0.0)


def values(
    kind: str, p: Products, m: Measures, c: Tensor, scale: Tensor | float = 1.0
) -> tuple[Tensor, ...]:
    """Two values for "angles", at x and at y. ``p`` holds products of points over ``scale``."""
    if kind == "distance":
        return (distance(p, m, c),)
    if kind == "inner":
        return (inner(p, m, c),)
    increments = relative(p, m, scale)
    if kind == "cosine":
        nonzero = (m.rx > 0) & (m.ry > 0)
        return (torch.where(nonzero, m.cosine - _chord_rise(m, increments), 0.0),)
    if kind not in ANGLES:
        raise NotImplementedError(f"smooth.values: no formula for {kind!r}")
    sine, along = exterior_legs(m, increments, c)
    if kind == "interior":
        return (atan2(sine, -along),)
    at_x = atan2(sine, along)
    if kind == "exterior":
        return (at_x,)
    exchanged = (
        m._replace(rx=m.ry, ry=m.rx, dr=-m.dr),
        Relative(increments.yy, increments.xx, increments.xy),
    )
    return at_x, atan2(*exterior_legs(*exchanged, c))


def row_values(kind: str, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """`pairs.row_values`, with derivatives of every order."""
    limit = norm_limit(c.detach())
    x, y = clamp_norm(x, limit), clamp_norm(y, limit)
    p, m, _ = products(x, y)
    scale: Tensor | float = 1.0
    if kind in ANGLES and wide_dtype(x) == x.dtype:
        scale = middle(m.rx, m.ry)
        p = products(x / scale, y / scale)[0]
    return torch.cat(values(kind, p, m, c.to(p.xx.dtype), scale), -1).to(x.dtype)


def middle(rx: Tensor, ry: Tensor) -> Tensor:
    """A scale between two lengths, a power of two.

    For points of that size the coefficients of an angle's gradient do not underflow.
    """
    tiny = torch.finfo(rx.dtype).tiny
    scale = rx.clamp_min(tiny).sqrt() * ry.clamp_min(tiny).sqrt()
    # But the squares of the lengths must not overflow.
    return power_of_two([torch.maximum(scale, 2.0**-400 * torch.maximum(rx, ry))])
