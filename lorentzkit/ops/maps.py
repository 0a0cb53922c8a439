"""Exponential and logarithmic maps, geodesics, parallel transport."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._checks import check_broadcast, clamp_norm, norm_limit, points_and
from lorentzkit._numerics import (
    arc_over_sinh,
    arc_square,
    asinhc,
    cosh_sinhc,
    differentiable,
    dot,
    exp_clamped,
    largest_radius,
    log_sinhc,
    norm,
    root_one_plus,
    scale_of,
)
from lorentzkit._pairs import (
    cosh_excess,
    cosh_of,
    cosh_root,
    polar_pair,
    sinh_difference,
    split,
    squared_arc,
    squared_chord_increment,
    tangent_scale,
    time_of,
    time_root,
)


def expmap(x: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Exponential map: the point reached from ``x`` along the geodesic of initial velocity ``u``.

    ``cosh(l) x + sinh(l)/l u`` with ``l = sqrt(curv) tangent_norm(x, u)``. A result beyond
    `max_radius` is moved to it along its ray.

    Args:
        x: base point, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at ``u = 0``, where it is ``x``. Where u is longer
        than any two points are apart, the gradient is 0.

    Source: Nickel & Kiela 2018, eq. 9.

    >>> expmap(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([1.5431, 1.1752])
    """
    x, u, c = points_and(curv, {"x": x}, {"u": u})
    u, beyond = _within_reach(x, u, c)
    cosh, sinh, k = cosh_sinhc(squared_arc(x, u, c))
    y = exp_clamped(cosh * x + sinh * u, k, norm_limit(c))
    return torch.where(beyond, y.detach(), y)


