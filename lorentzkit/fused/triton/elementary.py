"""Elementary functions of float64 numbers, to 1e-12, from operations of `tl` alone.

The interpreter has no libdevice, and what it makes of arguments near 0 is exact to a rounding here.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

_PI = tl.constexpr(math.pi)

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
    exp_minus_one = expm1(t)
    return 0.5 * (exp_minus_one + exp_minus_one / (1 + exp_minus_one))


@triton.jit
def angle_of(n, m):
    """``atan2(n, m)`` for ``n >= 0``; minimum and maximum of the hardware would drop NaN."""
    size = tl.abs(m)
    above_diagonal = n > size
    t = tl.where(above_diagonal, size, n) / tl.where(above_diagonal, n, size)
    t = t / (1 + tl.sqrt(1 + t * t))
    t = t / (1 + tl.sqrt(1 + t * t))  # a quarter of the angle
    angle = 4 * t * polynomial(_ARCTAN, 10, t * t)
    acute = tl.where(above_diagonal, 0.5 * _PI - angle, angle)
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
    exp_neg = tl.exp(-2 * t)
    far = (t * (1 + exp_neg) / or_one(1 - exp_neg) - 1) / or_one(square)
    return tl.where(small, polynomial(_COTH, 8, tl.where(small, square, 0.0)), far)


@triton.jit
def one_less_exp(z):
    """``1 - exp(-z)`` for ``z >= 0``."""
    return -expm1(-tl.where(z > 50, 50.0, z))
