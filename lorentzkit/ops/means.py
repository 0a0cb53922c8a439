"""Means of points: the Einstein midpoint and the Frechet mean."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorentzkit._checks import points_and, require
from lorentzkit._numerics import (
    arc_over_sinh,
    arc_square,
    carry,
    coth_excess,
    dot,
    log_arc_over_sinh,
    norm,
    polar,
    values_known,
)
from lorentzkit._pairs import Polar, Root, polar_excess, polar_pair, time_of, time_root
from lorentzkit.fused.compilation import row_blocks

_STEPS = 100
_FEW_DIMENSIONS, _FEW_NUMBERS = 16, 2**14  # for which products do not pay
# Newton's method squares the error: of so little, nothing is left after one more step.
_CLOSE = 2.0**-32


def einstein_midpoint(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Einstein midpoint: ``sum w (x_0, x)`` scaled back to the hyperboloid.

    In Klein coordinates the average ``sum w gamma k / sum w gamma``, with the Lorentz factors
    gamma. It is the point that minimises ``sum w (cosh(sqrt(curv) d) - 1)``. Time grows as
    ``N^2 D``, memory as ``N^2 + N D``: only a sum over the pairs keeps its accuracy everywhere.

    Args:
        x: points, space components, ``(..., N, D)``.
        weights: non-negative, not all zero, of any sum; broadcast to the shape of ``x`` without
            its last dimension, ``(..., N)``. All equal if not given.
        curv: positive, broadcasts against the leading dimensions of the result.
        dim: the dimension of ``x`` to reduce, not the last one.

    Returns:
        Space components ``(..., D)``. Smooth everywhere, in the weights too.

    Raises:
        ValueError: for negative or all-zero weights (NaN under ``torch.compile``/``torch.func``).

    Source: Ungar 2008, ch. 6; Gulcehre et al. 2019, "Hyperbolic Attention Networks", eq. 2.

    >>> einstein_midpoint(torch.tensor([[3.0, 1.0], [-3.0, 1.0]]))
    tensor([0.0000, 0.3162])
    """
    x, w, c = _weighted(x, weights, curv, dim)
    # The midpoint does not depend on the sum: as a constant it adds no rounding to the derivatives.
    w = w / w.sum(-2, keepdim=True).detach()
    return _midpoint(x, w, torch.ones_like(w), _pair_sum(x, w, c)).squeeze(-2)


def frechet_mean(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Frechet (Karcher) mean: the point that minimises ``sum w dist(x, mean)^2``.

    It is the Einstein midpoint of the weights ``w_i s_i / sinh(s_i)``, ``s_i`` the distance from
    the mean to ``x_i`` times ``sqrt(curv)``: those N numbers are found by Newton's method, in
    float64, from the distances between the points alone. No coordinates of the mean enter, so it
    is as exact far out as at the origin. The derivatives are those of the optimum (implicit
    differentiation), not of the iterations. The iteration stops on the values, so it does not run
    under ``torch.compile(fullgraph=True)`` or ``torch.vmap``; leading dimensions are batched.

    Args:
        x: points, space components, ``(..., N, D)``. Time grows as ``N^2 D + N^3``, memory as
            ``N^2 + N D``.
        weights: non-negative, not all zero, of any sum; broadcast to the shape of ``x`` without
            its last dimension, ``(..., N)``. All equal if not given.
        curv: positive, broadcasts against the leading dimensions of the result.
        dim: the dimension of ``x`` to reduce, not the last one.

    Returns:
        Space components ``(..., D)``. Smooth everywhere, in the weights too.

    Raises:
        ValueError: for negative or all-zero weights.
        RuntimeError: with the residual, if the iteration does not converge.

    Source: Karcher 1977; Lou et al. 2020, "Differentiating through the Frechet Mean", whose
    algorithm for the hyperboloid iterates over the same midpoints.

    >>> frechet_mean(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0]))
    tensor([0.6440, 0.0000])
    """
    x, w, c = _weighted(x, weights, curv, dim)
    points, w, c = x.double(), w.double(), c.double()
    excess = _pair_excess(points, c)
    pull, inverse = _minimise(w.detach(), excess.detach())
    # A Newton step from the optimum, with a constant matrix, has the first derivatives of the
    # optimum; two steps have the second ones, too.
    change = torch.zeros_like(pull)
    for _ in range(2):
        change = change + inverse @ (_residual(w * change.exp(), pull, excess) - change)
    w = w * change.exp()
    pull = pull / (w * pull).sum(-2, keepdim=True).detach()
    mean = _midpoint(points, w, pull, _balance(w, pull, excess).pairs)
    return mean.to(x.dtype).squeeze(-2)


def _weighted(
    x: Tensor, weights: Tensor | None, curv: float | Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(..., N, D)``, weights ``(..., N, 1)`` up to 1, curvature ``(..., 1, 1)``."""
    if isinstance(curv, Tensor) and curv.dim() > 0:
        curv = curv.unsqueeze(-1)
    if isinstance(x, Tensor):
        if x.dim() < 2 or not -x.dim() <= dim < x.dim() - 1 or dim == -1:
            raise ValueError(
                f"dim: expected a dimension of x other than the last, got {dim} for x of shape "
                f"{tuple(x.shape)}"
            )
        dim = dim - x.dim() if dim >= 0 else dim
        x = x.movedim(dim, -2)
    x, c = points_and(curv, {"x": x}, scalars=weights)
    if x.shape[-2] == 0:
        raise ValueError(f"x: expected at least one point, got shape {tuple(x.shape)}")
    w = torch.ones_like(x[..., :1]) if weights is None else _checked_weights(weights, x, dim)
    return x, w, c.unsqueeze(-2) if c.dim() == 1 else c


