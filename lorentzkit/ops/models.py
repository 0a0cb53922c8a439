"""Isometries between the Lorentz model and the Klein, Poincare-ball and half-space models."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry import single_points
from lorentzkit._geometry.arguments import clamp_norm, norm_limit, points_and, require
from lorentzkit._geometry.special import carry, hypot
from lorentzkit._geometry.vectors import combine, product
from lorentzkit.fused.rows import in_torch, rows


def to_klein(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Klein coordinates ``x / cosh a``, in the open ball of radius ``1/sqrt(curv)``.

    Geodesics become straight lines. Where rounding would put the result on the sphere it is kept
    just inside, so that `from_klein` accepts it; such points have lost their radius.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``. Smooth everywhere.

    Source: Ungar 2008, "A Gyrovector Space Approach to Hyperbolic Geometry", ch. 3 (there the
    Beltrami-Klein model, with gamma factor ``1/sqrt(1 - curv |k|^2)``).

    >>> to_klein(torch.tensor([3.0, 0.0]), curv=16 / 9)
    tensor([0.7276, 0.0000])
    """
    return rows("to_klein", curv, x=x)


def from_klein(k: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Space components ``gamma k`` with ``gamma = 1/sqrt(1 - curv |k|^2)``: inverse of `to_klein`.

    Args:
        k: Klein coordinates, ``(..., D)``, in the open ball of radius ``1/sqrt(curv)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``. Smooth inside the ball.

    Raises:
        ValueError: if a point is on or outside the sphere (under ``torch.compile`` and
            ``torch.func``, and on a GPU: NaN).

    Source: as `to_klein`.

    >>> from_klein(torch.tensor([0.6, 0.0]))
    tensor([0.7500, 0.0000])
    """
    return rows("from_klein", curv, k=k)


def to_poincare(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Poincare-ball coordinates ``x / (1 + cosh a)``, in the open ball of radius ``1/sqrt(curv)``.

    The ball of geoopt's ``PoincareBall(c=curv)``. Angles are as they look. Kept inside the sphere
    like `to_klein`.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``. Smooth everywhere.

    Source: Nickel & Kiela 2018, eq. 11.

    >>> to_poincare(torch.tensor([0.75, 0.0]))
    tensor([0.3333, 0.0000])
    """
    return rows("to_poincare", curv, x=x)


def from_poincare(p: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Space components ``2 p / (1 - curv |p|^2)``: inverse of `to_poincare`.

    Args:
        p: Poincare-ball coordinates, ``(..., D)``, in the open ball of radius ``1/sqrt(curv)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``. Smooth inside the ball.

    Raises:
        ValueError: if a point is on or outside the sphere (under ``torch.compile`` and
            ``torch.func``, and on a GPU: NaN).

    Source: Nickel & Kiela 2018, eq. 11.

    >>> from_poincare(torch.tensor([0.5, 0.0]))
    tensor([1.3333, 0.0000])
    """
    return rows("from_poincare", curv, p=p)


def to_halfspace(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Half-space coordinates ``(z, t)``: the last one is the height ``t > 0``.

    The metric is ``(|dz|^2 + dt^2) / (curv t^2)``; the origin goes to ``(0, 1/sqrt(curv))`` and the
    last axis to the vertical through it: ``z_i = x_i / (sqrt(curv) (x_0 - x_D))``,
    ``t = 1 / (curv (x_0 - x_D))``.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``. Smooth everywhere.

    Source: Lee 2018, "Introduction to Riemannian Manifolds", th. 3.7 (by way of the ball).

    >>> to_halfspace(torch.tensor([0.0, 0.75]))
    tensor([0., 2.])
    """
    return rows("to_halfspace", curv, x=x)


def from_halfspace(p: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Space components of half-space coordinates ``(z, t)``: inverse of `to_halfspace`.

    ``x_i = s z_i / t`` and ``x_D = ((t - s)(t + s) + |z|^2) / (2 t)`` with ``s = 1/sqrt(curv)``.

    Args:
        p: ``(..., D)``, the last coordinate is the height, ``t > 0``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D)``, moved to `max_radius` where it is beyond. Smooth for ``t > 0``.

    Raises:
        ValueError: if a height is not positive (under ``torch.compile`` and ``torch.func``, and
            on a GPU: NaN).

    Source: as `to_halfspace`.

    >>> from_halfspace(torch.tensor([0.0, 2.0]))
    tensor([0.0000, 0.7500])
    """
    return rows("from_halfspace", curv, p=p)


def _joined(coefficient: list[Tensor], rest: Tensor, last: Tensor) -> Tensor:
    """``(coefficient rest, last)``; rest is empty in one dimension."""
    if rest.shape[-1] == 0:
        return last
    scaled = combine(coefficient, [rest])
    return torch.cat([scaled, last.expand(*scaled.shape[:-1], 1)], -1)


def _gap(name: str, p: Tensor, c: Tensor) -> Tensor:
    """``1 - c |p|**2``, which must be positive."""
    pp = product(p, p)
    gap = 1 - c.to(pp.dtype) * pp
    require(
        ~(gap <= 0),
        f"{name}: expected points inside the ball of radius 1/sqrt(curv), got one with "
        f"curv |{name}|^2 >= 1; check that curv is the one it was made with, or project it inside",
    )
    return torch.where(gap > 0, gap, torch.nan)


def _inside(factor: Tensor, x: Tensor, c: Tensor) -> Tensor:
    """``factor``, smaller by a few roundings where ``c |factor x|**2`` would come out as 1."""
    margin = 4 * torch.finfo(x.dtype).eps
    size = factor.detach() * single_points.length(x.detach())
    touching = c.detach().to(size.dtype) * size * size > 1 - margin
    return torch.where(touching, factor * (1 - margin), factor)


# --- In torch -------------------------------------------------------------------------------------


@in_torch("to_klein")
def _to_klein(x: Tensor, curv: float | Tensor) -> Tensor:
    x, c = points_and(curv, {"x": x})
    return combine([_inside(1 / single_points.cosh(x, c), x, c)], [x])


@in_torch("from_klein")
def _from_klein(k: Tensor, curv: float | Tensor) -> Tensor:
    k, c = points_and(curv, {}, {"k": k})
    return combine([_gap("k", k, c).rsqrt()], [k])


@in_torch("to_poincare")
def _to_poincare(x: Tensor, curv: float | Tensor) -> Tensor:
    x, c = points_and(curv, {"x": x})
    return combine([_inside(1 / (1 + single_points.cosh(x, c)), x, c)], [x])


@in_torch("from_poincare")
def _from_poincare(p: Tensor, curv: float | Tensor) -> Tensor:
    p, c = points_and(curv, {}, {"p": p})
    return combine([2 / _gap("p", p, c)], [p])


@in_torch("to_halfspace")
def _to_halfspace(x: Tensor, curv: float | Tensor) -> Tensor:
    x, c = points_and(curv, {"x": x})
    rest, last = x[..., :-1], x[..., -1:]
    time = single_points.time(x, c)
    time = time + (time - time)  # of infinity, NaN
    c, last = c.to(time.dtype), last.to(time.dtype)
    # t/sqrt(c) = 1/(x0 - last), where that difference cancels from the other light-like coordinate.
    up = last > 0
    sum_ = time + torch.where(up, last, -last)
    cosh = single_points.cosh(torch.cat([rest, torch.zeros_like(x[..., :1])], -1), c)
    height = torch.where(up, sum_ / cosh / cosh, 1 / (c * sum_))
    return _joined([c.sqrt() * height], rest, height.to(x.dtype))


@in_torch("from_halfspace")
def _from_halfspace(p: Tensor, curv: float | Tensor) -> Tensor:
    p, c = points_and(curv, {}, {"p": p})
    require(~(p[..., -1:] <= 0), "p: expected heights (last coordinate) > 0, got one that is not")
    limit = norm_limit(c)
    valid = p[..., -1:] > 0
    p = clamp_norm(p, 2 * limit)  # farther out is beyond max_radius
    z, t = p[..., :-1], p[..., -1:].clamp_min(torch.finfo(p.dtype).tiny)
    side = single_points.length(torch.cat([z, torch.zeros_like(t)], -1))
    limit, c = limit.to(side.dtype), c.to(side.dtype)
    t, s = torch.where(valid, t, torch.nan).to(side.dtype), c.rsqrt()
    last = (carry((t - s) * (t + s), t * t - 1 / c) + side * side) / 2
    size = hypot(s * side, last)
    beyond = size > limit * t
    inside = 1 / torch.where(beyond, 1.0, t)
    factor = torch.where(beyond, limit / torch.where(beyond, size, 1.0), inside)
    return _joined([s * factor], z, (last * factor).to(p.dtype))


__all__ = [
    "from_halfspace",
    "from_klein",
    "from_poincare",
    "to_halfspace",
    "to_klein",
    "to_poincare",
]
