"""Means of points: the Einstein midpoint and the Frechet mean, the same with other weights.

Two ways lead to each. *From a place*: seen from a point p, each of the others is ``cosh(s)`` and a
tangent vector ``sinh(s) e`` at p, and the sum of those, normalised, is the midpoint exactly. With p
the midpoint itself nothing cancels. This takes sums over the points, O(N D), in a type wider than
theirs. *From the pairs*: the distances between the points alone give the weights of the mean, and
no coordinates of a place enter. This takes O(N^2 D), for few points, and is exact even where a
place has too few digits to look from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.nn.functional import pad

from lorentzkit._geometry.arguments import points_and, require
from lorentzkit._geometry.invariants import products
from lorentzkit._geometry.smooth import excess
from lorentzkit._geometry.special import (
    arc_over_sinh,
    arc_square,
    carry,
    coth_excess,
    differentiable,
    dot,
    log_arc_over_sinh,
    polar,
    root_one_plus,
    smallest_length,
    values_known,
)
from lorentzkit._geometry.vectors import wide_dtype

# So many points at most go by their pairs; the second is for a dtype that has no wider one.
_FEW, _FEW_OF_WIDEST = 8, 64
_CHUNK = 2**17  # numbers in a block of rows, which then stays in the cache
_STEPS, _PATIENT_STEPS = 100, 20
# Newton's method squares the error: of so little, nothing is left after one more step.
_CLOSE = {torch.float64: 2.0**-32, torch.float32: 2.0**-12}
# The rounding of the objective.
_SAME = {torch.float64: 2.0**-40, torch.float32: 2.0**-18}


def einstein_midpoint(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Einstein midpoint: ``sum w (x_0, x)`` scaled back to the hyperboloid.

    In Klein coordinates the average ``sum w gamma k / sum w gamma``, with the Lorentz factors
    gamma. It is the point that minimises ``sum w (cosh(sqrt(curv) d) - 1)``. Time and memory grow
    as ``N D``.

    Up to 8 points, or 64 of float64, go by their pairs and are exact at any radius. More are
    computed with in float64: of float32, values are exact at any radius, and gradients as long as
    the midpoint is within radius 10. Float64 itself has no wider type. There values are exact as
    long as the midpoint is within radius 15; gradients lose digits with the radius, and where the
    points nearly coincide.

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
    mean = (_midpoint_from_pairs if _few(x) else _midpoint_from_place)(x, w, c)
    return mean.to(x.dtype).squeeze(-2)


def frechet_mean(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Frechet (Karcher) mean: the point that minimises ``sum w dist(x, mean)^2``.

    It is the Einstein midpoint of the weights ``w_i s_i / sinh(s_i)``, ``s_i`` the distance from
    the mean to ``x_i`` times ``sqrt(curv)``. Those are found in float64: simple steps look at the
    distances from the last midpoint, and Newton's method helps where they are slow. The derivatives
    are those of the optimum (implicit differentiation), not of the iterations. It is as exact as
    `einstein_midpoint` is, but that of more than 64 float64 points far out, where its value may
    lose digits, too. The iteration stops on the values, so it does not run
    under ``torch.compile(fullgraph=True)`` or ``torch.vmap``; leading dimensions are batched.

    Args:
        x: points, space components, ``(..., N, D)``. Time grows as ``N D`` for each simple step,
            as ``N D^2 + D^3`` for the others, at least one; memory as ``N D + D^2``.
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
    mean = (_mean_from_pairs if _few(x) else _mean_from_place)(x, w, c)
    return mean.to(x.dtype).squeeze(-2)


def _weighted(
    x: Tensor, weights: Tensor | None, curv: float | Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(..., N, D)``; wide, weights ``(..., N, 1)`` of sum 1 and ``c``, ``(..., 1, 1)``."""
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
    w = torch.ones_like(x[..., :1], dtype=wide_dtype(x))
    if weights is not None:
        w = _checked_weights(weights, x, dim)
    c = (c.unsqueeze(-2) if c.dim() == 1 else c).to(w.dtype)
    # The mean does not depend on the sum: as a constant it adds no rounding to the derivatives.
    return x, w / w.sum(-2, keepdim=True).detach(), c