def _checked_weights(weights: Tensor, x: Tensor, dim: int) -> Tensor:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a floating-point tensor, got {got}")
    shape = x.movedim(-2, dim).shape[:-1]
    try:
        w = weights.to(x.dtype).expand(shape).movedim(dim + 1, -1).unsqueeze(-1)
    except RuntimeError:
        raise ValueError(
            f"weights: expected a shape that expands to {tuple(shape)}, that of x without its last "
            f"dimension, got {tuple(weights.shape)}"
        ) from None
    largest = w.detach().amax(-2, keepdim=True)
    require(~(w < 0), "weights: expected non-negative weights, got a negative one")
    require(
        ~(largest <= 0), "weights: expected at least one positive weight per mean, got all zero"
    )
    return torch.where((w >= 0) & (largest > 0), w / largest, torch.nan)


def _pair_excess(x: Tensor, c: Tensor) -> Tensor:
    """``cosh(sqrt(c) dist(x_i, x_j)) - 1``, ``(..., N, N)``; of float64, as products go by it."""
    value, rise = _polar_excess(x.detach(), c), _rise(x, c)
    cross = rise.d @ rise.x.mT - rise.d0 @ rise.x0.mT
    both = rise.d @ rise.d.mT - rise.d0 @ rise.d0.mT
    apart = torch.eye(x.shape[-2], device=x.device) == 0
    return torch.where(apart, value - c * (cross + cross.mT + both), 0.0)


class _Balance(NamedTuple):
    """``S = sum w pull (x_0, x)``: its length, and the midpoint at its end."""

    total: Tensor
    """``sum w pull``, ``(..., 1, 1)``"""
    pairs: Tensor
    """``mass^2 - total^2``, ``(..., 1, 1)``"""
    mass: Tensor
    """``sqrt(c (S_0^2 - |S|^2))``, ``(..., 1, 1)``"""
    excess: Tensor
    """``cosh(s_i) - 1``, s_i from x_i to the midpoint, ``(..., N, 1)``"""


def _balance(w: Tensor, pull: Tensor, excess: Tensor) -> _Balance:
    """Sums over all pairs: ``mass^2 = (sum w)^2 + sum_ij w_i w_j (cosh(s_ij) - 1)``.

    Of the forms of this difference it is the one without any cancellation. The weights are
    ``w pull``, in two factors: their derivatives may overflow where those in ``w`` do not.
    """
    to_others = (w.mT * (pull.mT * excess)).sum(-1, keepdim=True)
    total = (w * pull).sum(-2, keepdim=True)
    pairs = (w * (pull * to_others)).sum(-2, keepdim=True)
    mass = (total**2 + pairs).sqrt()
    return _Balance(total, pairs, mass, (to_others - pairs / (total + mass)) / mass)


