"""The formulas of one pair of points: what every kernel computes between its matrix products.

With ``a = sqrt(c) d(O, x)``, ``b`` likewise for y, and ``h = 1 - cos(theta)``, theta the angle at
the origin, a triangle O, x, y of curvature -1 has

    t = sinh((a - b)/2)                       T = sinh(D/2)**2 = t**2 + sinh(a) sinh(b) h / 2
    N_x = sinh(b) sin(theta)                  M_x = -sinh(a - b) - cosh(a) sinh(b) h
    alpha = atan2(N_x, M_x)                   D = log1p(2 T + R),  R = sinh(D)

where D is the distance, alpha the exterior angle at x, and beta, N_y, M_y are alpha, N_x, M_x with
the points exchanged. ``N_x**2 + M_x**2 = R**2 = N_y**2 + M_y**2``, and so all derivatives are
ratios of these numbers (docs/kernels.md derives them). Nothing cancels and nothing overflows.

Rows carry the scalars of x as ``(N, 1)``, columns those of y as ``(1, M)``. Tensors take plain
torch, which `torch.compile` fuses; the scalars of few paired rows are NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lorentzkit._geometry import elementary
from lorentzkit._geometry.array_functions import (
    Numbers,
    arctan2,
    is_double,
    log1p,
    or_one,
    sqrt,
    tiny,
    where,
)
from lorentzkit._geometry.invariants import ANGLES


class Radial(NamedTuple):
    """What a pair needs to know of the radius ``a`` of one of its points."""

    sinh: Numbers
    cosh: Numbers
    tanh: Numbers
    sech: Numbers
    apex: Numbers
    """1, but 0 at the origin: angles there are 0, because the origin entails everything."""


class Exponentials(NamedTuple):
    """Of a rounded radius: what differences of two such radii are taken from."""

    exp_half: Numbers
    """``exp(a/2)``"""
    exp_neg: Numbers
    """``exp(-a)``"""
    complement: Numbers
    """``1 - exp(-a)``"""


def radial(s: Numbers, apex: Numbers) -> Radial:
    """From ``s = sinh a >= 0``."""
    cosh = sqrt(1 + s * s)
    sech = 1 / cosh
    return Radial(s, cosh, s * sech, sech, apex)


def exponentials(x: Radial) -> Exponentials:
    exp_neg = 1 / (x.sinh + x.cosh)
    complement = (x.sinh + x.sinh * (x.sinh / (1 + x.cosh))) * exp_neg
    return Exponentials(exp_neg.rsqrt(), exp_neg, complement)


class Triangle(NamedTuple):
    sinh_diff: Numbers
    """``sinh(a - b)``"""
    T: Numbers
    R: Numbers
    cosh_diff: Numbers
    """``cosh(a) - cosh(b)``"""


def triangle(
    h: Numbers, x: Radial, y: Radial, x_exp: Exponentials, y_exp: Exponentials
) -> Triangle:
    """From rounded radii, as all pairs of two sets of points have them."""
    total = x_exp.exp_neg + y_exp.exp_neg
    # exp(-b) - exp(-a), from the complements where those are the smaller numbers.
    difference = where(
        total > 1, x_exp.complement - y_exp.complement, y_exp.exp_neg - x_exp.exp_neg
    )
    exp_mid = x_exp.exp_half * y_exp.exp_half
    half = 0.5 * exp_mid
    t = half * difference
    T = t * t + 0.5 * x.sinh * y.sinh * h
    low = T.clamp_max(1e18)  # whose square float32 still holds; beyond, R is 2 T
    R = 2 * ((low * (low + 1)).sqrt() + (T - low))
    return Triangle(
        2 * t * (half * total),
        T,
        R,
        t * exp_mid * (x_exp.complement + x_exp.exp_neg * y_exp.complement),
    )


def exact_triangle(h: Numbers, difference: Numbers, x: Radial, y: Radial, wide: bool) -> Triangle:
    """From ``sinh(a) - sinh(b)``, exact for close points too, as paired points have it.

    ``wide``: whether the numbers are of a wider type than the points, so that T does not underflow.
    """
    total = x.sinh + y.sinh
    sinh_diff = difference * (total / or_one(x.sinh * y.cosh + x.cosh * y.sinh))
    square = sinh_diff * sinh_diff
    halves = 2 + 2 * sqrt(1 + square)
    if wide:
        T = square / halves + (0.5 * h) * (x.sinh * y.sinh)
        R = 2 * sqrt(T * (1 + T))
    else:
        root = elementary.hypot(
            sinh_diff * halves.rsqrt(), (0.5 * h).sqrt() * (x.sinh.sqrt() * y.sinh.sqrt())
        )
        T = root * root
        R = 2 * root * sqrt(1 + T)
    return Triangle(sinh_diff, T, R, difference * (total / (x.cosh + y.cosh)))


def unfold(folded: Numbers) -> tuple[Numbers, Numbers]:
    """``h = 1 - cos`` and ``g = 1 + cos`` from the one of them that is given: g as ``-g``.

    Where cos is nearly -1, g is the small number, and h cannot hold it.
    """
    opposite = folded < 0
    return where(opposite, 2 + folded, folded), where(opposite, -folded, 2 - folded)


def sines(h: Numbers, g: Numbers) -> tuple[Numbers, Numbers]:
    """``sin(theta)`` and its inverse, which is 0 where the points are aligned."""
    square = h * g
    sine = sqrt(where(square < 0, 0.0, square))
    apart = square > 1e-35  # of rounded unit vectors the square is 0 or at least 1e-16 (1e-33)
    return sine, where(apart, 1 / where(apart, sine, 1.0), 0.0)


class Partials(NamedTuple):
    """Partial derivatives of each pair: by h, by the radii a and b, and by c times ``2 c``."""

    h: Numbers
    a: Numbers
    b: Numbers
    c: Numbers


class Legs(NamedTuple):
    """Sine and cosine of an exterior angle, both times ``R``."""

    n: Numbers
    m: Numbers


def legs_at_x(h: Numbers, sine: Numbers, tri: Triangle, x: Radial, y: Radial) -> Legs:
    y_sinh = y.sinh * (x.apex * y.apex)  # 0 if a point is the origin: then the angle is constant
    return Legs(y_sinh * sine, -tri.sinh_diff - x.cosh * y_sinh * h)


def legs_at_y(h: Numbers, sine: Numbers, tri: Triangle, x: Radial, y: Radial) -> Legs:
    x_sinh = x.sinh * (x.apex * y.apex)
    return Legs(x_sinh * sine, tri.sinh_diff - y.cosh * x_sinh * h)


def exterior_angle(leg: Legs, tri: Triangle) -> Numbers:
    """0 where the points coincide."""
    return angle_of(leg.n, where(tri.R > 0, leg.m, 1.0))


def interior_angle(leg: Legs, tri: Triangle) -> Numbers:
    """pi where the points coincide."""
    return angle_of(leg.n, where(tri.R > 0, -leg.m, -1.0))


# atan(t)/t in t**2 on [0, 1], highest order first: Chebyshev, off by 1.8e-8.
ARCTAN = [
    0.0027662834618240595,
    -0.015731249004602432,
    0.04213762283325195,
    -0.07456854730844498,
    0.10618370771408081,
    -0.14197798073291779,
    0.1999187171459198,
    -0.333330363035202,
    1.0,
]


def arctangent() -> tuple[list[float], float]:
    """`ARCTAN` and pi, for a compiler to take as constants and not as further arguments."""
    return ARCTAN, torch.pi


# As `torch.compiler.assume_constant_result` does, which would import the compiler.
arctangent._dynamo_marked_constant = True  # type: ignore[attr-defined]


def angle_of(n: Numbers, m: Numbers) -> Numbers:
    """``atan2(n, m)`` for ``n >= 0``; in float32 twice as fast as torch's, 3 roundings off."""
    if is_double(n):
        return arctan2(n, m)
    size = m.abs()
    t = torch.minimum(n, size) / torch.maximum(n, size)
    square = t * t
    (first, *tail), pi = arctangent()
    series = torch.full_like(t, first)
    for coefficient in tail:
        series = series * square + coefficient
    acute = where(n > size, pi / 2 - series * t, series * t)
    return where(m < 0, pi - acute, acute)


