"""Scalar formulas of `_geometry` in Triton: pairs of points and single vectors, and derivatives.

In float64. Of float32 points, results are to be right to 1e-9; that leaves room for the differences
that `_geometry` rewrites for the sake of float64 points, and they are taken plainly here.

x, y and u are the vectors of the row in the order of the op's arguments, g is the gradient with
respect to the op's vector of results. A sum of vectors has coefficients of x, b, u and g, with
``b = y - x`` of close points and else ``b = y``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from lorentzkit.fused.triton.elementary import (
    angle_of,
    arc_excess,
    asinh,
    coth_excess,
    log1p,
    or_one,
    sinh,
)

_INFINITY = tl.constexpr(math.inf)
_HALF_PI = tl.constexpr(math.pi / 2)
# max_radius("float32"), that of `norm_limit` as a length, and its bound for the sake of cubes
_RADIUS = tl.constexpr(40.0)
_SINH = tl.constexpr(math.sinh(40.0) * (1 + 2.0**-12))
_CUBE = tl.constexpr(2.0**62)
_TINY = tl.constexpr(2.0**-66)  # `special.TINY_LENGTH`
_MARGIN = tl.constexpr(4 * 2.0**-23)  # to the sphere, of points of the ball (`ops.models`)
# No two float32 directions are so close, but equal ones.
_ALIGNED = tl.constexpr(1e-28)
_SMALLEST_CURV = tl.constexpr(1e-8 * (1 - 2.0**-24))
_LARGEST_CURV = tl.constexpr(1e8)


class Measures(NamedTuple):
    """See `_geometry.invariants`; of points beyond the largest radius as if moved to it."""

    rx: tl.tensor
    ry: tl.tensor
    dr: tl.tensor
    cosine: tl.tensor
    sine2: tl.tensor
    h: tl.tensor
    g: tl.tensor
    close: tl.tensor
    """1 of close points, else 0"""
    xy: tl.tensor
    xu: tl.tensor
    yu: tl.tensor
    uu: tl.tensor
    across: tl.tensor
    """Product of u with y's part across x"""


class Along(NamedTuple):
    """Products with g."""

    x: tl.tensor
    y: tl.tensor
    u: tl.tensor


class Sum(NamedTuple):
    """Coefficients of a sum of vectors."""

    x: tl.tensor
    b: tl.tensor
    u: tl.tensor
    g: tl.tensor


class Partials(NamedTuple):
    """The gradients with respect to x, y and u, and to the curvature."""

    x: Sum
    y: Sum
    u: Sum
    c: tl.tensor


class Triangle(NamedTuple):
    """See `_geometry.triangle`."""

    x_sinh: tl.tensor
    y_sinh: tl.tensor
    x_cosh: tl.tensor
    y_cosh: tl.tensor
    sinh_diff: tl.tensor
    cosh_diff: tl.tensor
    T: tl.tensor
    R: tl.tensor


# --- Curvature and radii --------------------------------------------------------------------------


@triton.jit
def valid_curvature(c):
    """NaN instead of an error, for which the host would wait."""
    return tl.where((c >= _SMALLEST_CURV) & (c <= _LARGEST_CURV), c, float("nan"))


@triton.jit
def norm_limit(c):
    """See `arguments.norm_limit`."""
    root = tl.sqrt(c)
    radius, cube = 1 / root * _SINH, tl.sqrt(root) * _CUBE
    return tl.where(radius > cube, cube, radius)


@triton.jit
def norm_limit_partial(c):
    """The derivative by c of its logarithm."""
    root = tl.sqrt(c)
    return tl.where(1 / root * _SINH > tl.sqrt(root) * _CUBE, 0.25, -0.5) / c


@triton.jit
def length_of(square):
    """Its root; of infinity, NaN."""
    return tl.where(square < _INFINITY, tl.sqrt(square), float("nan"))


@triton.jit
def sine_square(ww, xx, yy):
    sine2 = ww / or_one(yy)
    sine2 = tl.where(sine2 < _ALIGNED, 0.0, sine2)
    return tl.where((xx == 0) | (yy == 0), 1.0, sine2)


@triton.jit
def nothing(like):
    none = tl.zeros_like(like)
    return Sum(none, none, none, none)


# --- Pairs of points ------------------------------------------------------------------------------


@triton.jit
def triangle(rx, ry, dr, h, root):
    a, b = root * rx, root * ry
    x_cosh, y_cosh = tl.sqrt(1 + a * a), tl.sqrt(1 + b * b)
    difference = root * dr
    sinh_diff = difference * ((a + b) / or_one(a * y_cosh + x_cosh * b))
    t = sinh_diff / tl.sqrt(2 + 2 * tl.sqrt(1 + sinh_diff * sinh_diff))
    T = t * t + 0.5 * a * b * h
    cosh_diff = difference * ((a + b) / (x_cosh + y_cosh))
    return Triangle(a, b, x_cosh, y_cosh, sinh_diff, cosh_diff, T, 2 * tl.sqrt(T) * tl.sqrt(1 + T))


