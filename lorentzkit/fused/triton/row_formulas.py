"""Scalar formulas of `_geometry` in Triton: values, coefficients, and their derivatives.

In float64, from operations of `tl` alone: the interpreter has no libdevice. Of float32 points,
results are to be right to 1e-9; that leaves room for the differences that `_geometry` rewrites for
the sake of float64 points, and they are taken plainly here.

x, y and u are the vectors of the row in the order of the op's arguments, g is the gradient with
respect to the op's vector of results. A sum of vectors has coefficients of x, b, u and g, with
``b = y - x`` of close points and else ``b = y``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

_PI = tl.constexpr(math.pi)
_INFINITY = tl.constexpr(math.inf)
_NAN = tl.constexpr(math.nan)
# max_radius("float32"), that of `norm_limit` as a length, and its bound for the sake of cubes
_RADIUS = tl.constexpr(40.0)
_SINH = tl.constexpr(math.sinh(40.0) * (1 + 2.0**-12))
_CUBE = tl.constexpr(2.0**62)
_APART = tl.constexpr(81.0)  # no two points are farther apart
_MOST = tl.constexpr(2.0**108)  # a millionth of the largest float32
_TINY = tl.constexpr(2.0**-66)  # `pairs.TINY`
_MARGIN = tl.constexpr(4 * 2.0**-23)  # to the sphere, of points of the ball (`ops.models`)
# No two float32 directions are so close, but equal ones.
_ALIGNED = tl.constexpr(1e-28)
_SMALLEST_CURV = tl.constexpr(1e-8 * (1 - 2.0**-24))
_LARGEST_CURV = tl.constexpr(1e8)

# Taylor, highest order first, each long enough for 1e-13 where it is used.
# atan(t)/t in t**2 <= 0.04
_ARCTAN = tl.constexpr(tuple((-1) ** k / (2 * k + 1) for k in range(9, -1, -1)))
# (artanh(t)/t - 1)/t**2 in t**2 <= 0.1
_ARTANH = tl.constexpr(tuple(1 / (2 * k + 1) for k in range(13, 0, -1)))
# (t coth(t) - 1)/t**2 in t**2 <= 0.25
_COTH = tl.constexpr(
    (
        -3617 / 162820783125, 4 / 18243225, -1382 / 638512875, 2 / 93555, -1 / 4725,
        2 / 945, -1 / 45, 1 / 3,
    )
)  # fmt: skip


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


class Slopes(NamedTuple):
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
    turn: tl.tensor
    gap: tl.tensor
    T: tl.tensor
    R: tl.tensor


# --- Elementary functions -------------------------------------------------------------------------


@triton.jit
def polynomial(coefficients: tl.constexpr, COUNT: tl.constexpr, z):
    total = tl.full(z.shape, coefficients[0], tl.float64)
    for k in tl.static_range(1, COUNT):
        total = total * z + coefficients[k]
    return total


@triton.jit
def or_one(x):
    return tl.where(x == 0, 1.0, x)


@triton.jit
def log1p(z):
    """The error of ``1 + z`` enters numerator and denominator alike (Goldberg 1991, theorem 4)."""
    total = 1 + z
    return tl.where(total == 1, z, tl.log(total) * z / or_one(total - 1))


@triton.jit
def expm1(z):
    """By the same device (Kahan), for ``|z| < 700``."""
    total = tl.exp(z)
    return tl.where(total == 1, z, (total - 1) * z / or_one(tl.log(total)))


@triton.jit
def asinh(s):
    """For ``s >= 0``."""
    return log1p(s + s * (s / (1 + tl.sqrt(1 + s * s))))


@triton.jit
def sinh(t):
    """For ``t >= 0``."""
    less = expm1(t)
    return 0.5 * (less + less / (1 + less))


@triton.jit
def angle_of(n, m):
    """``atan2(n, m)`` for ``n >= 0``; minimum and maximum of the hardware would drop NaN."""
    size = tl.abs(m)
    steep = n > size
    t = tl.where(steep, size, n) / tl.where(steep, n, size)
    t = t / (1 + tl.sqrt(1 + t * t))
    t = t / (1 + tl.sqrt(1 + t * t))  # a quarter of the angle
    angle = 4 * t * polynomial(_ARCTAN, 10, t * t)
    acute = tl.where(steep, 0.5 * _PI - angle, angle)
    return tl.where(m < 0, _PI - acute, acute)


@triton.jit
def arc_excess(t, arc):
    """``arc - t`` for ``t = tanh(arc)``."""
    square = t * t
    return tl.where(square < 0.1, t * square * polynomial(_ARTANH, 13, square), arc - t)


@triton.jit
def coth_excess(t):
    """``(t coth t - 1)/t**2`` for ``t >= 0``."""
    square = t * t
    small = square < 0.25
    decay = tl.exp(-2 * t)
    far = (t * (1 + decay) / or_one(1 - decay) - 1) / or_one(square)
    return tl.where(small, polynomial(_COTH, 8, tl.where(small, square, 0.0)), far)


# --- Curvature and radii --------------------------------------------------------------------------


@triton.jit
def valid_curvature(c):
    """NaN instead of an error, for which the host would wait."""
    return tl.where((c >= _SMALLEST_CURV) & (c <= _LARGEST_CURV), c, _NAN)


@triton.jit
def norm_limit(c):
    """See `_checks`."""
    root = tl.sqrt(c)
    radius, cube = 1 / root * _SINH, tl.sqrt(root) * _CUBE
    return tl.where(radius > cube, cube, radius)


@triton.jit
def norm_limit_slope(c):
    """The derivative by c of its logarithm."""
    root = tl.sqrt(c)
    return tl.where(1 / root * _SINH > tl.sqrt(root) * _CUBE, 0.25, -0.5) / c


@triton.jit
def length_of(square):
    """Its root; of infinity, NaN."""
    return tl.where(square < _INFINITY, tl.sqrt(square), _NAN)


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
    turn = difference * ((a + b) / or_one(a * y_cosh + x_cosh * b))
    t = turn / tl.sqrt(2 + 2 * tl.sqrt(1 + turn * turn))
    T = t * t + 0.5 * a * b * h
    gap = difference * ((a + b) / (x_cosh + y_cosh))
    return Triangle(a, b, x_cosh, y_cosh, turn, gap, T, 2 * tl.sqrt(T) * tl.sqrt(1 + T))


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
    cosine = -tri.turn - tri.x_cosh * leg * m.h
    return leg * tl.sqrt(m.h * m.g), tl.where(tri.R == 0, 1.0, cosine)


@triton.jit
def half_aperture(s, k):
    """Of ``k`` twice the least radius."""
    cone = (s <= k) == 0  # so that NaN stays NaN
    s = tl.where(cone, s, 2 * k)
    angle = angle_of(k, tl.sqrt(s - k) * tl.sqrt(s + k))
    return tl.where(cone, angle, 0.5 * _PI)


@triton.jit
def pair_value(OP: tl.constexpr, m, c, k, scale):
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
def angle_change(m, tri, at):
    """See `triangle.angle_change`: derivatives by h, by both radii, and by c times ``2 c``."""
    square = m.h * m.g
    sine = tl.sqrt(square)
    inverse_sine = tl.where(square == 0, 0.0, 1 / or_one(sine))
    inverse, both = inverse_of(tri.R), apex(m)
    n_x, n_y = tri.y_sinh * both * inverse, tri.x_sinh * both * inverse
    m_y = (tri.turn - tri.y_cosh * tri.x_sinh * both * m.h) * inverse
    sine_x = at * n_x * sine
    product, tilt = tri.x_sinh * tri.y_sinh * m.h * inverse, tri.turn * inverse
    x_tanh, y_tanh = tri.x_sinh / tri.x_cosh, tri.y_sinh / tri.y_cosh
    by_a = sine_x * (1 + 2 * tri.T) * inverse
    by_b = -at * n_y * sine * inverse
    return -at * n_x * m_y * inverse_sine, by_a, by_b, sine_x * x_tanh * (product - tilt * y_tanh)


@triton.jit
def distance_change(tri, h, inverse, at):
    spread = (tri.gap / tri.x_cosh) * (tri.gap / tri.y_cosh)
    excess = 2 * arc_excess(2 * tri.T * inverse, 0.5 * distance(tri)) + spread * inverse
    m_x = -tri.turn - tri.x_cosh * tri.y_sinh * h
    m_y = tri.turn - tri.y_cosh * tri.x_sinh * h
    by_h = at * tri.x_sinh * inverse * tri.y_sinh
    return by_h, -at * m_x * inverse, -at * m_y * inverse, -at * excess


@triton.jit
def inner_change(tri, h, at):
    m_x = -tri.turn - tri.x_cosh * tri.y_sinh * h
    m_y = tri.turn - tri.y_cosh * tri.x_sinh * h
    ratios = tri.x_cosh / tri.y_cosh + tri.y_cosh / tri.x_cosh
    return at * tri.x_sinh * tri.y_sinh, -at * m_x, -at * m_y, -at * ratios


@triton.jit
def pair_slopes(OP: tl.constexpr, m, c, k, scale, at):
    """See `pairs._slopes`."""
    root, none = tl.sqrt(c), tl.zeros_like(c)
    if OP == "entailment_residual":
        at = tl.where(pair_value(OP, m, c, k, scale) > 0, at, 0.0)
    # In the origin's place derivatives take their limit; two points there coincide.
    rx, ry = tl.where(m.rx < _TINY, _TINY, m.rx), tl.where(m.ry < _TINY, _TINY, m.ry)
    h = tl.where((m.rx == 0) & (m.ry == 0), 0.0, m.h)
    tri = triangle(rx, ry, m.dr, h, root)
    if OP == "dist":
        by_h, by_a, by_b, by_c = distance_change(tri, h, inverse_of(tri.R), at / root)
    elif OP == "inner":
        by_h, by_a, by_b, by_c = inner_change(tri, h, -at / c)
    elif OP == "interior_angle":
        by_h, by_a, by_b, by_c = angle_change(m, tri, -at)
    else:
        by_h, by_a, by_b, by_c = angle_change(m, tri, at)
    by_a, by_b, by_c = by_a * root / tri.x_cosh, by_b * root / tri.y_cosh, by_c / (2 * c)
    if OP == "entailment_residual":
        by_rx, by_k = half_aperture_slopes(m.rx, c, k)
        by_a, by_c = by_a - scale * at * by_rx, by_c - scale * at * by_k
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
    return Slopes(by_x, by_y, nothing(c), by_c)


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
def half_aperture_slopes(r, c, k):
    """By r and by c."""
    s = tl.sqrt(c) * r
    cone = s > k
    far = tl.where(cone, s, 2 * k)
    by_s = tl.where(cone, -k / (far * tl.sqrt(far - k) * tl.sqrt(far + k)), s - s)
    return by_s * tl.sqrt(c), by_s * s / (2 * c)


@triton.jit
def single_slopes(OP: tl.constexpr, m, c, k, at):
    root = tl.sqrt(c)
    s = root * m.rx
    cosh = tl.sqrt(1 + s * s)
    if OP == "dist0":
        by_r, by_c = 1 / cosh, -arc_excess(s / cosh, asinh(s)) / (2 * c * root)
    elif OP == "time":
        by_r, by_c = s / cosh, -0.5 / (c * root * cosh)
    else:
        by_r, by_c = half_aperture_slopes(m.rx, c, k)
    none = tl.zeros_like(c)
    by_x = Sum(tl.where(m.rx == 0, 0.0, at * by_r / or_one(m.rx)), none, none, none)
    return Slopes(by_x, nothing(c), nothing(c), at * by_c)


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
        gap = tl.where(z < 1, 1 - z, _NAN)
        return 1 / tl.sqrt(gap) if OP == "from_klein" else 2 / gap


@triton.jit
def growth_slope(OP: tl.constexpr, of, m, c):
    """The derivative of `growth`, which is ``of``, by ``c |x|**2``."""
    z = c * m.rx * m.rx
    if OP == "expmap0":
        return 0.5 * of * coth_excess(tl.sqrt(z))
    elif OP == "logmap0":
        s, cosh = tl.sqrt(z), tl.sqrt(1 + z)
        excess = arc_excess(s / cosh, asinh(s)) / or_one(s) / or_one(s) / or_one(s)
        return -0.5 * tl.where(s == 0, 1.0 / 3, excess)
    elif OP == "to_klein":
        return -0.5 * of / (1 + z)
    elif OP == "to_poincare":
        cosh = tl.sqrt(1 + z)
        return -0.5 * of / ((1 + cosh) * cosh)
    elif OP == "from_klein":
        return 0.5 * of * of * of
    else:
        return 0.5 * of * of


@triton.jit
def growth_slopes(OP: tl.constexpr, m, c, along):
    none, of, square = tl.zeros_like(c), growth(OP, m, c), m.rx * m.rx
    by_z = growth_slope(OP, of, m, c)
    of_x, by_c = 2 * c * by_z * along.x, by_z * square * along.x
    if OP == "expmap0":  # of constant length for constant curvature
        _, long, beyond = expmap0_length(m.rx, c)
        moved = long | beyond
        of_x = tl.where(moved, -of * along.x / or_one(square), of_x)
        by_log = tl.where(beyond, norm_limit_slope(c), -0.5 / c)
        by_c = tl.where(moved, of * along.x * by_log, by_c)
    return Slopes(Sum(of_x, none, none, of), nothing(c), nothing(c), by_c)


# --- Tangent vectors: y is one, at x --------------------------------------------------------------


@triton.jit
def cosh_of(r, c):
    return tl.sqrt(1 + c * r * r)


@triton.jit
def tangent_parts(m, c):
    """Lengths of y's parts across x and, Riemannian, along it; that of y."""
    across, along = m.ry * tl.sqrt(m.sine2), m.ry * m.cosine / cosh_of(m.rx, c)
    return across, along, tl.sqrt(across * across + along * along)