def angle_vjp(
    h: Numbers,
    g: Numbers,
    tri: Triangle,
    x: Radial,
    y: Radial,
    grad_alpha: Numbers,
    grad_beta: Numbers | None,
) -> Partials:
    """Derivatives of ``grad_alpha * alpha + grad_beta * beta``; without ``grad_beta``, of alpha."""
    sine, inverse_sine = sines(h, g)
    inverse = _inverse(tri.R)
    # The sines' common factor is left out: in the derivative by h it is in the denominator.
    at_x, at_y = legs_at_x(h, 1.0, tri, x, y), legs_at_y(h, 1.0, tri, x, y)
    n_x, n_y, m_y = at_x.n * inverse, at_y.n * inverse, at_y.m * inverse
    # Each product in an order in which none is far below its result: it would underflow.
    sine_x, sine_y = n_x * sine, n_y * sine
    coth_d = (1 + 2 * tri.T) * inverse
    product, tilt = x.sinh * y.sinh * h * inverse, tri.sinh_diff * inverse
    partials = Partials(
        h=-grad_alpha * n_x * m_y * inverse_sine,
        a=grad_alpha * sine_x * coth_d,
        b=-grad_alpha * sine_y * inverse,
        c=grad_alpha * sine_x * x.tanh * (product - tilt * y.tanh),
    )
    if grad_beta is None:
        return partials
    return Partials(
        h=partials.h - grad_beta * n_y * (at_x.m * inverse) * inverse_sine,
        a=partials.a - grad_beta * sine_x * inverse,
        b=partials.b + grad_beta * sine_y * coth_d,
        c=partials.c + grad_beta * sine_y * y.tanh * (product + tilt * x.tanh),
    )


