"""Angles at the apex of a hyperbolic triangle with the origin, and entailment cones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorentzkit._geometry import pairs, single_points
from lorentzkit._geometry.arguments import points_and
from lorentzkit.fused.rows import in_torch, rows


def exterior_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Exterior angle at the apex ``x`` of the triangle origin, x, y: pi - angle(O, x, y).

    ``atan2(sinh b sin(theta), -sinh(a - b) - cosh a sinh b (1 - cos(theta)))`` with a, b the radii
    times ``sqrt(curv)`` and theta the angle at the origin. It is 0 where y lies straight behind x.

    Args:
        x: apex, space components, ``(..., D)``.
        y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(...)``, radians in [0, pi]. By convention 0, with gradient 0, where ``x = y`` (entailment
        is reflexive) and where ``x = 0`` (the origin entails everything); pi where ``y = 0``.
        Where the points are exactly aligned the transverse part of the gradient is 0.

    Source: Desai et al. 2023, "Hyperbolic Image-Text Representations" (MERU), eq. 6; the form is
    the hyperbolic law of sines and cosines, docs/numerics.md.

    >>> x = torch.tensor([1.0, 0.0])
    >>> exterior_angle(x, 2 * x), exterior_angle(x, torch.tensor([1.0, 1e-6]))
    (tensor(0.), tensor(1.5708))
    """
    return rows("exterior_angle", curv, x=x, y=y)


def interior_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    r"""Interior angle at ``x`` of the triangle origin, x, y: ``pi - exterior_angle(x, y)``.

    Computed directly, so that small angles keep their relative accuracy.

    Args:
        x: apex, space components, ``(..., D)``.
        y: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.

    Returns:
        ``(...)``, radians in [0, pi]; pi, with gradient 0, where ``x = y`` or ``x = 0``.

    Source: as `exterior_angle`.

    >>> interior_angle(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor(0.)
    """
    return rows("interior_angle", curv, x=x, y=y)


def half_aperture(x: Tensor, curv: float | Tensor = 1.0, *, min_radius: float = 0.1) -> Tensor:
    r"""Half aperture of the entailment cone at ``x``: ``asin(2 min_radius / (sqrt(curv) |x|))``.

    Args:
        x: apex, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.
        min_radius: the constant K of the cones; points with ``sqrt(curv) |x| <= 2 K`` have none.

    Returns:
        ``(...)``, radians in (0, pi/2]; pi/2, with gradient 0, at and inside that radius.

    Raises:
        ValueError: if ``min_radius`` is not positive.

    Source: Ganea et al. 2018, "Hyperbolic Entailment Cones", in MERU's form (eq. 5, K = 0.1).

    >>> half_aperture(torch.tensor([[0.4, 0.0], [0.1, 0.0]]))
    tensor([0.5236, 1.5708])
    """
    check_cones(min_radius)
    return rows("half_aperture", curv, cone=(min_radius, 1.0), x=x)


def entailment_residual(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    *,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
) -> Tensor:
    r"""How far ``y`` is outside the cone at ``x``: ``max(0, exterior - scale * half_aperture)``.

    Args:
        x: apex of the cone (the general concept), space components, ``(..., D)``.
        y: the point to be entailed, space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.
        min_radius: see `half_aperture`.
        aperture_scale: factor on the half aperture, positive; less than 1 narrows the cones.

    Returns:
        ``(...)``, radians; 0, with gradient 0, inside the cone.

    Raises:
        ValueError: if ``min_radius`` or ``aperture_scale`` is not positive.

    Source: Desai et al. 2023, eq. 7.

    >>> x = torch.tensor([1.0, 0.0])
    >>> entailment_residual(x, 2 * x), entailment_residual(2 * x, x)
    (tensor(0.), tensor(3.0414))
    """
    check_cones(min_radius, aperture_scale)
    cone = min_radius, aperture_scale
    return rows("entailment_residual", curv, cone=cone, x=x, y=y)


def check_cones(min_radius: float, aperture_scale: float = 1.0) -> None:
    for name, value in (("min_radius", min_radius), ("aperture_scale", aperture_scale)):
        if not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")


# --- In torch -------------------------------------------------------------------------------------


@in_torch("exterior_angle")
def _exterior_angle(x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    return pairs.row_values("exterior", *points_and(curv, {}, {"x": x, "y": y})).squeeze(-1)


@in_torch("interior_angle")
def _interior_angle(x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    return pairs.row_values("interior", *points_and(curv, {}, {"x": x, "y": y})).squeeze(-1)


@in_torch("half_aperture")
def _half_aperture(x: Tensor, curv: float | Tensor, *, cone: Sequence[float]) -> Tensor:
    x, c = points_and(curv, {"x": x})
    return single_points.half_aperture(x, c, cone[0]).squeeze(-1)


@in_torch("entailment_residual")
def _entailment_residual(
    x: Tensor, y: Tensor, curv: float | Tensor, *, cone: Sequence[float]
) -> Tensor:
    angle = _exterior_angle(x, y, curv)
    half = half_aperture(x.to(angle.dtype), curv, min_radius=cone[0])
    return (angle - cone[1] * half).clamp_min(0.0)


__all__ = ["entailment_residual", "exterior_angle", "half_aperture", "interior_angle"]
