"""Points seen from a place: each is ``cosh(s)`` and a tangent vector ``sinh(s) e`` there.

The sum of those, normalised, is the Einstein midpoint exactly, and with the place at the midpoint
itself nothing cancels. All sums over the points are here: O(N D), in blocks of rows.
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

_CHUNK = 2**17  # numbers in a block of rows, which then stays in the cache


# --- Sums over the points ---------------------------------------------------------------------


class Measures(NamedTuple):
    along: Tensor
    """The coordinate along a unit vector, ``(..., N, 1)``."""
    square: Tensor
    """The square of what is across it"""
    product: Tensor
    """and the product of that and a vector z."""
    total: Tensor
    """``sum w x``, ``(..., 1, D)``"""


def measures(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> Measures:
    """All that derivatives pass through on their way to the points; the unit vector is constant."""
    large = values_known(x) and x.numel() > _CHUNK
    if not large or any(unpack_dual(t).tangent is not None for t in (x, w, z)):  # type: ignore[no-untyped-call]
        return _measures_at_once(x, w, unit, z)
    return Measures(*_MeasuresByRows.apply(x, w, unit, z))  # type: ignore[no-untyped-call]


def _measures_at_once(x: Tensor, w: Tensor, unit: Tensor, z: Tensor) -> Measures:
    x = x.to(w.dtype)
    along, across, apart = split(x, unit)
    # What is not apart is 0, but for its derivatives.
    across = across - torch.where(apart, 0.0, across).detach()
    return Measures(along, dot(across, across), across @ z.mT, w.mT @ x)


def split(x: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinate along a unit vector, the part across it, and whether that is more than noise.

    It may be just the rounding of the unit vector; its square times cosh(a)^2 could be everything.
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


class _MeasuresByRows(torch.autograd.Function):
    """Of some rows at a time, forward and backward, so that nothing of size N D is kept."""

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
    def backward(ctx: Any, *by: Tensor) -> tuple[Tensor | None, ...]:
        x, w, unit, z = args = ctx.saved_tensors
        if _differentiated(by[0]):
            return tuple(gradients(_measures_at_once, args, ctx.needs_input_grad, by))
        of_x, of_w, of_z = torch.empty_like(x), torch.empty_like(w), torch.zeros_like(z)
        vectors = torch.cat([unit, z, by[3]], -2)
        for r in _rows(x):
            points, (along, square, product) = x[r].to(w.dtype), (t[r] for t in by[:3])
            _, across, apart = split(points, unit)
            product = torch.where(apart, product, 0.0)
            others = torch.cat([along, product, w[r]], -1) @ vectors
            of_x[r] = torch.addcmul(others, torch.where(apart, 2 * square, 0.0), across)
            of_w[r] = points @ by[3].mT
            of_z += product.mT @ across
        return of_x, of_w, None, of_z


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
    """``function(x, w, *rest)``, which sums over dimension -2, of some rows at a time."""
    parts = (function(x[r].to(w.dtype), w[r], *rest) for r in _rows(x))
    return reduce(lambda sums, more: tuple(map(torch.add, sums, more)), parts)


# --- A place -----------------------------------------------------------------------------


class Place(NamedTuple):
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


def midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    place = place_of_midpoint(x.detach(), w.detach(), c.detach())
    if not differentiable(x, w, c):
        return place.point()
    seen = measures(x, w, place.unit, torch.zeros_like(place.unit))
    excess, _ = place.seen(seen.along, seen.square, c)
    step = step_to_midpoint((w * (1 + excess)).sum(-2, keepdim=True), seen.total, place, c)
    return carry(place.point(), place.beyond(step, c))


def place_of_midpoint(x: Tensor, w: Tensor, c: Tensor) -> Place:
    """On the ray of ``S = sum w x``, at ``|S|/mass``, ``mass^2 = c (S_0^2 - |S|^2)``."""
    length, unit = polar(*summed(lambda x, w: (w.mT @ x,), x, w))
    (gap,) = summed(_time_less, x, w, unit, c)
    return Place(length / (c * gap * (gap + 2 * length)).sqrt(), unit)


def _time_less(x: Tensor, w: Tensor, unit: Tensor, c: Tensor) -> tuple[Tensor]:
    """``sum w (x_0 - unit.x)``, without the difference where that cancels."""
    along, across, apart = split(x, unit)
    square = 1 / c + torch.where(apart, squared(across), 0.0)
    total = (square + along**2).sqrt() + along.abs()
    return ((w * torch.where(along > 0, square / total, total)).sum(-2, keepdim=True),)


def step_to_midpoint(mass: Tensor, total: Tensor, place: Place, c: Tensor) -> Tensor:
    """From the place, the midpoint, to the midpoint: zero, but for its derivatives."""
    pull = total - mass * place.point()
    pull = pull - pull.detach()
    z = place.upright(pull, c)
    return pull / (mass**2 - dot(z, z)).sqrt()


# --- The midpoint and its gradients, written out ----------------------------------------------


class Sums(NamedTuple):
    """What the midpoint takes of the points, in Klein's ball: ``k = sqrt(c) x / C``.

    C is the cosh of a point's radius, and its share ``w C / sum w C``. The points are seen from a
    start: the origin, or one of them.
    """

    rows: Tensor
    """C, and of ``k - k_start`` the part along the start and the square: ``(..., N, 3)``"""
    total: Tensor
    """``sum w x``, ``(..., 1, D)``"""
    middle: Tensor
    """The mean of ``k - k_start`` by shares, ``(..., 1, D)``"""
    ahead: Tensor
    """The part of that along the start, ``(..., 1, 1)``, with digits that the vector has not"""
    weight: Tensor
    """``sum w C``"""
    spread: Tensor
    """Its square times the variance of k"""
    mass: Tensor
    """``sqrt((sum w C)^2 - c |sum w x|^2)``: the root of ``sum w C sum w / C + spread``"""

    def near(self, spare: bool) -> bool:
        """Whether the origin is a start: if float32 points leave 29 bits to spare, mostly.

        The square of the midpoint's cosh is what cancels of the mass; of the spread, more does.
        """
        far, close = (2.0**20, 2.0**30) if spare else (4, 8)
        middle = self.weight**2 * dot(self.middle, self.middle)
        within = (self.weight / self.mass) ** 2 <= far
        return bool((within & (middle <= close * self.spread)).all())


def heaviest(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The point of the largest share, ``(..., 1, D)``: what is in line with it is exactly so."""
    lengths = [
        torch.linalg.vector_norm(x[r], dim=-1, keepdim=True, dtype=w.dtype) for r in _rows(x)
    ]
    largest = (w * root_one_plus(c.sqrt() * torch.cat(lengths, -2))).argmax(-2, keepdim=True)
    return x.gather(-2, largest.expand(*largest.shape[:-1], x.shape[-1]))