@triton.jit
def tangent_projection(m, c):
    """Coefficients of x and y in ``y - c (x.y)/cosh**2 x``, half the gradient of ``<y, y>``."""
    cosh = cosh_of(m.rx, c)
    inverse = 1 / cosh / cosh
    radial = m.xy / or_one(m.rx * m.rx)
    aligned = m.sine2 == 0  # where y and its part along x would leave noise
    return tl.where(aligned, radial * inverse, -c * m.xy * inverse), tl.where(aligned, 0.0, 1.0)


@triton.jit
def tangent_value(OP: tl.constexpr, m, c):
    if OP == "tangent_norm":
        _, _, length = tangent_parts(m, c)
        return length
    else:  # of y and u
        cosh, r = cosh_of(m.rx, c), or_one(m.rx)
        return m.across + (m.ry * m.cosine / cosh) * (m.xu / r / cosh)


@triton.jit
def tangent_slopes(OP: tl.constexpr, m, c, at):
    none, cosh = tl.zeros_like(c), cosh_of(m.rx, c)
    slant = c * m.xy / cosh / cosh
    if OP == "tangent_norm":
        _, along, length = tangent_parts(m, c)
        by = at * inverse_of(length)
        of_x, of_y = tangent_projection(m, c)
        by_y = Sum(by * of_x, by * of_y, none, none)
        by_x = Sum(-slant * by_y.x, -slant * by_y.b, none, none)
        ratio = along * (m.rx / cosh)
        return Slopes(by_x, by_y, nothing(c), -0.5 * by * ratio * ratio)
    else:
        other = c * m.xu / cosh / cosh
        by_x = Sum(2 * at * slant * other, -at * other, -at * slant, none)
        by_y = Sum(-at * other, none, at, none)
        by_u = Sum(-at * slant, at, none, none)
        by_c = -at * (m.xy / cosh / cosh) * (m.xu / cosh / cosh)
        return Slopes(by_x, by_y, by_u, by_c)


