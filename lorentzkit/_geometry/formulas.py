"""The ops of `gram`, one after the other: values, and slopes written out.

What would cancel is written otherwise: `side` takes b = y - x for the third side of a triangle.
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
from lorentzkit._geometry.gram import NEAR, SHORT, Apart, Gram, Op, Settings, Side, Slopes, Sum

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


_Formulas = tuple[Callable[[Gram, Settings], Any], Callable[[Gram, Settings, Any], Slopes]]


# --- One vector, made longer ----------------------------------------------------------------------


def _grown(growth: Callable[[Numbers], Numbers], slope: Callable[..., Numbers]) -> _Formulas:
    """``growth(z) x`` with ``z = c |x|**2``; its slope is a function of z and its value."""

    def value(gram: Gram, of: Settings) -> Sum:
        return Sum(growth(of.c * gram.xx))

    def slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
        z = of.c * gram.xx
        by_z = along.x * slope(z, growth(z))
        return Slopes(xx=by_z * of.c, c=by_z * gram.xx)

    return value, slopes


def _log_growth(z: Numbers) -> Numbers:
    s = sqrt(z)
    return quotient(arcsinh(s), s)


def _log_slope(z: Numbers, of: Numbers) -> Numbers:
    s = sqrt(z)
    excess = arc_excess(s / sqrt(1 + z), arcsinh(s))
    return where(s == 0, -1 / 6, -0.5 * excess / or_one(s * z))


EXPMAP0 = _grown(lambda z: sinhc(sqrt(z)), lambda z, of: 0.5 * of * coth_excess(sqrt(z)))
LOGMAP0 = _grown(_log_growth, _log_slope)
TO_KLEIN = _grown(lambda z: 1 / sqrt(1 + z), lambda z, of: -0.5 * of / (1 + z))
TO_POINCARE = _grown(lambda z: 1 / (1 + sqrt(1 + z)), lambda z, of: -0.5 * of * of / sqrt(1 + z))
FROM_KLEIN = _grown(lambda z: 1 / sqrt(1 - z), lambda z, of: 0.5 * of * of * of)
FROM_POINCARE = _grown(lambda z: 2 / (1 - z), lambda z, of: 0.5 * of * of)


# --- Half-space: the last coordinate, l or the height t, is apart ---------------------------------


def to_halfspace(gram: Gram, of: Settings) -> Apart:
    """``t/sqrt(c) = 1/(c (x0 - l))``, times ``sqrt(c)`` the factor of the other coordinates."""
    c, last = of.c, gram.last
    x0 = sqrt(1 / c + gram.xx + last * last)
    # Where x0 - l cancels, by the other light-like coordinate: c (x0 - l)(x0 + l) = 1 + c |rest|^2
    up = last > 0
    total = x0 + where(up, last, -last)
    height = where(up, total / (1 + c * gram.xx), 1 / (c * total))
    return Apart(sqrt(c) * height, height)


def to_halfspace_slopes(gram: Gram, of: Settings, along: Apart) -> Slopes:
    c, root, last = of.c, sqrt(of.c), gram.last
    h = to_halfspace(gram, of).last
    x0 = sqrt(1 / c + gram.xx + last * last)
    by = along.last + root * along.rest
    by_rest = -0.5 * c * by * h * h / x0
    # Of high points h/(2 x0) - 1 would cancel.
    up = last > 0
    total = x0 + where(up, last, 0.0)
    fall = where(up, -0.5 / (c * x0 * total) - c * gram.xx / (1 + c * gram.xx), 0.5 * h / x0 - 1)
    by_c = along.last * (h / c) * fall + along.rest * h * (last - c * gram.xx * h) / (2 * root * x0)
    return Slopes(xx=by_rest, last=by * h / x0, c=by_c)


def _halfspace_size(gram: Gram, of: Settings) -> Numbers:
    return of.c * (gram.xx + gram.last * gram.last)


def from_halfspace(gram: Gram, of: Settings) -> Apart:
    s, t = 1 / sqrt(of.c), gram.last
    return Apart(s / t, 0.5 * ((t - s) * (t + s) + gram.xx) / t)


def from_halfspace_slopes(gram: Gram, of: Settings, along: Apart) -> Slopes:
    s, t = 1 / sqrt(of.c), gram.last
    by_last = 0.5 * along.last * (t * t + s * s - gram.xx) / (t * t)
    return Slopes(
        xx=0.5 * along.last / t,
        last=by_last - along.rest * s / (t * t),
        c=0.5 * (along.last * s * s - along.rest * s) / (of.c * t),
    )


def _ball_size(gram: Gram, of: Settings) -> Numbers:
    """Of the point itself; heights that are not positive are no points."""
    positive = gram.last > 0
    point = from_halfspace(gram._replace(last=where(positive, gram.last, 1.0)), of)
    size = of.c * (point.rest * point.rest * gram.xx + point.last * point.last)
    return where(positive, size, math.inf)


# --- Numbers of one point -------------------------------------------------------------------------


def time(gram: Gram, of: Settings) -> Numbers:
    return sqrt(1 / of.c + gram.xx)


def time_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    by_square = 0.5 * grad / time(gram, of)
    return Slopes(xx=by_square, c=-by_square / (of.c * of.c))


def dist0(gram: Gram, of: Settings) -> Numbers:
    root = sqrt(of.c)
    return arcsinh(root * sqrt(gram.xx)) / root


def dist0_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    root, r = sqrt(of.c), sqrt(gram.xx)
    s, cosh_a = root * r, sqrt(1 + of.c * gram.xx)
    by_c = -0.5 * grad * arc_excess(s / cosh_a, arcsinh(s)) / (of.c * root)
    return Slopes(xx=0.5 * grad * inverse(r * cosh_a), c=by_c)


def half_aperture(gram: Gram, of: Settings) -> Numbers:
    k, s = 2 * of.min_radius, sqrt(of.c * gram.xx)
    far = where(s > k, s, 2 * k)
    angle = arctan2(k + 0 * far, sqrt(far - k) * sqrt(far + k))
    return where(s > k, angle, 0.5 * math.pi)


def half_aperture_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    k, z = 2 * of.min_radius, of.c * gram.xx
    s = sqrt(z)
    far = where(s > k, s, 2 * k)
    by_z = where(s > k, -0.5 * grad * k / (far * far * sqrt(far - k) * sqrt(far + k)), 0.0)
    return Slopes(xx=by_z * of.c, c=by_z * gram.xx)


# --- Two points -----------------------------------------------------------------------------------


def side(gram: Gram, c: Numbers) -> Side:
    longer = 2 * gram.xb + gram.bb  # |y|^2 - |x|^2
    x_cosh, y_cosh = sqrt(1 + c * gram.xx), sqrt(1 + c * (gram.xx + longer))
    gap = -c * longer / (x_cosh + y_cosh)
    T = 0.25 * (c * gram.bb - gap * gap)
    return Side(x_cosh, y_cosh, gap, T, 2 * sqrt(T * (1 + T)))


def side_slopes(of: Side, c: Numbers, by: Numbers) -> Slopes:
    """Of ``by * T``."""
    quarter = 0.25 * c * by / of.y_cosh
    return Slopes(
        xx=quarter * of.gap * of.gap / of.x_cosh,
        xb=2 * quarter * of.gap,
        bb=quarter * of.x_cosh,
        c=by * of.c_slope() / c,
    )


def distance(of: Side) -> Numbers:
    """D"""
    return log1p(2 * of.T + of.R)


def dist(gram: Gram, of: Settings) -> Numbers:
    return distance(of.side) / sqrt(of.c)


def dist_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    s = of.side
    root, inverse_R = sqrt(of.c), inverse(s.R)
    slopes = side_slopes(s, of.c, 2 * grad * inverse_R / root)
    spread = s.gap * s.gap * inverse_R / (s.x_cosh * s.y_cosh)
    excess = 2 * arc_excess(2 * s.T * inverse_R, 0.5 * distance(s)) + spread
    return slopes._replace(c=-0.5 * grad * excess / (of.c * root))


def inner(gram: Gram, of: Settings) -> Numbers:
    return -(1 + 2 * of.side.T) / of.c


def inner_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    s = of.side
    slopes = side_slopes(s, of.c, -2 * grad / of.c)
    spread = 0.5 * s.gap * s.gap / (s.x_cosh * s.y_cosh)
    return slopes._replace(c=grad * (1 + spread) / (of.c * of.c))


def arc_over_sinh(s: Side) -> Numbers:
    """``D / sinh(D)``"""
    return quotient(distance(s), s.R)


def logmap(gram: Gram, of: Settings) -> Sum:
    s = of.side
    ratio = arc_over_sinh(s)
    return Sum(-2 * s.T * ratio, ratio)


def logmap_slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
    s = of.side
    ratio = arc_over_sinh(s)
    by_b = -2 * coth_excess(distance(s)) * ratio * ratio
    by_x = -(1 + ratio) / (1 + s.T)
    return side_slopes(s, of.c, by_b * along.b + by_x * along.x)


def geodesic(gram: Gram, of: Settings) -> Sum:
    x, y = _weights(distance(of.side), of.t)
    return Sum(x + y, y)


def _weights(D: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    """``sinh((1 - t) D)/sinh(D)`` and ``sinh(t D)/sinh(D)``"""
    rest, whole = 1 - t, inverse(sinh(D))
    none = D == 0
    return sinh(rest * D) * whole + none * rest, sinh(t * D) * whole + none * t


def geodesic_slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
    s = of.side
    D, t, rest = distance(s), of.t, 1 - of.t
    x, y = _weights(D, t)
    to_y = along.x + along.b
    whole = coth_excess(D)
    by = along.x * x * (rest * rest * coth_excess(rest * D) - whole)
    by = by + to_y * y * (t * t * coth_excess(t * D) - whole)
    ratio = arc_over_sinh(s)
    by_t = ratio * (to_y * cosh(t * D) - along.x * cosh(rest * D))
    return side_slopes(s, of.c, 2 * ratio * by)._replace(t=by_t)


def transp(gram: Gram, of: Settings) -> Sum:
    slope = _transp_slope(of.side, gram, of.c)
    return Sum(2 * slope, slope, 1.0)


def _transp_slope(s: Side, gram: Gram, c: Numbers) -> Numbers:
    """``c <y, u> / (1 - c <x, y>)``"""
    return 0.5 * c * (gram.bu + gram.xu * s.gap / s.x_cosh) / (1 + s.T)


def transp_slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
    c, s = of.c, of.side
    by = 2 * along.x + along.b  # the product with x + y
    slope, lift = _transp_slope(s, gram, c), 0.5 * c * by / (1 + s.T)
    by_T = side_slopes(s, c, -by * slope / (1 + s.T))
    # By the ratio Y/X of the coshes, of which gap/X is 1 - Y/X.
    x2, y2 = s.x_cosh * s.x_cosh, s.y_cosh * s.y_cosh
    by_log = -0.5 * lift * gram.xu * s.y_cosh / s.x_cosh
    wider = (s.gap / x2) * (s.x_cosh + s.y_cosh) / y2
    by_c = by * slope - by_log * wider + c * by_T.c
    return Slopes(
        xx=by_T.xx + c * by_log * wider,
        xb=by_T.xb + 2 * c * by_log / y2,
        bb=by_T.bb + c * by_log / y2,
        xu=lift * s.gap / s.x_cosh,
        bu=lift,
        c=by_c / c,
    )


# --- Tangent vectors ------------------------------------------------------------------------------


def tangent_inner(gram: Gram, of: Settings) -> Numbers:
    return gram.bu - of.c * gram.xb * gram.xu / (1 + of.c * gram.xx)


def tangent_inner_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    inverse_square = 1 / (1 + of.c * gram.xx)
    slant = of.c * inverse_square * grad
    product = gram.xb * gram.xu * inverse_square
    return Slopes(
        xx=of.c * slant * product,
        xb=-slant * gram.xu,
        xu=-slant * gram.xb,
        bu=grad,
        c=-grad * product * inverse_square,
    )


def tangent_square(gram: Gram, of: Settings) -> Numbers:
    return gram.bb - of.c * gram.xb * gram.xb / (1 + of.c * gram.xx)


def tangent_square_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    radial = gram.xb / (1 + of.c * gram.xx)
    slant = of.c * radial
    return Slopes(xx=grad * slant * slant, xb=-2 * grad * slant, bb=grad, c=-grad * radial * radial)


def tangent_norm(gram: Gram, of: Settings) -> Numbers:
    return sqrt(tangent_square(gram, of))


def tangent_norm_slopes(gram: Gram, of: Settings, grad: Numbers) -> Slopes:
    return tangent_square_slopes(gram, of, 0.5 * grad * inverse(tangent_norm(gram, of)))


def expmap(gram: Gram, of: Settings) -> Sum:
    arc = sqrt(of.c * tangent_square(gram, of))
    return Sum(cosh(arc), sinhc(arc))


def expmap_slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
    square = tangent_square(gram, of)
    arc = sqrt(of.c * square)
    by_z = 0.5 * sinhc(arc) * (along.x + coth_excess(arc) * along.b)
    slopes = tangent_square_slopes(gram, of, of.c * by_z)
    return slopes._replace(c=slopes.c + by_z * square)


def expmap_transp(gram: Gram, of: Settings) -> tuple[Sum, Sum]:
    """`expmap` of b, and u transported along it: what is across b stays."""
    arc = sqrt(of.c * tangent_square(gram, of))
    growth, half = sinhc(arc), sinhc(0.5 * arc)
    product = of.c * tangent_inner(gram, of)
    return Sum(cosh(arc), growth), Sum(product * growth, 0.5 * product * half * half, 1.0)


def _slanted(
    coefficient: Callable[[Numbers, Numbers], Numbers], slope: Callable[..., tuple[Any, Any]]
) -> _Formulas:
    """``b + k (x.b) x``, k a function of ``cosh(a)`` and c; its derivatives by |x|**2 and c."""

    def value(gram: Gram, of: Settings) -> Sum:
        return Sum(coefficient(sqrt(1 + of.c * gram.xx), of.c) * gram.xb, 1.0)

    def slopes(gram: Gram, of: Settings, along: Sum) -> Slopes:
        cosh_a = sqrt(1 + of.c * gram.xx)
        k = coefficient(cosh_a, of.c)
        by_square, by_c = slope(cosh_a, k)
        by = along.x * gram.xb
        return Slopes(xx=by * by_square, xb=along.x * k, c=by * by_c)

    return value, slopes


TRANSP0 = _slanted(lambda C, c: c / (1 + C), lambda C, k: (-0.5 * k * k / C, 0.5 / C))
TRANSP0BACK = _slanted(
    lambda C, c: -c / (C * (1 + C)),
    lambda C, k: (0.5 * k * k * (1 + 2 * C) / C, -0.5 / (C * C * C)),
)
EGRAD2RGRAD = _slanted(lambda C, c: c, lambda C, k: (0 * C, 1.0))


def _step_size(gram: Gram, of: Settings) -> Numbers:
    """Steps are to be short."""
    return maximum(of.c * gram.xx, NEAR / SHORT * of.c * tangent_square(gram, of))


EXPMAP_TRANSP = Op(
    expmap_transp, expmap_slopes, ("xx", "xb", "bb", "xu", "bu"), 1, "xb", size=_step_size
)
OPS = {
    "time": Op(time, time_slopes, ("xx",), 1),
    "dist0": Op(dist0, dist0_slopes, ("xx",), 1),
    "half_aperture": Op(half_aperture, half_aperture_slopes, ("xx",), 1),
    "expmap0": Op(*EXPMAP0, ("xx",), 0, "x", reach=SHORT),
    "logmap0": Op(*LOGMAP0, ("xx",), 1, "x"),
    "to_klein": Op(*TO_KLEIN, ("xx",), 1, "x"),
    "to_poincare": Op(*TO_POINCARE, ("xx",), 1, "x"),
    "from_klein": Op(*FROM_KLEIN, ("xx",), 0, "x", reach=1 - 1 / NEAR),
    "from_poincare": Op(*FROM_POINCARE, ("xx",), 0, "x", reach=1 - 1 / NEAR),
    "to_halfspace": Op(
        to_halfspace, to_halfspace_slopes, ("xx", "last"), 1, "x", size=_halfspace_size
    ),
    "from_halfspace": Op(
        from_halfspace, from_halfspace_slopes, ("xx", "last"), 0, "x", size=_ball_size
    ),
    "dist": Op(dist, dist_slopes, ("xx", "xb", "bb"), 2),
    "inner": Op(inner, inner_slopes, ("xx", "xb", "bb"), 2),
    "logmap": Op(logmap, logmap_slopes, ("xx", "xb", "bb"), 2, "xb"),
    "geodesic": Op(geodesic, geodesic_slopes, ("xx", "xb", "bb"), 2, "xb"),
    "transp": Op(transp, transp_slopes, ("xx", "xb", "bb", "xu", "bu"), 2, "xb"),
    "tangent_inner": Op(tangent_inner, tangent_inner_slopes, ("xx", "xb", "xu", "bu"), 1),
    "tangent_square": Op(tangent_square, tangent_square_slopes, ("xx", "xb", "bb"), 1),
    "tangent_norm": Op(tangent_norm, tangent_norm_slopes, ("xx", "xb", "bb"), 1),
    "expmap": Op(expmap, expmap_slopes, ("xx", "xb", "bb"), 1, "xb", size=_step_size),
    "transp0": Op(*TRANSP0, ("xx", "xb"), 1, "x"),
    "transp0back": Op(*TRANSP0BACK, ("xx", "xb"), 1, "x"),
    "egrad2rgrad": Op(*EGRAD2RGRAD, ("xx", "xb"), 1, "x"),
}
