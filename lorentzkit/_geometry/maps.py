"""Exponential and logarithmic maps, geodesics, parallel transport: their coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry.arguments import norm_limit, within
from lorentzkit._geometry.elementary import hypot
from lorentzkit._geometry.invariants import Measures, Products, products
from lorentzkit._geometry.single_points import length
from lorentzkit._geometry.smooth import (
    cosh_root,
    excess,
    excess_rise,
    product_rise,
    rise,
    sinh_difference,
    time_root,
    times,
)
from lorentzkit._geometry.special import (
    arc_over_sinh,
    arc_square,
    arc_times_tanh,
    cosh_sinhc,
    differentiable,
    largest_radius,
    root_one_plus,
    scaled_sinh_ratio,
    sinh_ratio,
    smallest_length,
    values_at_hand,
)
from lorentzkit._geometry.tangents import squared_arc
from lorentzkit._geometry.vectors import combine, or_one, power_of_two, product, wide_dtype


def expmap(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    u, beyond = _within_reach(x, u, c)
    x, u, inner_c, unit = _in_range(x, u, c)
    p, m, _ = products(x, u)
    cosh, sinhc, k = cosh_sinhc(squared_arc(p, m, inner_c.to(p.xx.dtype)), p.xx.dtype != x.dtype)
    y = _combined_within(x, u, cosh, sinhc, k, p, m, norm_limit(c), unit)
    return y if beyond is None else torch.where(beyond, y.detach(), y)


def logmap(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    p, m, _ = products(x, y)
    E = excess(p, m, c.to(p.xx.dtype))
    wide = E.dtype != x.dtype
    return combine([-arc_times_tanh(E, wide), arc_over_sinh(E, wide)], [x, y - x])


def geodesic(t: Tensor, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    limit = norm_limit(c)
    x, y, c, unit = _in_range(x, y, c)
    p, m, _ = products(x, y)
    dtype = p.xx.dtype
    # Its square must not overflow; t - t turns what is not finite into NaN.
    t = t.to(dtype)
    t = t.clamp(-(2.0**50), 2.0**50) + (t - t)
    wide = dtype != x.dtype
    s2 = arc_square(excess(p, m, c.to(dtype)), wide)
    # The weights' derivatives in s2 grow as t^3: where they would overflow they are left out.
    most = 2.0**-20 * torch.finfo(x.dtype).max / unit
    s2 = torch.where(t.abs() ** 3 * torch.maximum(m.rx, m.ry) > most, s2.detach(), s2)
    growth = torch.maximum(t.abs(), (1 - t).abs()).clamp_min(1.0) - 1  # 0 between the two points
    small = s2 * (1 + growth) ** 2 <= 1
    near, arc = torch.where(small, s2, 0.0), torch.where(small, 1.0, s2).sqrt()
    rate = torch.where(small, 0.0, growth)
    far_t = torch.where(small, 0.5, t)
    weight_x = torch.where(
        small, sinh_ratio(1 - t, near, wide), scaled_sinh_ratio(1 - far_t, arc, rate)
    )
    weight_y = torch.where(small, sinh_ratio(t, near, wide), scaled_sinh_ratio(far_t, arc, rate))
    return _combined_within(x, y, weight_x, weight_y, rate * arc, p, m, limit, unit)


def transp(x: Tensor, y: Tensor, u: Tensor, c: Tensor) -> Tensor:
    u, scale = _normalised(u)
    p, m, across = products(x, y, u)
    assert across is not None
    coefficient = _transp_coefficient(p, m, _component(x, u, p, m), across, c.to(p.xx.dtype))
    return _times(
        scale, combine([torch.ones_like(coefficient), coefficient, coefficient], [u, x, y])
    )


def transp0(y: Tensor, u: Tensor, c: Tensor) -> Tensor:
    u, scale = _normalised(u)
    along, yy = product(y, u), product(y, y)
    c = c.to(yy.dtype)
    coefficient = c * (along / (1 + (1 + c * yy).sqrt()))
    return _times(scale, combine([torch.ones_like(coefficient), coefficient], [u, y]))


def transp0back(x: Tensor, u: Tensor, c: Tensor) -> Tensor:
    u, scale = _normalised(u)
    along, xx = product(x, u), product(x, x)
    c = c.to(xx.dtype)
    # 1/(x0 (x0 + 1/sqrt c)) is c/(cosh (1 + cosh)), with a derivative in c that does not cancel.
    x0 = (1 / c + xx).sqrt()
    coefficient = -(along / x0) / (x0 + c.rsqrt())
    return _times(scale, combine([torch.ones_like(coefficient), coefficient], [u, x]))


def egrad2rgrad(x: Tensor, g: Tensor, c: Tensor) -> Tensor:
    along = product(x, g)
    return combine([torch.ones_like(along), c.to(along.dtype) * along], [g, x])


def _normalised(u: Tensor) -> tuple[Tensor, Tensor | None]:
    """u over its size, and the size: products of short vectors without a wider type underflow."""
    if wide_dtype(u) != u.dtype:
        return u, None
    # Not smaller: gradients of size 1 pass through the scale.
    scale = power_of_two([u]).clamp_min(smallest_length(u.dtype) ** 0.5)
    return u / scale, scale


def _times(scale: Tensor | None, u: Tensor) -> Tensor:
    return u if scale is None else scale * u


def _in_range(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Vectors and curvature in a larger unit of length, and the unit.

    Otherwise the squares of long float32 vectors would overflow, if there is no wider type.
    """
    if x.dtype == torch.float64 or wide_dtype(x) != x.dtype:
        return x, y, c, 1.0
    unit = (2.0**-55 * torch.maximum(power_of_two([x]), power_of_two([y]))).clamp_min(1.0)
    return x / unit, y / unit, c * unit * unit, unit


