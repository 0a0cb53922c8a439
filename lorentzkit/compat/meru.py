"""The functions of MERU's `lorentz.py`, by their names and signatures, exact and finite.

In MERU, HyCoCLIP and ATMG, and in the many repositories with a copy of that file, one line changes:

    from meru import lorentz as L               # before
    from lorentzkit.compat import meru as L     # after

``eps`` is accepted everywhere and not used: nothing has to be kept away from a singularity. Results
differ from theirs where theirs are clamped or cancel: coincident and nearly aligned points, points
close to the origin, float16 and bfloat16 (computed, and returned, in float32).
"""

from __future__ import annotations

from torch import Tensor

from lorentzkit import ops


def pairwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """`ops.pairwise_inner`: ``(B1, D), (B2, D) -> (B1, B2)``."""
    return ops.pairwise_inner(x, y, curv)


def pairwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """`ops.pairwise_dist`: ``(B1, D), (B2, D) -> (B1, B2)``. Theirs is at least ``sqrt(2 eps)``."""
    return ops.pairwise_dist(x, y, curv)


def exp_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """`ops.expmap0`: tangent vectors at the origin ``(B, D)`` to points ``(B, D)``.

    Theirs shortens vectors to ``asinh(2**15) / sqrt(curv)``, about 11; this one to
    ``ops.max_radius / sqrt(curv)``.
    """
    return ops.expmap0(x, curv)


def log_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """`ops.logmap0`: points ``(B, D)`` to tangent vectors at the origin ``(B, D)``."""
    return ops.logmap0(x, curv)


def half_aperture(
    x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1, eps: float = 1e-8
) -> Tensor:
    """`ops.half_aperture`: ``(B, D) -> (B,)``, radians."""
    return ops.half_aperture(x, curv, min_radius=min_radius)


def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """`ops.exterior_angle`, the apex x first: ``(B, D), (B, D) -> (B,)``, radians."""
    return ops.exterior_angle(x, y, curv)


def oxy_angle_eval(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """HyCoCLIP's score: minus the exterior angle at every x, ``(B1, D), (B2, D) -> (B2, B1)``.

    The rows are those of **y**, the second argument.
    """
    return -ops.pairwise_exterior_angle(x, y, curv).mT


def pairwise_oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8
) -> Tensor:
    """`ops.pairwise_exterior_angle`, apexes x: ``(B1, D), (B2, D) -> (B1, B2)``, radians (ATMG)."""
    return ops.pairwise_exterior_angle(x, y, curv)


__all__ = [
    "exp_map0",
    "half_aperture",
    "log_map0",
    "oxy_angle",
    "oxy_angle_eval",
    "pairwise_dist",
    "pairwise_inner",
    "pairwise_oxy_angle",
]
