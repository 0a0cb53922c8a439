"""The Einstein midpoint, and points in coordinates relative to a base point.

Relative to a base point, a point at distance s is ``cosh(s)`` and a tangent vector ``sinh(s) e``.
The sum of those over the points, normalised, is exactly the Einstein midpoint. If the base point is
the midpoint itself, nothing cancels. All sums over the points are here: O(N D), in blocks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from lorentzkit._geometry import vectors
from lorentzkit._geometry.elementary import hardshrink
from lorentzkit._geometry.invariants import subtract_product
from lorentzkit._geometry.special import (
    carry,
    differentiable,
    dot,
    polar,
    root_one_plus,
    smallest_length,
    values_known,
)

_CHUNK = 2**17  # numbers in a block of rows: so many stay in the cache


# --- Sums over the points ---------------------------------------------------------------------


class Projections(NamedTuple):
    """What derivatives with respect to the points pass through."""

    along: Tensor
    """The coordinate along a unit vector, ``(..., N, 1)``."""
    square: Tensor
    """The square of the part across it"""
    product: Tensor
    """The product of that part and a vector z"""
    total: Tensor
    """``sum w x``, ``(..., 1, D)``"""


def projections(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> Projections:
    """The `Projections` of points; the unit vector is constant."""
    large = values_known(x) and x.numel() > _CHUNK
    if not large or any(unpack_dual(t).tangent is not None for t in (x, w, z)):  # type: ignore[no-untyped-call]
        return _projections_at_once(x, w, unit, z)
    return Projections(*_ProjectionsByRows.apply(x, w, unit, z))  # type: ignore[no-untyped-call]


def _projections_at_once(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> Projections:
    x = x.to(w.dtype)
    along, across, apart = split(x, unit)
    # Noise becomes 0, with derivatives.
    across = across - torch.where(apart, 0.0, across).detach()
    return Projections(along, dot(across, across), across @ z.mT, w.mT @ x)


def split(x: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The coordinate along a unit vector, the part across it, and whether that is more than noise.

    The part across may be just the rounding of the unit vector. Its square, times cosh(a)^2, could
    exceed all else.
    """
    along = x @ unit.mT
    across = torch.addcmul(x, along, unit, value=-1)
    return along, across, squared(across.detach()) > _noise(along) ** 2


def squared(v: Tensor) -> Tensor:
    """``dot(v, v)`` in one pass."""
    length: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return length * length


def _noise(along: Tensor) -> Tensor:
    return 16 * torch.finfo(along.dtype).eps * along.detach().abs()


class _ProjectionsByRows(torch.autograd.Function):
    """`_projections_at_once` in blocks of rows, so that nothing of size N D is kept."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*args)
        x, w, unit, z = args
        numbers, total = [], torch.zeros_like(z)
        for r in _rows(x):
            points = x[r].to(w.dtype)
            along, across, apart = split(points, unit)
            both = torch.cat([squared(across), across @ z.mT], -1)
            numbers.append(torch.cat([along, torch.where(apart, both, 0.0)], -1))
            total = total + w[r].mT @ points
        return (*torch.cat(numbers, -2).tensor_split(3, -1), total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, unit, z = args = ctx.saved_tensors
        if _differentiated(grads[0]):
            return tuple(gradients(_projections_at_once, args, ctx.needs_input_grad, grads))
        grad_x, grad_w, grad_z = torch.empty_like(x), torch.empty_like(w), torch.zeros_like(z)
        vectors = torch.cat([unit, z, grads[3]], -2)
        for r in _rows(x):
            points, (along, square, product) = x[r].to(w.dtype), (t[r] for t in grads[:3])
            _, across, apart = split(points, unit)
            product = torch.where(apart, product, 0.0)
            spanned = torch.cat([along, product, w[r]], -1) @ vectors
            grad_x[r] = torch.addcmul(spanned, torch.where(apart, 2 * square, 0.0), across)
            grad_w[r] = points @ grads[3].mT
            grad_z += product.mT @ across
        return grad_x, grad_w, None, grad_z


def _rows(x: Tensor) -> Iterator[tuple[Any, ...]]:
    """Indices of blocks of rows, small enough for the cache."""
    if not values_known(x):
        return iter([(..., slice(None), slice(None))])
    n = x.shape[-2]
    size = max(1, _CHUNK * n // max(1, x.numel()))
    return ((..., slice(start, start + size), slice(None)) for start in range(0, n, size))


def summed(
    function: Callable[..., tuple[Tensor, ...]], x: Tensor, w: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """``function(x, w, *rest)``, a sum over dimension -2, computed in blocks of rows."""
    parts = (function(x[r].to(w.dtype), w[r], *rest) for r in _rows(x))
    return reduce(lambda klein_sums, block: tuple(map(torch.add, klein_sums, block)), parts)


# --- A base point -------------------------------------------------------------------------


class BasePoint(NamedTuple):
    """A constant point: its radius ``(..., 1, 1)`` and its direction ``(..., 1, D)``."""

    radius: Tensor
    unit: Tensor

    def point(self) -> Tensor:
        return self.radius * self.unit

    def to_orthonormal(self, v: Tensor, c: Tensor) -> Tensor:
        """A tangent vector in orthonormal coordinates: its radial part is divided by cosh(a)."""
        return c.sqrt() * (v + self.unit * dot(self.unit, v) * (1 / self._cosh(c) - 1))

    def from_orthonormal(self, z: Tensor, c: Tensor) -> Tensor:
        """The inverse of `to_orthonormal`."""
        return (z + self.unit * dot(self.unit, z) * (self._cosh(c) - 1)) / c.sqrt()

    def moved(self, v: Tensor, c: Tensor) -> Tensor:
        """The point ``cosh(s) p + v``, for a tangent vector v of length sinh(s)."""
        z = self.to_orthonormal(v, c)
        return (1 + dot(z, z)).sqrt() * self.point() + v

    def excess_and_radial(self, along: Tensor, square: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """For each point ``cosh(s) - 1``, and the part of ``sinh(s) e`` along the radius.

        Both are smooth and sums of terms of one sign, so they and their derivatives are exact.
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


def midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    base = midpoint_base(x.detach(), w.detach(), c.detach())
    if not differentiable(x, w, c):
        return base.point()
    projected = projections(x, w, base.unit, torch.zeros_like(base.unit))
    excess, _ = base.excess_and_radial(projected.along, projected.square, c)
    step = step_to_midpoint((w * (1 + excess)).sum(-2, keepdim=True), projected.total, base, c)
    return carry(base.point(), base.moved(step, c))


def midpoint_base(x: Tensor, w: Tensor, c: Tensor) -> BasePoint:
    """The midpoint: along ``S = sum w x``, at ``|S|/mass`` with ``mass^2 = c (S_0^2 - |S|^2)``."""
    length, unit = polar(*summed(lambda x, w: (w.mT @ x,), x, w))
    (gap,) = summed(_time_excess, x, w, unit, c)
    return BasePoint(length / (c * gap * (gap + 2 * length)).sqrt(), unit)


def _time_excess(x: Tensor, w: Tensor, unit: Tensor, c: Tensor) -> tuple[Tensor]:
    """``sum w (x_0 - unit.x)``, by another form where the difference would cancel."""
    along, across, apart = split(x, unit)
    square = 1 / c + torch.where(apart, squared(across), 0.0)
    total = (square + along**2).sqrt() + along.abs()
    return ((w * torch.where(along > 0, square / total, total)).sum(-2, keepdim=True),)


def step_to_midpoint(mass: Tensor, total: Tensor, base: BasePoint, c: Tensor) -> Tensor:
    """The step from the base point, which is the midpoint, to the midpoint: 0, with derivatives."""
    pull = total - mass * base.point()
    pull = pull - pull.detach()
    z = base.to_orthonormal(pull, c)
    return pull / (mass**2 - dot(z, z)).sqrt()


# --- The midpoint and its gradients, written out ----------------------------------------------


class KleinSums(NamedTuple):
    """The sums that make the midpoint, of the points ``k = sqrt(c) x / C`` in Klein's ball.

    C is the cosh of a point's radius, and its share is ``w C / sum w C``. The sums are of
    differences from a start: the origin, or one of the points.
    """

    rows: Tensor
    """C, and of ``k - k_start`` the part along the start and the square: ``(..., N, 3)``"""
    total: Tensor
    """``sum w x``, ``(..., 1, D)``"""
    mean: Tensor
    """The mean of ``k - k_start``, weighted by shares, ``(..., 1, D)``"""
    mean_along: Tensor
    """The part of that mean along the start, ``(..., 1, 1)``, with more digits than the vector's"""
    weight: Tensor
    """``sum w C``"""
    spread: Tensor
    """``weight^2`` times the variance of k"""
    mass: Tensor
    """``sqrt((sum w C)^2 - c |sum w x|^2)``: the root of ``sum w C sum w / C + spread``"""

    def origin_suffices(self, spare: bool) -> bool:
        """Whether the origin may be the start: mostly, where float32 points leave 29 bits to spare.

        The mass loses a factor of the midpoint's squared cosh to cancellation, the spread more.
        """
        far, close = (2.0**20, 2.0**30) if spare else (4, 8)
        mean = self.weight**2 * dot(self.mean, self.mean)
        within = (self.weight / self.mass) ** 2 <= far
        return bool((within & (mean <= close * self.spread)).all())


