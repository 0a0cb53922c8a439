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


class Radial(NamedTuple):
    """See `triangle.Radial`."""

    sinh: tl.tensor
    cosh: tl.tensor
    exp_half: tl.tensor
    exp_neg: tl.tensor
    complement: tl.tensor
    apex: tl.tensor


class Triangle(NamedTuple):
    t: tl.tensor
    sinh_diff: tl.tensor
    T: tl.tensor
    R: tl.tensor
    inverse: tl.tensor
    """``1/R``; 0 where the points coincide, and with it all derivatives."""


class Partials(NamedTuple):
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
def load_radial(scalars, i, number, count):
    """The points ``i`` of so many; whatever beyond the last, but finite.

    Args:
        scalars: of `prepare.Operands`, from the first of these points on; ``count`` are of all.
    """
    address, within = scalars + i, i < number
    sinh = tl.load(address + 2 * count, mask=within, other=0.0)
    exp_half = tl.load(address + 3 * count, mask=within, other=1.0)
    exp_neg = tl.load(address + 4 * count, mask=within, other=1.0)
    complement = tl.load(address + 5 * count, mask=within, other=0.0)
    apex = tl.load(address + 6 * count, mask=within, other=0.0)
    return Radial(sinh, sinh + exp_neg, exp_half, exp_neg, complement, apex)


@triton.jit
def rows_of(p):
    return Radial(
        p.sinh[:, None], p.cosh[:, None], p.exp_half[:, None],
        p.exp_neg[:, None], p.complement[:, None], p.apex[:, None],
    )  # fmt: skip