def sums(x: Tensor, w: Tensor, c: Tensor, start: Tensor | None = None) -> Sums:
    rows, total, aside = [], torch.zeros_like(c), torch.zeros_like(c)
    for r in _rows(x):
        points = vectors.parts(x[r], w.dtype)
        across, *numbers = _apart(points, start, c)
        rows.append(torch.cat(numbers, -1))
        total = total + torch.cat([w[r].mT @ p for p in points], -1)
        if start is not None:
            aside = aside + torch.cat([w[r].mT @ p for p in across], -1)
    every = torch.cat(rows, -2)
    cosh, along, square = every.tensor_split(3, -1)
    flat, level = w.mT @ (1 / cosh), w.mT @ (cosh * square)
    ahead = w.mT @ (cosh * along)
    if start is None:
        weight, middle = flat + level, c.sqrt() * total  # whose squares cancel: rounded alike
    else:
        weight = w.mT @ cosh
        middle = c.sqrt() * aside + ahead * polar(start.to(w.dtype))[1]
    spread = (weight * level - dot(middle, middle)).clamp_min(0)
    mass = (weight * flat + spread).sqrt()
    return Sums(every, total, middle / weight, ahead / weight, weight, spread, mass)


def _apart(
    points: vectors.Parts, start: Tensor | None, c: Tensor
) -> tuple[vectors.Parts, Tensor, Tensor, Tensor]:
    """What of the points is across the start, and of each the `rows` of `Sums`."""
    square = vectors.dot(points, points)
    if start is None:
        cosh = (1 + c * square).sqrt()
        return points, cosh, torch.zeros_like(cosh), c * square / cosh**2
    other = vectors.parts(start, c.dtype)
    across, cosine, sine2 = _across(points, other, start.dtype != c.dtype)
    s, t = (c * vectors.dot(other, other)).sqrt(), (c * square).sqrt()
    cosh, of_start = root_one_plus(t), root_one_plus(s)
    # The difference of squares, exact for close points.
    less = [p - q for p, q in zip(points, other, strict=True)]
    farther = vectors.dot(less, [p + q for p, q in zip(points, other, strict=True)])
    ratio = c * farther / vectors.or_one(s * cosh + t * of_start)
    behind = torch.where(cosine > 0, sine2 / (1 + cosine.abs()), 1 - cosine)
    along = ratio / cosh / of_start - t / cosh * behind
    return across, cosh, along, along**2 + sine2 * (t / cosh) ** 2