def distance(tri: Triangle) -> Numbers:
    """``D = sqrt(c) d``."""
    return log1p(2 * tri.T + tri.R)


def distance_vjp(
    h: Numbers, tri: Triangle, x: Radial, y: Radial, grad_output: Numbers, by_c: bool, wide: bool
) -> Partials:
    """Derivatives of ``grad_output * sqrt(c) d`` by h and the radii.

    ``Partials.c`` is that of ``grad_output * d`` by c, times ``2 c sqrt(c)``.
    """
    inverse = _inverse(tri.R)
    partials = Partials(
        h=grad_output * (x.sinh * inverse) * y.sinh,
        a=grad_output * (tri.sinh_diff + x.cosh * y.sinh * h) * inverse,
        b=grad_output * (y.cosh * x.sinh * h - tri.sinh_diff) * inverse,
        c=inverse,  # a placeholder: nobody asks for it
    )
    if not by_c:
        return partials
    # (C_x - C_y)^2 / (C_x C_y R): the square of a small gap would underflow before it is divided.
    spread = (tri.cosh_diff * inverse * x.sech) * (tri.cosh_diff * y.sech)
    return partials._replace(c=-grad_output * (2 * _half_excess(tri, inverse, wide) + spread))


def inner_vjp(h: Numbers, tri: Triangle, x: Radial, y: Radial, grad_output: Numbers) -> Partials:
    """Derivatives of ``grad_output * cosh(sqrt(c) d)`` by h and the radii.

    ``Partials.c`` is that of ``grad_output * -inner`` by c, times ``2 c * c``.
    """
    by_a, by_b = tri.sinh_diff + x.cosh * y.sinh * h, y.cosh * x.sinh * h - tri.sinh_diff
    ratios = x.cosh * y.sech + y.cosh * x.sech
    return Partials(
        grad_output * x.sinh * y.sinh, grad_output * by_a, grad_output * by_b, -grad_output * ratios
    )


def values(
    kind: str, h: Numbers, g: Numbers, tri: Triangle, x: Radial, y: Radial, c: Numbers
) -> tuple[Numbers, ...]:
    """The value of a pair: of "angles" two, the exterior angles at x and at y."""
    if kind in ANGLES:
        sine = sines(h, g)[0]
        at_x = legs_at_x(h, sine, tri, x, y)
        if kind == "interior":
            return (interior_angle(at_x, tri),)
        if kind == "exterior":
            return (exterior_angle(at_x, tri),)
        return exterior_angle(at_x, tri), exterior_angle(legs_at_y(h, sine, tri, x, y), tri)
    if kind == "distance":
        return (distance(tri) / c**0.5,)
    if kind == "inner":
        return (-(1 + 2 * tri.T) / c,)
    if kind == "cosine":
        return ((1 - h) * (x.apex * y.apex),)
    raise NotImplementedError(f"triangle.values: no formula for {kind!r}")


def vjp(
    kind: str,
    h: Numbers,
    g: Numbers,
    tri: Triangle,
    x: Radial,
    y: Radial,
    c: Numbers,
    grad_outputs: Sequence[Numbers],
    *,
    by_c: bool = True,
    wide: bool = False,
) -> Partials:
    """Derivatives of ``grad_outputs[0] * values[0] + ...``; the one by c only if ``by_c``.

    ``wide``: whether the numbers are of a wider type than the points.
    """
    if kind == "angles":
        return angle_vjp(h, g, tri, x, y, *grad_outputs)
    if kind in ("exterior", "interior"):
        grad_alpha = grad_outputs[0] if kind == "exterior" else -grad_outputs[0]
        return angle_vjp(h, g, tri, x, y, grad_alpha, None)
    if kind == "distance":
        return distance_vjp(h, tri, x, y, grad_outputs[0] / c**0.5, by_c, wide)
    if kind == "inner":
        return inner_vjp(h, tri, x, y, -grad_outputs[0] / c)
    if kind == "cosine":
        none = 0 * h
        return Partials(-grad_outputs[0] * (x.apex * y.apex), none, none, none)
    raise NotImplementedError(f"triangle.vjp: no derivatives for {kind!r}")


def _half_excess(tri: Triangle, inverse: Numbers, wide: bool) -> Numbers:
    """``D/2 - tanh(D/2)``; fewer terms of its series do where the points are float32."""
    tanh = 2 * tri.T * inverse
    square = tanh * tanh
    terms = 7 if wide or not is_double(tanh) else 15
    series = square * (1 / (2 * terms + 1)) + 1 / (2 * terms - 1)
    for k in range(terms - 2, 0, -1):
        series = series * square + 1 / (2 * k + 1)
    return where(square < 0.1, tanh * square * series, 0.5 * distance(tri) - tanh)


def _inverse(R: Numbers) -> Numbers:
    """``1/R``; 0 where the points coincide, and with it all derivatives."""
    apart = 2 * tiny(R) < R
    return where(apart, 1 / where(apart, R, 1.0), 0.0)
