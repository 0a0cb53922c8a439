"""The ops of `gram`, one after the other: values, and vector-Jacobian products written out.

No formula subtracts two nearly equal numbers: so `side` gets the third side of a triangle from
b = y - x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lorentzkit._geometry.array_functions import (
    Numbers,
    arcsinh,
    arctan2,
    cosh,
    inverse,
    log1p,
    maximum,
    or_one,
    polynomial,
    quotient,
    sinh,
    sqrt,
    where,
)
from lorentzkit._geometry.gram import (
    NEAR,
    SHORT,
    Coefficients,
    Gram,
    Op,
    Partials,
    Settings,
    Side,
    SplitVector,
)

# --- One-dimensional functions --------------------------------------------------------------------


def sinhc(t: Numbers) -> Numbers:
    """``sinh(t)/t``"""
    return quotient(sinh(t), t)


def coth_excess(t: Numbers) -> Numbers:
    """``(t coth t - 1)/t**2``"""
    z = t * t
    small = z < 1e-2
    far = where(small, 1.0, t)
    near = polynomial(where(small, z, 0.0), 1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555)
    return where(small, near, (far * cosh(far) / sinh(far) - 1) / (far * far))


def arc_excess(t: Numbers, arc: Numbers) -> Numbers:
    """``arc - t`` for ``t = tanh(arc)``"""
    z = t * t
    return where(z < 1e-2, t * z * polynomial(z, 1 / 3, 1 / 5, 1 / 7, 1 / 9, 1 / 11), arc - t)


_ValueAndVjp = tuple[Callable[[Gram, Settings], Any], Callable[[Gram, Settings, Any], Partials]]


# --- One vector, rescaled -------------------------------------------------------------------------


def _radial_map(
    growth: Callable[[Numbers], Numbers], derivative: Callable[..., Numbers]
) -> _ValueAndVjp:
    """``growth(z) x`` with ``z = c |x|**2``; the derivative is a function of z and growth(z)."""

    def value(gram: Gram, settings: Settings) -> Coefficients:
        return Coefficients(growth(settings.c * gram.xx))

    def vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
        z = settings.c * gram.xx
        by_z = grad_dots.x * derivative(z, growth(z))
        return Partials(xx=by_z * settings.c, c=by_z * gram.xx)

    return value, vjp


def _log_growth(z: Numbers) -> Numbers:
    s = sqrt(z)
    return quotient(arcsinh(s), s)


def _log_growth_derivative(z: Numbers, growth: Numbers) -> Numbers:
    s = sqrt(z)
    excess = arc_excess(s / sqrt(1 + z), arcsinh(s))
    return where(s == 0, -1 / 6, -0.5 * excess / or_one(s * z))


EXPMAP0 = _radial_map(lambda z: sinhc(sqrt(z)), lambda z, value: 0.5 * value * coth_excess(sqrt(z)))
LOGMAP0 = _radial_map(_log_growth, _log_growth_derivative)
TO_KLEIN = _radial_map(lambda z: 1 / sqrt(1 + z), lambda z, value: -0.5 * value / (1 + z))
TO_POINCARE = _radial_map(
    lambda z: 1 / (1 + sqrt(1 + z)), lambda z, value: -0.5 * value * value / sqrt(1 + z)
)
FROM_KLEIN = _radial_map(lambda z: 1 / sqrt(1 - z), lambda z, value: 0.5 * value * value * value)
FROM_POINCARE = _radial_map(lambda z: 2 / (1 - z), lambda z, value: 0.5 * value * value)


# --- Half-space: the last coordinate, l or the height t, is a number of its own -------------------


def to_halfspace(gram: Gram, settings: Settings) -> SplitVector:
    """``t/sqrt(c) = 1/(c (x0 - l))``, times ``sqrt(c)`` the factor of the other coordinates."""
    c, last = settings.c, gram.last
    x0 = sqrt(1 / c + gram.xx + last * last)
    # Where x0 - l cancels, by the other light-like coordinate: c (x0 - l)(x0 + l) = 1 + c |rest|^2
    up = last > 0
    total = x0 + where(up, last, -last)
    height = where(up, total / (1 + c * gram.xx), 1 / (c * total))
    return SplitVector(sqrt(c) * height, height)


def to_halfspace_vjp(gram: Gram, settings: Settings, grad_dots: SplitVector) -> Partials:
    c, root, last = settings.c, sqrt(settings.c), gram.last
    h = to_halfspace(gram, settings).last
    x0 = sqrt(1 / c + gram.xx + last * last)
    grad_height = grad_dots.last + root * grad_dots.rest
    by_rest = -0.5 * c * grad_height * h * h / x0
    # Of high points h/(2 x0) - 1 would cancel.
    up = last > 0
    total = x0 + where(up, last, 0.0)
    fall = where(up, -0.5 / (c * x0 * total) - c * gram.xx / (1 + c * gram.xx), 0.5 * h / x0 - 1)
    by_c = grad_dots.last * (h / c) * fall + grad_dots.rest * h * (last - c * gram.xx * h) / (
        2 * root * x0
    )
    return Partials(xx=by_rest, last=grad_height * h / x0, c=by_c)


def _halfspace_size(gram: Gram, settings: Settings) -> Numbers:
    return settings.c * (gram.xx + gram.last * gram.last)


def from_halfspace(gram: Gram, settings: Settings) -> SplitVector:
    s, t = 1 / sqrt(settings.c), gram.last
    return SplitVector(s / t, 0.5 * ((t - s) * (t + s) + gram.xx) / t)


def from_halfspace_vjp(gram: Gram, settings: Settings, grad_dots: SplitVector) -> Partials:
    s, t = 1 / sqrt(settings.c), gram.last
    by_last = 0.5 * grad_dots.last * (t * t + s * s - gram.xx) / (t * t)
    return Partials(
        xx=0.5 * grad_dots.last / t,
        last=by_last - grad_dots.rest * s / (t * t),
        c=0.5 * (grad_dots.last * s * s - grad_dots.rest * s) / (settings.c * t),
    )


def _ball_size(gram: Gram, settings: Settings) -> Numbers:
    """``c |p|**2`` of the point p; infinite where a height is not positive, which is no point."""
    positive = gram.last > 0
    point = from_halfspace(gram._replace(last=where(positive, gram.last, 1.0)), settings)
    size = settings.c * (point.rest * point.rest * gram.xx + point.last * point.last)
    return where(positive, size, math.inf)


# --- Numbers of one point -------------------------------------------------------------------------


def time(gram: Gram, settings: Settings) -> Numbers:
    return sqrt(1 / settings.c + gram.xx)


def time_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    by_square = 0.5 * grad / time(gram, settings)
    return Partials(xx=by_square, c=-by_square / (settings.c * settings.c))


def dist0(gram: Gram, settings: Settings) -> Numbers:
    root = sqrt(settings.c)
    return arcsinh(root * sqrt(gram.xx)) / root


def dist0_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    root, r = sqrt(settings.c), sqrt(gram.xx)
    s, cosh_a = root * r, sqrt(1 + settings.c * gram.xx)
    by_c = -0.5 * grad * arc_excess(s / cosh_a, arcsinh(s)) / (settings.c * root)
    return Partials(xx=0.5 * grad * inverse(r * cosh_a), c=by_c)


def half_aperture(gram: Gram, settings: Settings) -> Numbers:
    k, s = 2 * settings.min_radius, sqrt(settings.c * gram.xx)
    far = where(s > k, s, 2 * k)
    angle = arctan2(k + 0 * far, sqrt(far - k) * sqrt(far + k))
    return where(s > k, angle, 0.5 * math.pi)


def half_aperture_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    k, z = 2 * settings.min_radius, settings.c * gram.xx
    s = sqrt(z)
    far = where(s > k, s, 2 * k)
    by_z = where(s > k, -0.5 * grad * k / (far * far * sqrt(far - k) * sqrt(far + k)), 0.0)
    return Partials(xx=by_z * settings.c, c=by_z * gram.xx)


# --- Two points -----------------------------------------------------------------------------------


def side(gram: Gram, c: Numbers) -> Side:
    longer = 2 * gram.xb + gram.bb  # |y|^2 - |x|^2
    x_cosh, y_cosh = sqrt(1 + c * gram.xx), sqrt(1 + c * (gram.xx + longer))
    cosh_diff = -c * longer / (x_cosh + y_cosh)
    T = 0.25 * (c * gram.bb - cosh_diff * cosh_diff)
    return Side(x_cosh, y_cosh, cosh_diff, T, 2 * sqrt(T * (1 + T)))


def side_vjp(s: Side, c: Numbers, grad_T: Numbers) -> Partials:
    """Of ``grad_T * T``."""
    quarter = 0.25 * c * grad_T / s.y_cosh
    return Partials(
        xx=quarter * s.cosh_diff * s.cosh_diff / s.x_cosh,
        xb=2 * quarter * s.cosh_diff,
        bb=quarter * s.x_cosh,
        c=grad_T * s.log_c_partial() / c,
    )


def distance(s: Side) -> Numbers:
    """D"""
    return log1p(2 * s.T + s.R)


def dist(gram: Gram, settings: Settings) -> Numbers:
    return distance(settings.side) / sqrt(settings.c)


def dist_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    s = settings.side
    root, inverse_R = sqrt(settings.c), inverse(s.R)
    partials = side_vjp(s, settings.c, 2 * grad * inverse_R / root)
    spread = s.cosh_diff * s.cosh_diff * inverse_R / (s.x_cosh * s.y_cosh)
    excess = 2 * arc_excess(2 * s.T * inverse_R, 0.5 * distance(s)) + spread
    return partials._replace(c=-0.5 * grad * excess / (settings.c * root))


def inner(gram: Gram, settings: Settings) -> Numbers:
    return -(1 + 2 * settings.side.T) / settings.c


def inner_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    s = settings.side
    partials = side_vjp(s, settings.c, -2 * grad / settings.c)
    spread = 0.5 * s.cosh_diff * s.cosh_diff / (s.x_cosh * s.y_cosh)
    return partials._replace(c=grad * (1 + spread) / (settings.c * settings.c))


def arc_over_sinh(s: Side) -> Numbers:
    """``D / sinh(D)``"""
    return quotient(distance(s), s.R)


def logmap(gram: Gram, settings: Settings) -> Coefficients:
    s = settings.side
    ratio = arc_over_sinh(s)
    return Coefficients(-2 * s.T * ratio, ratio)


def logmap_vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
    s = settings.side
    ratio = arc_over_sinh(s)
    by_b = -2 * coth_excess(distance(s)) * ratio * ratio
    by_x = -(1 + ratio) / (1 + s.T)
    return side_vjp(s, settings.c, by_b * grad_dots.b + by_x * grad_dots.x)


def geodesic(gram: Gram, settings: Settings) -> Coefficients:
    x, y = _weights(distance(settings.side), settings.t)
    return Coefficients(x + y, y)


def _weights(D: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    """``sinh((1 - t) D)/sinh(D)`` and ``sinh(t D)/sinh(D)``"""
    rest, inverse_sinh = 1 - t, inverse(sinh(D))
    coincide = D == 0
    return sinh(rest * D) * inverse_sinh + coincide * rest, sinh(
        t * D
    ) * inverse_sinh + coincide * t


def geodesic_vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
    s = settings.side
    D, t, rest = distance(s), settings.t, 1 - settings.t
    x, y = _weights(D, t)
    dot_y = grad_dots.x + grad_dots.b
    excess_D = coth_excess(D)
    grad_D_over_D = grad_dots.x * x * (rest * rest * coth_excess(rest * D) - excess_D)
    grad_D_over_D = grad_D_over_D + dot_y * y * (t * t * coth_excess(t * D) - excess_D)
    ratio = arc_over_sinh(s)
    by_t = ratio * (dot_y * cosh(t * D) - grad_dots.x * cosh(rest * D))
    return side_vjp(s, settings.c, 2 * ratio * grad_D_over_D)._replace(t=by_t)


def transp(gram: Gram, settings: Settings) -> Coefficients:
    coefficient = _transp_coefficient(settings.side, gram, settings.c)
    return Coefficients(2 * coefficient, coefficient, 1.0)


def _transp_coefficient(s: Side, gram: Gram, c: Numbers) -> Numbers:
    """``c <y, u> / (1 - c <x, y>)``"""
    return 0.5 * c * (gram.bu + gram.xu * s.cosh_diff / s.x_cosh) / (1 + s.T)


def transp_vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
    c, s = settings.c, settings.side
    dot_sum = 2 * grad_dots.x + grad_dots.b  # the product with x + y
    coefficient, grad_numerator = _transp_coefficient(s, gram, c), 0.5 * c * dot_sum / (1 + s.T)
    T_partials = side_vjp(s, c, -dot_sum * coefficient / (1 + s.T))
    # By the ratio Y/X of the coshes, of which gap/X is 1 - Y/X.
    x2, y2 = s.x_cosh * s.x_cosh, s.y_cosh * s.y_cosh
    by_log = -0.5 * grad_numerator * gram.xu * s.y_cosh / s.x_cosh
    wider = (s.cosh_diff / x2) * (s.x_cosh + s.y_cosh) / y2
    by_c = dot_sum * coefficient - by_log * wider + c * T_partials.c
    return Partials(
        xx=T_partials.xx + c * by_log * wider,
        xb=T_partials.xb + 2 * c * by_log / y2,
        bb=T_partials.bb + c * by_log / y2,
        xu=grad_numerator * s.cosh_diff / s.x_cosh,
        bu=grad_numerator,
        c=by_c / c,
    )


# --- Tangent vectors ------------------------------------------------------------------------------


def tangent_inner(gram: Gram, settings: Settings) -> Numbers:
    return gram.bu - settings.c * gram.xb * gram.xu / (1 + settings.c * gram.xx)


def tangent_inner_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    inverse_square = 1 / (1 + settings.c * gram.xx)
    slant = settings.c * inverse_square * grad
    product = gram.xb * gram.xu * inverse_square
    return Partials(
        xx=settings.c * slant * product,
        xb=-slant * gram.xu,
        xu=-slant * gram.xb,
        bu=grad,
        c=-grad * product * inverse_square,
    )


def tangent_square(gram: Gram, settings: Settings) -> Numbers:
    return gram.bb - settings.c * gram.xb * gram.xb / (1 + settings.c * gram.xx)


def tangent_square_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    radial = gram.xb / (1 + settings.c * gram.xx)
    slant = settings.c * radial
    return Partials(
        xx=grad * slant * slant, xb=-2 * grad * slant, bb=grad, c=-grad * radial * radial
    )


def tangent_norm(gram: Gram, settings: Settings) -> Numbers:
    return sqrt(tangent_square(gram, settings))


def tangent_norm_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    return tangent_square_vjp(gram, settings, 0.5 * grad * inverse(tangent_norm(gram, settings)))


def expmap(gram: Gram, settings: Settings) -> Coefficients:
    arc = sqrt(settings.c * tangent_square(gram, settings))
    return Coefficients(cosh(arc), sinhc(arc))


def expmap_vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
    square = tangent_square(gram, settings)
    arc = sqrt(settings.c * square)
    by_z = 0.5 * sinhc(arc) * (grad_dots.x + coth_excess(arc) * grad_dots.b)
    partials = tangent_square_vjp(gram, settings, settings.c * by_z)
    return partials._replace(c=partials.c + by_z * square)


def expmap_transp(gram: Gram, settings: Settings) -> tuple[Coefficients, Coefficients]:
    """`expmap` of b, and u transported along it: the part of u across b stays as it is."""
    arc = sqrt(settings.c * tangent_square(gram, settings))
    growth, half = sinhc(arc), sinhc(0.5 * arc)
    product = settings.c * tangent_inner(gram, settings)
    return Coefficients(cosh(arc), growth), Coefficients(
        product * growth, 0.5 * product * half * half, 1.0
    )


def _rank_one_map(
    coefficient: Callable[[Numbers, Numbers], Numbers], partials: Callable[..., tuple[Any, Any]]
) -> _ValueAndVjp:
    """``b + k (x.b) x``, where k is a function of ``cosh(a)`` and c.

    ``partials`` gives the derivatives of k by ``|x|**2`` and by c.
    """

    def value(gram: Gram, settings: Settings) -> Coefficients:
        return Coefficients(coefficient(sqrt(1 + settings.c * gram.xx), settings.c) * gram.xb, 1.0)

    def vjp(gram: Gram, settings: Settings, grad_dots: Coefficients) -> Partials:
        cosh_a = sqrt(1 + settings.c * gram.xx)
        k = coefficient(cosh_a, settings.c)
        by_square, by_c = partials(cosh_a, k)
        grad_xb = grad_dots.x * gram.xb
        return Partials(xx=grad_xb * by_square, xb=grad_dots.x * k, c=grad_xb * by_c)

    return value, vjp


TRANSP0 = _rank_one_map(lambda C, c: c / (1 + C), lambda C, k: (-0.5 * k * k / C, 0.5 / C))
TRANSP0BACK = _rank_one_map(
    lambda C, c: -c / (C * (1 + C)),
    lambda C, k: (0.5 * k * k * (1 + 2 * C) / C, -0.5 / (C * C * C)),
)
EGRAD2RGRAD = _rank_one_map(lambda C, c: c, lambda C, k: (0 * C, 1.0))


def _step_size(gram: Gram, settings: Settings) -> Numbers:
    """The size of x or, scaled to count as much, of the step b: steps have to be short."""
    return maximum(settings.c * gram.xx, NEAR / SHORT * settings.c * tangent_square(gram, settings))


EXPMAP_TRANSP = Op(
    expmap_transp, expmap_vjp, ("xx", "xb", "bb", "xu", "bu"), 1, "xb", size=_step_size
)
OPS = {
    "time": Op(time, time_vjp, ("xx",), 1),
    "dist0": Op(dist0, dist0_vjp, ("xx",), 1),
    "half_aperture": Op(half_aperture, half_aperture_vjp, ("xx",), 1),
    "expmap0": Op(*EXPMAP0, ("xx",), 0, "x", reach=SHORT),
    "logmap0": Op(*LOGMAP0, ("xx",), 1, "x"),
    "to_klein": Op(*TO_KLEIN, ("xx",), 1, "x"),
    "to_poincare": Op(*TO_POINCARE, ("xx",), 1, "x"),
    "from_klein": Op(*FROM_KLEIN, ("xx",), 0, "x", reach=1 - 1 / NEAR),
    "from_poincare": Op(*FROM_POINCARE, ("xx",), 0, "x", reach=1 - 1 / NEAR),
    "to_halfspace": Op(
        to_halfspace, to_halfspace_vjp, ("xx", "last"), 1, "x", size=_halfspace_size
    ),
    "from_halfspace": Op(
        from_halfspace, from_halfspace_vjp, ("xx", "last"), 0, "x", size=_ball_size
    ),
    "dist": Op(dist, dist_vjp, ("xx", "xb", "bb"), 2),
    "inner": Op(inner, inner_vjp, ("xx", "xb", "bb"), 2),
    "logmap": Op(logmap, logmap_vjp, ("xx", "xb", "bb"), 2, "xb"),
    "geodesic": Op(geodesic, geodesic_vjp, ("xx", "xb", "bb"), 2, "xb"),
    "transp": Op(transp, transp_vjp, ("xx", "xb", "bb", "xu", "bu"), 2, "xb"),
    "tangent_inner": Op(tangent_inner, tangent_inner_vjp, ("xx", "xb", "xu", "bu"), 1),
    "tangent_square": Op(tangent_square, tangent_square_vjp, ("xx", "xb", "bb"), 1),
    "tangent_norm": Op(tangent_norm, tangent_norm_vjp, ("xx", "xb", "bb"), 1),
    "expmap": Op(expmap, expmap_vjp, ("xx", "xb", "bb"), 1, "xb", size=_step_size),
    "transp0": Op(*TRANSP0, ("xx", "xb"), 1, "x"),
    "transp0back": Op(*TRANSP0BACK, ("xx", "xb"), 1, "x"),
    "egrad2rgrad": Op(*EGRAD2RGRAD, ("xx", "xb"), 1, "x"),
}