@triton.jit
def slant_coefficient(OP: tl.constexpr, m, c):
    """How much of x is added to y, over x.y; and its derivatives by ``|x|**2`` and by c."""
    cosh = cosh_of(m.rx, c)
    if OP == "transp0":
        of = c / (1 + cosh)
        return of, -0.5 * of * of / cosh, 0.5 / cosh
    elif OP == "transp0back":
        of = -c / (cosh * (1 + cosh))
        return of, 0.5 * of * of * (1 + 2 * cosh) / cosh, -0.5 / cosh / cosh / cosh
    else:  # egrad2rgrad
        return c, tl.zeros_like(c), tl.zeros_like(c) + 1


@triton.jit
def slant_slopes(OP: tl.constexpr, m, c, along):
    none = tl.zeros_like(c)
    of, by_square, by_c = slant_coefficient(OP, m, c)
    by_x = Sum(2 * by_square * m.xy * along.x, of * along.x, none, of * m.xy)
    by_y = Sum(of * along.x, none, none, none + 1)
    return Slopes(by_x, by_y, nothing(c), by_c * m.xy * along.x)


# --- Exponential and logarithmic map --------------------------------------------------------------


class Path(NamedTuple):
    """A point ``of_x x + of_y y``, times ``shrink`` onto the largest radius."""

    of_x: tl.tensor
    of_y: tl.tensor
    size: tl.tensor
    shrink: tl.tensor
    constant: tl.tensor
    """Whether it is so far that derivatives are left out"""


