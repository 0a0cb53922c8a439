"""Two clouds of points, prepared once for all their pairs: a matrix of directions, scalar radii.

``h = 1 - cos(theta) = |u - v|**2 / 2`` of all pairs is one matrix product. It is taken of the
directions less their common mean ``m``, which narrow cones of embeddings have a large one of: the
product's rounding errors are those of the spread, not of the unit sphere. With the rows
``[u - m, |u - m|**2/2, 1]`` and ``[m - v, 1, |v - m|**2/2]`` the product is h itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.compilation import by_rows
from lorentzkit._geometry.special import dot
from lorentzkit._geometry.triangle import Radial, exponentials, radial

# Up to this many dimensions, differences of all pairs cost less than a product and its mending.
FEW_DIMENSIONS = 16
# Radii under this one count as the origin's, in whose place derivatives take their limit.
TINY = {torch.float32: 2.0**-66, torch.float64: 2.0**-330}


class Cloud(NamedTuple):
    basis: Tensor
    """``(N, D + 2)``, see above; the sign of the first D is that of the product"""
    length: Tensor
    """``|x|``, ``(N, 1)``, but never 0: at the origin derivatives take the limit"""
    inside: Tensor
    """Whether the point is within ``max_radius``; ``(N, 1)``"""
    scalars: Tensor
    """`Radial` and `Exponentials`, ``(8, N, 1)``"""

    @property
    def spread(self) -> Tensor:
        """The directions less the mean; of the second cloud, times -1."""
        return self.basis[:, :-2]

    @property
    def radial(self) -> Radial:
        return Radial(*self.scalars[:5].unbind())

    def gradient(
        self, sign: str, directions: Tensor, weights: Tensor, radii: Tensor, mean: Tensor, c: Tensor
    ) -> None:
        """``(sum_j W_ij (v_j - u_i cos)) / |x| + u_i da_i``, in the place of the directions.

        Args:
            sign: "-" for the second cloud.
            directions: the sums over the other cloud of W times its `spread`, ``(N, D)``.
            weights: those of W, ``(N, 1)``.
            radii: those of the derivatives by the radius a.
        """
        along = torch.where(self.inside, radii * (c.sqrt() / self.radial.cosh), 0.0)
        rowwise = directions, self.spread, weights, along, self.length
        by_rows(_gradient, sign, rowwise, mean)


class Directions(NamedTuple):
    """Of two clouds: what both passes of a loss need and no curvature changes."""

    x: Tensor
    """`Cloud.basis`"""
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


class Clouds(NamedTuple):
    x: Cloud
    y: Cloud
    mean: Tensor
    c: Tensor
    threshold: float
    """The h under which the product has lost it."""

    def values(self, similarity: str) -> tuple[Tensor, Tensor]:
        """The middle of what the values can be, and how far from it they are at most."""
        if similarity == "cosine":
            return self.c.new_tensor(0.0), self.c.new_tensor(1.0)
        largest = self.c.new_tensor(math.pi)
        if similarity == "distance":
            # asinh(s) <= log1p(2 s)
            radii = [torch.log1p(2 * z.radial.sinh.amax()) for z in (self.x, self.y)]
            largest = (radii[0] + radii[1]) / self.c.sqrt()[0]
        return largest / 2, largest / 2


def _gradient(
    sign: str,
    directions: Tensor,
    spread: Tensor,
    weights: Tensor,
    along: Tensor,
    length: Tensor,
    mean: Tensor,
) -> None:
    unit = mean - spread if sign else mean + spread
    change = (-directions if sign else directions) - weights * mean
    directions.copy_((change - unit * dot(unit, change)) / length + unit * along)


def clouds(x: Tensor, y: Tensor, c: Tensor, precision: str) -> Clouds:
    """Two clouds ``(N, D)``, ``(M, D)`` for the curvature ``(1,)``."""
    return in_space(directions(x, y, precision), c)


def in_space(of: Directions, c: Tensor) -> Clouds:
    """Directions with the radii that the curvature gives to the lengths."""
    x, y = _cloud(of.x, of.x_length, c), _cloud(of.y, of.y_length, c)
    return Clouds(x, y, of.mean, c, of.threshold())


def directions(x: Tensor, y: Tensor, precision: str) -> Directions:
    """Of two clouds ``(N, D)``, ``(M, D)``, about their common mean."""
    D = x.shape[-1]
    bases = [z.new_empty(len(z), D + 2) for z in (x, y)]
    x_length, y_length = (
        _polar(z, b[:, :D], precision) for z, b in zip((x, y), bases, strict=True)
    )
    mean = 0.5 * (bases[0][:, :D].mean(0) + bases[1][:, :D].mean(0))
    halves = [z.new_empty(len(z), 1) for z in (x, y)]
    for sign, basis, half in zip(("", "-"), bases, halves, strict=True):
        by_rows(_centre, sign, (basis[:, :D], half), mean)
        basis[:, -1:], basis[:, -2:-1] = (half, 1.0) if sign else (1.0, half)
    return Directions(bases[0], bases[1], x_length, y_length, mean)


def threshold(D: int, most: float) -> float:
    """The h under which a product has lost it; of the largest halves of squares their product."""
    return mend_below(D, 2 * math.sqrt(most))


def mend_below(D: int, spread: float = 1.0) -> float:
    """The h under which a product of vectors of lengths with the product `spread` has lost it."""
    # The product's error in h is at most about `error` roundings; what the pairwise bound allows in
    # h is 16 times what one rounding of both directions, by 2 sin(theta), makes.
    error = (4 + math.sqrt(D) / 2) * max(1e-3, spread)
    return min(1.0, error**2 / 2048)


def _polar(x: Tensor, unit: Tensor, precision: str) -> Tensor:
    """Writes the unit vectors; returns the lengths ``(N, 1)``."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if precision == "highest" and _squares_hold(length):
        torch.div(x, length, out=unit)
    else:
        by_rows(_directions, precision, (x, unit, length))
    return length


