"""The Einstein midpoint and the Frechet mean, the same with other weights, each by two ways.

*From a base point* (`midpoint`): O(N D), in a type wider than the points'. Eager calls for a
midpoint need no wider type: its gradients are written out, and exact anywhere.

*From the pairs*: the distances between the points alone give the weights of the mean, and no
coordinates of a base point enter. This takes O(N^2 D), so it is for few points. It is exact even
where coordinates relative to a base point have too few digits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorentzkit._geometry import midpoint
from lorentzkit._geometry.elementary import is_exporting
from lorentzkit._geometry.invariants import products
from lorentzkit._geometry.midpoint import (
    BasePoint,
    midpoint_base,
    projections,
    split,
    squared,
    step_to_midpoint,
    summed,
)
from lorentzkit._geometry.smooth import excess
from lorentzkit._geometry.special import (
    arc_over_sinh,
    arc_square,
    carry,
    coth_excess,
    differentiable,
    dot,
    log_arc_over_sinh,
    values_at_hand,
)
from lorentzkit._geometry.vectors import eager, wide_dtype

# At most so many points go by their pairs; the second number is for a dtype without a wider one.
_FEW, _FEW_OF_WIDEST = 8, 64
_STEPS, _PATIENT_STEPS = 100, 20
# Newton's method squares the error: below this, one more step leaves none.
_TOLERANCE = {torch.float64: 2.0**-32, torch.float32: 2.0**-12}
# The rounding of the objective.
_OBJECTIVE_ROUNDING = {torch.float64: 2.0**-40, torch.float32: 2.0**-18}


def einstein_midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """Of points ``(..., N, D)`` and weights ``(..., N, 1)`` of sum 1; w and c in a wider dtype."""
    # An exported program has values only, exact either way in float32, and serves all sizes.
    exporting = is_exporting() and x.dtype != wide_dtype(x)
    by_pairs = not exporting and _few(x)
    plain = _midpoint_from_pairs if by_pairs else midpoint.midpoint
    if not (eager(x) and values_at_hand(x)):
        return plain(x, w, c)
    sets = torch.broadcast_shapes(x.shape[:-2], c.shape[:-2])  # type: ignore[no-untyped-call]
    x, w = (t.expand(*sets, *t.shape[-2:]) for t in (x, w))
    c, start = c.expand(*sets, 1, 1), None
    constants = x.detach(), w.detach(), c.detach()
    sums = midpoint.klein_sums(*constants)
    if not sums.origin_suffices(spare=x.dtype != w.dtype):
        start = midpoint.heaviest(*constants)
        sums = midpoint.klein_sums(*constants, start)
    mean: Tensor = midpoint.Midpoint.apply(plain, x, w, c, start, *sums)  # type: ignore[no-untyped-call]
    return mean


def frechet_mean(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """As `einstein_midpoint`."""
    return (_mean_from_pairs if _few(x) else _mean_from_base)(x, w, c)


def _few(x: Tensor) -> bool:
    return x.shape[-2] <= (_FEW_OF_WIDEST if x.dtype == wide_dtype(x) else _FEW)


# --- The Frechet mean -------------------------------------------------------------------------


class _Evaluation(NamedTuple):
    """At the midpoint of some weights: ``cosh(s_i) - 1`` from there, and how exact that is."""

    excess: Tensor
    noise: Tensor | float
    newton: Callable[[], tuple[Tensor, Tensor]]
    """The ``s_i/sinh(s_i)`` after a step of Newton's method, and a matrix for its derivative."""


@torch.no_grad()
def _minimise(w: Tensor, evaluate: Callable[[Tensor], _Evaluation]) -> tuple[Tensor, Tensor]:
    """The pull with ``pull = s/sinh(s)``, s from the midpoint of the weights ``w pull``; and
    Newton's matrix.

    The simple step, to the ``s/sinh(s)`` of the current midpoint, is that of Lou et al. 2020. It
    never increases the objective ``sum w s^2``. Where it is slow, Newton's step is tried, and taken
    back if it does increase the objective. So the iteration converges.
    """
    pull, tolerance = torch.ones_like(w), _TOLERANCE[w.dtype]
    simple = pull
    least = previous = torch.full_like(w[..., :1, :], torch.inf)
    for iteration in range(_STEPS):
        excess, noise, newton = evaluate(pull)
        simple_step = arc_over_sinh(excess)
        # The logarithms alone are as large as s.
        residual = (simple_step / pull).log().abs().amax(-2, keepdim=True)
        done = not bool(
            (residual > (tolerance if iteration < _PATIENT_STEPS else noise + tolerance)).any()
        )
        objective = (w * arc_square(excess)).sum(-2, keepdim=True)
        worse = objective > least * (1 + _OBJECTIVE_ROUNDING[w.dtype])
        step, matrix = simple_step, w
        if done or bool((residual > previous / 8).any()):
            step, matrix = newton()
        if done:
            return step, matrix
        pull = torch.where(worse, simple, step)
        simple, least = (
            torch.where(worse, simple, simple_step),
            torch.where(worse, least, objective),
        )
        previous = residual
    raise RuntimeError(
        f"frechet_mean: not converged in {_STEPS} steps, residual {float(residual.max()):.2e}, "
        f"expected at most {tolerance:.2e} (of the logarithms of the weights); use "
        f"einstein_midpoint, which has a closed form"
    )