@triton.jit
def path(of_x, of_y, m, c, constant):
    square = of_x * of_x * m.rx * m.rx + of_y * of_y * m.ry * m.ry + 2 * of_x * of_y * m.xy
    # What cancels leaves no less than its rounding.
    noise = (tl.abs(of_x) * m.rx + tl.abs(of_y) * m.ry) * 2.0**-52
    size = tl.where(square > noise * noise, tl.sqrt(tl.where(square > 0, square, 0.0)), noise)
    limit = norm_limit(c)
    shrink = tl.where(size > limit, limit / or_one(size), 1.0)
    return Path(of_x, of_y, size, shrink, constant)


@triton.jit
def weight_slopes(of, m, c, along):
    """With constant weights: of x and y; by c; and products with the gradient by ``of``."""
    none, beyond = tl.zeros_like(c), of.shrink < 1
    # Where the point is at the largest radius, only g's part across it counts.
    whole = of.of_x * along.x + of.of_y * along.y
    radial = tl.where(beyond, whole / or_one(of.size) / or_one(of.size), 0.0)
    with_x = of.of_x * m.rx * m.rx + of.of_y * m.xy
    with_y = of.of_x * m.xy + of.of_y * m.ry * m.ry
    shrink = tl.where(of.constant, 0.0, of.shrink)
    inward = Along(
        shrink * (along.x - radial * with_x), shrink * (along.y - radial * with_y), along.u
    )
    back = shrink * radial
    of_x, of_b = -back * (of.of_x + m.close * of.of_y), -back * of.of_y
    by_x = Sum(of.of_x * of_x, of.of_x * of_b, none, of.of_x * shrink)
    by_y = Sum(of.of_y * of_x, of.of_y * of_b, none, of.of_y * shrink)
    return by_x, by_y, tl.where(beyond, shrink * whole * norm_limit_slope(c), 0.0), inward


