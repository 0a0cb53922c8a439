"""Exponential and logarithmic maps, geodesics, parallel transport."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry import maps, single_points
from lorentzkit._geometry.arguments import check_broadcast, clamp_norm, points_and
from lorentzkit._geometry.special import largest_radius
from lorentzkit.fused.rows import in_torch, rows


def expmap(x: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Exponential map: the point reached from ``x`` along the geodesic of initial velocity ``u``.

    ``cosh(l) x + sinh(l)/l u`` with ``l = sqrt(curv) tangent_norm(x, u)``. A result beyond
    `max_radius` is moved to it along its ray.

    Args:
        x: base point, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at ``u = 0``, where it is ``x``. Where u is longer
        than any two points are apart, the gradient is 0.

    Source: Nickel & Kiela 2018, eq. 9.

    >>> expmap(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([1.5431, 1.1752])
    """
    return rows("expmap", curv, x=x, u=u)


def logmap(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Logarithmic map: the tangent vector at ``x`` whose `expmap` is ``y``.

    Args:
        x: base point, space components, ``(..., D)``.
        y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``x`` of length ``dist(x, y)``.
        Smooth at ``x = y``, where it is 0.

    Source: Nickel & Kiela 2018, eq. 10.

    >>> logmap(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]))
    tensor([-5.9481, -6.7651])
    """
    return rows("logmap", curv, x=x, y=y)


def expmap0(u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Exponential map at the origin: ``u sinh(sqrt(curv)|u|) / (sqrt(curv)|u|)``.

    A vector with ``sqrt(curv)|u| > max_radius(dtype)`` is shortened to that length first.

    Args:
        u: tangent vector at the origin, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at 0; beyond the clamp the gradient is 0 radially.

    Source: Desai et al. 2023 (MERU), eq. 3.

    >>> expmap0(torch.tensor([1.0, 0.0]))
    tensor([1.1752, 0.0000])
    """
    return rows("expmap0", curv, u=u)