@triton.jit
def columns_of(p):
    return Radial(
        p.sinh[None, :], p.cosh[None, :], p.exp_half[None, :],
        p.exp_neg[None, :], p.complement[None, :], p.apex[None, :],
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
    total = x.exp_neg + y.exp_neg
    difference = tl.where(total > 1, x.complement - y.complement, y.exp_neg - x.exp_neg)
    half = (0.5 * x.exp_half) * y.exp_half
    t = half * difference
    T = t * t + ((0.5 * x.sinh) * y.sinh) * h
    apart = T > _LEAST
    inverse = tl.where(apart, 0.5 * tl.rsqrt(tl.where(apart, T, 1.0)) * tl.rsqrt(T + 1), 0.0)
    R = (4 * T) * inverse * (T + 1)
    return Triangle(t, 2 * t * (half * total), T, R, inverse)


@triton.jit
def legs_at_x(h, sine, tri, x, y):
    y_sinh = y.sinh * (x.apex * y.apex)
    return y_sinh * sine, -tri.sinh_diff - x.cosh * y_sinh * h


@triton.jit
def legs_at_y(h, sine, tri, x, y):
    x_sinh = x.sinh * (x.apex * y.apex)
    return x_sinh * sine, tri.sinh_diff - y.cosh * x_sinh * h


@triton.jit
def sine_of(h, g):
    square = h * g
    return tl.sqrt(tl.where(square < 0, 0.0, square))  # a GPU's maximum would drop NaN


@triton.jit
def angle_of(n, m):
    """``atan2(n, m)`` for ``n >= 0``."""
    size = tl.abs(m)
    above_diagonal = n > size
    t = tl.where(above_diagonal, size, n) * reciprocal(tl.where(above_diagonal, n, size))
    series = polynomial(_ARCTAN, 8, t * t)
    acute = tl.where(above_diagonal, 0.5 * _PI - series * t, series * t)
    return tl.where(m < 0, _PI - acute, acute)


@triton.jit
def distance(tri):
    return log1p(2 * tri.T + tri.R)


@triton.jit
def values(KIND: tl.constexpr, h, g, tri, x, y, c, root):
    """The value of a pair: of "angles" that at x and that at y; else the same twice."""
    if KIND == "exterior" or KIND == "angles":
        sine, apart = sine_of(h, g), tri.R > 0
        n, m = legs_at_x(h, sine, tri, x, y)
        angle_x = angle_of(n, tl.where(apart, m, 1.0))
        if KIND == "exterior":
            return angle_x, angle_x
        n, m = legs_at_y(h, sine, tri, x, y)
        return angle_x, angle_of(n, tl.where(apart, m, 1.0))
    if KIND == "distance":
        value = distance(tri) * (1 / root)
    elif KIND == "inner":
        value = -(1 + 2 * tri.T) * (1 / c)
    else:
        value = (1 - h) * (x.apex * y.apex)
    return value, value


@triton.jit
def score(KIND: tl.constexpr, APEX: tl.constexpr, h, g, tri, x, y):
    """See `pointwise.score`."""
    if KIND == "exterior":
        if APEX == "x":
            n, m = legs_at_x(h, sine_of(h, g), tri, x, y)
        else:
            n, m = legs_at_y(h, sine_of(h, g), tri, x, y)
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
def angle_vjp(KIND: tl.constexpr, h, g, tri, x, y, grad_alpha, grad_beta):
    square = h * g
    apart = square > _SQUARE_OF_0
    inverse_sine = tl.where(apart, tl.rsqrt(tl.where(apart, square, 1.0)), 0.0)
    sine, inverse = square * inverse_sine, tri.inverse
    n_x, m_x = legs_at_x(h, 1.0, tri, x, y)
    n_y, m_y = legs_at_y(h, 1.0, tri, x, y)
    n_x, n_y, m_x, m_y = n_x * inverse, n_y * inverse, m_x * inverse, m_y * inverse
    sine_x, sine_y = n_x * sine, n_y * sine
    coth = (1 + 2 * tri.T) * inverse
    product, tilt = (x.sinh * y.sinh * h) * inverse, tri.sinh_diff * inverse
    x_tanh, y_tanh = x.sinh * reciprocal(x.cosh), y.sinh * reciprocal(y.cosh)
    by_h = -grad_alpha * n_x * m_y * inverse_sine
    by_a = grad_alpha * sine_x * coth
    by_b = -grad_alpha * sine_y * inverse
    by_c = grad_alpha * sine_x * x_tanh * (product - tilt * y_tanh)
    if KIND == "angles":
        by_h -= grad_beta * n_y * m_x * inverse_sine
        by_a -= grad_beta * sine_x * inverse
        by_b += grad_beta * sine_y * coth
        by_c += grad_beta * sine_y * y_tanh * (product + tilt * x_tanh)
    return Partials(by_h, by_a, by_b, by_c)


@triton.jit
def distance_vjp(h, tri, x, y, grad_output):
    inverse = tri.inverse
    m_x = legs_at_x(h, h, tri, x, y)[1]
    m_y = legs_at_y(h, h, tri, x, y)[1]
    spread = tri.t * x.exp_half * y.exp_half * (x.complement + x.exp_neg * y.complement)
    spread = (spread * reciprocal(x.cosh)) * (spread * reciprocal(y.cosh))
    by_c = -grad_output * (2 * half_excess(tri) + spread * inverse)
    by_h = grad_output * (x.sinh * inverse) * y.sinh
    return Partials(by_h, -grad_output * m_x * inverse, -grad_output * m_y * inverse, by_c)


@triton.jit
def inner_vjp(h, tri, x, y, grad_output):
    m_x = legs_at_x(h, h, tri, x, y)[1]
    m_y = legs_at_y(h, h, tri, x, y)[1]
    ratios = x.cosh * reciprocal(y.cosh) + y.cosh * reciprocal(x.cosh)
    return Partials(
        grad_output * x.sinh * y.sinh, -grad_output * m_x, -grad_output * m_y, -grad_output * ratios
    )


@triton.jit
def vjp(KIND: tl.constexpr, h, g, tri, x, y, c, root, grad_alpha, grad_beta):
    """The derivative of ``grad_alpha * values[0]``, and of "angles" ``+ grad_beta * values[1]``."""
    if KIND == "exterior" or KIND == "angles":
        return angle_vjp(KIND, h, g, tri, x, y, grad_alpha, grad_beta)
    if KIND == "distance":
        return distance_vjp(h, tri, x, y, grad_alpha * (1 / root))
    elif KIND == "inner":
        return inner_vjp(h, tri, x, y, -grad_alpha * (1 / c))
    else:
        none = tl.zeros_like(h)
        return Partials(-grad_alpha * (x.apex * y.apex), none, none, none)