@triton.jit
def step(m, c):
    """The exponential map of y at x, and the length of the step times ``sqrt(c)``."""
    _, _, length = tangent_parts(m, c)
    arc = tl.sqrt(c) * length
    long = arc > _APART  # ends beyond the largest radius anyway, and is shortened first
    shorter = tl.where(long, 1 / or_one(arc) * _APART, 1.0)
    arc = tl.where(long, _APART, arc)
    of_y = tl.where(arc == 0, 1.0, sinh(arc) / or_one(arc))
    of_x = tl.sqrt(1 + arc * arc * of_y * of_y)
    return path(of_x, of_y * shorter, m, c, long), arc


@triton.jit
def step_slopes(m, c, along):
    of, arc = step(m, c)
    by_x, by_y, by_c, inward = weight_slopes(of, m, c, along)
    # By the square of the arc, c times that of the length.
    by_square = 0.5 * of.of_y * (inward.x + coth_excess(arc) * inward.y)
    cosh, by = cosh_of(m.rx, c), 2 * c * by_square
    slant = c * m.xy / cosh / cosh
    of_x, of_y = tangent_projection(m, c)
    by_x = Sum(by_x.x - slant * by * of_x, by_x.b - slant * by * of_y, by_x.u, by_x.g)
    by_y = Sum(by_y.x + by * of_x, by_y.b + by * of_y, by_y.u, by_y.g)
    across, part, _ = tangent_parts(m, c)
    by_c += by_square * (across * across + (part / cosh) * (part / cosh))
    return Slopes(by_x, by_y, nothing(c), by_c)