@triton.jit
def inverse_of(R):
    """0 where the points coincide, and with it all derivatives."""
    return tl.where(R == 0, 0.0, 1 / or_one(R))


@triton.jit
def apex(m):
    """At the origin there is no angle, and of it a constant one."""
    return tl.where((m.rx == 0) | (m.ry == 0), 0.0, 1.0)


@triton.jit
def distance(tri):
    return log1p(2 * tri.T + tri.R)


@triton.jit
def exterior_legs(m, tri):
    """Sine and cosine of the exterior angle at x, times R; (0, 1) where the points coincide."""
    leg = tri.y_sinh * apex(m)
    cosine = -tri.sinh_diff - tri.x_cosh * leg * m.h
    return leg * tl.sqrt(m.h * m.g), tl.where(tri.R == 0, 1.0, cosine)


@triton.jit
def half_aperture(s, k):
    """Of ``k`` twice the least radius."""
    cone = (s <= k) == 0  # so that NaN stays NaN
    s = tl.where(cone, s, 2 * k)
    angle = angle_of(k, tl.sqrt(s - k) * tl.sqrt(s + k))
    return tl.where(cone, angle, _HALF_PI)


@triton.jit
def exchanged(tri):
    """The triangle with x in the place of y."""
    return Triangle(
        tri.y_sinh, tri.x_sinh, tri.y_cosh, tri.x_cosh, -tri.sinh_diff, -tri.cosh_diff, tri.T, tri.R
    )


@triton.jit
def exterior_angles(m, c):
    """At x and at y."""
    tri = triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    x_sine, x_cosine = exterior_legs(m, tri)
    y_sine, y_cosine = exterior_legs(m, exchanged(tri))
    return angle_of(x_sine, x_cosine), angle_of(y_sine, y_cosine)


@triton.jit
def pair_value(OP: tl.constexpr, m, c, k, scale):
    if OP == "cosine":
        return m.cosine + (c - c)
    root = tl.sqrt(c)
    tri = triangle(m.rx, m.ry, m.dr, m.h, root)
    if OP == "dist":
        return distance(tri) / root
    elif OP == "inner":
        return -(1 + 2 * tri.T) / c
    else:
        sine, cosine = exterior_legs(m, tri)
        if OP == "interior_angle":
            return angle_of(sine, -cosine)
        angle = angle_of(sine, cosine)
        if OP == "entailment_residual":
            angle -= scale * half_aperture(root * m.rx, k)
            angle = tl.where(angle < 0, 0.0, angle)
        return angle


@triton.jit
def angle_vjp(m, tri, grad_output):
    """See `triangle.angle_vjp`: derivatives by h, by both radii, and by c times ``2 c``."""
    square = m.h * m.g
    sine = tl.sqrt(square)
    inverse_sine = tl.where(square == 0, 0.0, 1 / or_one(sine))
    inverse, both = inverse_of(tri.R), apex(m)
    n_x, n_y = tri.y_sinh * both * inverse, tri.x_sinh * both * inverse
    m_y = (tri.sinh_diff - tri.y_cosh * tri.x_sinh * both * m.h) * inverse
    sine_x = grad_output * n_x * sine
    product, tilt = tri.x_sinh * tri.y_sinh * m.h * inverse, tri.sinh_diff * inverse
    x_tanh, y_tanh = tri.x_sinh / tri.x_cosh, tri.y_sinh / tri.y_cosh
    by_a = sine_x * (1 + 2 * tri.T) * inverse
    by_b = -grad_output * n_y * sine * inverse
    return (
        -grad_output * n_x * m_y * inverse_sine,
        by_a,
        by_b,
        sine_x * x_tanh * (product - tilt * y_tanh),
    )