def _within_reach(x: Tensor, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
    """``u``, shortened to the largest distance of two points; a mask of what was longer, or None.

    Such a step ends at the clamp anyway, and a gradient with respect to it would overflow.
    """
    reach = (2 * largest_radius(u.dtype) + 1) / c.sqrt()
    if within(u, reach):  # which no tangent vector is longer than in space components
        return u, None
    _, m, _ = products(x.detach(), u.detach())
    wide_c = c.detach().to(m.rx.dtype)
    along = cosh_root(m.rx, wide_c).over(m.ry * m.cosine)
    length = hypot(m.ry * m.sine2.sqrt(), along)
    beyond = length > reach.detach()
    shorter = (u * (reach / torch.where(beyond, length, 1.0))).to(u.dtype)
    return torch.where(beyond, shorter, u), beyond


def _combined_within(
    x: Tensor,
    y: Tensor,
    weight_x: Tensor,
    weight_y: Tensor,
    k: Tensor,
    p: Products,
    m: Measures,
    limit: Tensor,
    unit: Tensor | float,
) -> Tensor:
    """``exp(k) (weight_x x + weight_y y)``, shortened to the limit if longer; times the unit."""
    diameter = 2 * largest_radius(x.dtype) + 1  # no two points are farther apart
    growth, limit = k.clamp_max(diameter).exp(), limit.to(k.dtype) / unit
    if not isinstance(unit, float):  # of close points far out, squares of weights overflow
        most = torch.maximum(weight_x.abs(), weight_y.abs()).detach().clamp_min(1.0)
        weight_x, weight_y, growth = weight_x / most, weight_y / most, growth * most
    longest = weight_x.abs() * m.rx + weight_y.abs() * m.ry
    if not (values_at_hand(k) and bool((longest * growth <= limit).all())):
        growth = _within_limit(growth, weight_x, weight_y, longest.detach(), p, m, limit)
    z = combine([growth * weight_x, growth * weight_y], [x, y])
    z = z if isinstance(unit, float) else z * unit
    # Beyond the diameter derivatives are left out: those of the weights may be as large as exp(k).
    return _constant(z, k > diameter)


def _within_limit(
    growth: Tensor,
    weight_x: Tensor,
    weight_y: Tensor,
    longest: Tensor,
    p: Products,
    m: Measures,
    limit: Tensor,
) -> Tensor:
    """The growth, reduced where ``growth (weight_x x + weight_y y)`` would exceed the limit."""
    xy = m.rx * m.ry * m.cosine + product_rise(p, m)
    # In an order in which no derivative overflows.
    square = weight_x * (weight_x * p.xx) + weight_y * (weight_y * p.yy + 2 * (weight_x * xy))
    # A sum that cancels is not shorter than its rounding.
    noise = longest * torch.finfo(growth.dtype).eps
    size = torch.maximum(square.clamp_min(0).sqrt(), noise).detach()
    inside = ~(size * growth > limit)
    size = torch.where(inside, 1.0, size)
    share = torch.where(inside, 1.0, square / size / size).clamp_min(0.5)
    return torch.where(inside, growth, limit / size * share.rsqrt())


def _constant(z: Tensor, rows: Tensor) -> Tensor:
    """z, without derivatives in the rows of the mask."""
    if values_at_hand(rows) and not bool(rows.any()):
        return z
    return torch.where(rows, z.detach(), z)


def _component(x: Tensor, u: Tensor, p: Products, m: Measures) -> Tensor:
    """The component of u along x, a constant; for a denormal x taken from x over its size."""
    assert p.xu is not None
    if wide_dtype(x) != x.dtype:
        return p.xu.detach() / or_one(m.rx)
    x, u = x.detach(), u.detach()
    scale = power_of_two([x])
    return product(x / scale, u) / or_one(length(x / scale))


def _transp_coefficient(
    p: Products, m: Measures, radial: Tensor, across: Tensor, c: Tensor
) -> Tensor:
    """``c <y, u> / (1 - c <x, y>)`` of points x, y and a tangent vector u at x."""
    assert p.xu is not None
    assert p.yu is not None
    value, denominator = _transp_coefficient_value(m, radial, across, c)
    if not differentiable(*(q for q in p if q is not None)):
        return -value
    # Increments of -<y, u> = (y0/x0) x.u - y.u by the product rule, and of the denominator.
    x0, y0 = times(p.xx, c), times(p.yy, c)
    ratio = y0.value / x0.value
    rises = (y0.rise - ratio * x0.rise) * (p.xu / (x0.value + x0.rise))
    rises = rises + ratio * rise(p.xu) - rise(p.yu)
    # Both over s^2: derivatives times the value would underflow otherwise.
    s = denominator.detach().sqrt()
    above = c * rises / s / s
    below = excess_rise(p, m, c) / s / s
    return -value - (above - value * below) / (denominator / s / s + below)


def _transp_coefficient_value(
    m: Measures, radial: Tensor, across: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """``-c <y, u> / (1 - c <x, y>)`` for its value and its derivative in c; and the denominator.

    The denominator is ``1 + cosh(a - b) + c rx ry h``; the quotient hardly depends on c far out,
    and every term is arranged so that its own derivative in c is as small.
    """
    x_root, y_root = time_root(m.rx, c), time_root(m.ry, c)
    x0, y0 = x_root.value(), y_root.value()
    # An obtuse theta: y as the point at -|y| in the opposite direction, which is close to x's.
    obtuse = m.cosine < 0
    ry, h = torch.where(obtuse, -m.ry, m.ry), torch.where(obtuse, m.g(), m.h())
    difference = sinh_difference(m, m.dr, x_root, y_root)
    t = torch.where(obtuse, c * (m.rx * y0 + m.ry * x0), difference)
    cosh = root_one_plus(t)
    denominator = 1 + cosh + c * m.rx * ry * h
    # c ry / denominator, c divided out. Divided by the root twice: the derivative of a quotient
    # has the square of the denominator in it.
    inner = torch.where(obtuse, x0 * y0 + m.rx * m.ry, torch.where(obtuse, 1.0, cosh) / c)
    root = (1 / c + inner + m.rx * ry * h).sqrt()
    # The other quotients: numerator and denominator over s^2, a constant that equals the
    # denominator, because the derivative in the denominator itself would underflow.
    s = denominator.detach().sqrt()
    one_s, x_s, y_s = 1 / s / s, m.rx / s, ry / s
    difference_s = sinh_difference(m, m.dr / s / s, x_root, y_root)
    t_s = torch.where(obtuse, c * (x_s * (y0 / s) - y_s * (x0 / s)), difference_s)
    cosh_s = hypot(one_s, t_s)
    denominator_s = one_s + cosh_s + c * x_s * y_s * h
    # (t/x0 + c ry h) / denominator; where t / denominator is near +-1, from the difference to that
    rest = 1 - one_s * (1 + one_s / (cosh_s + t_s.abs())) / denominator_s
    outward = (rest + y_s / s * h / (x0 + m.rx) / denominator_s) / x0
    lift = ry / root / root
    inward = (h * lift) * (1 + m.rx / x0) - rest / x0
    flat = x_root.over(t_s / denominator_s) + h * lift
    along = torch.where(t > 1, outward, torch.where(t < -1, inward, flat))
    return radial * along - across / root / root, denominator
