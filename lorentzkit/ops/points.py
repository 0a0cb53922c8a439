"""Points of the hyperboloid, and the metric on their tangent vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry import pairs, single_points, tangents
from lorentzkit._geometry.arguments import floating, points_and
from lorentzkit._geometry.special import largest_radius
from lorentzkit.fused.rows import in_torch, rows


def max_radius(dtype: torch.dtype) -> float:
    """The largest radius ``sqrt(curv) * dist0(x, curv)`` that the ops represent in ``dtype``.

    40 for float32 and for the half types, which are computed in float32; 300 for float64. Points
    beyond it are moved to it along their ray, so that no op overflows; there the gradient is 0
    radially.

    Args:
        dtype: a floating-point dtype.

    Raises:
        TypeError: if ``dtype`` is not a floating-point dtype.

    >>> max_radius(torch.float32), max_radius(torch.float64)
    (40.0, 300.0)
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point torch.dtype, got {dtype!r}")
    return largest_radius(dtype)


def time(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Time component of a point: ``x_0 = sqrt(1/curv + |x|^2)``.

    Args:
        x: space components, ``(..., D)``.
        curv: positive; the sectional curvature is ``-curv``. Broadcasts against ``(...)``.

    Returns:
        ``(...)``, at least ``1/sqrt(curv)``. Smooth everywhere.

    Source: Nickel & Kiela 2018, "Learning Continuous Hierarchies in the Lorentz Model", eq. 2.

    >>> time(torch.tensor([3.0, 0.0]), curv=1 / 16)
    tensor(5.)
    """
    return rows("time", curv, x=x)


def add_time(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """The full vector ``(x_0, x)`` of a point, time first, as in geoopt.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(..., D + 1)``, on the hyperboloid ``-p_0^2 + |p_{1:}|^2 = -1/curv``.

    >>> add_time(torch.tensor([3.0, 0.0]), curv=1 / 16)
    tensor([5., 3., 0.])
    """
    return rows("add_time", curv, x=x)


def drop_time(p: Tensor) -> Tensor:
    """The space components of a full vector: the inverse of `add_time`.

    Args:
        p: time first, ``(..., D + 1)`` with D >= 1.

    Returns:
        ``(..., D)``, a view. The time component is not looked at: it follows from the others.

    >>> drop_time(torch.tensor([5.0, 3.0, 0.0]))
    tensor([3., 0.])
    """
    floating("p", p)
    if p.dim() == 0 or p.shape[-1] < 2:
        raise ValueError(
            f"p: expected time and space components (..., D + 1) with D >= 1, "
            f"got shape {tuple(p.shape)}"
        )
    return p[..., 1:]


def inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Lorentzian inner product of two points: ``x.y - x_0 y_0 = -cosh(sqrt(curv) d) / curv``.

    Args:
        x, y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(...)``, at most ``-1/curv``, with equality where ``x = y``. Smooth everywhere.

    Source: Nickel & Kiela 2018, eq. 1.

    >>> x = torch.tensor([3.0, 0.0])
    >>> inner(x, x), inner(x, -x)
    (tensor(-1.), tensor(-19.))
    """
    return rows("inner", curv, x=x, y=y)


def tangent_inner(x: Tensor, u: Tensor, v: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Riemannian inner product of two tangent vectors at x: ``u.v - (x.u)(x.v)/x_0^2``.

    A tangent vector is given by its space components; its time component is ``x.u / x_0``.

    Args:
        x: base point, space components, ``(..., D)``.
        u, v: tangent vectors at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(...)``. Smooth everywhere.

    Source: the metric induced by the Minkowski form, Lee, "Introduction to Riemannian Manifolds",
    2018, ch. 3.

    >>> x = torch.tensor([3.0, 0.0])
    >>> u = torch.tensor([5.0, 1.0])  # radial 5 / cosh, transverse 1
    >>> tangent_inner(x, u, u, curv=16 / 9)  # cosh^2 = 17
    tensor(2.4706)
    """
    if v is u:  # as optimisers ask for it
        return rows("tangent_square", curv, x=x, u=u)
    return rows("tangent_inner", curv, x=x, u=u, v=v)


def tangent_norm(x: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Riemannian length of a tangent vector at x: ``sqrt(tangent_inner(x, u, u))``.

    Args:
        x: base point, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(...)``, non-negative; the gradient at ``u = 0`` is 0.

    >>> tangent_norm(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0]))  # across
    tensor(2.)
    """
    return rows("tangent_norm", curv, x=x, u=u)


# --- In torch -------------------------------------------------------------------------------------


@in_torch("inner")
def _inner(x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    return pairs.row_values("inner", *points_and(curv, {}, {"x": x, "y": y})).squeeze(-1)


@in_torch("time")
def _time(x: Tensor, curv: float | Tensor) -> Tensor:
    x, c = points_and(curv, {"x": x})
    return single_points.time(x, c).squeeze(-1).to(x.dtype)


@in_torch("add_time")
def _add_time(x: Tensor, curv: float | Tensor) -> Tensor:
    x, c = points_and(curv, {"x": x})
    t = single_points.time(x, c).to(x.dtype)
    return torch.cat([t, x.expand(*t.shape[:-1], x.shape[-1])], -1)


@in_torch("tangent_inner")
def _tangent_inner(x: Tensor, u: Tensor, v: Tensor, curv: float | Tensor) -> Tensor:
    return tangents.inner(*points_and(curv, {"x": x}, {"u": u, "v": v})).squeeze(-1)


@in_torch("tangent_square")
def _tangent_square(x: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return tangents.square(*points_and(curv, {"x": x}, {"u": u})).squeeze(-1)


@in_torch("tangent_norm")
def _tangent_norm(x: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return tangents.norm(*points_and(curv, {"x": x}, {"u": u})).squeeze(-1)


__all__ = [
    "add_time",
    "drop_time",
    "inner",
    "max_radius",
    "tangent_inner",
    "tangent_norm",
    "time",
]