@triton.jit
def angles_vjp(m, tri, grad_alpha, grad_beta):
    """`angle_vjp` of both angles; what they share is not left to the compiler to find."""
    square = m.h * m.g
    sine = tl.sqrt(square)
    inverse_sine = tl.where(square == 0, 0.0, 1 / or_one(sine))
    inverse, both = inverse_of(tri.R), apex(m)
    n_x, n_y = tri.y_sinh * both * inverse, tri.x_sinh * both * inverse
    product, tilt = tri.x_sinh * tri.y_sinh * m.h * inverse, tri.sinh_diff * inverse
    m_x, m_y = -tilt - tri.x_cosh * n_x * m.h, tilt - tri.y_cosh * n_y * m.h
    by_h = -(grad_alpha * n_x * m_y + grad_beta * n_y * m_x) * inverse_sine
    coth = (1 + 2 * tri.T) * inverse
    sine_x, sine_y = n_x * sine, n_y * sine
    by_a, by_b = (
        sine_x * (grad_alpha * coth - grad_beta * inverse),
        sine_y * (grad_beta * coth - grad_alpha * inverse),
    )
    x_tanh, y_tanh = tri.x_sinh / tri.x_cosh, tri.y_sinh / tri.y_cosh
    of_x = grad_alpha * sine_x * x_tanh * (product - tilt * y_tanh)
    return by_h, by_a, by_b, of_x + grad_beta * sine_y * y_tanh * (product + tilt * x_tanh)


@triton.jit
def distance_vjp(tri, h, inverse, grad_output):
    spread = (tri.cosh_diff / tri.x_cosh) * (tri.cosh_diff / tri.y_cosh)
    excess = 2 * arc_excess(2 * tri.T * inverse, 0.5 * distance(tri)) + spread * inverse
    m_x = -tri.sinh_diff - tri.x_cosh * tri.y_sinh * h
    m_y = tri.sinh_diff - tri.y_cosh * tri.x_sinh * h
    by_h = grad_output * tri.x_sinh * inverse * tri.y_sinh
    return by_h, -grad_output * m_x * inverse, -grad_output * m_y * inverse, -grad_output * excess


@triton.jit
def inner_vjp(tri, h, grad_output):
    m_x = -tri.sinh_diff - tri.x_cosh * tri.y_sinh * h
    m_y = tri.sinh_diff - tri.y_cosh * tri.x_sinh * h
    ratios = tri.x_cosh / tri.y_cosh + tri.y_cosh / tri.x_cosh
    return (
        grad_output * tri.x_sinh * tri.y_sinh,
        -grad_output * m_x,
        -grad_output * m_y,
        -grad_output * ratios,
    )


@triton.jit
def pair_vjp(OP: tl.constexpr, m, c, k, scale, grad_output, grad_beta):
    """See `pairs._row_vjp`. ``grad_beta`` is of the angle at y, where that is a value, too."""
    root, none = tl.sqrt(c), tl.zeros_like(c)
    if OP == "entailment_residual":
        grad_output = tl.where(pair_value(OP, m, c, k, scale) > 0, grad_output, 0.0)
    # In the origin's place derivatives take their limit; two points there coincide.
    rx, ry = tl.where(m.rx < _TINY, _TINY, m.rx), tl.where(m.ry < _TINY, _TINY, m.ry)
    h = tl.where((m.rx == 0) & (m.ry == 0), 0.0, m.h)
    tri = triangle(rx, ry, m.dr, h, root)
    if OP == "dist":
        by_h, by_a, by_b, by_c = distance_vjp(tri, h, inverse_of(tri.R), grad_output / root)
    elif OP == "inner":
        by_h, by_a, by_b, by_c = inner_vjp(tri, h, -grad_output / c)
    elif OP == "cosine":
        by_h, by_a, by_b, by_c = -grad_output * apex(m), none, none, none
    elif OP == "angles":
        by_h, by_a, by_b, by_c = angles_vjp(m, tri, grad_output, grad_beta)
    elif OP == "interior_angle":
        by_h, by_a, by_b, by_c = angle_vjp(m, tri, -grad_output)
    else:
        by_h, by_a, by_b, by_c = angle_vjp(m, tri, grad_output)
    by_a, by_b, by_c = by_a * root / tri.x_cosh, by_b * root / tri.y_cosh, by_c / (2 * c)
    if OP == "entailment_residual":
        by_rx, by_k = half_aperture_partials(m.rx, c, k)
        by_a, by_c = by_a - scale * grad_output * by_rx, by_c - scale * grad_output * by_k
    by_h = tl.where(m.sine2 == 0, 0.0, by_h)  # what moves x and y then is but noise
    # By h, x moves against the part of y across it, which is y less a multiple of x; of close
    # points that is their difference less a small multiple.
    close = m.close > 0
    less_x = tl.where(close, -(m.dr + m.h * ry) / ry, m.cosine)
    less_y = tl.where(close, (m.dr - m.h * rx) / rx, m.cosine)
    of_x = (by_a + by_h / rx * less_x) / rx
    of_y = (by_b + by_h / ry * less_y) / ry
    back = by_h / rx / ry
    by_x = Sum(of_x, -back, none, none)
    by_y = Sum(tl.where(close, of_y, -back), of_y + m.close * back, none, none)
    return Partials(by_x, by_y, nothing(c), by_c)


# --- One vector -----------------------------------------------------------------------------------