@triton.jit
def logmap_weights(tri):
    """``s tanh(s/2)`` and ``s/sinh(s)``, s the distance times ``sqrt(c)``."""
    ratio = tl.where(tri.R == 0, 1.0, distance(tri) / or_one(tri.R))
    return 2 * tri.T * ratio, ratio


@triton.jit
def aligned_turn(m, tri):
    """``sinh(a - b)``, of opposite points ``sinh(a + b)``."""
    opposite = tri.x_sinh * tri.y_cosh + tri.x_cosh * tri.y_sinh
    return tl.where(m.cosine < 0, opposite, tri.turn)


@triton.jit
def cosh_slopes(m, tri, c, by):
    """The gradient of ``by cosh(s)``: of x, of y, by c."""
    none, aligned = tl.zeros_like(c), m.sine2 == 0
    # y0/x0 and x0/y0, of close points less 1
    of_x = by * c * tl.where(m.close > 0, -tri.gap / tri.x_cosh, tri.y_cosh / tri.x_cosh)
    of_y = by * c * tl.where(m.close > 0, tri.gap / tri.y_cosh, -1.0)
    # Of aligned points the sum of x and y would be noise: theirs is cosh(a - b) or cosh(a + b).
    radial = by * tl.sqrt(c) * aligned_turn(m, tri) / or_one(m.rx)
    by_x = Sum(
        tl.where(aligned, radial / tri.x_cosh, of_x), tl.where(aligned, 0.0, -by * c), none, none
    )
    of_b = tl.where(aligned, 0.0, by * c * tri.x_cosh / tri.y_cosh)
    by_y = Sum(tl.where(aligned, -radial / tri.y_cosh, of_y), of_b, none, none)
    by_c = (tri.turn / tri.x_cosh) * (tri.turn / tri.y_cosh) / (2 * c) + m.rx * m.ry * m.h
    return by_x, by_y, by * by_c


@triton.jit
def logmap_slopes(m, c, along):
    tri = triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    back, ratio = logmap_weights(tri)
    by_back = 0.5 * (1 + ratio) / (1 + tri.T)
    by_ratio = -coth_excess(distance(tri)) * ratio * ratio
    by = by_ratio * (along.y - along.x) - by_back * along.x
    by_x, by_y, by_c = cosh_slopes(m, tri, c, by)
    by_x = Sum(by_x.x, by_x.b, by_x.u, -back - ratio)
    by_y = Sum(by_y.x, by_y.b, by_y.u, ratio)
    return Slopes(by_x, by_y, nothing(c), by_c)


# --- Geodesics: sinh((1 - t) s)/sinh(s) x + sinh(t s)/sinh(s) y -----------------------------------


@triton.jit
def one_less_exp(z):
    """``1 - exp(-z)`` for ``z >= 0``."""
    return -expm1(-tl.where(z > 50, 50.0, z))


@triton.jit
def sinh_ratios(t, s):
    """``sinh(t s)/sinh(s)`` and ``s cosh(t s)/sinh(s)``, over ``exp((|t| - 1) s)``."""
    size, whole = tl.abs(t), one_less_exp(2 * s)
    ratio = tl.where(s == 0, size, one_less_exp(2 * size * s) / or_one(whole))
    slope = tl.where(s == 0, 0.5, s / or_one(whole)) * (1 + tl.exp(-2 * size * s))
    return tl.where(t < 0, -ratio, ratio), slope


class Geodesic(NamedTuple):
    at: Path
    t: tl.tensor
    arc: tl.tensor
    x_slope: tl.tensor
    y_slope: tl.tensor
    """Derivatives of the weights by ``1 - t`` and by t"""


