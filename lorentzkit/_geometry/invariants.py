"""What no rotation changes of vectors side by side: their lengths and the angles between them.

Of float32 vectors they are measured in float64. float64 vectors have no wider type: what cancels of
their products is split into exact parts.
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

_TINY = 1e-300  # in the place of 0 as a divisor: squares of float32 numbers are larger


class Measures(NamedTuple):
    """Lengths of x and y and the angle between them, ``(..., 1)``; constants to autograd."""

    rx: Tensor
    ry: Tensor
    dr: Tensor
    """``rx - ry``, exact for close vectors"""
    cosine: Tensor
    sine2: Tensor
    """The square of the sine, exact at any angle; where y is 0, 0, and where only x is, 1"""

    def h(self) -> Numbers:
        """``1 - cosine``"""
        acute = self.sine2 / (1 + abs(self.cosine))
        return where(self.cosine > 0, acute, 1 - self.cosine)

    def g(self) -> Numbers:
        """``1 + cosine``"""
        obtuse = self.sine2 / (1 + abs(self.cosine))
        return where(self.cosine > 0, 1 + self.cosine, obtuse)

    def close(self) -> Tensor:
        """Whether the vectors' difference is the smaller vector: of like length and direction."""
        return (self.rx <= 2 * self.ry) & (self.ry <= 2 * self.rx) & (self.cosine > 0)


class Products(NamedTuple):
    """Of x and y, and of a third vector u if there is one; differentiable."""

    xx: Tensor
    yy: Tensor
    rise: Tensor
    """0, with the derivatives of ``x.y`` or, of close vectors, of ``-|x - y|**2 / 2``"""
    xu: Tensor | None = None
    yu: Tensor | None = None
    uu: Tensor | None = None


# --- Measures -------------------------------------------------------------------------------------


def _sweep(vectors: Sequence[Parts], exact: bool) -> tuple[Tensor, ...]:
    """`Measures`; of each other u ``x.u``, ``y.u``, ``u.u``, and u times y's part across x.

    ``exact``: whether the vectors had no wider type.
    """
    x, y, *others = vectors
    measures, across = (_exact_measures if exact else _wide_measures)(x, y, bool(others))
    numbers = [*measures]
    for u in others:
        # Of aligned vectors only noise is left.
        part = torch.where(measures.sine2 == 0, 0.0, dot(across, u))
        numbers += dot(x, u), dot(y, u), dot(u, u), part
    return tuple(numbers)


def _wide_measures(x: Parts, y: Parts, needed: bool) -> tuple[Measures, Parts]:
    """Of float32 vectors in float64, which holds all digits of their products."""
    # Of a block of `wide_blocks`, which may be written to, or of anything.
    products = wide_dots if values_at_hand(x[0]) else dots
    xx, yy, xy = products([(x, x), (y, y), (x, y)])
    rx, ry = xx.sqrt(), yy.sqrt()
    # An error of the quotient lies along x: the square of what is across x does not see it.
    k = xy / xx.clamp_min(_TINY)
    across = _less(y, x, k) if needed or products is dots else _less(y, x, k, out=y)
    (square,) = products([(across, across)])
    # No two float32 directions are so close, but equal ones.
    sine2 = hardshrink(square / yy.clamp_min(_TINY), 1e-28)
    if needed:
        across = _less(across, x, dot(x, across) / xx.clamp_min(_TINY))
    return Measures(rx, ry, rx - ry, xy / (rx * ry).clamp_min(_TINY), sine2), across


def _exact_measures(x: Parts, y: Parts, needed: bool) -> tuple[Measures, Parts]:
    """Of vectors without a wider type; scaled, lest their squares overflow."""
    of_x, of_y = power_of_two(x), power_of_two(y)
    p, q = [v / of_x for v in x], [v / of_y for v in y]
    pp, qq, pq = dot(p, p), dot(q, q), dot(p, q)
    across = subtract_product(q, p, pq / or_one(pp))
    # A second time, lest of aligned vectors more than the noise of the noise is left.
    along = dot(p, across) / or_one(pp)
    across = subtract_product(across, p, along) if needed else _less(across, p, along)
    least = 2.0**-200 if pp.dtype == torch.float64 else 2.0**-80
    sine2 = hardshrink(dot(across, across) / or_one(qq), least)
    cosine = pq / or_one(pp.sqrt() * qq.sqrt())
    most = torch.finfo(pp.dtype).max
    rx, ry = (of_x * pp.sqrt()).clamp_max(most), (of_y * qq.sqrt()).clamp_max(most)
    if needed:
        # What was along x may have been the larger part, and its rounding is still there.
        across = [of_y * w for w in _less(across, p, dot(p, across) / or_one(pp))]
    return Measures(rx, ry, _radius_difference(x, y, rx, ry), cosine, sine2), across