def heaviest(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The point of the largest share, ``(..., 1, D)``: points in line with it stay so exactly."""
    lengths = [
        torch.linalg.vector_norm(x[r], dim=-1, keepdim=True, dtype=w.dtype) for r in _rows(x)
    ]
    largest = (w * root_one_plus(c.sqrt() * torch.cat(lengths, -2))).argmax(-2, keepdim=True)
    return x.gather(-2, largest.expand(*largest.shape[:-1], x.shape[-1]))


def klein_sums(x: Tensor, w: Tensor, c: Tensor, start: Tensor | None = None) -> KleinSums:
    rows, total, across_total = [], torch.zeros_like(c), torch.zeros_like(c)
    for r in _rows(x):
        points = vectors.parts(x[r], w.dtype)
        across, *numbers = _apart(points, start, c)
        rows.append(torch.cat(numbers, -1))
        total = total + torch.cat([w[r].mT @ p for p in points], -1)
        if start is not None:
            across_total = across_total + torch.cat([w[r].mT @ p for p in across], -1)
    all_rows = torch.cat(rows, -2)
    cosh, along, square = all_rows.tensor_split(3, -1)
    flat, level = w.mT @ (1 / cosh), w.mT @ (cosh * square)
    mean_along = w.mT @ (cosh * along)
    if start is None:
        weight, mean = flat + level, c.sqrt() * total  # whose squares cancel: rounded alike
    else:
        weight = w.mT @ cosh
        mean = c.sqrt() * across_total + mean_along * polar(start.to(w.dtype))[1]
    spread = (weight * level - dot(mean, mean)).clamp_min(0)
    mass = (weight * flat + spread).sqrt()
    return KleinSums(all_rows, total, mean / weight, mean_along / weight, weight, spread, mass)


def _apart(
    points: vectors.Parts, start: Tensor | None, c: Tensor
) -> tuple[vectors.Parts, Tensor, Tensor, Tensor]:
    """The parts of the points across the start; and for each point the `rows` of `KleinSums`."""
    square = vectors.dot(points, points)
    if start is None:
        cosh = (1 + c * square).sqrt()
        return points, cosh, torch.zeros_like(cosh), c * square / cosh**2
    start_parts = vectors.parts(start, c.dtype)
    across, cosine, sine2 = _across(points, start_parts, start.dtype != c.dtype)
    s, t = (c * vectors.dot(start_parts, start_parts)).sqrt(), (c * square).sqrt()
    cosh, start_cosh = root_one_plus(t), root_one_plus(s)
    # The difference of squares, exact for close points.
    difference = [p - q for p, q in zip(points, start_parts, strict=True)]
    farther = vectors.dot(difference, [p + q for p, q in zip(points, start_parts, strict=True)])
    ratio = c * farther / vectors.or_one(s * cosh + t * start_cosh)
    behind = torch.where(cosine > 0, sine2 / (1 + cosine.abs()), 1 - cosine)
    along = ratio / cosh / start_cosh - t / cosh * behind
    return across, cosh, along, along**2 + sine2 * (t / cosh) ** 2


def _across(
    points: vectors.Parts, start: vectors.Parts, wide: bool
) -> tuple[vectors.Parts, Tensor, Tensor]:
    """The part of the points across the start, the cosine, and the square of the sine.

    ``wide``: whether the numbers are wider than the points, as in `invariants`.
    """
    start_scale, point_scale = vectors.power_of_two(start), vectors.power_of_two(points)
    p, q = [v / start_scale for v in start], [v / point_scale for v in points]
    pp, qq, pq = vectors.dot(p, p), vectors.dot(q, q), vectors.dot(p, q)
    k = pq / vectors.or_one(pp)
    if wide:
        across = [torch.addcmul(b, a, k, value=-1) for a, b in zip(p, q, strict=True)]
    else:
        across = list(subtract_product(q, p, k))
    k = vectors.dot(p, across) / vectors.or_one(pp)
    across = [torch.addcmul(b, a, k, value=-1) for a, b in zip(p, across, strict=True)]
    sine2 = vectors.dot(across, across) / vectors.or_one(qq)
    sine2 = hardshrink(sine2, 1e-28 if wide else 2.0**-200)
    across = [torch.where(sine2 == 0, 0.0, point_scale * v) for v in across]
    return across, pq / vectors.or_one(pp.sqrt() * qq.sqrt()), sine2


class Midpoint(torch.autograd.Function):
    """The midpoint from its `KleinSums`; c is ``(..., 1, 1)``.

    Second derivatives are those of a function of plain operations.
    """

    @staticmethod
    def forward(ctx: Any, plain: Callable[..., Tensor], *args: Any) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(*args)
        sums = KleinSums(*args[4:])
        return sums.total / sums.mass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, c, start, *rest = ctx.saved_tensors
        needed, none = ctx.needs_input_grad[1:4], (None,) * (1 + len(rest))
        if _differentiated(grad):
            return (None, *gradients(ctx.plain, (x, w, c), needed, (grad,)), *none)
        sums = KleinSums(*rest)
        along = dot(grad, sums.total / sums.mass)
        grad_x = _grad_points(x, w, c, start, sums, grad, along) if needed[0] else None
        grad_w = _grad_weights(x, c, start, sums, grad, along) if needed[1] else None
        grad_c = -along * sums.spread / (2 * c * sums.mass**2) if needed[2] else None
        return (None, grad_x, grad_w, grad_c, *none)


def _grad_points(
    x: Tensor,
    w: Tensor,
    c: Tensor,
    start: Tensor | None,
    sums: KleinSums,
    grad: Tensor,
    along: Tensor,
) -> Tensor:
    """``w / mass (grad + pull (k_midpoint - k))``"""
    cosh, ahead, _ = sums.rows.tensor_split(3, -1)
    share = w / sums.mass
    pull = c.sqrt() * along * sums.weight / sums.mass
    across_coefficient = -share * pull * c.sqrt() / cosh
    terms = [(share, grad + pull * sums.mean)]
    if start is not None:
        terms.append((-share * pull * ahead, polar(start.to(w.dtype))[1]))
    result = torch.empty_like(x)
    few = x.shape[-1] <= vectors.FEW
    columns = [slice(j, j + 1) for j in range(x.shape[-1])] if few else [slice(None)]
    for r in _rows(x):
        across = _apart(vectors.parts(x[r], w.dtype), start, c)[0] if start is not None else None
        for i, column in enumerate(columns):
            part = x[r][..., column].to(w.dtype) if across is None else across[i]
            part = part * across_coefficient[r]
            for coefficient, vector in terms:
                part.addcmul_(coefficient[r], vector[..., column])
            result[r][..., column] = part
    return result


def _grad_weights(
    x: Tensor, c: Tensor, start: Tensor | None, sums: KleinSums, grad: Tensor, along: Tensor
) -> Tensor:
    """``(grad . (x - m) - (cosh(s) - 1) grad . m) / mass``, s the distance to the midpoint m."""
    C, ahead, square = sums.rows.tensor_split(3, -1)
    C_m, mean = sums.weight / sums.mass, sums.mean
    both, products = torch.cat([grad, mean], -2).mT, []
    for r in _rows(x):
        points = vectors.parts(x[r], c.dtype)
        across = points if start is None else _apart(points, start, c)[0]
        products.append(torch.cat(tuple(across), -1) @ both)
    products_of_k = c.sqrt() * torch.cat(products, -2) / C
    rise = square - dot(mean, mean)  # of |k|^2, from the midpoint
    if start is not None:
        s, unit = polar(c.sqrt() * start.to(c.dtype))
        products_of_k = products_of_k + ahead * (unit @ both)
        rise = rise + 2 * s / root_one_plus(s) * (ahead - sums.mean_along)
    dot_grad, dot_mean = products_of_k.tensor_split(2, -1)
    distance2 = (square - 2 * dot_mean + dot(mean, mean)).clamp_min(0)
    close = (square * C**2 < 1) & (dot(mean, mean) * C_m**2 < 1)
    cosh_gap = torch.where(close, rise * C * C_m * (C / (C + C_m) * C_m), C - C_m)
    excess = (cosh_gap * (cosh_gap / C / C_m) + C * C_m * distance2) / 2
    ahead = C * (dot_grad - dot(grad, mean)) / c.sqrt()
    return (ahead + along * (cosh_gap / C_m - excess)) / sums.mass


def _differentiated(grad: Tensor) -> bool:
    """Whether the backward pass needs plain operations: it is differentiated, or mapped over many
    gradients.
    """
    return torch.is_grad_enabled() or not values_known(grad)


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    args: Sequence[Tensor],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The function's gradients by the arguments that need one, by plain operations."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        args = [t.view_as(t) for t in args]  # one may depend on another: not here
        wanted = [t for t, need in zip(args, needed, strict=True) if need]
        grads = iter(
            torch.autograd.grad(function(*args), wanted, grad_outputs, create_graph=create_graph)
        )
    return [next(grads) if need else None for need in needed]
