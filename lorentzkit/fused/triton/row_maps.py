"""Scalar formulas of `_geometry` in Triton: tangent vectors, maps, transport; the choice by op.

The letters are those of `row_formulas`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from lorentzkit.fused.triton.elementary import (
    coth_excess,
    one_less_exp,
    or_one,
    sinh,
)
from lorentzkit.fused.triton.row_formulas import (
    Along,
    Partials,
    Sum,
    distance,
    growth,
    growth_partials,
    inverse_of,
    norm_limit,
    norm_limit_partial,
    nothing,
    pair_value,
    pair_vjp,
    single_value,
    single_vjp,
    triangle,
)

_APART = tl.constexpr(81.0)  # no two points are farther apart
_MOST = tl.constexpr(2.0**108)  # a millionth of the largest float32


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
def tangent_slopes(OP: tl.constexpr, m, c, grad_output):
    none, cosh = tl.zeros_like(c), cosh_of(m.rx, c)
    slant = c * m.xy / cosh / cosh
    if OP == "tangent_norm":
        _, along, length = tangent_parts(m, c)
        by = grad_output * inverse_of(length)
        of_x, of_y = tangent_projection(m, c)
        by_y = Sum(by * of_x, by * of_y, none, none)
        by_x = Sum(-slant * by_y.x, -slant * by_y.b, none, none)
        ratio = along * (m.rx / cosh)
        return Partials(by_x, by_y, nothing(c), -0.5 * by * ratio * ratio)
    else:
        tilt = c * m.xu / cosh / cosh
        by_x = Sum(2 * grad_output * slant * tilt, -grad_output * tilt, -grad_output * slant, none)
        by_y = Sum(-grad_output * tilt, none, grad_output, none)
        by_u = Sum(-grad_output * slant, grad_output, none, none)
        by_c = -grad_output * (m.xy / cosh / cosh) * (m.xu / cosh / cosh)
        return Partials(by_x, by_y, by_u, by_c)


@triton.jit
def slant_coefficient(OP: tl.constexpr, m, c):
    """How much of x is added to y, over x.y; and its derivatives by ``|x|**2`` and by c."""
    cosh = cosh_of(m.rx, c)
    if OP == "transp0":
        coefficient = c / (1 + cosh)
        return coefficient, -0.5 * coefficient * coefficient / cosh, 0.5 / cosh
    elif OP == "transp0back":
        coefficient = -c / (cosh * (1 + cosh))
        return (
            coefficient,
            0.5 * coefficient * coefficient * (1 + 2 * cosh) / cosh,
            -0.5 / cosh / cosh / cosh,
        )
    else:  # egrad2rgrad
        return c, tl.zeros_like(c), tl.zeros_like(c) + 1


@triton.jit
def slant_slopes(OP: tl.constexpr, m, c, along):
    none = tl.zeros_like(c)
    coefficient, by_square, by_c = slant_coefficient(OP, m, c)
    by_x = Sum(2 * by_square * m.xy * along.x, coefficient * along.x, none, coefficient * m.xy)
    by_y = Sum(coefficient * along.x, none, none, none + 1)
    return Partials(by_x, by_y, nothing(c), by_c * m.xy * along.x)


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
def weight_slopes(weights, m, c, along):
    """With constant weights: of x and y; by c; and products with the gradient by ``of``."""
    none, beyond = tl.zeros_like(c), weights.shrink < 1
    # Where the point is at the largest radius, only g's part across it counts.
    whole = weights.of_x * along.x + weights.of_y * along.y
    radial = tl.where(beyond, whole / or_one(weights.size) / or_one(weights.size), 0.0)
    with_x = weights.of_x * m.rx * m.rx + weights.of_y * m.xy
    with_y = weights.of_x * m.xy + weights.of_y * m.ry * m.ry
    shrink = tl.where(weights.constant, 0.0, weights.shrink)
    inward = Along(
        shrink * (along.x - radial * with_x), shrink * (along.y - radial * with_y), along.u
    )
    back = shrink * radial
    of_x, of_b = -back * (weights.of_x + m.close * weights.of_y), -back * weights.of_y
    by_x = Sum(weights.of_x * of_x, weights.of_x * of_b, none, weights.of_x * shrink)
    by_y = Sum(weights.of_y * of_x, weights.of_y * of_b, none, weights.of_y * shrink)
    return by_x, by_y, tl.where(beyond, shrink * whole * norm_limit_partial(c), 0.0), inward


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
    weights, arc = step(m, c)
    by_x, by_y, by_c, inward = weight_slopes(weights, m, c, along)
    # By the square of the arc, c times that of the length.
    by_square = 0.5 * weights.of_y * (inward.x + coth_excess(arc) * inward.y)
    cosh, by = cosh_of(m.rx, c), 2 * c * by_square
    slant = c * m.xy / cosh / cosh
    of_x, of_y = tangent_projection(m, c)
    by_x = Sum(by_x.x - slant * by * of_x, by_x.b - slant * by * of_y, by_x.u, by_x.g)
    by_y = Sum(by_y.x + by * of_x, by_y.b + by * of_y, by_y.u, by_y.g)
    across, part, _ = tangent_parts(m, c)
    by_c += by_square * (across * across + (part / cosh) * (part / cosh))
    return Partials(by_x, by_y, nothing(c), by_c)


@triton.jit
def logmap_weights(tri):
    """``s tanh(s/2)`` and ``s/sinh(s)``, s the distance times ``sqrt(c)``."""
    ratio = tl.where(tri.R == 0, 1.0, distance(tri) / or_one(tri.R))
    return 2 * tri.T * ratio, ratio


@triton.jit
def aligned_turn(m, tri):
    """``sinh(a - b)``, of opposite points ``sinh(a + b)``."""
    opposite = tri.x_sinh * tri.y_cosh + tri.x_cosh * tri.y_sinh
    return tl.where(m.cosine < 0, opposite, tri.sinh_diff)


@triton.jit
def cosh_slopes(m, tri, c, by):
    """The gradient of ``by cosh(s)``: of x, of y, by c."""
    none, aligned = tl.zeros_like(c), m.sine2 == 0
    # y0/x0 and x0/y0, of close points less 1
    of_x = by * c * tl.where(m.close > 0, -tri.cosh_diff / tri.x_cosh, tri.y_cosh / tri.x_cosh)
    of_y = by * c * tl.where(m.close > 0, tri.cosh_diff / tri.y_cosh, -1.0)
    # Of aligned points the sum of x and y would be noise: theirs is cosh(a - b) or cosh(a + b).
    radial = by * tl.sqrt(c) * aligned_turn(m, tri) / or_one(m.rx)
    by_x = Sum(
        tl.where(aligned, radial / tri.x_cosh, of_x), tl.where(aligned, 0.0, -by * c), none, none
    )
    of_b = tl.where(aligned, 0.0, by * c * tri.x_cosh / tri.y_cosh)
    by_y = Sum(tl.where(aligned, -radial / tri.y_cosh, of_y), of_b, none, none)
    by_c = (tri.sinh_diff / tri.x_cosh) * (tri.sinh_diff / tri.y_cosh) / (2 * c) + m.rx * m.ry * m.h
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
    return Partials(by_x, by_y, nothing(c), by_c)


# --- Geodesics: sinh((1 - t) s)/sinh(s) x + sinh(t s)/sinh(s) y -----------------------------------


@triton.jit
def sinh_ratios(t, s):
    """``sinh(t s)/sinh(s)`` and ``s cosh(t s)/sinh(s)``, over ``exp((|t| - 1) s)``."""
    size, whole = tl.abs(t), one_less_exp(2 * s)
    ratio = tl.where(s == 0, size, one_less_exp(2 * size * s) / or_one(whole))
    slope = tl.where(s == 0, 0.5, s / or_one(whole)) * (1 + tl.exp(-2 * size * s))
    return tl.where(t < 0, -ratio, ratio), slope


class Geodesic(NamedTuple):
    weights: Path
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
    weights = path(of_x * x_growth, of_y * y_growth, m, c, far)
    return Geodesic(weights, t, s, x_slope * x_growth, y_slope * y_growth)


@triton.jit
def geodesic_slopes(m, c, t, along):
    """`Slopes`, and the derivative by t."""
    tri = triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    geo = geodesic(m, tri, c, t)
    by_x, by_y, by_c, inward = weight_slopes(geo.weights, m, c, along)
    by_t = inward.y * geo.y_slope - inward.x * geo.x_slope
    by_t = tl.where(tl.abs(t) > 2.0**50, 0.0, by_t)
    # By cosh(s). Derivatives of the weights grow as t**3: what would overflow is left out.
    _, ratio = logmap_weights(tri)
    rest, size = 1 - geo.t, tl.where(m.rx > m.ry, m.rx, m.ry)
    far, near = rest * rest * coth_excess(tl.abs(rest) * geo.arc), coth_excess(geo.arc)
    by = inward.x * geo.weights.of_x * (far - near)
    far = geo.t * geo.t * coth_excess(tl.abs(geo.t) * geo.arc)
    by = ratio * (by + inward.y * geo.weights.of_y * (far - near))
    cube = tl.abs(geo.t) * geo.t * geo.t
    by = tl.where(cube * size > _MOST, 0.0, by)
    along_x, along_y, along_c = cosh_slopes(m, tri, c, by)
    by_x = Sum(by_x.x + along_x.x, by_x.b + along_x.b, by_x.u, by_x.g)
    by_y = Sum(by_y.x + along_y.x, by_y.b + along_y.b, by_y.u, by_y.g)
    return Partials(by_x, by_y, nothing(c), by_c + along_c), by_t


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
    turned, lifted = root * tri.sinh_diff / tri.x_cosh, c * m.ry * m.h
    whole = 1 + tl.sqrt(1 + tri.sinh_diff * tri.sinh_diff)  # 1 + cosh(a - b)
    below = whole + tri.x_sinh * tri.y_sinh * m.h
    slope = -(radial * (turned + lifted) - c * m.across) / below
    return Transport(slope, radial, turned, lifted, whole, below)


@triton.jit
def transport_slope_by_c(m, tri, moved, c):
    """By the identity ``cosh(a - b) - sinh(a - b) tanh(a) = cosh(b)/cosh(a)`` nothing cancels."""
    x_sech, y_sech = 1 / tri.x_cosh, 1 / tri.y_cosh
    tanhs = tri.x_sinh * x_sech + tri.y_sinh * y_sech
    turned = moved.turned * (0.5 * moved.whole * x_sech * (x_sech + y_sech))
    lifted = moved.lifted * (
        1 + tri.y_cosh * x_sech + 0.5 * (tri.sinh_diff * x_sech) * (tanhs * x_sech)
    )
    across = m.across * (moved.whole - 0.5 * (tri.sinh_diff * x_sech) * (tri.sinh_diff * y_sech))
    return -(moved.radial * (turned + lifted) / c - across) / moved.below / moved.below


@triton.jit
def transport_slopes(m, c, along):
    none, tri = tl.zeros_like(c), triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c))
    moved = transport(m, tri, c)
    along_both = along.x + along.y
    # By the product -<y, u> and by what it is divided by.
    by = -c * along_both / moved.below
    below_x, below_y, _ = cosh_slopes(m, tri, c, -moved.slope * along_both / moved.below)
    ratio = tri.y_cosh / tri.x_cosh
    slant, of_y = c * m.xu / tri.x_cosh / tri.x_cosh, c * m.xu / tri.x_cosh / tri.y_cosh
    radial_part = tl.where(m.close > 0, -tri.cosh_diff / tri.x_cosh, ratio)
    by_x = Sum(below_x.x - by * ratio * slant, below_x.b, by * ratio, moved.slope)
    by_y = Sum(below_y.x + by * of_y * m.close, below_y.b + by * of_y, -by, moved.slope)
    aligned = m.sine2 == 0
    radial = aligned_turn(m, tri) / (tri.x_cosh * or_one(tri.x_sinh))
    by_u = Sum(
        by * tl.where(aligned, radial, radial_part), tl.where(aligned, 0.0, -by), none, none + 1
    )
    return Partials(by_x, by_y, by_u, along_both * transport_slope_by_c(m, tri, moved, c))


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
        weights, _ = step(m, c)
        return weights.of_x * weights.shrink, weights.of_y * weights.shrink, none
    elif OP == "logmap":
        back, ratio = logmap_weights(triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)))
        return -back - (1 - m.close) * ratio, ratio, none
    elif OP == "geodesic":
        weights = geodesic(m, triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)), c, t).weights
        of_x, of_y = weights.of_x * weights.shrink, weights.of_y * weights.shrink
        return of_x + m.close * of_y, of_y, none
    elif OP == "transp":
        moved = transport(m, triangle(m.rx, m.ry, m.dr, m.h, tl.sqrt(c)), c)
        return moved.slope * (1 + m.close), moved.slope, none + 1
    else:
        coefficient, _, _ = slant_coefficient(OP, m, c)
        return coefficient * m.xy, none + 1, none


@triton.jit
def slopes(
    OP: tl.constexpr, VECTORS: tl.constexpr, POINTS: tl.constexpr, SCALAR: tl.constexpr,
    m, c, k, scale, t, grad_output, grad_beta, along,
):  # fmt: skip
    """The gradients, and that by t, for the gradient ``at`` or for products with a vector of it."""
    by_t = tl.zeros_like(c)
    if SCALAR:
        if VECTORS == 1:
            by = single_vjp(OP, m, c, k, grad_output)
        elif POINTS == 2:
            by = pair_vjp(OP, m, c, k, scale, grad_output, grad_beta)
        else:
            by = tangent_slopes(OP, m, c, grad_output)
    elif VECTORS == 1:
        by = growth_partials(OP, m, c, along)
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