def _less(y: Parts, x: Parts, k: Tensor, out: Parts | None = None) -> Parts:
    """``y - k x``, in the place of `out`, for new memory takes longer than the sum."""
    if out is None:
        return [torch.addcmul(q, p, k, value=-1) for p, q in zip(x, y, strict=True)]
    return [torch.addcmul(q, p, k, value=-1, out=z) for p, q, z in zip(x, y, out, strict=True)]


def _radius_difference(x: Parts, y: Parts, rx: Tensor, ry: Tensor) -> Tensor:
    near = (rx < 2 * ry) & (ry < 2 * rx)
    # x - y is exact enough where the radii are within a factor of two (Sterbenz).
    # The sum itself might overflow, and half of the least number is 0.
    middle = or_one(torch.where(near, 0.5 * rx + 0.5 * ry, 1.0))
    differences = [(p - q) / middle for p, q in zip(x, y, strict=True)]
    middles = [0.5 * p + 0.5 * q for p, q in zip(x, y, strict=True)]
    return torch.where(near, dot(differences, middles), rx - ry)


def subtract_product(y: Parts, x: Parts, k: Tensor) -> Parts:
    """``y - k x``, rounded to the digits of the result, however much cancels.

    The products of halves are exact (Dekker 1971), and stay so if they are fused with the sums.
    """
    high, low = _halves(k)
    rest = []
    for p, q in zip(x, y, strict=True):
        p_high, p_low = _halves(p)
        for a, b in ((p_high, high), (p_low, high), (p_high, low), (p_low, low)):
            q = torch.addcmul(q, a, b, value=-1)
        rest.append(q)
    return rest


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of size 1 as sums of two with half of the digits each."""
    if x.dtype == torch.float64:
        high = x.float().double()
    else:
        factor = 2.0**12 + 1
        high = factor * x - (factor * x - x)
    return high, x - high


# --- Products and measures, differentiable --------------------------------------------------------


def products(x: Tensor, y: Tensor, *others: Tensor) -> tuple[Products, Measures, Tensor | None]:
    """Of x and y, and of a third vector; its product with the part of y across x."""
    vectors = torch.broadcast_tensors(x, y, *others)  # type: ignore[no-untyped-call]
    if eager(vectors[0]):
        shape = (*vectors[0].shape[:-1], 1)
        numbers = tuple(n.view(shape) for n in run(_Products, *map(flat, vectors)))
    else:
        numbers = _plain_products(*vectors)
    count = 6 if others else 3
    across = numbers[count + 5] if others else None
    return Products(*numbers[:count]), Measures(*numbers[count : count + 5]), across


def _plain_products(x: Tensor, y: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    dtype = wide_dtype(x)
    numbers = _sweep([parts(v.detach(), dtype) for v in (x, y, *others)], dtype == x.dtype)
    p, q = parts(x, dtype), parts(y, dtype)
    difference = [b - a for a, b in zip(p, q, strict=True)]
    close = Measures(*numbers[:5]).close()
    rise = torch.where(close, -0.5 * dot(difference, difference), dot(p, q))
    found = [dot(p, p), dot(q, q), rise - rise.detach()]
    for other in others:
        u = parts(other, dtype)
        found += dot(p, u), dot(q, u), dot(u, u)
    return (*found, *numbers[:5], *numbers[8:])


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
        given = [zero if g is None else g for g in grads[: 3 * len(vectors) - 3]]
        by_xx, by_yy, rise, *by_u = given
        # In terms of x, of y (less x, where they are close), and of u.
        of_x = [2 * by_xx, rise]
        of_y = [torch.where(close, 2 * by_yy, rise), 2 * by_yy - torch.where(close, rise, 0.0)]
        if not by_u:
            return expand(vectors, close, of_x, of_y)
        by_xu, by_yu, by_uu = by_u
        of_u = [by_xu + torch.where(close, by_yu, 0.0), by_yu, 2 * by_uu]
        return expand(vectors, close, [*of_x, by_xu], [*of_y, by_yu], of_u)


def measured(*vectors: Tensor) -> tuple[Tensor, ...]:
    """`_sweep` of the rows of ``(N, D)``."""
    x, dtype = vectors[0], wide_dtype(vectors[0])
    blocks: Iterable[Sequence[Parts]]
    if dtype != x.dtype and values_at_hand(x):
        blocks = wide_blocks(vectors)
    else:
        blocks = ([parts(v[rows], dtype) for v in vectors] for rows in row_blocks(x))
    return joined([_sweep(some, dtype == x.dtype) for some in blocks])