@triton.jit
def geodesic(m, tri, c, t):
    # Its square must not overflow; of infinity, NaN.
    t = t + (t - t)
    t = tl.where(t > 2.0**50, 2.0**50, tl.where(t < -(2.0**50), -(2.0**50), t))
    s, rest = distance(tri), 1 - t
    most = tl.where(tl.abs(t) > tl.abs(rest), tl.abs(t), tl.abs(rest))
    beyond = tl.where(most > 1, most - 1, 0.0)  # 0 between the two points
    k = beyond * s
    far = k > _APART
    k = tl.where(far, _APART, k)
    x_growth = tl.exp((tl.abs(rest) - 1 - beyond) * s + k)
    y_growth = tl.exp((tl.abs(t) - 1 - beyond) * s + k)
    of_x, x_slope = sinh_ratios(rest, s)
    of_y, y_slope = sinh_ratios(t, s)
    at = path(of_x * x_growth, of_y * y_growth, m, c, far)
    return Geodesic(at, t, s, x_slope * x_growth, y_slope * y_growth)


@triton.jit
def geodesic_slopes(m, c, t, along):
    """`Slopes`, and the derivative by t."""
    tri = triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    of = geodesic(m, tri, c, t)
    by_x, by_y, by_c, inward = weight_slopes(of.at, m, c, along)
    by_t = inward.y * of.y_slope - inward.x * of.x_slope
    by_t = tl.where(tl.abs(t) > 2.0**50, 0.0, by_t)
    # By cosh(s). Derivatives of the weights grow as t**3: what would overflow is left out.
    _, ratio = logmap_weights(tri)
    rest, size = 1 - of.t, tl.where(m.rx > m.ry, m.rx, m.ry)
    far, near = rest * rest * coth_excess(tl.abs(rest) * of.arc), coth_excess(of.arc)
    by = inward.x * of.at.of_x * (far - near)
    far = of.t * of.t * coth_excess(tl.abs(of.t) * of.arc)
    by = ratio * (by + inward.y * of.at.of_y * (far - near))
    cube = tl.abs(of.t) * of.t * of.t
    by = tl.where(cube * size > _MOST, 0.0, by)
    along_x, along_y, along_c = cosh_slopes(m, tri, c, by)
    by_x = Sum(by_x.x + along_x.x, by_x.b + along_x.b, by_x.u, by_x.g)
    by_y = Sum(by_y.x + along_y.x, by_y.b + along_y.b, by_y.u, by_y.g)
    return Slopes(by_x, by_y, nothing(c), by_c + along_c), by_t


# --- Parallel transport: u + slope (x + y) ------------------------------------------------------


class Transport(NamedTuple):
    """``slope = -(radial above - c across) / below`` with ``below = 1 - c <x, y>``."""

    slope: tl.tensor
    radial: tl.tensor
    turned: tl.tensor
    lifted: tl.tensor
    """Their sum is ``above``."""
    whole: tl.tensor
    below: tl.tensor


@triton.jit
def transport(m, tri, c):
    root = tl.sqrt(c)
    radial = m.xu / or_one(m.rx)
    turned, lifted = root * tri.turn / tri.x_cosh, c * m.ry * m.h
    whole = 1 + tl.sqrt(1 + tri.turn * tri.turn)  # 1 + cosh(a - b)
    below = whole + tri.x_sinh * tri.y_sinh * m.h
    slope = -(radial * (turned + lifted) - c * m.across) / below
    return Transport(slope, radial, turned, lifted, whole, below)


@triton.jit
def transport_slope_by_c(m, tri, of, c):
    """By the identity ``cosh(a - b) - sinh(a - b) tanh(a) = cosh(b)/cosh(a)`` nothing cancels."""
    x_sech, y_sech = 1 / tri.x_cosh, 1 / tri.y_cosh
    tanhs = tri.x_sinh * x_sech + tri.y_sinh * y_sech
    turned = of.turned * (0.5 * of.whole * x_sech * (x_sech + y_sech))
    lifted = of.lifted * (1 + tri.y_cosh * x_sech + 0.5 * (tri.turn * x_sech) * (tanhs * x_sech))
    across = m.across * (of.whole - 0.5 * (tri.turn * x_sech) * (tri.turn * y_sech))
    return -(of.radial * (turned + lifted) / c - across) / of.below / of.below


