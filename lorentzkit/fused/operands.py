"""The two sets of points, prepared for their matrix product: centred directions, scalar radii.

``h = 1 - cos(theta) = |u - v|**2 / 2`` of all pairs is one matrix product. The common mean ``m`` is
subtracted from the directions first. Embeddings often fill a narrow cone, whose mean is long; then
the product's rounding errors are as small as the spread, not as large as the unit sphere. With the
rows ``[u - m, |u - m|**2/2, 1]`` and ``[m - v, 1, |v - m|**2/2]`` the product is h itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.compilation import by_rows
from lorentzkit._geometry.invariants import ANGLES
from lorentzkit._geometry.special import TINY_LENGTH, dot
from lorentzkit._geometry.triangle import Radial, exponentials, radial

# Up to this many dimensions the differences of all pairs cost less than a product and what has to
# be recomputed of it.
FEW_DIMENSIONS = 16


class Operand(NamedTuple):
    """One of the two sets of points."""

    basis: Tensor
    """``(N, D + 2)``, the rows above"""
    length: Tensor
    """``|x|``, ``(N, 1)``; never 0, because at the origin derivatives take their limit"""
    inside: Tensor
    """Whether the point is within ``max_radius``; ``(N, 1)``"""
    scalars: Tensor
    """`Radial` and `Exponentials`, ``(8, N, 1)``"""

    @property
    def spread(self) -> Tensor:
        """The directions less the mean; in the second operand, the mean less the directions."""
        return self.basis[:, :-2]

    @property
    def radial(self) -> Radial:
        return Radial(*self.scalars[:5].unbind())

    def gradient(
        self, sign: str, directions: Tensor, weights: Tensor, radii: Tensor, mean: Tensor, c: Tensor
    ) -> None:
        """``(sum_j W_ij (v_j - u_i cos)) / |x| + u_i da_i``, written over ``directions``.

        Args:
            sign: "-" for the second operand, else "".
            directions: for each point the sum of W times the other operand's `spread`, ``(N, D)``.
            weights: for each point the sum of W, ``(N, 1)``.
            radii: for each point the sum of the derivatives by its radius a, ``(N, 1)``.
        """
        along = torch.where(self.inside, radii * (c.sqrt() / self.radial.cosh), 0.0)
        rowwise = directions, self.spread, weights, along, self.length
        by_rows(_unit_to_point_gradient, sign, rowwise, mean)


class Directions(NamedTuple):
    """What both passes of a loss need of the points, whatever the curvature."""

    x: Tensor
    """`Operand.basis` of the first operand; y is that of the second"""
    y: Tensor
    x_length: Tensor
    """``(N, 1)``"""
    y_length: Tensor
    mean: Tensor

    def threshold(self) -> float:
        """The h under which the product has lost it."""
        halves = self.x[:, -2], self.y[:, -1]
        most = math.prod(float(half.max()) if len(half) else 0.0 for half in halves)
        return threshold(len(self.mean), most)


class Operands(NamedTuple):
    x: Operand
    y: Operand
    mean: Tensor
    c: Tensor
    threshold: float
    """The h under which the product has lost it."""

    def value_range(self, similarity: str) -> tuple[Tensor, Tensor]:
        """The middle of the range of values, and how far from it a value can be."""
        if similarity == "cosine":
            return self.c.new_tensor(0.0), self.c.new_tensor(1.0)
        if similarity in ANGLES:
            largest = self.c.new_tensor(math.pi)
        elif similarity == "distance":
            # asinh(s) <= log1p(2 s)
            radii = [torch.log1p(2 * z.radial.sinh.amax()) for z in (self.x, self.y)]
            largest = (radii[0] + radii[1]) / self.c.sqrt()[0]
        else:  # a wrong range would let the exponentials overflow
            raise NotImplementedError(f"value_range: no bounds for {similarity!r}")
        return largest / 2, largest / 2


def _unit_to_point_gradient(
    sign: str,
    directions: Tensor,
    spread: Tensor,
    weights: Tensor,
    along: Tensor,
    length: Tensor,
    mean: Tensor,
) -> None:
    unit = mean - spread if sign else mean + spread
    direction_grad = (-directions if sign else directions) - weights * mean
    directions.copy_((direction_grad - unit * dot(unit, direction_grad)) / length + unit * along)


def operands(x: Tensor, y: Tensor, c: Tensor, precision: str) -> Operands:
    """The operands of points ``(N, D)`` and ``(M, D)``, for the curvature ``(1,)``."""
    return with_curvature(directions(x, y, precision), c)


def with_curvature(directions: Directions, c: Tensor) -> Operands:
    """The operands with these directions, whose radii depend on the curvature."""
    x, y = (
        _operand(directions.x, directions.x_length, c),
        _operand(directions.y, directions.y_length, c),
    )
    return Operands(x, y, directions.mean, c, directions.threshold())


def directions(x: Tensor, y: Tensor, precision: str) -> Directions:
    """The directions of points ``(N, D)`` and ``(M, D)``, less their common mean."""
    D = x.shape[-1]
    bases = [z.new_empty(len(z), D + 2) for z in (x, y)]
    x_length, y_length = (
        _write_polar(z, b[:, :D], precision) for z, b in zip((x, y), bases, strict=True)
    )
    mean = 0.5 * (bases[0][:, :D].mean(0) + bases[1][:, :D].mean(0))
    halves = [z.new_empty(len(z), 1) for z in (x, y)]
    for sign, basis, half in zip(("", "-"), bases, halves, strict=True):
        by_rows(_subtract_mean, sign, (basis[:, :D], half), mean)
        basis[:, -1:], basis[:, -2:-1] = (half, 1.0) if sign else (1.0, half)
    return Directions(bases[0], bases[1], x_length, y_length, mean)


def threshold(D: int, most: float) -> float:
    """The h under which a product has lost it.

    ``most`` is the product of the two operands' largest ``|spread|**2 / 2``.
    """
    return recompute_below(D, 2 * math.sqrt(most))


def recompute_below(D: int, spread: float = 1.0) -> float:
    """The h under which a product of vectors has lost it; ``spread`` is their lengths' product."""
    # The product's error in h is at most about `error` roundings. The pairwise bound allows an
    # error in h 16 times as large as that of rounding both directions once, which is 2 sin(theta).
    error = (4 + math.sqrt(D) / 2) * max(1e-3, spread)
    return min(1.0, error**2 / 2048)