def logmap0(x: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Logarithmic map at the origin: ``x asinh(sqrt(curv)|x|) / (sqrt(curv)|x|)``.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Tangent vector at the origin ``(..., D)``, of Euclidean norm ``dist0(x)``. Smooth at 0.

    Source: inverse of `expmap0`.

    >>> logmap0(torch.tensor([1.1752, 0.0]))
    tensor([1.0000, 0.0000])
    """
    return rows("logmap0", curv, x=x)


def geodesic(t: float | Tensor, x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""The point at parameter ``t`` of the geodesic with value ``x`` at 0 and ``y`` at 1.

    ``[sinh((1 - t) s) x + sinh(t s) y] / sinh(s)`` with ``s = sqrt(curv) dist(x, y)``: constant
    speed ``dist(x, y)``. Other ``t`` extrapolate; a result beyond `max_radius` is moved to it.

    Args:
        t: parameter, a number or ``(...)``.
        x, y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)``. Smooth at ``x = y``. Where ``|t|^3 |x|`` overflows the dtype,
        the gradient leaves out how the distance of x and y depends on them.

    Source: Lee 2018, ch. 5, in the form of a spherical linear interpolation (Shoemake 1985).

    >>> geodesic(0.5, torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.0]))
    tensor([0., 0.])
    """
    return rows("geodesic", curv, t=t, x=x, y=y)


def transp(x: Tensor, y: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from ``x`` to ``y`` along their geodesic.

    ``u + curv <y, u> / (1 - curv <x, y>) (x + y)`` with the Lorentzian inner product.

    Args:
        x: start, space components, ``(..., D)``.
        y: end, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``y`` with the same inner products.
        Smooth; the identity where ``x = y``.

    Source: Law et al. 2019, "Lorentzian Distance Learning"; Ungar's gyrations in other words.

    >>> x, y = torch.tensor([1.0, 0.0]), torch.tensor([1.5431, 1.1752])
    >>> transp(x, y, torch.tensor([0.0, 1.0]))
    tensor([1.1752, 1.5431])
    """
    return rows("transp", curv, x=x, y=y, u=u)


def transp0(y: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from the origin to ``y``: ``u + curv (y.u) y / (1 + cosh a)``.

    Args:
        y: end, space components, ``(..., D)``.
        u: tangent vector at the origin, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``y``: the radial part grows by
        ``cosh a``, the transverse part stays. An orthonormal basis goes to an orthonormal frame.

    Source: Nagano et al. 2019, "A Wrapped Normal Distribution on Hyperbolic Space", eq. 6.

    >>> transp0(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), curv=16 / 9)
    tensor([4.1231, 1.0000])
    """
    return rows("transp0", curv, y=y, u=u)


def transp0back(x: Tensor, u: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Parallel transport of ``u`` from ``x`` to the origin; the inverse of `transp0`.

    Args:
        x: start, space components, ``(..., D)``.
        u: tangent vector at ``x``, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Tangent vector at the origin ``(..., D)``; its Euclidean norm is ``tangent_norm(x, u)``.

    Source: Nagano et al. 2019, eq. 6, inverted.

    >>> transp0back(torch.tensor([3.0, 0.0]), torch.tensor([4.1231, 1.0]), curv=16 / 9)
    tensor([1.0000, 1.0000])
    """
    return rows("transp0back", curv, x=x, u=u)


def egrad2rgrad(x: Tensor, g: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Riemannian gradient of a function whose gradient in space components is ``g``.

    The inverse metric applied to it: ``g + curv x (x.g)``.

    Args:
        x: point, space components, ``(..., D)``.
        g: gradient with respect to the space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        Space components ``(..., D)`` of a tangent vector at ``x``.

    Source: the inverse of the induced metric ``I - x x^T / x_0^2`` (Sherman-Morrison).

    >>> egrad2rgrad(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]))
    tensor([10.,  1.])
    """
    return rows("egrad2rgrad", curv, x=x, g=g)


# --- In torch -------------------------------------------------------------------------------------


@in_torch("expmap")
def _expmap(x: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return maps.expmap(*points_and(curv, {"x": x}, {"u": u}))


@in_torch("logmap")
def _logmap(x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    return maps.logmap(*points_and(curv, {"x": x, "y": y}))


@in_torch("expmap0")
def _expmap0(u: Tensor, curv: float | Tensor) -> Tensor:
    u, c = points_and(curv, {}, {"u": u})
    return single_points.expmap0(clamp_norm(u, largest_radius(u.dtype) / c.sqrt()), c)


@in_torch("logmap0")
def _logmap0(x: Tensor, curv: float | Tensor) -> Tensor:
    return single_points.logmap0(*points_and(curv, {"x": x}))


@in_torch("transp")
def _transp(x: Tensor, y: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return maps.transp(*points_and(curv, {"x": x, "y": y}, {"u": u}))


@in_torch("transp0")
def _transp0(y: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return maps.transp0(*points_and(curv, {"y": y}, {"u": u}))


@in_torch("transp0back")
def _transp0back(x: Tensor, u: Tensor, curv: float | Tensor) -> Tensor:
    return maps.transp0back(*points_and(curv, {"x": x}, {"u": u}))


@in_torch("egrad2rgrad")
def _egrad2rgrad(x: Tensor, g: Tensor, curv: float | Tensor) -> Tensor:
    return maps.egrad2rgrad(*points_and(curv, {"x": x}, {"g": g}))


@in_torch("geodesic")
def _geodesic(t: float | Tensor, x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    x, y, c = points_and(curv, {"x": x, "y": y}, scalars=t)
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    check_broadcast(c.shape[:-1], t.shape, x=x.shape[:-1], y=y.shape[:-1])
    return maps.geodesic(t.unsqueeze(-1), x, y, c)


__all__ = [
    "egrad2rgrad",
    "expmap",
    "expmap0",
    "geodesic",
    "logmap",
    "logmap0",
    "transp",
    "transp0",
    "transp0back",
]
