"""The rotation invariants of paired vectors: their lengths and the angles between them.

Those of float32 vectors are measured in float64. float64 vectors have no wider type: where their
products would cancel, they are split into exact parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry.array_functions import Numbers, where
from lorentzkit._geometry.compilation import earned
from lorentzkit._geometry.elementary import hardshrink
from lorentzkit._geometry.special import values_at_hand
from lorentzkit._geometry.vectors import (
    Parts,
    dot,
    dots,
    eager,
    expand,
    flat,
    joined,
    or_one,
    parts,
    power_of_two,
    row_blocks,
    run,
    wide_blocks,
    wide_dots,
    wide_dtype,
)

_TINY = 1e-300  # a divisor in place of 0: squares of float32 numbers are larger

ANGLES = ("angles", "exterior", "interior")
"""The functions of two points that are angles: the first has two values, at x and at y."""


class Measures(NamedTuple):
    """Lengths of x and y and the angle between them, ``(..., 1)``; constants to autograd."""

    rx: Tensor
    ry: Tensor
    dr: Tensor
    """``rx - ry``, exact for close vectors"""
    cosine: Tensor
    sine2: Tensor
    """The square of the sine, exact at any angle; 0 where y is 0, and 1 where only x is 0"""

    def h(self) -> Numbers:
        """``1 - cosine``"""
        acute = self.sine2 / (1 + abs(self.cosine))
        return where(self.cosine > 0, acute, 1 - self.cosine)

    def g(self) -> Numbers:
        """``1 + cosine``"""
        obtuse = self.sine2 / (1 + abs(self.cosine))
        return where(self.cosine > 0, 1 + self.cosine, obtuse)

    def close(self) -> Tensor:
        """Whether the vectors are of like length and direction, so that the difference is small."""
        return (self.rx <= 2 * self.ry) & (self.ry <= 2 * self.rx) & (self.cosine > 0)


class Products(NamedTuple):
    """Differentiable products of x and y, and of a third vector u if there is one."""

    xx: Tensor
    yy: Tensor
    rise: Tensor
    """0, with the derivatives of ``x.y`` or, for close vectors, of ``-|x - y|**2 / 2``"""
    xu: Tensor | None = None
    yu: Tensor | None = None
    uu: Tensor | None = None


# --- Measures -------------------------------------------------------------------------------------


def _invariants(vectors: Sequence[Parts], exact: bool) -> tuple[Tensor, ...]:
    """`Measures`; for a third vector u ``x.u``, ``y.u``, ``u.u``, and u times y's part across x.

    ``exact``: whether the vectors have no wider type.
    """
    x, y, *third = vectors
    measures, across = (_exact_measures if exact else _wide_measures)(x, y, bool(third))
    numbers = [*measures]
    for u in third:
        # Aligned vectors leave only noise.
        part = torch.where(measures.sine2 == 0, 0.0, dot(across, u))
        numbers += dot(x, u), dot(y, u), dot(u, u), part
    return tuple(numbers)


def _wide_measures(x: Parts, y: Parts, needed: bool) -> tuple[Measures, Parts]:
    """Of float32 vectors in float64, which holds all digits of their products."""
    # Blocks of `wide_blocks` take BLAS, and y may be written to; other vectors may not.
    products = wide_dots if values_at_hand(x[0]) else dots
    xx, yy, xy = products([(x, x), (y, y), (x, y)])
    rx, ry = xx.sqrt(), yy.sqrt()
    # An error of the quotient lies along x, and hardly changes the square of the part across x.
    k = xy / xx.clamp_min(_TINY)
    across = (
        _minus_multiple(y, x, k) if needed or products is dots else _minus_multiple(y, x, k, out=y)
    )
    (square,) = products([(across, across)])
    # Two float32 directions so close are equal.
    sine2 = hardshrink(square / yy.clamp_min(_TINY), 1e-28)
    if needed:
        across = _minus_multiple(across, x, dot(x, across) / xx.clamp_min(_TINY))
    return Measures(rx, ry, rx - ry, xy / (rx * ry).clamp_min(_TINY), sine2), across


def _exact_measures(x: Parts, y: Parts, needed: bool) -> tuple[Measures, Parts]:
    """Of vectors without a wider type; scaled, or their squares might overflow."""
    scale_x, scale_y = power_of_two(x), power_of_two(y)
    p, q = [v / scale_x for v in x], [v / scale_y for v in y]
    pp, qq, pq = dot(p, p), dot(q, q), dot(p, q)
    across = subtract_product(q, p, pq / or_one(pp))
    # A second time, so that aligned vectors leave only the noise of the noise.
    along = dot(p, across) / or_one(pp)
    across = subtract_product(across, p, along) if needed else _minus_multiple(across, p, along)
    least = 2.0**-200 if pp.dtype == torch.float64 else 2.0**-80
    sine2 = hardshrink(dot(across, across) / or_one(qq), least)
    cosine = pq / or_one(pp.sqrt() * qq.sqrt())
    most = torch.finfo(pp.dtype).max
    rx, ry = (scale_x * pp.sqrt()).clamp_max(most), (scale_y * qq.sqrt()).clamp_max(most)
    if needed:
        # The part along x may have been the larger one, and its rounding is still in `across`.
        across = [scale_y * w for w in _minus_multiple(across, p, dot(p, across) / or_one(pp))]
    return Measures(rx, ry, _radius_difference(x, y, rx, ry), cosine, sine2), across


def _minus_multiple(y: Parts, x: Parts, k: Tensor, out: Parts | None = None) -> Parts:
    """``y - k x``; into `out` if given, because new memory takes longer than the sum."""
    if out is None:
        return [torch.addcmul(q, p, k, value=-1) for p, q in zip(x, y, strict=True)]
    return [torch.addcmul(q, p, k, value=-1, out=z) for p, q, z in zip(x, y, out, strict=True)]


def _radius_difference(x: Parts, y: Parts, rx: Tensor, ry: Tensor) -> Tensor:
    near = (rx < 2 * ry) & (ry < 2 * rx)
    # x - y is exact where the radii are within a factor of two (Sterbenz). Halves, because the sum
    # might overflow; and half of the least number is 0.
    middle = or_one(torch.where(near, 0.5 * rx + 0.5 * ry, 1.0))
    differences = [(p - q) / middle for p, q in zip(x, y, strict=True)]
    middles = [0.5 * p + 0.5 * q for p, q in zip(x, y, strict=True)]
    return torch.where(near, dot(differences, middles), rx - ry)


def subtract_product(y: Parts, x: Parts, k: Tensor) -> Parts:
    """``y - k x``, rounded to the digits of the result, however much cancels.

    The products of halves are exact (Dekker 1971), and stay so if they are fused with the sums.
    """
    high, low = _halves(k)
    result = []
    for p, q in zip(x, y, strict=True):
        p_high, p_low = _halves(p)
        for a, b in ((p_high, high), (p_low, high), (p_high, low), (p_low, low)):
            q = torch.addcmul(q, a, b, value=-1)
        result.append(q)
    return result


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of size 1 as sums of two with half of the digits each."""
    if x.dtype == torch.float64:
        high = x.float().double()
    else:
        factor = 2.0**12 + 1
        high = factor * x - (factor * x - x)
    return high, x - high