def _mean_from_base(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    x_, w_, c_ = x.detach(), w.detach(), c.detach()
    pull, bend = _minimise(w_, partial(_evaluate_at_base, x_, w_, c_))
    base = midpoint_base(x_, w_ * pull, c_)
    if not differentiable(x, w, c):
        return base.point()
    # A Newton step from the optimum, with a constant matrix, has the first derivatives of the
    # optimum; two steps have the second ones, too.
    step = torch.zeros_like(base.unit)
    for _ in range(2):
        excess, excess_after_step = _excesses(x, w, base, c, base.to_orthonormal(step, c))
        pulled = w * arc_over_sinh(excess_after_step)
        total = projections(x, pulled, base.unit, step).total
        residual = (
            step_to_midpoint((pulled * (1 + excess)).sum(-2, keepdim=True), total, base, c) - step
        )
        step = step + residual + base.from_orthonormal(base.to_orthonormal(residual, c) @ bend, c)
    return carry(base.point(), base.moved(step, c))


def _excesses(x: Tensor, w: Tensor, base: BasePoint, c: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """``cosh(s) - 1``, s from the base point and from where the step z leads.

    z is in orthonormal coordinates, and its length is the sinh of the distance.
    """
    z_radial = dot(base.unit, z)
    along, square, product, _ = projections(x, w, base.unit, z - z_radial * base.unit)
    excess, radial = base.excess_and_radial(along, square, c)
    rise = dot(z, z) / (1 + (1 + dot(z, z)).sqrt())
    excess_after_step = excess + rise * (1 + excess) - z_radial * radial - c.sqrt() * product
    return excess, excess_after_step.clamp_min(0)


def _evaluate_at_base(x: Tensor, w: Tensor, c: Tensor, pull: Tensor) -> _Evaluation:
    base = midpoint_base(x, w * pull, c)

    def newton() -> tuple[Tensor, Tensor]:
        # The Hessian of s^2/2 is 1 along the geodesic and s coth(s) across: mass I - bend.
        mass, total, bend = summed(_second_moments, x, w, base, c)
        eye = torch.eye(x.shape[-1], dtype=w.dtype, device=w.device)
        inverse = torch.linalg.inv(mass * eye - bend)
        return arc_over_sinh(_excesses(x, w, base, c, total @ inverse)[1]), inverse @ bend

    excess, _ = _excesses(x, w, base, c, torch.zeros_like(base.unit))
    noise = 64 * torch.finfo(w.dtype).eps * c.sqrt() * base.radius
    return _Evaluation(excess, noise, newton)


def _second_moments(
    x: Tensor, w: Tensor, base: BasePoint, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``sum w s coth(s)``, ``sum w s e`` and ``sum w (s coth(s) - 1) e e``."""
    along, across, apart = split(x, base.unit)
    across = torch.where(apart, across, 0.0)
    excess, radial = base.excess_and_radial(along, squared(across), c)
    z, pull = c.sqrt() * across + radial * base.unit, arc_over_sinh(excess)
    bend = w * pull**2 * coth_excess(arc_square(excess))
    w = w * pull
    return (w * (1 + excess)).sum(-2, keepdim=True), w.mT @ z, (bend * z).mT @ z


# --- From the pairs ---------------------------------------------------------------------------


def _midpoint_from_pairs(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    pull, excess = torch.ones_like(w), _pair_excess(x, c)
    return _midpoint(x, w, pull, _balance(w, pull, excess).pairs)


def _mean_from_pairs(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    excess = _pair_excess(x, c)
    pull, inverse = _minimise(
        w.detach(), partial(_evaluate_from_pairs, w.detach(), excess.detach())
    )
    log_pull_step = torch.zeros_like(pull)
    for _ in range(2):  # as in `_mean_from_base`
        log_pull_step = log_pull_step + inverse @ (
            _residual(w * log_pull_step.exp(), pull, excess) - log_pull_step
        )
    w = w * log_pull_step.exp()
    pull = pull / (w * pull).sum(-2, keepdim=True).detach()
    return _midpoint(x, w, pull, _balance(w, pull, excess).pairs)


def _evaluate_from_pairs(w: Tensor, excess: Tensor, pull: Tensor) -> _Evaluation:
    def newton() -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.inv(_newton_matrix(w, pull, excess))
        # A point of weight 0 must not move the others, not even by the rounding of the inverse.
        diagonal = torch.eye(w.shape[-2], device=w.device) > 0
        inverse = torch.where((w.mT > 0) | diagonal, inverse, 0.0)
        step = pull * (inverse @ _residual(w, pull, excess)).exp()
        # The mean is within the convex hull of the points: nearer to x_i than the farthest of them.
        least = arc_over_sinh(excess.amax(-1, keepdim=True))
        return step.clamp(least, torch.ones_like(w)), inverse

    return _Evaluation(_balance(w, pull, excess).excess, 0.0, newton)


def _pair_excess(x: Tensor, c: Tensor) -> Tensor:
    """``cosh(sqrt(c) dist(x_i, x_j)) - 1``, ``(..., N, N)``."""
    n = x.shape[-2]
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    pairs = excess(*products(x[..., i, :], x[..., j, :])[:2], c).squeeze(-1)
    index = torch.full((n, n), len(i), device=x.device)  # the diagonal: what is padded, 0
    index[i, j] = index[j, i] = torch.arange(len(i), device=x.device)
    return pad(pairs, (0, 1))[..., index]


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

    This form of ``S_0^2 - |S|^2`` has no cancellation. The weights ``w pull`` come as two factors:
    derivatives in the product may overflow where those in ``w`` do not.
    """
    pair_sums = (w.mT * (pull.mT * excess)).sum(-1, keepdim=True)
    total = (w * pull).sum(-2, keepdim=True)
    pairs = (w * (pull * pair_sums)).sum(-2, keepdim=True)
    mass = (total**2 + pairs).sqrt()
    return _Balance(total, pairs, mass, (pair_sums - pairs / (total + mass)) / mass)


def _midpoint(x: Tensor, w: Tensor, pull: Tensor, pairs: Tensor) -> Tensor:
    """Einstein midpoint over dimension -2, of the weights ``w pull``: ``(..., 1, D)``."""
    total = (w * pull).sum(-2, keepdim=True)
    mass = (total**2 + pairs).sqrt()
    # Derivatives in w are differences to the midpoint: close points from their differences.
    average = (w * pull * x).sum(-2, keepdim=True).detach()
    centre = torch.where(pairs < 1, average, 0.0)
    rest = (w * (pull * (x - centre))).sum(-2, keepdim=True)
    return centre / (1 + pairs / total**2).sqrt() + rest / mass


def _residual(w: Tensor, pull: Tensor, excess: Tensor) -> Tensor:
    """``log(s_i/sinh(s_i) / pull_i)``, s_i from x_i to the midpoint of the weights ``w pull``."""
    midpoint_excess = _balance(w, pull, excess).excess
    # The logarithms alone are as large as s.
    return carry((arc_over_sinh(midpoint_excess) / pull).log(), log_arc_over_sinh(midpoint_excess))


def _newton_matrix(w: Tensor, pull: Tensor, excess: Tensor) -> Tensor:
    """Minus the derivative of `_residual` in ``log(pull)``, ``(..., N, N)``.

    ``I - h_i p_j (cosh(s_ij) / (cosh(s_i) cosh(s_j)) - 1)``, with h the derivative of
    ``log(s / sinh(s))`` in ``log(cosh(s))`` and p_j the share of x_j in the mass. The bracket is
    ``-tanh(s_i) tanh(s_j) cos(angle at the mean)``, so nothing overflows, and h is in (-1, -1/3]:
    the matrix is never singular.
    """
    _, _, mass, midpoint_excess = _balance(w, pull, excess)
    cosh = 1 + midpoint_excess
    share = w * pull * cosh / mass
    square = arc_square(midpoint_excess)
    bend = coth_excess(square)
    h = -bend * (1 + bend * square)
    eye = torch.eye(w.shape[-2], dtype=w.dtype, device=w.device)
    return eye - h * share.mT * ((1 + excess) / cosh / cosh.mT - 1)