def _midpoint(x: Tensor, w: Tensor, pull: Tensor, pairs: Tensor) -> Tensor:
    """Einstein midpoint over dimension -2, of the weights ``w pull``: ``(..., 1, D)``."""
    total = (w * pull).sum(-2, keepdim=True)
    mass = (total**2 + pairs).sqrt()
    # Derivatives in w are differences to the midpoint: close points from their differences.
    average = (w * pull * x).sum(-2, keepdim=True).detach()
    centre = torch.where(pairs < 1, average, 0.0)
    rest = (w * (pull * (x - centre))).sum(-2, keepdim=True)
    return centre / (1 + pairs / total**2).sqrt() + rest / mass


def _pair_sum(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """``sum_ij w_i w_j (cosh(s_ij) - 1)`` over all pairs, ``(..., 1, 1)``."""
    excess = _polar_excess(x.detach(), c)
    value = (w * (w.mT * excess).sum(-1, keepdim=True)).sum(-2, keepdim=True)
    rise = _rise(x, c)
    cross = dot(rise.d, _sum_of_others(w * rise.x)) - rise.d0 * _sum_of_others(w * rise.x0)
    both = _minkowski((w * rise.d).sum(-2, keepdim=True), (w * rise.d0).sum(-2, keepdim=True))
    itself = (w**2 * _minkowski(rise.d, rise.d0)).sum(-2, keepdim=True)
    return value - c * (2 * (w * cross).sum(-2, keepdim=True) + both - itself)


class _Rise(NamedTuple):
    """Points, constant, and ``x - x.detach()``: zero, but for its derivatives; with times.

    The derivative of ``cosh(s_ij) = -c <x_i, x_j>`` in a point is linear in the other one: sums of
    it are sums of points, and need no N x N x D numbers.
    """

    x: Tensor
    x0: Tensor
    d: Tensor
    d0: Tensor


def _rise(x: Tensor, c: Tensor) -> _Rise:
    x_ = x.detach()
    x0, d = time_of(x_, c), x - x_
    return _Rise(x_, x0, d, dot(d, (x + x_) / (time_of(x, c) + x0)))


def _polar_excess(x: Tensor, c: Tensor) -> Tensor:
    """`_pair_excess` with its derivatives in c alone."""
    x0 = time_root(x, c)
    return polar_excess(_polar_pairs(x), x0, Root(x0.scale.mT, x0.root.mT), c)


@torch.no_grad()
def _polar_pairs(x: Tensor) -> Polar:
    """`polar_pair` of all pairs, in numbers ``(..., N, N)``, without the unit vectors."""
    n, size = x.shape[-2:]
    few = size <= _FEW_DIMENSIONS or n * n * size <= _FEW_NUMBERS
    pairs = _each_pair if few or not values_known(x) else _pairs_of_product
    r = norm(x)
    dr, h = pairs(x)
    return Polar(r, x, r.mT, x, dr, x, h)


def _each_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """``dr`` and ``h`` pair by pair, by blocks of rows, for N x N x D numbers are too many."""
    n, size = x.shape[-2:]
    rows = max(1, 2**18 // (n * size))
    dr, h = [], []
    for i in range(0, n, rows):  # with the points from i on: the rest is symmetric
        pairs = polar_pair(x[..., i : i + rows, None, :], x[..., None, i:, :])
        dr.append(pad(pairs.dr[..., 0].triu(1), (i, 0)))
        h.append(pad(pairs.h[..., 0].triu(1), (i, 0)))
    upper_dr, upper_h = torch.cat(dr, -2), torch.cat(h, -2)
    return upper_dr - upper_dr.mT, upper_h + upper_h.mT


def _pairs_of_product(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same from a product of directions, in float64; pair by pair where that loses ``h``."""
    r, u = polar(x.double())
    spread = u - u.mean(-2, keepdim=True)
    half = dot(spread, spread) / 2
    h = (half + half.mT - spread @ spread.mT).clamp_min(0)
    dr = (r - r.mT).to(x.dtype)
    # The product is off by about `error` roundings of float64; what 16 roundings of the directions,
    # in x's own dtype, would change in h is 32 sin(theta) of those.
    error = (2 + math.sqrt(x.shape[-1]) / 4) * 2 * half.amax(-2, keepdim=True)
    error = error * (torch.finfo(torch.float64).eps / torch.finfo(x.dtype).eps)
    lost = ((h < error**2 / 2048) | ((r == 0) | (r.mT == 0))).triu(1)
    h = h.to(x.dtype)
    *batch, i, j = lost.nonzero(as_tuple=True)
    for some in row_blocks(len(i), max(1, 2**18 // x.shape[-1])):
        at, (p, q) = [k[some] for k in batch], (i[some], j[some])
        exact = polar_pair(x[(*at, p)], x[(*at, q)])
        dr[(*at, p, q)], dr[(*at, q, p)] = exact.dr[:, 0], -exact.dr[:, 0]
        h[(*at, p, q)] = h[(*at, q, p)] = exact.h[:, 0]
    h.diagonal(dim1=-2, dim2=-1).zero_()
    return dr, h


def _sum_of_others(v: Tensor) -> Tensor:
    """For each i the sum of ``v_j`` over j != i, without subtracting."""
    before = torch.cat([torch.zeros_like(v[..., :1, :]), v[..., :-1, :]], -2).cumsum(-2)
    after = torch.cat([v[..., 1:, :], torch.zeros_like(v[..., :1, :])], -2)
    return before + after.flip(-2).cumsum(-2).flip(-2)


def _minkowski(d: Tensor, d0: Tensor) -> Tensor:
    return dot(d, d) - d0**2


def _residual(w: Tensor, pull: Tensor, excess: Tensor) -> Tensor:
    """``log(s_i/sinh(s_i) / pull_i)``, s_i from x_i to the midpoint of the weights ``w pull``."""
    seen = _balance(w, pull, excess).excess
    # The logarithms alone are as large as s.
    return carry((arc_over_sinh(seen) / pull).log(), log_arc_over_sinh(seen))


def _minimise(w: Tensor, excess: Tensor) -> tuple[Tensor, Tensor]:
    """Where `_residual` vanishes, ``(..., N, 1)``, and the inverse of Newton's matrix there.

    The residual itself is a step, too, that of Lou et al. 2020: slow, but it never increases the
    objective ``sum w s^2``. Of the two steps the better one is taken, so that this converges.
    """

    def objective(pull: Tensor) -> Tensor:
        return (w * arc_square(_balance(w, pull, excess).excess)).sum(-2, keepdim=True)

    # The mean is within the convex hull of the points: nearer to x_i than the farthest of them.
    least = arc_over_sinh(excess.amax(-1, keepdim=True))
    pull, itself = torch.ones_like(w), torch.eye(w.shape[-2], device=w.device) > 0
    for _ in range(_STEPS):
        residual = _residual(w, pull, excess)
        inverse = torch.linalg.inv(_newton_matrix(w, pull, excess))
        # What weighs nothing moves nothing else, not even by the rounding of the inverse.
        inverse = torch.where((w.mT > 0) | itself, inverse, 0.0)
        if not bool((residual.abs() > _CLOSE).any()):
            return pull, inverse
        newton = (pull * (inverse @ residual).exp()).clamp(least, torch.ones_like(w))
        plain = pull * residual.exp()
        # Close to the optimum the objective is flat to rounding, and Newton's step is right.
        better = objective(newton) <= objective(plain) * (1 + 2.0**-40)
        pull = torch.where(better, newton, plain)
    raise RuntimeError(
        f"frechet_mean: not converged in {_STEPS} steps, residual "
        f"{float(residual.abs().max()):.2e}, expected at most {_CLOSE:.2e} (of the logarithms of "
        f"the weights); use einstein_midpoint, which has a closed form"
    )


def _newton_matrix(w: Tensor, pull: Tensor, excess: Tensor) -> Tensor:
    """Minus the derivative of `_residual` in ``log(pull)``, ``(..., N, N)``.

    ``I - h_i p_j (cosh(s_ij) / (cosh(s_i) cosh(s_j)) - 1)``, with h the derivative of
    ``log(s / sinh(s))`` in ``log(cosh(s))`` and p_j the share of x_j in the mass. The bracket is
    ``-tanh(s_i) tanh(s_j) cos(angle at the mean)``, so nothing overflows, and h is in (-1, -1/3]:
    the matrix is never singular.
    """
    _, _, mass, seen = _balance(w, pull, excess)
    cosh = 1 + seen
    share = w * pull * cosh / mass
    square = arc_square(seen)
    bend = coth_excess(square)
    h = -bend * (1 + bend * square)
    eye = torch.eye(w.shape[-2], dtype=w.dtype, device=w.device)
    return eye - h * share.mT * ((1 + excess) / cosh / cosh.mT - 1)


__all__ = ["einstein_midpoint", "frechet_mean"]