# --- Products and measures, differentiable --------------------------------------------------------


def products(x: Tensor, y: Tensor, *third: Tensor) -> tuple[Products, Measures, Tensor | None]:
    """Of x and y, and of a third vector u; then also the product of u with y's part across x."""
    vectors = torch.broadcast_tensors(x, y, *third)  # type: ignore[no-untyped-call]
    if eager(vectors[0]):
        shape = (*vectors[0].shape[:-1], 1)
        numbers = tuple(n.view(shape) for n in run(_Products, *map(flat, vectors)))
    else:
        numbers = _plain_products(*vectors)
    count = 6 if third else 3
    across = numbers[count + 5] if third else None
    return Products(*numbers[:count]), Measures(*numbers[count : count + 5]), across


def _plain_products(x: Tensor, y: Tensor, *third: Tensor) -> tuple[Tensor, ...]:
    dtype = wide_dtype(x)
    numbers = _invariants([parts(v.detach(), dtype) for v in (x, y, *third)], dtype == x.dtype)
    p, q = parts(x, dtype), parts(y, dtype)
    difference = [b - a for a, b in zip(p, q, strict=True)]
    close = Measures(*numbers[:5]).close()
    rise = torch.where(close, -0.5 * dot(difference, difference), dot(p, q))
    derived = [dot(p, p), dot(q, q), rise - rise.detach()]
    for v in third:
        u = parts(v, dtype)
        derived += dot(p, u), dot(q, u), dot(u, u)
    return (*derived, *numbers[:5], *numbers[8:])


class _Products(Function):
    """`_plain_products` in blocks of rows."""

    @staticmethod
    def compute(*vectors: Tensor) -> tuple[Tensor, ...]:
        numbers = earned(measured, str(len(vectors)), vectors[0])(*vectors)
        measures = Measures(*numbers[:5])
        squares = measures.rx * measures.rx, measures.ry * measures.ry
        return (*squares, torch.zeros_like(measures.rx), *numbers[5:8], *measures, *numbers[8:])

    @staticmethod
    def forward(ctx: Any, *vectors: Tensor) -> tuple[Tensor, ...]:
        numbers = _Products.compute(*vectors)
        constants = numbers[3 * len(vectors) - 3 :]
        ctx.save_for_backward(*vectors, Measures(*constants[:5]).close())
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constants)
        return numbers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, ...]:
        *vectors, close = ctx.saved_tensors
        zero = torch.zeros_like(close, dtype=wide_dtype(vectors[0]))
        partials = [zero if g is None else g for g in grads[: 3 * len(vectors) - 3]]
        by_xx, by_yy, rise, *by_u = partials
        # Coefficients of x, of y (of y - x where they are close), and of u.
        x_coefficients = [2 * by_xx, rise]
        y_coefficients = [
            torch.where(close, 2 * by_yy, rise),
            2 * by_yy - torch.where(close, rise, 0.0),
        ]
        if not by_u:
            return expand(vectors, close, x_coefficients, y_coefficients)
        by_xu, by_yu, by_uu = by_u
        u_coefficients = [by_xu + torch.where(close, by_yu, 0.0), by_yu, 2 * by_uu]
        return expand(
            vectors, close, [*x_coefficients, by_xu], [*y_coefficients, by_yu], u_coefficients
        )


def measured(*vectors: Tensor) -> tuple[Tensor, ...]:
    """`_invariants` of the rows of ``(N, D)``."""
    x, dtype = vectors[0], wide_dtype(vectors[0])
    blocks: Iterable[Sequence[Parts]]
    if dtype != x.dtype and values_at_hand(x):
        blocks = wide_blocks(vectors)
    else:
        blocks = ([parts(v[rows], dtype) for v in vectors] for rows in row_blocks(x))
    return joined([_invariants(block, dtype == x.dtype) for block in blocks])
