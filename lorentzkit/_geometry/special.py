"""Scalar functions and norms with exact values and exact derivatives.

Two devices make every op of :mod:`lorentzkit.ops` exact, and both start here.

*Analytic functions of squares.* ``sinh(t)/t`` and its relatives are analytic in ``z = t**2``;
written in ``z``, with a series near 0, they have exact derivatives of every order at ``t = 0``,
where the textbook form is ``0/0``.

*A value and a derivative from different formulas.* The form of an expression that has no
cancellation in its value is often not smooth (it uses polar coordinates), while the smooth one
cancels. `carry` joins the value of the first with the derivatives, of every order, of the second.
It needs no ``autograd.Function``: forward mode, ``torch.func`` and ``torch.compile`` see plain
operations.

All functions here keep the last dimension: scalars are of shape ``(..., 1)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lorentzkit._geometry import elementary
from lorentzkit._geometry.elementary import asinh, expm1, log1p, series

# Taylor coefficients in z, highest order first; enough for float64 where they are used (z <= 1).
_SINHC = [1 / math.factorial(2 * k + 1) for k in range(10, -1, -1)]
_COSH = [1 / math.factorial(2 * k) for k in range(10, -1, -1)]
_COSH_LESS_SINHC = [2 * k / math.factorial(2 * k + 1) for k in range(11, 0, -1)]
# asinh(sqrt z)/sqrt z; used for z <= 0.04 only, since it converges for |z| < 1.
_ASINHC = [(-1) ** k * math.comb(2 * k, k) / (4**k * (2 * k + 1)) for k in range(12, -1, -1)]


# Shorter points count as the origin. There derivatives take their limit, at a point of this length.
TINY_LENGTH = {torch.float32: 2.0**-66, torch.float64: 2.0**-330}


def largest_radius(dtype: torch.dtype) -> float:
    """The largest ``sqrt(curv) * dist0(x, curv)`` of a point in this dtype (`ops.max_radius`)."""
    return 300.0 if dtype == torch.float64 else 40.0


def smallest_length(dtype: torch.dtype) -> float:
    """Nothing is divided by shorter lengths, because a gradient would overflow."""
    return 2.0**-900 if dtype == torch.float64 else 2.0**-100


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean inner product over the last dimension, kept: ``(..., D), (..., D) -> (..., 1)``."""
    return (x * y).sum(-1, keepdim=True)


def values_known(tensor: Tensor) -> bool:
    """Whether code may branch on the values: not if it is compiled, transformed or traced."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace
        return False
    if _get_current_dispatch_mode() is not None:  # make_fx, fake tensors
        return False
    if torch._C._functorch.is_legacy_batchedtensor(tensor):  # torch.autograd.grad(is_grads_batched)
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def values_at_hand(tensor: Tensor) -> bool:
    """`values_known`, and reading the values does not wait for an accelerator."""
    return tensor.device.type == "cpu" and values_known(tensor)


def differentiable(*tensors: Tensor) -> bool:
    """Whether derivatives may be asked for, in reverse or forward mode.

    If not, the increments and corrections that only carry derivatives are left out, about half of
    the work. Compiled and transformed code keeps them.
    """
    # `is_compiling` comes first: to the compiler the result is then a constant.
    if torch.compiler.is_compiling() or not all(values_known(tensor) for tensor in tensors):
        return not elementary.exporting_values()
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return True
    duals = [unpack_dual(tensor) for tensor in tensors]  # type: ignore[no-untyped-call]
    return any(dual.tangent is not None for dual in duals)


def carry(value: Tensor, derivative: Tensor) -> Tensor:
    """The value of the first argument with the derivatives, of all orders, of the second."""
    if not differentiable(derivative):
        return value.detach()
    return value.detach() + (derivative - derivative.detach())


def scale_of(x: Tensor) -> Tensor:
    """A positive constant ``(..., 1)`` to divide ``x`` by before squaring it; 1 where x is 0."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest.clamp_min(smallest_length(x.dtype)), 1.0)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm ``(..., D) -> (..., 1)`` without overflow or underflow; gradient 0 at 0."""
    return polar(x)[0]


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Norm ``(..., 1)`` and unit vector ``(..., D)``; the unit vector of 0 is 0, with gradient 0.

    ``x`` is divided by its largest entry itself, not by a power of two: vectors that are exact
    multiples of one another then get identical unit vectors, and an angle of exactly 0 or pi.
    """
    scale = scale_of(x)
    z = x / scale
    square = dot(z, z)
    nonzero = square != 0  # so that NaN stays NaN
    n = torch.where(nonzero, square, 1.0).sqrt()
    unit = torch.where(nonzero, z, 0.0) / n
    # The derivative is that of u.x: through scale * n a small gradient would underflow.
    return torch.where(nonzero, carry(scale * n, dot(unit, x)), 0.0), unit


def hypot(a: Tensor, b: Tensor) -> Tensor:
    """``sqrt(a**2 + b**2)`` without overflow; gradient 0 at (0, 0), where torch's is NaN."""
    zero = (a == 0) & (b == 0)
    return torch.where(zero, 0.0, elementary.hypot(torch.where(zero, 1.0, a), b))