@triton.jit
def transport_slopes(m, c, along):
    none, tri = tl.zeros_like(c), triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    of = transport(m, tri, c)
    at = along.x + along.y
    # By the product -<y, u> and by what it is divided by.
    by = -c * at / of.below
    below_x, below_y, _ = cosh_slopes(m, tri, c, -of.slope * at / of.below)
    ratio = tri.y_cosh / tri.x_cosh
    slant, of_y = c * m.xu / tri.x_cosh / tri.x_cosh, c * m.xu / tri.x_cosh / tri.y_cosh
    less = tl.where(m.close > 0, -tri.gap / tri.x_cosh, ratio)
    by_x = Sum(below_x.x - by * ratio * slant, below_x.b, by * ratio, of.slope)
    by_y = Sum(below_y.x + by * of_y * m.close, below_y.b + by * of_y, -by, of.slope)
    aligned = m.sine2 == 0
    radial = aligned_turn(m, tri) / (tri.x_cosh * or_one(tri.x_sinh))
    by_u = Sum(by * tl.where(aligned, radial, less), tl.where(aligned, 0.0, -by), none, none + 1)
    return Slopes(by_x, by_y, by_u, at * transport_slope_by_c(m, tri, of, c))


# --- By op ----------------------------------------------------------------------------------------


@triton.jit
def value(OP: tl.constexpr, VECTORS: tl.constexpr, POINTS: tl.constexpr, m, c, k, scale):
    """Of an op with one number a row."""
    if VECTORS == 1:
        return single_value(OP, m, c, k)
    elif POINTS == 2:
        return pair_value(OP, m, c, k, scale)
    else:
        return tangent_value(OP, m, c)


@triton.jit
def coefficients(OP: tl.constexpr, VECTORS: tl.constexpr, m, c, t):
    """Of x, b and u, of an op with a vector a row."""
    none = tl.zeros_like(c)
    if VECTORS == 1:
        return growth(OP, m, c), none, none
    elif OP == "expmap":
        of, _ = step(m, c)
        return of.of_x * of.shrink, of.of_y * of.shrink, none
    elif OP == "logmap":
        back, ratio = logmap_weights(triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)))
        return -back - (1 - m.close) * ratio, ratio, none
    elif OP == "geodesic":
        of = geodesic(m, triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)), c, t).at
        of_x, of_y = of.of_x * of.shrink, of.of_y * of.shrink
        return of_x + m.close * of_y, of_y, none
    elif OP == "transp":
        of = transport(m, triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)), c)
        return of.slope * (1 + m.close), of.slope, none + 1
    else:
        of, _, _ = slant_coefficient(OP, m, c)
        return of * m.xy, none + 1, none


@triton.jit
def slopes(
    OP: tl.constexpr, VECTORS: tl.constexpr, POINTS: tl.constexpr, SCALAR: tl.constexpr,
    m, c, k, scale, t, at, along,
):  # fmt: skip
    """The gradients, and that by t, for the gradient ``at`` or for products with a vector of it."""
    by_t = tl.zeros_like(c)
    if SCALAR:
        if VECTORS == 1:
            by = single_slopes(OP, m, c, k, at)
        elif POINTS == 2:
            by = pair_slopes(OP, m, c, k, scale, at)
        else:
            by = tangent_slopes(OP, m, c, at)
    elif VECTORS == 1:
        by = growth_slopes(OP, m, c, along)
    elif OP == "expmap":
        by = step_slopes(m, c, along)
    elif OP == "logmap":
        by = logmap_slopes(m, c, along)
    elif OP == "geodesic":
        by, by_t = geodesic_slopes(m, c, t, along)
    elif OP == "transp":
        by = transport_slopes(m, c, along)
    else:
        by = slant_slopes(OP, m, c, along)
    return by, by_t