def _squares_hold(length: Tensor) -> bool:
    """Whether no square on the way to the lengths has overflown, or underflown to any effect."""
    info = torch.finfo(length.dtype)
    if len(length) == 0:
        return True
    least, most = length.aminmax()
    return math.sqrt(info.tiny) / info.eps < float(least) and float(most) < math.sqrt(info.max)


def _directions(precision: str, x: Tensor, unit: Tensor, length: Tensor) -> None:
    """Writes the unit vectors and the lengths ``(n, 1)``."""
    z, whole = polar(x)
    if precision != "highest":
        z = rounded(z, precision)
        z = z / torch.linalg.vector_norm(z, dim=-1, keepdim=True).clamp_min(0.5)
    unit.copy_(z)
    length.copy_(whole)


def polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and lengths ``(n, 1)``, whatever the size of x; of 0, 0."""
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


def _centre(sign: str, unit: Tensor, half: Tensor, mean: Tensor) -> None:
    """Subtracts the mean, or from it; writes half the squares of what is left."""
    spread = mean - unit if sign else unit - mean
    half.copy_(0.5 * dot(spread, spread))
    unit.copy_(spread)


def _cloud(basis: Tensor, length: Tensor, c: Tensor) -> Cloud:
    inside = ~(length > norm_limit(c))
    longer = length.clamp_min(TINY[length.dtype])
    return Cloud(basis, longer, inside, torch.stack(scalars(length, c)))


def scalars(length: Tensor, c: Tensor) -> list[Tensor]:
    """`Radial` and `Exponentials` of points of these lengths ``(N, 1)``, eight of that shape."""
    apex = (length != 0).to(length.dtype)
    length = torch.minimum(length.clamp_min(TINY[length.dtype]), norm_limit(c))
    of_radius = radial(c.sqrt() * length, apex)
    return [*of_radius, *exponentials(of_radius)]