def root_one_plus(t: Tensor) -> Tensor:
    """``sqrt(1 + t**2)``; unlike that of the plain form, its derivative does not underflow."""
    return elementary.hypot(torch.ones_like(t), t)


def _series_domain(z: Tensor, wide: bool) -> tuple[Tensor, Tensor, int]:
    """Where to use a series; z there and else 0; and the number of terms.

    Numbers wider than their result (`wide`) can spare digits: for them the plain form is exact
    enough nearly down to 0, derivatives included.
    """
    small = z <= (1e-3 if wide else 1.0)
    return small, torch.where(small, z, 0.0), 5 if wide else 99


def cosh_sinhc(z: Tensor, wide: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """``cosh(t) e**-k``, ``sinh(t)/t e**-k`` and ``k`` for ``t = sqrt(z)``, ``z >= 0``.

    ``k`` is 0 for small ``z`` (there the functions are smooth in ``z``) and ``t`` beyond, so that
    nothing overflows however large ``z`` is.
    """
    small, near, terms = _series_domain(z, wide)
    t = torch.where(small, 1.0, z).sqrt()
    exp_neg = torch.exp(-2 * t)
    cosh = torch.where(small, series(_COSH[-terms:], near), (1 + exp_neg) / 2)
    sinhc = torch.where(small, series(_SINHC[-terms:], near), (1 - exp_neg) / (2 * t))
    return cosh, sinhc, torch.where(small, 0.0, t)


def log_sinhc(z: Tensor, wide: bool = False) -> Tensor:
    """``log(sinh(sqrt z) / sqrt z)`` for ``z >= 0``; 0 at 0, no overflow."""
    _, scaled, k = cosh_sinhc(z, wide)
    return scaled.log() + k


def coth_excess(z: Tensor) -> Tensor:
    """``(t coth t - 1) / t**2`` for ``t = sqrt(z)``, ``z >= 0``; 1/3 at 0."""
    small = z <= 1
    near, far = torch.where(small, z, 0.0), torch.where(small, 1.0, z)
    t = far.sqrt()
    return torch.where(
        small, series(_COSH_LESS_SINHC, near) / series(_SINHC, near), (t / t.tanh() - 1) / far
    )


def asinhc(z: Tensor, wide: bool = False) -> Tensor:
    """``asinh(sqrt z) / sqrt z`` for ``z >= 0``; 1 at 0."""
    if elementary.exporting_values():  # only derivatives need the series
        t = torch.where(z == 0, 1.0, z).sqrt()
        return torch.where(z == 0, 1.0, asinh(t) / t)
    small, near, terms = _series_domain(z, wide)
    t = torch.where(small, 1.0, z).sqrt()
    if wide:
        return torch.where(small, series(_ASINHC[-terms:], near), asinh(t) / t)
    # asinh t = 2 asinh(t / sqrt(2 (1 + sqrt(1 + t^2)))), twice: z <= 1 becomes z <= 0.05.
    stretch = torch.ones_like(z)
    for _ in range(2):
        half = (1 + (1 + near).sqrt()) / 2
        near = near / (4 * half)
        stretch = stretch / half.sqrt()
    return torch.where(small, stretch * series(_ASINHC, near), asinh(t) / t)


def arc_square(excess: Tensor, wide: bool = False) -> Tensor:
    """``acosh(1 + excess)**2`` for ``excess >= 0``, smooth at 0."""
    half = excess / 2
    small = half <= 1
    near = 4 * half * asinhc(torch.where(small, half, 0.0), wide) ** 2
    return torch.where(small, near, (2 * asinh(torch.where(small, 1.0, half).sqrt())) ** 2)


def arc_over_sinh(excess: Tensor, wide: bool = False) -> Tensor:
    """``s / sinh(s)`` from ``excess = cosh(s) - 1``; 1 at 0, smooth."""
    half = excess / 2
    return asinhc(half, wide) / (1 + half).sqrt()


def log_arc_over_sinh(excess: Tensor) -> Tensor:
    """``log(s / sinh(s))``, with a derivative that does not underflow on the way."""
    half = excess / 2
    small = half <= 1
    t = torch.where(small, 1.0, half).sqrt()
    arc = torch.where(small, asinhc(torch.where(small, half, 0.0)), asinh(t) / t)
    return arc.log() - log1p(half) / 2


def arsinh_length(r: Tensor, c: Tensor, wide: bool = False) -> Tensor:
    """``asinh(sqrt(c) r) / sqrt(c)``: the geodesic distance that goes with the chord ``r``.

    Small arguments use ``r * asinhc(c r**2)``, whose derivative in ``c`` does not cancel; large
    ones the plain form, whose derivative in ``r`` does not.
    """
    z = c * r * r
    small = z <= 1
    root = c.sqrt()
    plain = asinh(root * torch.where(small, 0.0, r)) / root
    return torch.where(small, r * asinhc(torch.where(small, z, 0.0), wide), plain)


def onto_sphere(x: Tensor, radius: Tensor, factor: Tensor, unit: Tensor) -> Tensor:
    """``radius x/|x|``, given ``factor = radius/|x|`` and ``unit = x/|x|``.

    It is a linear map of x to autograd: with the quotient rule a large gradient would overflow.
    """
    moved = x * factor.detach()
    return moved + unit.detach() * (radius - dot(unit.detach(), moved))


def sinh_ratio(t: Tensor, s2: Tensor, wide: bool) -> Tensor:
    """``sinh(t s) / sinh(s)`` for ``s2 = s**2 <= 1`` and ``(t s)**2 <= 1``.

    By logarithms: at t = 1 their derivatives in s cancel exactly, those of a quotient do not.
    """
    return t * torch.exp(log_sinhc(t**2 * s2, wide) - log_sinhc(s2, wide))


def scaled_sinh_ratio(t: Tensor, s: Tensor, rate: Tensor) -> Tensor:
    """``sinh(t s) / sinh(s) exp(-rate s)`` for ``rate >= |t| - 1``."""
    size = torch.where(t < 0, -t, t)  # unlike abs it has a derivative at 0
    ratio = torch.exp((size - 1 - rate) * s) * _expm1_ratio(size, -2 * s)
    return torch.where(t < 0, -ratio, ratio)


def _expm1_ratio(t: Tensor, s: Tensor) -> Tensor:
    """``expm1(t s) / expm1(s)`` for t >= 0 and s < 0; at t = 1 its derivative in s is exactly 0."""
    denominator = expm1(s)
    above, gap = t >= 1, t - 1
    above_one = torch.exp(s) * expm1(torch.where(above, gap, 0.0) * s)
    below_one = torch.exp(t * s) * expm1(torch.where(above, 0.0, -gap) * s)
    near_one = 1 + torch.where(above, above_one, -below_one) / denominator
    return torch.where(t > 0.5, near_one, expm1(t * s) / denominator)


def arc_times_tanh(excess: Tensor, wide: bool) -> Tensor:
    """``s tanh(s/2) = excess * s / sinh(s)``, as a product only where its derivative is exact."""
    half = excess / 2
    small = half <= 1
    far = torch.where(small, 1.0, half)
    arc = 2 * asinh(far.sqrt())
    return torch.where(small, excess * arc_over_sinh(excess, wide), arc * (1 + 1 / far).rsqrt())
