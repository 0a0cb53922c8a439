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
    large = x.numel() > _CHUNK and values_known(x)
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
    n = x.shape[-2]
    size = n if not values_known(x) else max(1, _CHUNK * n // max(1, x.numel()))
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


# --- Near the origin --------------------------------------------------------------------------


class Near(NamedTuple):
    """Plain sums in float64 over float32 points, of which the midpoint takes no others."""

    cosh: Tensor
    """C, of the radius of each point, ``(..., N, 1)``"""
    total: Tensor
    """``S = sum w x``, ``(..., 1, D)``"""
    mean_cosh: Tensor
    """``sum w C``, ``(..., 1, 1)``"""
    spread: Tensor
    """``mass^2 - sum w C sum w / C``: how much the mass depends on the curvature"""
    mass: Tensor
    """``sqrt((sum w C)^2 - c |S|^2)``"""

    def is_exact(self) -> bool:
        """As many digits cancel as the square of the midpoint's cosh has: 20 bits of 29 spare."""
        return bool(((self.mean_cosh / self.mass) ** 2 <= 2.0**20).all())


def near_sums(x: Tensor, w: Tensor, c: Tensor) -> Near:
    squares, total = [], torch.zeros_like(c)
    for r in _rows(x):
        points = vectors.parts(x[r], w.dtype)
        squares.append(vectors.dot(points, points))
        total = total + torch.cat([w[r].mT @ p for p in points], -1)
    z = c * torch.cat(squares, -2)
    cosh = (1 + z).sqrt()
    # Of sum w C, the part that is small near the origin, where the spread is.
    rise, flat = w.mT @ (z / cosh), w.mT @ (1 / cosh)
    mean_cosh = rise + flat
    spread = (mean_cosh * rise - c * dot(total, total)).clamp_min(0)
    return Near(cosh, total, mean_cosh, spread, (mean_cosh * flat + spread).sqrt())


class NearMidpoint(torch.autograd.Function):
    """The midpoint from `Near`: one pass over the points each way; c is ``(..., 1, 1)``."""

    @staticmethod
    def forward(
        ctx: Any, plain: Callable[..., Tensor], x: Tensor, w: Tensor, c: Tensor, *near: Tensor
    ) -> Tensor:
        ctx.plain = plain
        ctx.save_for_backward(x, w, c, *near)
        _, total, _, _, mass = near
        return total / mass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, w, c, *near = ctx.saved_tensors
        unused, needed = (None,) * len(near), ctx.needs_input_grad[1:4]
        if _differentiated(grad):
            found = gradients(ctx.plain, (x, w, c), needed, (grad,))
            return (None, *found, *unused)
        cosh, total, mean_cosh, spread, mass = near
        mean = total / mass
        along = dot(grad, mean)
        pull = (grad + c * along * mean) / mass
        bend = along * mean_cosh / mass**2
        of_x = _near_pulled(x, -w * c * bend / cosh, w, pull) if needed[0] else None
        of_w = _near_products(x, pull) - bend * cosh if needed[1] else None
        of_c = -along * spread / (2 * c * mass**2) if needed[2] else None
        return (None, of_x, of_w, of_c, *unused)


def _near_pulled(x: Tensor, a: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """``a x + w v``, in the dtype of x"""
    found = torch.empty_like(x)
    few = x.shape[-1] <= vectors.FEW
    columns = [slice(j, j + 1) for j in range(x.shape[-1])] if few else [slice(None)]
    for r in _rows(x):
        for at in columns:
            points = x[r][..., at].to(a.dtype).mul_(a[r])
            found[r][..., at] = points.addcmul_(w[r], v[..., at])
    return found


def _near_products(x: Tensor, v: Tensor) -> Tensor:
    return torch.cat([x[r].to(v.dtype) @ v.mT for r in _rows(x)], -2)


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
