"""The ops of `gram`, one after the other: values, and their derivatives written out.

What would cancel is written otherwise: `side` takes b = y - x for the third side of a triangle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lorentzkit._geometry.arrays import (
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
from lorentzkit._geometry.gram import NEAR, SHORT, Apart, Gram, Op, Partials, Settings, Side, Sum

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


_Formulas = tuple[Callable[[Gram, Settings], Any], Callable[[Gram, Settings, Any], Partials]]


# --- One vector, made longer ----------------------------------------------------------------------


def _grown(growth: Callable[[Numbers], Numbers], partial: Callable[..., Numbers]) -> _Formulas:
    """``growth(z) x`` with ``z = c |x|**2``; its slope is a function of z and its value."""

    def value(gram: Gram, settings: Settings) -> Sum:
        return Sum(growth(settings.c * gram.xx))

    def partials(gram: Gram, settings: Settings, grad: Sum) -> Partials:
        z = settings.c * gram.xx
        grad_z = grad.x * partial(z, growth(z))
        return Partials(xx=grad_z * settings.c, c=grad_z * gram.xx)

    return value, partials


def _log_growth(z: Numbers) -> Numbers:
    s = sqrt(z)
    return quotient(arcsinh(s), s)


def _log_partial(z: Numbers, value: Numbers) -> Numbers:
    s = sqrt(z)
    excess = arc_excess(s / sqrt(1 + z), arcsinh(s))
    return where(s == 0, -1 / 6, -0.5 * excess / or_one(s * z))


EXPMAP0 = _grown(lambda z: sinhc(sqrt(z)), lambda z, value: 0.5 * value * coth_excess(sqrt(z)))
LOGMAP0 = _grown(_log_growth, _log_partial)
TO_KLEIN = _grown(lambda z: 1 / sqrt(1 + z), lambda z, value: -0.5 * value / (1 + z))
TO_POINCARE = _grown(
    lambda z: 1 / (1 + sqrt(1 + z)), lambda z, value: -0.5 * value * value / sqrt(1 + z)
)
FROM_KLEIN = _grown(lambda z: 1 / sqrt(1 - z), lambda z, value: 0.5 * value * value * value)
FROM_POINCARE = _grown(lambda z: 2 / (1 - z), lambda z, value: 0.5 * value * value)


# --- Half-space: the last coordinate, l or the height t, is apart ---------------------------------


def to_halfspace(gram: Gram, settings: Settings) -> Apart:
    """``t/sqrt(c) = 1/(c (x0 - l))``, times ``sqrt(c)`` the factor of the other coordinates."""
    c, last = settings.c, gram.last
    x0 = sqrt(1 / c + gram.xx + last * last)
    # Where x0 - l cancels, by the other light-like coordinate: c (x0 - l)(x0 + l) = 1 + c |rest|^2
    up = last > 0
    total = x0 + where(up, last, -last)
    height = where(up, total / (1 + c * gram.xx), 1 / (c * total))
    return Apart(sqrt(c) * height, height)


def to_halfspace_vjp(gram: Gram, settings: Settings, grad: Apart) -> Partials:
    c, root, last = settings.c, sqrt(settings.c), gram.last
    h = to_halfspace(gram, settings).last
    x0 = sqrt(1 / c + gram.xx + last * last)
    grad_sum = grad.last + root * grad.rest
    grad_rest = -0.5 * c * grad_sum * h * h / x0
    # Of high points h/(2 x0) - 1 would cancel.
    up = last > 0
    total = x0 + where(up, last, 0.0)
    fall = where(up, -0.5 / (c * x0 * total) - c * gram.xx / (1 + c * gram.xx), 0.5 * h / x0 - 1)
    grad_c = grad.last * (h / c) * fall + grad.rest * h * (last - c * gram.xx * h) / (2 * root * x0)
    return Partials(xx=grad_rest, last=grad_sum * h / x0, c=grad_c)


def _halfspace_size(gram: Gram, settings: Settings) -> Numbers:
    return settings.c * (gram.xx + gram.last * gram.last)


def from_halfspace(gram: Gram, settings: Settings) -> Apart:
    s, t = 1 / sqrt(settings.c), gram.last
    return Apart(s / t, 0.5 * ((t - s) * (t + s) + gram.xx) / t)


def from_halfspace_vjp(gram: Gram, settings: Settings, grad: Apart) -> Partials:
    s, t = 1 / sqrt(settings.c), gram.last
    grad_last = 0.5 * grad.last * (t * t + s * s - gram.xx) / (t * t)
    return Partials(
        xx=0.5 * grad.last / t,
        last=grad_last - grad.rest * s / (t * t),
        c=0.5 * (grad.last * s * s - grad.rest * s) / (settings.c * t),
    )


def _ball_size(gram: Gram, settings: Settings) -> Numbers:
    """Of the point itself; heights that are not positive are no points."""
    positive = gram.last > 0
    point = from_halfspace(gram._replace(last=where(positive, gram.last, 1.0)), settings)
    size = settings.c * (point.rest * point.rest * gram.xx + point.last * point.last)
    return where(positive, size, math.inf)


# --- Numbers of one point -------------------------------------------------------------------------


def time(gram: Gram, settings: Settings) -> Numbers:
    return sqrt(1 / settings.c + gram.xx)


def time_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    grad_square = 0.5 * grad / time(gram, settings)
    return Partials(xx=grad_square, c=-grad_square / (settings.c * settings.c))


def dist0(gram: Gram, settings: Settings) -> Numbers:
    root = sqrt(settings.c)
    return arcsinh(root * sqrt(gram.xx)) / root


def dist0_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    root, r = sqrt(settings.c), sqrt(gram.xx)
    s, cosh_a = root * r, sqrt(1 + settings.c * gram.xx)
    grad_c = -0.5 * grad * arc_excess(s / cosh_a, arcsinh(s)) / (settings.c * root)
    return Partials(xx=0.5 * grad * inverse(r * cosh_a), c=grad_c)


def half_aperture(gram: Gram, settings: Settings) -> Numbers:
    k, s = 2 * settings.min_radius, sqrt(settings.c * gram.xx)
    far = where(s > k, s, 2 * k)
    angle = arctan2(k + 0 * far, sqrt(far - k) * sqrt(far + k))
    return where(s > k, angle, 0.5 * math.pi)


def half_aperture_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    k, z = 2 * settings.min_radius, settings.c * gram.xx
    s = sqrt(z)
    far = where(s > k, s, 2 * k)
    grad_z = where(s > k, -0.5 * grad * k / (far * far * sqrt(far - k) * sqrt(far + k)), 0.0)
    return Partials(xx=grad_z * settings.c, c=grad_z * gram.xx)


# --- Two points -----------------------------------------------------------------------------------


def side(gram: Gram, c: Numbers) -> Side:
    longer = 2 * gram.xb + gram.bb  # |y|^2 - |x|^2
    x_cosh, y_cosh = sqrt(1 + c * gram.xx), sqrt(1 + c * (gram.xx + longer))
    gap = -c * longer / (x_cosh + y_cosh)
    T = 0.25 * (c * gram.bb - gap * gap)
    return Side(x_cosh, y_cosh, gap, T, 2 * sqrt(T * (1 + T)))


def side_vjp(s: Side, c: Numbers, grad_T: Numbers) -> Partials:
    """Of ``by * T``."""
    quarter = 0.25 * c * grad_T / s.y_cosh
    return Partials(
        xx=quarter * s.gap * s.gap / s.x_cosh,
        xb=2 * quarter * s.gap,
        bb=quarter * s.x_cosh,
        c=grad_T * s.c_partial() / c,
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
    spread = s.gap * s.gap * inverse_R / (s.x_cosh * s.y_cosh)
    excess = 2 * arc_excess(2 * s.T * inverse_R, 0.5 * distance(s)) + spread
    return partials._replace(c=-0.5 * grad * excess / (settings.c * root))


def inner(gram: Gram, settings: Settings) -> Numbers:
    return -(1 + 2 * settings.side.T) / settings.c


def inner_vjp(gram: Gram, settings: Settings, grad: Numbers) -> Partials:
    s = settings.side
    partials = side_vjp(s, settings.c, -2 * grad / settings.c)
    spread = 0.5 * s.gap * s.gap / (s.x_cosh * s.y_cosh)
    return partials._replace(c=grad * (1 + spread) / (settings.c * settings.c))


def arc_over_sinh(s: Side) -> Numbers:
    """``D / sinh(D)``"""
    return quotient(distance(s), s.R)


def logmap(gram: Gram, settings: Settings) -> Sum:
    s = settings.side
    ratio = arc_over_sinh(s)
    return Sum(-2 * s.T * ratio, ratio)


def logmap_vjp(gram: Gram, settings: Settings, grad: Sum) -> Partials:
    s = settings.side
    ratio = arc_over_sinh(s)
    grad_b = -2 * coth_excess(distance(s)) * ratio * ratio
    grad_x = -(1 + ratio) / (1 + s.T)
    return side_vjp(s, settings.c, grad_b * grad.b + grad_x * grad.x)


def geodesic(gram: Gram, settings: Settings) -> Sum:
    x, y = _weights(distance(settings.side), settings.t)
    return Sum(x + y, y)


def _weights(D: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    """``sinh((1 - t) D)/sinh(D)`` and ``sinh(t D)/sinh(D)``"""
    rest, whole = 1 - t, inverse(sinh(D))
    none = D == 0
    return sinh(rest * D) * whole + none * rest, sinh(t * D) * whole + none * t


def geodesic_vjp(gram: Gram, settings: Settings, grad: Sum) -> Partials:
    s = settings.side
    D, t, rest = distance(s), settings.t, 1 - settings.t
    x, y = _weights(D, t)
    to_y = grad.x + grad.b
    whole = coth_excess(D)
    grad_sum = grad.x * x * (rest * rest * coth_excess(rest * D) - whole)
    grad_sum = grad_sum + to_y * y * (t * t * coth_excess(t * D) - whole)
    ratio = arc_over_sinh(s)
    grad_t = ratio * (to_y * cosh(t * D) - grad.x * cosh(rest * D))
    return side_vjp(s, settings.c, 2 * ratio * grad_sum)._replace(t=grad_t)


def transp(gram: Gram, settings: Settings) -> Sum:
    coefficient = _transp_coefficient(settings.side, gram, settings.c)
    return Sum(2 * coefficient, coefficient, 1.0)


def _transp_coefficient(s: Side, gram: Gram, c: Numbers) -> Numbers:
    """``c <y, u> / (1 - c <x, y>)``"""
    return 0.5 * c * (gram.bu + gram.xu * s.gap / s.x_cosh) / (1 + s.T)


def transp_vjp(gram: Gram, settings: Settings, grad: Sum) -> Partials:
    c, s = settings.c, settings.side
    grad_sum = 2 * grad.x + grad.b  # the product with x + y
    coefficient, lift = _transp_coefficient(s, gram, c), 0.5 * c * grad_sum / (1 + s.T)
    grad_T = side_vjp(s, c, -grad_sum * coefficient / (1 + s.T))
    # By the ratio Y/X of the coshes, of which gap/X is 1 - Y/X.
    x2, y2 = s.x_cosh * s.x_cosh, s.y_cosh * s.y_cosh
    grad_log = -0.5 * lift * gram.xu * s.y_cosh / s.x_cosh
    wider = (s.gap / x2) * (s.x_cosh + s.y_cosh) / y2
    grad_c = grad_sum * coefficient - grad_log * wider + c * grad_T.c
    return Partials(
        xx=grad_T.xx + c * grad_log * wider,
        xb=grad_T.xb + 2 * c * grad_log / y2,
        bb=grad_T.bb + c * grad_log / y2,
        xu=lift * s.gap / s.x_cosh,
        bu=lift,
        c=grad_c / c,
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


def expmap(gram: Gram, settings: Settings) -> Sum:
    arc = sqrt(settings.c * tangent_square(gram, settings))
    return Sum(cosh(arc), sinhc(arc))


def expmap_vjp(gram: Gram, settings: Settings, grad: Sum) -> Partials:
    square = tangent_square(gram, settings)
    arc = sqrt(settings.c * square)
    grad_z = 0.5 * sinhc(arc) * (grad.x + coth_excess(arc) * grad.b)
    partials = tangent_square_vjp(gram, settings, settings.c * grad_z)
    return partials._replace(c=partials.c + grad_z * square)


def expmap_transp(gram: Gram, settings: Settings) -> tuple[Sum, Sum]:
    """`expmap` of b, and u transported along it: what is across b stays."""
    arc = sqrt(settings.c * tangent_square(gram, settings))
    growth, half = sinhc(arc), sinhc(0.5 * arc)
    product = settings.c * tangent_inner(gram, settings)
    return Sum(cosh(arc), growth), Sum(product * growth, 0.5 * product * half * half, 1.0)


def _slanted(
    coefficient: Callable[[Numbers, Numbers], Numbers], partial: Callable[..., tuple[Any, Any]]
) -> _Formulas:
    """``b + k (x.b) x``, k a function of ``cosh(a)`` and c; its derivatives by |x|**2 and c."""

    def value(gram: Gram, settings: Settings) -> Sum:
        return Sum(coefficient(sqrt(1 + settings.c * gram.xx), settings.c) * gram.xb, 1.0)

    def partials(gram: Gram, settings: Settings, grad: Sum) -> Partials:
        cosh_a = sqrt(1 + settings.c * gram.xx)
        k = coefficient(cosh_a, settings.c)
        grad_square, grad_c = partial(cosh_a, k)
        grad_sum = grad.x * gram.xb
        return Partials(xx=grad_sum * grad_square, xb=grad.x * k, c=grad_sum * grad_c)

    return value, partials


TRANSP0 = _slanted(lambda C, c: c / (1 + C), lambda C, k: (-0.5 * k * k / C, 0.5 / C))
TRANSP0BACK = _slanted(
    lambda C, c: -c / (C * (1 + C)),
    lambda C, k: (0.5 * k * k * (1 + 2 * C) / C, -0.5 / (C * C * C)),
)
EGRAD2RGRAD = _slanted(lambda C, c: c, lambda C, k: (0 * C, 1.0))


def _step_size(gram: Gram, settings: Settings) -> Numbers:
    """Steps are to be short."""
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
