"""The functions of MERU's `lorentz.py`, by their names and signatures, exact and finite.

In MERU, HyCoCLIP and ATMG, and in repositories with a copy of that file, one line changes:

    from meru import lorentz as L               # before
    from lorentzkit.compat import meru as L     # after

``eps`` is accepted and not used: nothing has to be kept away from a singularity. Results differ
where the originals are clamped or cancel: coincident and nearly aligned points, points close to
the origin, half precision (computed and returned in float32). docs/migration/meru.md has the list.

Points are space components; ``curv`` is positive, a number or a tensor, and differentiable.
Arguments that are wrong raise as those of the ops do.
"""

from __future__ import annotations

from torch import Tensor

from lorentzkit import ops


def pairwise_inner(x: Tensor, y: Tensor, curv: float | Tensor = 1.0) -> Tensor:
    """Lorentzian inner products, `ops.pairwise_inner`: ``(B1, D), (B2, D) -> (B1, B2)``.

    >>> pairwise_inner(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    tensor([[ -1., -19.]])
    """
    return ops.pairwise_inner(x, y, curv)


def pairwise_dist(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """Geodesic distances, `ops.pairwise_dist`: ``(B1, D), (B2, D) -> (B1, B2)``.

    The original's are at least ``sqrt(2 eps / curv)`` in float64 and noise below about 1e-3 in
    float32; where it clamps, its gradient is 0, NaN or infinite. Here it is 0 where x = y, and
    right everywhere else.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> pairwise_dist(x, x)
    tensor([[0.0000, 2.3124],
            [2.3124, 0.0000]])
    """
    return ops.pairwise_dist(x, y, curv)


def exp_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """Exponential map at the origin, `ops.expmap0`: ``(B, D) -> (B, D)``.

    The original shortens vectors to ``asinh(2**15) / sqrt(curv)``, about 11.09; this one to
    ``ops.max_radius(dtype) / sqrt(curv)``.

    >>> exp_map0(torch.tensor([[1.0, 0.0]]))
    tensor([[1.1752, 0.0000]])
    """
    return ops.expmap0(x, curv)


def log_map0(x: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """Logarithmic map at the origin, `ops.logmap0`: ``(B, D) -> (B, D)``.

    The original's vanishes, in float32, within about 3e-4 of the origin.

    >>> log_map0(torch.tensor([[1.1752, 0.0]]))
    tensor([[1.0000, 0.0000]])
    """
    return ops.logmap0(x, curv)


def half_aperture(
    x: Tensor, curv: float | Tensor = 1.0, min_radius: float = 0.1, eps: float = 1e-8
) -> Tensor:
    """Half aperture of the entailment cones, `ops.half_aperture`: ``(B, D) -> (B,)``, radians.

    >>> half_aperture(torch.tensor([[0.4, 0.0], [0.1, 0.0]]))
    tensor([0.5236, 1.5708])
    """
    return ops.half_aperture(x, curv, min_radius=min_radius)


def oxy_angle(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """Exterior angle at x, `ops.exterior_angle`: ``(B, D), (B, D) -> (B,)``, radians.

    Where x = y, and where x is the origin, it is 0; the original's is about pi/2.

    >>> x = torch.tensor([[1.0, 0.0]])
    >>> oxy_angle(x, 2 * x), oxy_angle(x, torch.tensor([[1.0, 1e-6]]))
    (tensor([0.]), tensor([1.5708]))
    """
    return ops.exterior_angle(x, y, curv)


def pairwise_oxy_angle(
    x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8
) -> Tensor:
    """ATMG's exterior angle at every x, `ops.pairwise_exterior_angle`, radians.

    ``(B1, D), (B2, D) -> (B1, B2)``: the apexes are the rows.

    >>> pairwise_oxy_angle(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.5, 0.0]]))
    tensor([[0.0000, 3.1416]])
    """
    return ops.pairwise_exterior_angle(x, y, curv)


def oxy_angle_eval(x: Tensor, y: Tensor, curv: float | Tensor = 1.0, eps: float = 1e-8) -> Tensor:
    """HyCoCLIP's score for retrieval, minus the exterior angle at every x: ``-> (B2, B1)``.

    The apexes x, the first argument, are the **columns**. (The original also logs four lines.)

    >>> oxy_angle_eval(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.5, 0.0]]))
    tensor([[-0.0000],
            [-3.1416]])
    """
    return -ops.pairwise_exterior_angle(x, y, curv).mT


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