def _few(x: Tensor) -> bool:
    return x.shape[-2] <= (_FEW_OF_WIDEST if x.dtype == wide_dtype(x) else _FEW)


def _checked_weights(weights: Tensor, x: Tensor, dim: int) -> Tensor:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a floating-point tensor, got {got}")
    shape = x.movedim(-2, dim).shape[:-1]
    try:
        w = weights.to(wide_dtype(x)).expand(shape).movedim(dim + 1, -1).unsqueeze(-1)
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


# --- Sums over the points ---------------------------------------------------------------------


class _Measures(NamedTuple):
    along: Tensor
    """The coordinate along a unit vector, ``(..., N, 1)``."""
    square: Tensor
    """The square of what is across it"""
    product: Tensor
    """and the product of that and a vector z."""
    total: Tensor
    """``sum w x``, ``(..., 1, D)``"""


def _measures(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> _Measures:
    """All that derivatives pass through on their way to the points; the unit vector is constant."""
    large = x.numel() > _CHUNK and values_known(x)
    if not large or any(unpack_dual(t).tangent is not None for t in (x, w, z)):  # type: ignore[no-untyped-call]
        return _measures_at_once(x, w, unit, z)
    return _Measures(*_MeasuresByRows.apply(x, w, unit, z))  # type: ignore[no-untyped-call]


def _measures_at_once(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> _Measures:
    x = x.to(w.dtype)
    along, across, apart = _split(x, unit)
    # What is not apart is 0, but for its derivatives.
    across = across - torch.where(apart, 0.0, across).detach()
    return _Measures(along, dot(across, across), across @ z.mT, w.mT @ x)


def _split(x: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinate along a unit vector, the part across it, and whether that is more than noise.

    It may be just the rounding of the unit vector; its square times cosh(a)^2 could be everything.
    """
    along = x @ unit.mT
    across = torch.addcmul(x, along, unit, value=-1)
    return along, across, _square(across.detach()) > _noise(along) ** 2


def _square(v: Tensor) -> Tensor:
    """``dot(v, v)`` in one pass."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length * length


def _noise(along: Tensor) -> Tensor:
    return 16 * torch.finfo(along.dtype).eps * along.detach().abs()


class _MeasuresByRows(torch.autograd.Function):
    """Of some rows at a time, forward and backward, so that nothing of size N D is kept."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*args)
        x, w, unit, z = args
        numbers, total = [], torch.zeros_like(z)
        for r in _rows(x):
            points = x[r].to(w.dtype)
            along, across, apart = _split(points, unit)
            both = torch.cat([_square(across), across @ z.mT], -1)
            numbers.append(torch.cat([along, torch.where(apart, both, 0.0)], -1))
            total = total + w[r].mT @ points
        return (*torch.cat(numbers, -2).tensor_split(3, -1), total)

    @staticmethod
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:
        x, w, unit, z = args = ctx.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives
            args = tuple(t.view_as(t) for t in args)  # w and z may depend on x: not here
            wanted = [t for t, needed in zip(args, ctx.needs_input_grad, strict=True) if needed]
            grads = torch.autograd.grad(_measures_at_once(*args), wanted, by, create_graph=True)
            found = iter(grads)
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        of_x, of_w, of_z = torch.empty_like(x), torch.empty_like(w), torch.zeros_like(z)
        vectors = torch.cat([unit, z, by[3]], -2)
        for r in _rows(x):
            points, (along, square, product) = x[r].to(w.dtype), (t[r] for t in by[:3])
            _, across, apart = _split(points, unit)
            product = torch.where(apart, product, 0.0)
            others = torch.cat([along, product, w[r]], -1) @ vectors
            of_x[r] = torch.addcmul(others, torch.where(apart, 2 * square, 0.0), across)
            of_w[r] = points @ by[3].mT
            of_z += product.mT @ across
        return of_x, of_w, None, of_z


def _rows(x: Tensor) -> Iterator[tuple[Any, ...]]:
    """Indices of blocks of rows, small enough for the cache."""
    n = x.shape[-2]
    size = n if not values_known(x) else max(1, _CHUNK * n // max(1, x.numel()))
    return ((..., slice(start, start + size), slice(None)) for start in range(0, n, size))


def _summed(
    function: Callable[..., tuple[Tensor, ...]], x: Tensor, w: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """``function(x, w, *rest)``, which sums over dimension -2, of some rows at a time."""
    parts = (function(x[r].to(w.dtype), w[r], *rest) for r in _rows(x))
    return reduce(lambda sums, more: tuple(map(torch.add, sums, more)), parts)


# --- From a place -----------------------------------------------------------------------------


class _Place(NamedTuple):
    """A point to look from, constant: its radius ``(..., 1, 1)`` and direction ``(..., 1, D)``."""

    radius: Tensor
    unit: Tensor

    def point(self) -> Tensor:
        return self.radius * self.unit

    def upright(self, v: Tensor, c: Tensor) -> Tensor:
        """A tangent vector in orthonormal coordinates: along the radius it is cosh(a) too long."""
        return c.sqrt() * (v + self.unit * dot(self.unit, v) * (1 / self._cosh(c) - 1))

    def tangent(self, z: Tensor, c: Tensor) -> Tensor:
        """The inverse of `upright`."""
        return (z + self.unit * dot(self.unit, z) * (self._cosh(c) - 1)) / c.sqrt()

    def beyond(self, v: Tensor, c: Tensor) -> Tensor:
        """The point ``cosh(s) p + v``, for v of length sinh(s)."""
        z = self.upright(v, c)
        return (1 + dot(z, z)).sqrt() * self.point() + v

    def seen(self, along: Tensor, square: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Of points: ``cosh(s) - 1``, and the part of ``sinh(s) e`` along the radius.

        Sums of terms of one sign: smooth functions that are exact, and so are their derivatives.
        """
        r, ahead = self.radius, along - self.radius
        ahead = ahead - torch.where(ahead.abs() <= _noise(along), ahead, 0.0).detach()
        p0, foot = (1 / c + r**2).sqrt(), (1 / c + along**2).sqrt()
        total = along * p0 + r * foot
        near = (along > 0) & (total > smallest_length(r.dtype))
        ratio = (along + r) / torch.where(near, total, 1.0)
        to_foot = torch.where(near, ahead * ratio, c * (along * p0 - r * foot))
        rise = square / (foot + (foot**2 + square).sqrt())  # from the foot's time to the point's
        excess = to_foot * (to_foot / (1 + root_one_plus(to_foot))) + c * p0 * rise
        return excess, to_foot - c * r * rise

    def _cosh(self, c: Tensor) -> Tensor:
        return (1 + c * self.radius**2).sqrt()


def _midpoint_from_place(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    place = _place_of_midpoint(x.detach(), w.detach(), c.detach())
    if not differentiable(x, w, c):
        return place.point()
    seen = _measures(x, w, place.unit, torch.zeros_like(place.unit))
    excess, _ = place.seen(seen.along, seen.square, c)
    step = _step((w * (1 + excess)).sum(-2, keepdim=True), seen.total, place, c)
    return carry(place.point(), place.beyond(step, c))


def _place_of_midpoint(x: Tensor, w: Tensor, c: Tensor) -> _Place:
    """On the ray of ``S = sum w x``, at ``|S|/mass``, ``mass^2 = c (S_0^2 - |S|^2)``."""
    length, unit = polar(*_summed(lambda x, w: (w.mT @ x,), x, w))
    (gap,) = _summed(_time_less, x, w, unit, c)
    return _Place(length / (c * gap * (gap + 2 * length)).sqrt(), unit)


def _time_less(x: Tensor, w: Tensor, unit: Tensor, c: Tensor) -> tuple[Tensor]:
    """``sum w (x_0 - unit.x)``, without the difference where that cancels."""
    along, across, apart = _split(x, unit)
    square = 1 / c + torch.where(apart, _square(across), 0.0)
    total = (square + along**2).sqrt() + along.abs()
    return ((w * torch.where(along > 0, square / total, total)).sum(-2, keepdim=True),)


def _step(mass: Tensor, total: Tensor, place: _Place, c: Tensor) -> Tensor:
    """From the place, the midpoint, to the midpoint: zero, but for its derivatives."""
    pull = total - mass * place.point()
    pull = pull - pull.detach()
    z = place.upright(pull, c)
    return pull / (mass**2 - dot(z, z)).sqrt()


# --- The Frechet mean -------------------------------------------------------------------------


class _Look(NamedTuple):
    """At the midpoint of some weights: ``cosh(s_i) - 1`` from there, and how exact the place is."""

    excess: Tensor
    noise: Tensor | float
    newton: Callable[[], tuple[Tensor, Tensor]]
    """The ``s_i/sinh(s_i)`` after a step of Newton's method, and a matrix for its derivative."""


@torch.no_grad()
def _minimise(w: Tensor, look: Callable[[Tensor], _Look]) -> tuple[Tensor, Tensor]:
    """Where ``pull = s/sinh(s)``, s from the midpoint of the weights ``w pull``; Newton's matrix.

    The simple step, to what is seen, is that of Lou et al. 2020: it never increases the objective
    ``sum w s^2``. Where it is slow Newton's is tried, and taken back if that does. So it converges.
    """
    pull, close = torch.ones_like(w), _CLOSE[w.dtype]
    simple = pull
    least = previous = torch.full_like(w[..., :1, :], torch.inf)
    for count in range(_STEPS):
        excess, noise, newton = look(pull)
        seen = arc_over_sinh(excess)
        # The logarithms alone are as large as s.
        residual = (seen / pull).log().abs().amax(-2, keepdim=True)
        done = not bool((residual > (close if count < _PATIENT_STEPS else noise + close)).any())
        objective = (w * arc_square(excess)).sum(-2, keepdim=True)
        worse = objective > least * (1 + _SAME[w.dtype])
        step, matrix = seen, w
        if done or bool((residual > previous / 8).any()):
            step, matrix = newton()
        if done:
            return step, matrix
        pull = torch.where(worse, simple, step)
        simple, least = torch.where(worse, simple, seen), torch.where(worse, least, objective)
        previous = residual
    raise RuntimeError(
        f"frechet_mean: not converged in {_STEPS} steps, residual {float(residual.max()):.2e}, "
        f"expected at most {close:.2e} (of the logarithms of the weights); use "
        f"einstein_midpoint, which has a closed form"
    )


def _mean_from_place(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    x_, w_, c_ = x.detach(), w.detach(), c.detach()
    pull, bend = _minimise(w_, partial(_look_around, x_, w_, c_))
    place = _place_of_midpoint(x_, w_ * pull, c_)
    if not differentiable(x, w, c):
        return place.point()
    # A Newton step from the optimum, with a constant matrix, has the first derivatives of the
    # optimum; two steps have the second ones, too.
    step = torch.zeros_like(place.unit)
    for _ in range(2):
        excess, there = _excesses(x, w, place, c, place.upright(step, c))
        pulled = w * arc_over_sinh(there)
        total = _measures(x, pulled, place.unit, step).total
        rest = _step((pulled * (1 + excess)).sum(-2, keepdim=True), total, place, c) - step
        step = step + rest + place.tangent(place.upright(rest, c) @ bend, c)
    return carry(place.point(), place.beyond(step, c))


def _excesses(x: Tensor, w: Tensor, place: _Place, c: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """``cosh(s) - 1``, s from the place and from where the step z, upright and sinh long, leads."""
    z_radial = dot(place.unit, z)
    along, square, product, _ = _measures(x, w, place.unit, z - z_radial * place.unit)
    excess, radial = place.seen(along, square, c)
    rise = dot(z, z) / (1 + (1 + dot(z, z)).sqrt())
    there = excess + rise * (1 + excess) - z_radial * radial - c.sqrt() * product
    return excess, there.clamp_min(0)


def _look_around(x: Tensor, w: Tensor, c: Tensor, pull: Tensor) -> _Look:
    place = _place_of_midpoint(x, w * pull, c)

    def newton() -> tuple[Tensor, Tensor]:
        # The Hessian of s^2/2 is 1 along the geodesic and s coth(s) across: mass I - bend.
        mass, total, bend = _summed(_second_moments, x, w, place, c)
        eye = torch.eye(x.shape[-1], dtype=w.dtype, device=w.device)
        inverse = torch.linalg.inv(mass * eye - bend)
        return arc_over_sinh(_excesses(x, w, place, c, total @ inverse)[1]), inverse @ bend

    excess, _ = _excesses(x, w, place, c, torch.zeros_like(place.unit))
    noise = 64 * torch.finfo(w.dtype).eps * c.sqrt() * place.radius
    return _Look(excess, noise, newton)


def _second_moments(
    x: Tensor, w: Tensor, place: _Place, c: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``sum w s coth(s)``, ``sum w s e`` and ``sum w (s coth(s) - 1) e e``."""
    along, across, apart = _split(x, place.unit)
    across = torch.where(apart, across, 0.0)
    excess, radial = place.seen(along, _square(across), c)
    z, pull = c.sqrt() * across + radial * place.unit, arc_over_sinh(excess)
    bend = w * pull**2 * coth_excess(arc_square(excess))
    w = w * pull
    return (w * (1 + excess)).sum(-2, keepdim=True), w.mT @ z, (bend * z).mT @ z


# --- From the pairs ---------------------------------------------------------------------------


def _midpoint_from_pairs(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    pull, excess = torch.ones_like(w), _pair_excess(x, c)
    return _midpoint(x, w, pull, _balance(w, pull, excess).pairs)


def _mean_from_pairs(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    excess = _pair_excess(x, c)
    pull, inverse = _minimise(w.detach(), partial(_look_at_pairs, w.detach(), excess.detach()))
    change = torch.zeros_like(pull)
    for _ in range(2):  # as from a place
        change = change + inverse @ (_residual(w * change.exp(), pull, excess) - change)
    w = w * change.exp()
    pull = pull / (w * pull).sum(-2, keepdim=True).detach()
    return _midpoint(x, w, pull, _balance(w, pull, excess).pairs)


def _look_at_pairs(w: Tensor, excess: Tensor, pull: Tensor) -> _Look:
    def newton() -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.inv(_newton_matrix(w, pull, excess))
        # What weighs nothing moves nothing else, not even by the rounding of the inverse.
        itself = torch.eye(w.shape[-2], device=w.device) > 0
        inverse = torch.where((w.mT > 0) | itself, inverse, 0.0)
        step = pull * (inverse @ _residual(w, pull, excess)).exp()
        # The mean is within the convex hull of the points: nearer to x_i than the farthest of them.
        least = arc_over_sinh(excess.amax(-1, keepdim=True))
        return step.clamp(least, torch.ones_like(w)), inverse

    return _Look(_balance(w, pull, excess).excess, 0.0, newton)


def _pair_excess(x: Tensor, c: Tensor) -> Tensor:
    """``cosh(sqrt(c) dist(x_i, x_j)) - 1``, ``(..., N, N)``."""
    n = x.shape[-2]
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    pairs = excess(*products(x[..., i, :], x[..., j, :])[:2], c).squeeze(-1)
    place = torch.full((n, n), len(i), device=x.device)  # the diagonal: what is padded, 0
    place[i, j] = place[j, i] = torch.arange(len(i), device=x.device)
    return pad(pairs, (0, 1))[..., place]


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


def _residual(w: Tensor, pull: Tensor, excess: Tensor) -> Tensor:
    """``log(s_i/sinh(s_i) / pull_i)``, s_i from x_i to the midpoint of the weights ``w pull``."""
    seen = _balance(w, pull, excess).excess
    # The logarithms alone are as large as s.
    return carry((arc_over_sinh(seen) / pull).log(), log_arc_over_sinh(seen))


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
