"""Two clouds of points as the kernels want them, and gradients from what the kernels return.

As in `operands`, directions less their common mean; but whole tensors at a time, without a wait for
the device, and with two differences that suit tensor cores. The half squares are added after the
product, whose few digits they would not survive. And what is rounded is the spread, of which the
product then is exact: the rounded direction has a length ``rho`` that is not 1, and the kernels
compute with that, so that h is exact for slightly moved points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.arguments import norm_limit
from lorentzkit._geometry.special import TINY_LENGTH, dot
from lorentzkit._geometry.triangle import exponentials, radial
from lorentzkit.fused.operands import FEW_DIMENSIONS, recompute_below, rounded
from lorentzkit.fused.problems import LossProblem, PairwiseProblem
from lorentzkit.fused.triton.config import INTERPRETED


class Side(NamedTuple):
    """One cloud."""

    spread: Tensor
    """Directions less the mean, ``(N, width)``: filled up with zeros, in the products' dtype."""
    scalars: Tensor
    """``(7, N)``: what the kernels read of each point, see `points.load_point`."""
    length: Tensor
    """``|x|``, ``(N, 1)``, but never 0"""
    rho: Tensor
    """The length of the direction, ``(N, 1)``; 1 unless rounded."""
    cosh: Tensor
    inside: Tensor


class Clouds(NamedTuple):
    x: Side
    y: Side
    mean: Tensor
    """``(D,)``"""
    constants: Tensor
    """``(4,)``: c, sqrt(c), the scale, the h under which the product has lost it"""
    precision: str
    """Of the products, in Triton's words; "differences" where there are none."""


def clouds(problem: PairwiseProblem | LossProblem, scale: Tensor | None = None) -> Clouds:
    """The clouds of a problem."""
    x, y, c, precision = problem.x, problem.y, problem.c, problem.precision
    for z in (x, y):
        if z.dtype == torch.float64:
            raise ValueError(
                "impl: 'triton' computes in float32, got float64; use impl='streaming'"
            )
    D = x.shape[-1]
    few = D <= FEW_DIMENSIONS
    units, lengths = zip(_polar(x), _polar(y), strict=True)
    mean = 0.5 * (units[0].mean(0) + units[1].mean(0))
    spreads = [unit - mean for unit in units]
    if precision != "highest" and not few:
        spreads = [rounded(spread, precision) for spread in spreads]
    whole = precision == "highest" or few
    x_, y_ = (_side(s, r, mean, c, whole) for s, r in zip(spreads, lengths, strict=True))
    scale = c.new_ones(()) if scale is None else scale
    threshold = _threshold(D, x_.scalars[0].amax() * y_.scalars[0].amax())
    constants = torch.cat([c, c.sqrt(), scale.reshape(1).to(c.dtype), threshold.reshape(1)])
    words = {"highest": "tf32x3", "high": "tf32", "medium": "bf16"}
    words = {"highest": "differences"} if few else words
    if precision == "medium" and not few and not INTERPRETED:  # which has no bfloat16
        x_, y_ = (side._replace(spread=side.spread.bfloat16()) for side in (x_, y_))
    return Clouds(x_, y_, mean, constants, words.get(precision, "differences"))


def _polar(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and lengths ``(N, 1)``; multiples of one another get the same unit vector."""
    scale = x.abs().amax(-1, keepdim=True)
    z = x / torch.where(scale == 0, 1.0, scale)
    norm = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
    return z / torch.where(norm == 0, 1.0, norm), scale * norm


def _threshold(D: int, half_squares: Tensor) -> Tensor:
    """`operands.recompute_below` of a spread that is known on the device."""
    smallest = 1e-3
    spread = (2 * half_squares.sqrt()).clamp_min(smallest) / smallest
    return (recompute_below(D, smallest) * spread * spread).clamp_max(1.0)


def _side(spread: Tensor, length: Tensor, mean: Tensor, c: Tensor, whole: bool) -> Side:
    limit = norm_limit(c)
    inside = ~(length > limit)
    at_origin = length == 0
    length = length.clamp_min(TINY_LENGTH[length.dtype])
    r = radial(c.sqrt() * torch.minimum(length, limit), (~at_origin).to(length.dtype))
    rho = torch.ones_like(length)
    if not whole:
        rho = torch.linalg.vector_norm(spread + mean, dim=-1, keepdim=True)
        rho = torch.where(at_origin, 1.0, rho)  # which has no direction
    half_square = 0.5 * dot(spread, spread)
    scalars = torch.cat([half_square, rho, r.sinh, *exponentials(r), r.apex], -1)
    D = spread.shape[-1]
    step = 16 if D <= FEW_DIMENSIONS else 32
    padded = spread.new_zeros(len(spread), -(-D // step) * step)
    padded[:, :D] = spread
    return Side(padded, scalars.mT.contiguous(), length, rho, r.cosh, inside)


class Total:
    """Sums over the other cloud: of ``W times spread``, of ``W`` and of radial changes.

    ``W`` is the derivative by h, divided by the lengths ``rho`` of both directions.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self.directions = torch.zeros_like(side.spread, dtype=torch.float32)
        self.weights = torch.zeros_like(side.length)
        self.radii = torch.zeros_like(side.length)

    def add(self, rows: slice, sums: Tensor) -> None:
        """``(2, n)``: of W, and of radial changes."""
        self.weights[rows] += sums[0, :, None]
        self.radii[rows] += sums[1, :, None]

    def gradient(self, mean: Tensor, root: Tensor) -> Tensor:
        """``(sum_j dh_ij (u_i cos - v_j)) / |x| + u_i da_i``; ``root`` is sqrt(c)."""
        side, D = self._side, len(mean)
        unit = (mean + side.spread[:, :D]) / side.rho
        change = -side.rho * (self.directions[:, :D] + self.weights * mean)
        across = (change - unit * dot(unit, change)) / side.length
        return across + unit * torch.where(side.inside, self.radii * (root / side.cosh), 0.0)