def logmap(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Logarithmic map: the tangent vector at ``x`` whose `expmap` is ``y``.

    Args:
        x: base point, space components, ``(..., D)``.
        y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``x`` of length ``dist(x, y)``.
        Smooth at ``x = y``, where it is 0.

    Source: Nickel & Kiela 2018, eq. 10.

    >>> logmap(torch.tensor([1.0, 0.0]), torch.tensor([1.5431, 1.1752]))
    tensor([1.7315e-05, 1.0000e+00])
    """
    x, y, c = points_and(curv, {"x": x, "y": y})
    excess = cosh_excess(x, y, c)
    return arc_over_sinh(excess) * (y - x) - _arc_times_tanh(excess) * x


def expmap0(u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Exponential map at the origin: ``u sinh(sqrt(curv)|u|) / (sqrt(curv)|u|)``.

    A vector with ``sqrt(curv)|u| > max_radius(dtype)`` is shortened to that length first.

    Args:
        u: tangent vector at the origin, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at 0; beyond the clamp the gradient is 0 radially.

    Source: Desai et al. 2023 (MERU), eq. 3.

    >>> expmap0(torch.tensor([1.0, 0.0]))
    tensor([1.1752, 0.0000])
    """
    u, c = points_and(curv, {}, {"u": u})
    u = clamp_norm(u, largest_radius(u.dtype) / c.sqrt())
    _, sinh, k = cosh_sinhc(c * dot(u, u))
    return exp_clamped(u * sinh, k, norm_limit(c))


def logmap0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Logarithmic map at the origin: ``x asinh(sqrt(curv)|x|) / (sqrt(curv)|x|)``.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Tangent vector at the origin ``(..., D)``, of Euclidean norm ``dist0(x)``. Smooth at 0.

    Source: inverse of `expmap0`.

    >>> logmap0(torch.tensor([1.1752, 0.0]))
    tensor([1.0000, 0.0000])
    """
    x, c = points_and(curv, {"x": x})
    return x * asinhc(c * dot(x, x))


def geodesic(t: float | Tensor, x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""The point at parameter ``t`` of the geodesic with value ``x`` at 0 and ``y`` at 1.

    ``[sinh((1 - t) s) x + sinh(t s) y] / sinh(s)`` with ``s = sqrt(curv) dist(x, y)``: constant
    speed ``dist(x, y)``. Other ``t`` extrapolate; a result beyond `max_radius` is moved to it.

    Args:
        t: parameter, a number or ``(...)``.
        x, y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at ``x = y``. Where ``|t|^3 |x|`` overflows the dtype,
        the gradient leaves out how the distance of x and y depends on them.

    Source: Lee 2018, ch. 5, in the form of a spherical linear interpolation (Shoemake 1985).

    >>> geodesic(0.5, torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0]))
    tensor([0., 0.])
    """
    x, y, c = points_and(curv, {"x": x, "y": y}, scalars=t)
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    check_broadcast(t=t, x=x[..., 0], y=y[..., 0])
    t = t.unsqueeze(-1)
    # Its square must not overflow; t - t turns what is not finite into NaN.
    t = t.clamp(-(2.0**50), 2.0**50) + (t - t)
    s2 = arc_square(cosh_excess(x, y, c))
    # The weights' derivatives in s2 grow as t^3: where they would overflow they are left out.
    steep = t.abs() ** 3 * torch.maximum(norm(x), norm(y)) > 2.0**-20 * torch.finfo(x.dtype).max
    s2 = torch.where(steep, s2.detach(), s2)
    growth = torch.maximum(t.abs(), (1 - t).abs()).clamp_min(1.0) - 1  # 0 between the two points
    small = s2 * (1 + growth) ** 2 <= 1
    near, arc = torch.where(small, s2, 0.0), torch.where(small, 1.0, s2).sqrt()
    decline = torch.where(small, 0.0, growth)
    far_t = torch.where(small, 0.5, t)
    weight_x = torch.where(small, _sinh_ratio(1 - t, near), _sinh_decay(1 - far_t, arc, decline))
    weight_y = torch.where(small, _sinh_ratio(t, near), _sinh_decay(far_t, arc, decline))
    return exp_clamped(weight_x * x + weight_y * y, decline * arc, norm_limit(c))


def transp(x: Tensor, y: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from ``x`` to ``y`` along their geodesic.

    ``u + curv <y, u> / (1 - curv <x, y>) (x + y)`` with the Lorentzian inner product.

    Args:
        x: start, space components, ``(..., D)``.
        y: end, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``y`` with the same inner products.
        Smooth; the identity where ``x = y``.

    Source: Law et al. 2019, "Lorentzian Distance Learning"; Ungar's gyrations in other words.

    >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([1.5431, 1.1752])
    >>> transp(x, y, torch.tensor([0.0, 1.0]))
    tensor([1.1752, 1.5431])
    """
    x, y, u, c = points_and(curv, {"x": x, "y": y}, {"u": u})
    scale = tangent_scale(u)
    u = u / scale
    return scale * (u + _transp_slope(x, y, u, c) * (x + y))


def transp0(y: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from the origin to ``y``: ``u + curv (y.u) y / (1 + cosh a)``.

    Args:
        y: end, space components, ``(..., D)``.
        u: tangent vector at the origin, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``y``: the radial part grows by
        ``cosh a``, the transverse part stays. An orthonormal basis goes to an orthonormal frame.

    Source: Nagano et al. 2019, "A Wrapped Normal Distribution on Hyperbolic Space", eq. 6.

    >>> transp0(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), curv=16 / 9)
    tensor([4.1231, 1.0000])
    """
    y, u, c = points_and(curv, {"y": y}, {"u": u})
    return u + dot(y / (1 + cosh_of(y, c)), u) * (c * y)


def transp0back(x: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from ``x`` to the origin; the inverse of `transp0`.

    Args:
        x: start, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Tangent vector at the origin ``(..., D)``; its Euclidean norm is ``tangent_norm(x, u)``.

    Source: Nagano et al. 2019, eq. 6, inverted.

    >>> transp0back(torch.tensor([3.0, 0.0]), torch.tensor([4.1231, 1.0]), curv=16 / 9)
    tensor([1.0000, 1.0000])
    """
    x, u, c = points_and(curv, {"x": x}, {"u": u})
    # 1/(x0 (x0 + 1/sqrt c)) is c/(cosh (1 + cosh)), with a derivative in c that does not cancel.
    x0 = time_of(x, c)
    return u - dot(x / x0, u) * (x / (x0 + c.rsqrt()))


def egrad2rgrad(x: Tensor, g: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Riemannian gradient of a function whose gradient in space components is ``g``.

    The inverse metric applied to it: ``g + curv x (x.g)``.

    Args:
        x: point, space components, ``(..., D)``.
        g: gradient with respect to the space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``x``.

    Source: the inverse of the induced metric ``I - x x^T / x_0^2`` (Sherman-Morrison).

    >>> egrad2rgrad(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([10.,  1.])
    """
    x, g, c = points_and(curv, {"x": x}, {"g": g})
    return g + c * x * dot(x, g)


def _within_reach(x: Tensor, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """``u``, shortened where it is longer than any two points are apart, and where that is.

    It ends at the clamp anyway, and a gradient with respect to it would overflow.
    """
    reach = (2 * largest_radius(u.dtype) + 1) / c.sqrt()
    scale = scale_of(u)
    a = split(x.detach(), u.detach() / scale)
    length = torch.hypot(norm(a.transverse), a.radial / cosh_of(x.detach(), c)).detach()
    beyond = length > reach / scale
    within = (u / scale) * (reach / torch.where(beyond, length, 1.0))
    return torch.where(beyond, within, u), beyond


def _sinh_ratio(t: Tensor, s2: Tensor) -> Tensor:
    """``sinh(t s) / sinh(s)`` for ``s2 = s**2 <= 1`` and ``(t s)**2 <= 1``.

    By logarithms: their derivatives in s cancel exactly at t = 1, which those of a quotient do not.
    """
    return t * torch.exp(log_sinhc(t**2 * s2) - log_sinhc(s2))


def _sinh_decay(t: Tensor, s: Tensor, decline: Tensor) -> Tensor:
    """``sinh(t s) / sinh(s) exp(-decline s)`` for ``decline >= |t| - 1``."""
    size = torch.where(t < 0, -t, t)  # unlike abs it has a derivative at 0
    ratio = torch.exp((size - 1 - decline) * s) * _expm1_ratio(size, -2 * s)
    return torch.where(t < 0, -ratio, ratio)


def _expm1_ratio(t: Tensor, s: Tensor) -> Tensor:
    """``expm1(t s) / expm1(s)`` for t >= 0 and s < 0; at t = 1 its derivative in s is exactly 0."""
    whole = torch.expm1(s)
    above, gap = t >= 1, t - 1
    more = torch.exp(s) * torch.expm1(torch.where(above, gap, 0.0) * s)
    less = torch.exp(t * s) * torch.expm1(torch.where(above, 0.0, -gap) * s)
    near_one = 1 + torch.where(above, more, -less) / whole
    return torch.where(t > 0.5, near_one, torch.expm1(t * s) / whole)


def _arc_times_tanh(excess: Tensor) -> Tensor:
    """``s tanh(s/2) = excess * s / sinh(s)``, as a product where its derivative does not cancel."""
    half = excess / 2
    small = half <= 1
    far = torch.where(small, 1.0, half)
    arc = 2 * torch.asinh(far.sqrt())
    return torch.where(small, excess * arc_over_sinh(excess), arc * (1 + 1 / far).rsqrt())


def _transp_slope(x: Tensor, y: Tensor, u: Tensor, c: Tensor) -> Tensor:
    """``c <y, u> / (1 - c <x, y>)`` of points x, y and a tangent vector u at x."""
    x_, y_, u_ = x.detach(), y.detach(), u.detach()
    value, whole, vector = _transp_slope_value(x_, y_, u_, c)
    if not differentiable(x, y, u):
        return -value
    # increments of u.(x y0/x0 - y) by the product rule, and of the denominator
    x0, y0, x0_, y0_ = time_of(x, c), time_of(y, c), time_of(x_, c), time_of(y_, c)
    x_rise, y_rise = dot(x - x_, (x + x_) / (x0 + x0_)), dot(y - y_, (y + y_) / (y0 + y0_))
    ratio = y0_ / x0_
    ratio_rise = y_rise - ratio * x_rise  # times x0: it is divided by x0 together with x
    rise = (x - x_) * (ratio + ratio_rise / x0) + (x_ / x0) * ratio_rise - (y - y_)
    s = whole.detach().sqrt()  # both over s^2, or derivatives times the value would underflow
    above = c * (dot(u - u_, vector + rise) + dot(u_, rise)) / s / s
    below = (c / 2) * squared_chord_increment(x, y, c, s)
    return -value - (above - value * below) / (whole / s / s + below)


def _transp_slope_value(
    x: Tensor, y: Tensor, tangent: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``-c <y, u> / (1 - c <x, y>)`` for its value and its derivative in c; the denominator; and
    the vector ``x y0/x0 - y`` whose product with u is ``-<y, u>``.

    The denominator is ``1 + cosh(a - b) + c rx ry h``; the quotient hardly depends on c far out,
    and every term is arranged so that its own derivative in c is as small.
    """
    p, u = polar_pair(x, y), split(x, tangent)
    x_root, y_root, cosh_x = time_root(x, c), time_root(y, c), cosh_root(x, c)
    x0, y0 = x_root.value(), y_root.value()
    # An obtuse theta: y as the point at -|y| in the opposite direction, which is close to u's.
    obtuse = p.h > 1
    ry, h = torch.where(obtuse, -p.ry, p.ry), torch.where(obtuse, 2 - p.h, p.h)
    w = torch.where(obtuse, p.u + p.v, p.w)
    difference = sinh_difference(p.rx, p.ry, p.dr, x_root, y_root)
    t = torch.where(obtuse, c * (p.rx * y0 + p.ry * x0), difference)
    cosh = root_one_plus(t)
    whole = 1 + cosh + c * p.rx * ry * h
    # c ry/whole, c divided out; by its root twice: a quotient has the square in its derivative
    inner = torch.where(obtuse, x0 * y0 + p.rx * p.ry, torch.where(obtuse, 1.0, cosh) / c)
    root = (1 / c + inner + p.rx * ry * h).sqrt()
    lift = ry / root / root
    # The other quotients over whole: numerator and denominator over the constant s^2 = whole, for
    # the derivative in whole itself would underflow.
    s = whole.detach().sqrt()
    one, x_s, y_s = 1 / s / s, p.rx / s, ry / s
    difference_s = sinh_difference(p.rx, p.ry, p.dr / s / s, x_root, y_root)
    t_s = torch.where(obtuse, c * (x_s * (y0 / s) - y_s * (x0 / s)), difference_s)
    cosh_s = torch.hypot(one, t_s)
    whole_s = one + cosh_s + c * x_s * y_s * h
    # (t/x0 + c ry h)/whole; where t/whole is near +-1, from its difference to that
    rest = 1 - one * (1 + one / (cosh_s + t_s.abs())) / whole_s
    outward = (rest + y_s / s * h / (x0 + p.rx) / whole_s) / x0
    inward = (h * lift) * (1 + p.rx / x0) - rest / x0
    flat = x_root.over(t_s / whole_s) + h * lift
    along = torch.where(t > 1, outward, torch.where(t < -1, inward, flat))
    value = dot(u.transverse, w) * lift + u.radial * along
    slant = cosh_x.over(sinh_difference(p.rx, p.ry, p.dr, cosh_x, cosh_root(y, c)))
    slant = torch.where(obtuse, p.rx * y0 / x0 + p.ry, slant)
    return value, whole, ry * w + p.u * slant


__all__ = [
    "egrad2rgrad",
    "expmap",
    "expmap0",
    "geodesic",
    "logmap",
    "logmap0",
    "transp",
    "transp0",
    "transp0back",
]
