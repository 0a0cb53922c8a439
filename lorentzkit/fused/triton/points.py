"""`formulas`, pair by pair, in Triton: rows ``(n, 1)`` are points x, columns ``(1, m)`` points y.

From operations of `tl` alone, so that the interpreter runs them and no branch slows them.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from lorentzkit._geometry import triangle as formulas
from lorentzkit.fused.triton.config import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
_PI = tl.constexpr(3.141592653589793)
# Under this the square of a sine is that of rounded unit vectors, and 0.
_SQUARE_OF_0 = tl.constexpr(1e-30)
# Smaller numbers are 0 to a GPU's roots; points that are so close coincide.
_LEAST = tl.constexpr(2.0**-125)
ALIGNED = tl.constexpr(1e-36)  # under that, but with a sign
_ARCTAN = tl.constexpr(tuple(formulas.ARCTAN))
# atanh(w)/w in w**2 on [0, 1/9], highest order first: Chebyshev, off by 8e-9.
_ARTANH = tl.constexpr(
    (0.14078889156761287, 0.13982578878397325, 0.20012297614909472, 0.3333316082070072, 1.0)
)
# (atanh(w)/w - 1)/w**2 in w**2 on [0, 0.1], Taylor.
_EXCESS = tl.constexpr(tuple(1 / (2 * k + 1) for k in range(6, 0, -1)))


class Point(NamedTuple):
    """See `triangle.Radial`."""

    sinh: tl.tensor
    cosh: tl.tensor
    grow: tl.tensor
    decay: tl.tensor
    rest: tl.tensor
    apex: tl.tensor


class Triangle(NamedTuple):
    t: tl.tensor
    turn: tl.tensor
    T: tl.tensor
    R: tl.tensor
    inverse: tl.tensor
    """``1/R``; 0 where the points coincide, and with it all derivatives."""


class Change(NamedTuple):
    h: tl.tensor
    a: tl.tensor
    b: tl.tensor
    c: tl.tensor


@triton.jit
def reciprocal(z):
    """One instruction, where a division takes eight; 0 of what is larger than 2**126."""
    if _INTERPRETED:
        return 1 / z
    else:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1
        )


@triton.jit
def load_point(scalars, i, number, count):
    """The points ``i`` of so many; whatever beyond the last, but finite.

    Args:
        scalars: of `prepare.Clouds`, from the first of these points on; ``count`` are of all.
    """
    at, within = scalars + i, i < number
    sinh = tl.load(at + 2 * count, mask=within, other=0.0)
    grow = tl.load(at + 3 * count, mask=within, other=1.0)
    decay = tl.load(at + 4 * count, mask=within, other=1.0)
    rest = tl.load(at + 5 * count, mask=within, other=0.0)
    apex = tl.load(at + 6 * count, mask=within, other=0.0)
    return Point(sinh, sinh + decay, grow, decay, rest, apex)


@triton.jit
def rows_of(p):
    return Point(
        p.sinh[:, None], p.cosh[:, None], p.grow[:, None],
        p.decay[:, None], p.rest[:, None], p.apex[:, None],
    )  # fmt: skip


@triton.jit
def columns_of(p):
    return Point(
        p.sinh[None, :], p.cosh[None, :], p.grow[None, :],
        p.decay[None, :], p.rest[None, :], p.apex[None, :],
    )  # fmt: skip


@triton.jit
def polynomial(coefficients: tl.constexpr, DEGREE: tl.constexpr, z):
    total = tl.full(z.shape, coefficients[0], tl.float32)
    for k in tl.static_range(1, DEGREE + 1):
        total = total * z + coefficients[k]
    return total


@triton.jit
def log1p(z):
    """For ``z >= 0``; small ones by ``2 atanh(z/(2 + z))``, lest their last digits are lost."""
    w = z * reciprocal(2 + z)
    return tl.where(z < 1, 2 * w * polynomial(_ARTANH, 4, w * w), tl.log(1 + z))


@triton.jit
def triangle(h, x, y):
    total = x.decay + y.decay
    difference = tl.where(total > 1, x.rest - y.rest, y.decay - x.decay)
    half = (0.5 * x.grow) * y.grow
    t = half * difference
    T = t * t + ((0.5 * x.sinh) * y.sinh) * h
    apart = T > _LEAST
    inverse = tl.where(apart, 0.5 * tl.rsqrt(tl.where(apart, T, 1.0)) * tl.rsqrt(T + 1), 0.0)
    R = (4 * T) * inverse * (T + 1)
    return Triangle(t, 2 * t * (half * total), T, R, inverse)


@triton.jit
def legs_at_x(h, sine, tri, x, y):
    y_sinh = y.sinh * (x.apex * y.apex)
    return y_sinh * sine, -tri.turn - x.cosh * y_sinh * h


@triton.jit
def legs_at_y(h, sine, tri, x, y):
    x_sinh = x.sinh * (x.apex * y.apex)
    return x_sinh * sine, tri.turn - y.cosh * x_sinh * h


@triton.jit
def sine_of(h, g):
    square = h * g
    return tl.sqrt(tl.where(square < 0, 0.0, square))  # a GPU's maximum would drop NaN


@triton.jit
def angle_of(n, m):
    """``atan2(n, m)`` for ``n >= 0``."""
    size = tl.abs(m)
    steep = n > size
    t = tl.where(steep, size, n) * reciprocal(tl.where(steep, n, size))
    series = polynomial(_ARCTAN, 8, t * t)
    acute = tl.where(steep, 0.5 * _PI - series * t, series * t)
    return tl.where(m < 0, _PI - acute, acute)


@triton.jit
def distance(tri):
    return log1p(2 * tri.T + tri.R)


@triton.jit
def values(KIND: tl.constexpr, BOTH: tl.constexpr, h, g, tri, x, y, c, root):
    """The value of a pair: of angles that at x and, if BOTH, that at y; else the same twice."""
    if KIND == "angle":
        sine, apart = sine_of(h, g), tri.R > 0
        n, m = legs_at_x(h, sine, tri, x, y)
        at_x = angle_of(n, tl.where(apart, m, 1.0))
        if BOTH:
            n, m = legs_at_y(h, sine, tri, x, y)
            return at_x, angle_of(n, tl.where(apart, m, 1.0))
        return at_x, at_x
    if KIND == "distance":
        value = distance(tri) * (1 / root)
    elif KIND == "inner":
        value = -(1 + 2 * tri.T) * (1 / c)
    else:
        value = (1 - h) * (x.apex * y.apex)
    return value, value


@triton.jit
def score(KIND: tl.constexpr, h, g, tri, x, y):
    """See `pointwise.score`."""
    if KIND == "angle":
        n, m = legs_at_x(h, sine_of(h, g), tri, x, y)
        share = n * reciprocal(n + tl.abs(m))
        return tl.where(tri.R > 0, tl.where(m < 0, 2 - share, share), 0.0)
    return tri.T


@triton.jit
def half_excess(tri):
    """``D/2 - tanh(D/2)``."""
    tanh = 2 * tri.T * tri.inverse
    square = tanh * tanh
    series = tanh * square * polynomial(_EXCESS, 5, square)
    return tl.where(square < 0.1, series, 0.5 * distance(tri) - tanh)


@triton.jit
def angle_change(BOTH: tl.constexpr, h, g, tri, x, y, at_x, at_y):
    square = h * g
    apart = square > _SQUARE_OF_0
    inverse_sine = tl.where(apart, tl.rsqrt(tl.where(apart, square, 1.0)), 0.0)
    sine, inverse = square * inverse_sine, tri.inverse
    n_x, m_x = legs_at_x(h, 1.0, tri, x, y)
    n_y, m_y = legs_at_y(h, 1.0, tri, x, y)
    n_x, n_y, m_x, m_y = n_x * inverse, n_y * inverse, m_x * inverse, m_y * inverse
    sine_x, sine_y = n_x * sine, n_y * sine
    coth = (1 + 2 * tri.T) * inverse
    product, tilt = (x.sinh * y.sinh * h) * inverse, tri.turn * inverse
    x_tanh, y_tanh = x.sinh * reciprocal(x.cosh), y.sinh * reciprocal(y.cosh)
    by_h = -at_x * n_x * m_y * inverse_sine
    by_a = at_x * sine_x * coth
    by_b = -at_x * sine_y * inverse
    by_c = at_x * sine_x * x_tanh * (product - tilt * y_tanh)
    if BOTH:
        by_h -= at_y * n_y * m_x * inverse_sine
        by_a -= at_y * sine_x * inverse
        by_b += at_y * sine_y * coth
        by_c += at_y * sine_y * y_tanh * (product + tilt * x_tanh)
    return Change(by_h, by_a, by_b, by_c)


@triton.jit
def distance_change(h, tri, x, y, at):
    inverse = tri.inverse
    m_x = legs_at_x(h, h, tri, x, y)[1]
    m_y = legs_at_y(h, h, tri, x, y)[1]
    spread = tri.t * x.grow * y.grow * (x.rest + x.decay * y.rest)
    spread = (spread * reciprocal(x.cosh)) * (spread * reciprocal(y.cosh))
    by_c = -at * (2 * half_excess(tri) + spread * inverse)
    by_h = at * (x.sinh * inverse) * y.sinh
    return Change(by_h, -at * m_x * inverse, -at * m_y * inverse, by_c)


@triton.jit
def inner_change(h, tri, x, y, at):
    m_x = legs_at_x(h, h, tri, x, y)[1]
    m_y = legs_at_y(h, h, tri, x, y)[1]
    ratios = x.cosh * reciprocal(y.cosh) + y.cosh * reciprocal(x.cosh)
    return Change(at * x.sinh * y.sinh, -at * m_x, -at * m_y, -at * ratios)


@triton.jit
def change(KIND: tl.constexpr, BOTH: tl.constexpr, h, g, tri, x, y, c, root, at_x, at_y):
    """The derivative of ``at_x * values[0]``, and if BOTH plus ``at_y * values[1]``."""
    if KIND == "angle":
        return angle_change(BOTH, h, g, tri, x, y, at_x, at_y)
    if BOTH:
        at_x += at_y
    if KIND == "distance":
        return distance_change(h, tri, x, y, at_x * (1 / root))
    elif KIND == "inner":
        return inner_change(h, tri, x, y, -at_x * (1 / c))
    else:
        none = tl.zeros_like(h)
        return Change(-at_x * (x.apex * y.apex), none, none, none)