def _across(
    points: vectors.Parts, start: vectors.Parts, wide: bool
) -> tuple[vectors.Parts, Tensor, Tensor]:
    """The part of the points across the start, the cosine, and the square of the sine; as in
    `invariants`, wide: of numbers with digits to spare.
    """
    of_start, of_points = vectors.power_of_two(start), vectors.power_of_two(points)
    p, q = [v / of_start for v in start], [v / of_points for v in points]
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
    across = [torch.where(sine2 == 0, 0.0, of_points * v) for v in across]
    return across, pq / vectors.or_one(pp.sqrt() * qq.sqrt()), sine2


class Midpoint(torch.autograd.Function):
    """From its `Sums`; c is ``(..., 1, 1)``. Second derivatives are those of a plain function."""

    @staticmethod
    def forward(ctx: Any, plain: Callable[..., Tensor], *args: Any) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(*args)
        found = Sums(*args[4:])
        return found.total / found.mass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, c, start, *rest = ctx.saved_tensors
        needed, nothing = ctx.needs_input_grad[1:4], (None,) * (1 + len(rest))
        if _differentiated(grad):
            return (None, *gradients(ctx.plain, (x, w, c), needed, (grad,)), *nothing)
        found = Sums(*rest)
        along = dot(grad, found.total / found.mass)
        of_x = _by_points(x, w, c, start, found, grad, along) if needed[0] else None
        of_w = _by_weights(x, c, start, found, grad, along) if needed[1] else None
        of_c = -along * found.spread / (2 * c * found.mass**2) if needed[2] else None
        return (None, of_x, of_w, of_c, *nothing)


def _by_points(
    x: Tensor, w: Tensor, c: Tensor, start: Tensor | None, found: Sums, grad: Tensor, along: Tensor
) -> Tensor:
    """``w / mass (grad + turn (k_midpoint - k))``"""
    cosh, ahead, _ = found.rows.tensor_split(3, -1)
    share = w / found.mass
    turn = c.sqrt() * along * found.weight / found.mass
    of_across = -share * turn * c.sqrt() / cosh
    others = [(share, grad + turn * found.middle)]
    if start is not None:
        others.append((-share * turn * ahead, polar(start.to(w.dtype))[1]))
    result = torch.empty_like(x)
    few = x.shape[-1] <= vectors.FEW
    columns = [slice(j, j + 1) for j in range(x.shape[-1])] if few else [slice(None)]
    for r in _rows(x):
        across = _apart(vectors.parts(x[r], w.dtype), start, c)[0] if start is not None else None
        for i, at in enumerate(columns):
            part = x[r][..., at].to(w.dtype) if across is None else across[i]
            part = part * of_across[r]
            for coefficient, vector in others:
                part.addcmul_(coefficient[r], vector[..., at])
            result[r][..., at] = part
    return result


def _by_weights(
    x: Tensor, c: Tensor, start: Tensor | None, found: Sums, grad: Tensor, along: Tensor
) -> Tensor:
    """``(grad . (x - m) - (cosh(s) - 1) grad . m) / mass``, s the distance to the midpoint m."""
    C, ahead, square = found.rows.tensor_split(3, -1)
    C_m, middle = found.weight / found.mass, found.middle
    both, products = torch.cat([grad, middle], -2).mT, []
    for r in _rows(x):
        points = vectors.parts(x[r], c.dtype)
        across = points if start is None else _apart(points, start, c)[0]
        products.append(torch.cat(tuple(across), -1) @ both)
    products_of_k = c.sqrt() * torch.cat(products, -2) / C
    rise = square - dot(middle, middle)  # of |k|^2, from the midpoint
    if start is not None:
        s, unit = polar(c.sqrt() * start.to(c.dtype))
        products_of_k = products_of_k + ahead * (unit @ both)
        rise = rise + 2 * s / root_one_plus(s) * (ahead - found.ahead)
    by_grad, by_middle = products_of_k.tensor_split(2, -1)
    apart = (square - 2 * by_middle + dot(middle, middle)).clamp_min(0)
    close = (square * C**2 < 1) & (dot(middle, middle) * C_m**2 < 1)
    more = torch.where(close, rise * C * C_m * (C / (C + C_m) * C_m), C - C_m)
    excess = (more * (more / C / C_m) + C * C_m * apart) / 2
    ahead = C * (by_grad - dot(grad, middle)) / c.sqrt()
    return (ahead + along * (more / C_m - excess)) / found.mass


def _differentiated(grad: Tensor) -> bool:
    """Whether the backward pass is one of differentiable operations: it is differentiated, or
    mapped over many gradients.
    """
    return torch.is_grad_enabled() or not values_known(grad)


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    args: Sequence[Tensor],
    needed: Sequence[bool],
    by: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Of the function in those arguments that need one, by plain operations."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        args = [t.view_as(t) for t in args]  # one may depend on another: not here
        wanted = [t for t, need in zip(args, needed, strict=True) if need]
        found = iter(torch.autograd.grad(function(*args), wanted, by, create_graph=again))
    return [next(found) if need else None for need in needed]