@triton.jit
def single_value(OP: tl.constexpr, m, c, k):
    root = tl.sqrt(c)
    if OP == "dist0":
        return asinh(root * m.rx) / root
    elif OP == "time":
        return tl.sqrt(1 / c + m.rx * m.rx)
    else:
        return half_aperture(root * m.rx, k)


@triton.jit
def half_aperture_partials(r, c, k):
    """By r and by c."""
    s = tl.sqrt(c) * r
    cone = s > k
    far = tl.where(cone, s, 2 * k)
    by_s = tl.where(cone, -k / (far * tl.sqrt(far - k) * tl.sqrt(far + k)), s - s)
    return by_s * tl.sqrt(c), by_s * s / (2 * c)


@triton.jit
def single_vjp(OP: tl.constexpr, m, c, k, grad_output):
    root = tl.sqrt(c)
    s = root * m.rx
    cosh = tl.sqrt(1 + s * s)
    if OP == "dist0":
        by_r, by_c = 1 / cosh, -arc_excess(s / cosh, asinh(s)) / (2 * c * root)
    elif OP == "time":
        by_r, by_c = s / cosh, -0.5 / (c * root * cosh)
    else:
        by_r, by_c = half_aperture_partials(m.rx, c, k)
    none = tl.zeros_like(c)
    by_x = Sum(tl.where(m.rx == 0, 0.0, grad_output * by_r / or_one(m.rx)), none, none, none)
    return Partials(by_x, nothing(c), nothing(c), grad_output * by_c)


@triton.jit
def expmap0_length(r, c):
    """Of ``expmap0(u)`` for ``|u| = r``; whether that is beyond the largest radius or the limit."""
    root = tl.sqrt(c)
    long = root * r > _RADIUS
    length = sinh(tl.where(long, _RADIUS, root * r)) / root
    limit = norm_limit(c)
    beyond = length > limit
    return tl.where(beyond, limit, length), long, beyond


@triton.jit
def growth(OP: tl.constexpr, m, c):
    """By how much the op makes x longer."""
    z = c * m.rx * m.rx
    if OP == "expmap0":
        length, _, _ = expmap0_length(m.rx, c)
        return tl.where(m.rx == 0, 1.0, length / or_one(m.rx))
    elif OP == "logmap0":
        s = tl.sqrt(z)
        return tl.where(s == 0, 1.0, asinh(s) / or_one(s))
    elif OP == "to_klein":
        return tl.where((1 + z) * _MARGIN > 1, 1 - _MARGIN, 1.0) / tl.sqrt(1 + z)
    elif OP == "to_poincare":
        half = 1 + tl.sqrt(1 + z)
        # 1 - c |p|**2 is 2/half
        return tl.where(half * _MARGIN > 2, 1 - _MARGIN, 1.0) / half
    else:  # of points outside the ball, NaN
        cosh_diff = tl.where(z < 1, 1 - z, float("nan"))
        return 1 / tl.sqrt(cosh_diff) if OP == "from_klein" else 2 / cosh_diff


@triton.jit
def growth_partial(OP: tl.constexpr, factor, m, c):
    """The derivative of `growth`, which is ``of``, by ``c |x|**2``."""
    z = c * m.rx * m.rx
    if OP == "expmap0":
        return 0.5 * factor * coth_excess(tl.sqrt(z))
    elif OP == "logmap0":
        s, cosh = tl.sqrt(z), tl.sqrt(1 + z)
        excess = arc_excess(s / cosh, asinh(s)) / or_one(s) / or_one(s) / or_one(s)
        return -0.5 * tl.where(s == 0, 1.0 / 3, excess)
    elif OP == "to_klein":
        return -0.5 * factor / (1 + z)
    elif OP == "to_poincare":
        cosh = tl.sqrt(1 + z)
        return -0.5 * factor / ((1 + cosh) * cosh)
    elif OP == "from_klein":
        return 0.5 * factor * factor * factor
    else:
        return 0.5 * factor * factor


@triton.jit
def growth_partials(OP: tl.constexpr, m, c, along):
    none, factor, square = tl.zeros_like(c), growth(OP, m, c), m.rx * m.rx
    by_z = growth_partial(OP, factor, m, c)
    of_x, by_c = 2 * c * by_z * along.x, by_z * square * along.x
    if OP == "expmap0":  # of constant length for constant curvature
        _, long, beyond = expmap0_length(m.rx, c)
        moved = long | beyond
        of_x = tl.where(moved, -factor * along.x / or_one(square), of_x)
        by_log = tl.where(beyond, norm_limit_partial(c), -0.5 / c)
        by_c = tl.where(moved, factor * along.x * by_log, by_c)
    return Partials(Sum(of_x, none, none, factor), nothing(c), nothing(c), by_c)