def _write_polar(x: Tensor, unit: Tensor, precision: str) -> Tensor:
    """Writes the unit vectors into ``unit``; returns the lengths ``(N, 1)``."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if precision == "highest" and _squares_hold(length):
        torch.div(x, length, out=unit)
    else:
        by_rows(_write_directions, precision, (x, unit, length))
    return length


def _squares_hold(length: Tensor) -> bool:
    """Whether the lengths are right: no square overflowed, and none that matters underflowed."""
    info = torch.finfo(length.dtype)
    if len(length) == 0:
        return True
    least, most = length.aminmax()
    return math.sqrt(info.tiny) / info.eps < float(least) and float(most) < math.sqrt(info.max)


def _write_directions(precision: str, x: Tensor, unit: Tensor, length: Tensor) -> None:
    """Writes the unit vectors and the lengths ``(n, 1)``."""
    z, norms = polar(x)
    if precision != "highest":
        z = rounded(z, precision)
        z = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(0.5)
    unit.copy_(z)
    length.copy_(norms)


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and lengths ``(n, 1)``, whatever the size of x; the unit vector of 0 is 0."""
    scale = x.abs().amax(-1, keepdim=True)
    z = x / torch.where(scale == 0, 1.0, scale)
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / torch.where(norm == 0, 1.0, norm), scale * norm


def rounded(unit: Tensor, precision: str) -> Tensor:
    """Unit vectors in tf32's ("high") or bfloat16's ("medium") digits."""
    if precision == "medium":
        return unit.bfloat16().to(unit.dtype)
    bits = unit.float().view(torch.int32)  # to nearest, 13 of the 23 digits dropped
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(unit.dtype)


def _subtract_mean(sign: str, unit: Tensor, half: Tensor, mean: Tensor) -> None:
    """Replaces ``unit`` by ``unit - mean``, or by its negative; writes half its squares."""
    spread = mean - unit if sign else unit - mean
    half.copy_(0.5 * dot(spread, spread))
    unit.copy_(spread)


def _operand(basis: Tensor, length: Tensor, c: Tensor) -> Operand:
    inside = ~(length > norm_limit(c))
    longer = length.clamp_min(TINY_LENGTH[length.dtype])
    return Operand(basis, longer, inside, torch.stack(scalars(length, c)))


def scalars(length: Tensor, c: Tensor) -> list[Tensor]:
    """`Radial` and `Exponentials` of points of these lengths ``(N, 1)``, eight of that shape."""
    apex = (length != 0).to(length.dtype)
    length = torch.minimum(length.clamp_min(TINY_LENGTH[length.dtype]), norm_limit(c))
    x_radial = radial(c.sqrt() * length, apex)
    return [*x_radial, *exponentials(x_radial)]
