"""Geodesic distance."""

from __future__ import annotations

from torch import Tensor

from lorentzkit._geometry import pairs, single_points
from lorentzkit._geometry.arguments import points_and
from lorentzkit.fused.rows import in_torch, rows


def dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, *, keepdim: bool = False) -> Tensor:
    r"""Geodesic distance ``acosh(-curv <x, y>) / sqrt(curv)``, without its cancellation.

    It equals ``(2/sqrt(curv)) asinh(sqrt(curv) L / 2)``, L the Minkowski length of the chord
    ``x - y``, which has no cancellation. Close points keep their
    relative accuracy, and ``dist(x, x)`` is exactly 0.

    Args:
        x, y: space components, ``(..., D)``.
        curv: positive; the sectional curvature is ``-curv``. Broadcasts against ``(...)``.
        keepdim: keep the last dimension, of size 1.

    Returns:
        ``(...)`` or ``(..., 1)``, in the metric of curvature ``-curv``. The gradient where
        ``x = y`` is 0.

    Raises:
        TypeError, ValueError: for integer tensors, trailing sizes that differ, ``curv <= 0``.

    Source: Nickel & Kiela 2018, eq. 3; the half-argument form is in docs/numerics.md.

    >>> x = torch.tensor([1.0, 0.0])
    >>> dist(x, x), dist(x, x + torch.tensor([0.0, 1e-6]))
    (tensor(0.), tensor(1.0000e-06))
    """
    d = rows("dist", curv, x=x, y=y)
    return d.unsqueeze(-1) if keepdim else d


def dist0(x: Tensor, curv: float | Tensor = 1.0, *, keepdim: bool = False) -> Tensor:
    r"""Geodesic distance to the origin: ``asinh(sqrt(curv) |x|) / sqrt(curv)``.

    Args:
        x: space components, ``(..., D)``.
        curv: positive, broadcasts against ``(...)``.
        keepdim: keep the last dimension, of size 1.

    Returns:
        ``(...)`` or ``(..., 1)``; the gradient at the origin is 0.

    Source: Ganea et al. 2018, "Hyperbolic Neural Networks", sec. 2.4, in Lorentz coordinates.

    >>> dist0(torch.tensor([3.0, 4.0]), curv=1e-8)  # nearly flat
    tensor(5.)
    """
    d = rows("dist0", curv, x=x)
    return d.unsqueeze(-1) if keepdim else d


# --- In torch -------------------------------------------------------------------------------------


@in_torch("dist")
def _dist(x: Tensor, y: Tensor, curv: float | Tensor) -> Tensor:
    return pairs.row_values("distance", *points_and(curv, {}, {"x": x, "y": y})).squeeze(-1)


@in_torch("dist0")
def _dist0(x: Tensor, curv: float | Tensor) -> Tensor:
    return single_points.distance(*points_and(curv, {"x": x})).squeeze(-1)


__all__ = ["dist", "dist0"]
