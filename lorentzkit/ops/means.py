"""Means of points: the Einstein midpoint and the Frechet mean."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._checks import points_and, require
from lorentzkit._numerics import carry, coth_excess, dot, norm
from lorentzkit._pairs import cosh_excess
from lorentzkit.ops.maps import expmap, expmap0, logmap, logmap0, transp0, transp0back

_NEWTON_STEPS = 64
_RESIDUAL = 2.0**-26


def einstein_midpoint(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Einstein midpoint: ``sum w (x_0, x)`` scaled back to the hyperboloid.

    In Klein coordinates the average ``sum w gamma k / sum w gamma``, with the Lorentz factors
    gamma. It is the point that minimises ``sum w (cosh(sqrt(curv) d) - 1)``. Time and memory grow
    as ``N^2 D``: only a sum over the pairs keeps its accuracy wherever the points are.

    Args:
        x: points, space components, ``(..., N, D)``.
        weights: non-negative, not all zero, of any sum; broadcast to the shape of ``x`` without
            its last dimension, ``(..., N)``. All equal if not given.
        curv: positive, broadcasts against the leading dimensions of the result.
        dim: the dimension of ``x`` to reduce, not the last one.

    Returns:
        Space components ``(..., D)``. Smooth everywhere, in the weights too.

    Raises:
        ValueError: for negative or all-zero weights (NaN under ``torch.compile``/``torch.func``).

    Source: Ungar 2008, ch. 6; Gulcehre et al. 2019, "Hyperbolic Attention Networks", eq. 2.

    >>> einstein_midpoint(torch.tensor([[3.0, 1.0], [-3.0, 1.0]]))
    tensor([0.0000, 0.3162])
    """
    x, w, c = _weighted(x, weights, curv, dim)
    return _midpoint(x, w, c).squeeze(-2)


def frechet_mean(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Frechet (Karcher) mean: the point that minimises ``sum w dist(x, mean)^2``.

    Newton's method in an orthonormal frame, in float64, from the Einstein midpoint. The derivatives
    are those of the optimum (implicit differentiation), not of the iterations. The iteration stops
    on the values, so it does not run under ``torch.compile(fullgraph=True)`` or ``torch.vmap``;
    leading dimensions are batched.

    Args:
        x: points, space components, ``(..., N, D)``.
        weights: non-negative, not all zero, of any sum; broadcast to the shape of ``x`` without
            its last dimension, ``(..., N)``. All equal if not given.
        curv: positive, broadcasts against the leading dimensions of the result.
        dim: the dimension of ``x`` to reduce, not the last one.

    Returns:
        Space components ``(..., D)``. Smooth everywhere, in the weights too.

    Raises:
        ValueError: for negative or all-zero weights.
        RuntimeError: with the residual, if the gradient does not vanish. That happens where the
            mean is so far out (``sqrt(curv) dist0 > 18``) that float64 does not resolve it.

    Source: Karcher 1977; Lou et al. 2020, "Differentiating through the Frechet Mean".

    >>> frechet_mean(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0]))
    tensor([0.6440, 0.0000])
    """
    x, w, c = _weighted(x, weights, curv, dim)
    points, w, c = x.double(), w.double(), c.double()
    mean = _minimise(points.detach(), w.detach(), c.detach())
    # Seen from the mean, moved to the origin: there a coordinate is as long as what it stands for.
    curv = c.squeeze(-1)
    seen = expmap0(transp0back(mean, logmap(mean, points, curv), curv), curv)
    # Newton's method converges quadratically: a step from the optimum, differentiated, has the
    # first derivatives of the optimum, a second step has all up to the third.
    moved = torch.zeros_like(mean)
    for _ in range(2):
        _, step = _newton(moved, seen, w, c)
        moved = _move(moved, step, c)
    return carry(mean, _move(mean, logmap0(moved, curv), c)).to(x.dtype).squeeze(-2)


def _weighted(
    x: Tensor, weights: Tensor | None, curv: float | Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(..., N, D)``, weights ``(..., N, 1)`` of sum 1, curvature ``(..., 1, 1)``."""
    if isinstance(curv, Tensor) and curv.dim() > 0:
        curv = curv.unsqueeze(-1)
    if isinstance(x, Tensor):
        if x.dim() < 2 or not -x.dim() <= dim < x.dim() - 1 or dim == -1:
            raise ValueError(
                f"dim: expected a dimension of x other than the last, got {dim} for x of shape "
                f"{tuple(x.shape)}"
            )
        dim = dim - x.dim() if dim >= 0 else dim
        x = x.movedim(dim, -2)
    x, c = points_and(curv, {"x": x})
    if x.shape[-2] == 0:
        raise ValueError(f"x: expected at least one point, got shape {tuple(x.shape)}")
    w = torch.ones_like(x[..., :1]) if weights is None else _checked_weights(weights, x, dim)
    # The means do not depend on the sum: as a constant it adds no rounding to the derivatives.
    return x, w / w.sum(-2, keepdim=True).detach(), c.unsqueeze(-2) if c.dim() == 1 else c


def _checked_weights(weights: Tensor, x: Tensor, dim: int) -> Tensor:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a floating-point tensor, got {got}")
    shape = x.movedim(-2, dim).shape[:-1]
    try:
        w = weights.to(x.dtype).expand(shape).movedim(dim + 1, -1).unsqueeze(-1)
    except RuntimeError:
        raise ValueError(
            f"weights: expected a shape that expands to {tuple(shape)}, that of x without its last "
            f"dimension, got {tuple(weights.shape)}"
        ) from None
    largest = w.detach().amax(-2, keepdim=True)
    require(~(w < 0), "weights: expected non-negative weights, got a negative one")
    require(
        ~(largest <= 0), "weights: expected at least one positive weight per mean, got all zero"
    )
    return torch.where((w >= 0) & (largest > 0), w / largest, torch.nan)


def _midpoint(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """Einstein midpoint over dimension -2: ``sum w x / mass``, ``(..., 1, D)``.

    ``mass^2 = c (S_0^2 - |S|^2) = (sum w)^2 + 2 sum_{i<j} w_i w_j (cosh(sqrt(c) d_ij) - 1)``: of
    the forms of this difference the one without any cancellation, at the price of all pairs.
    """
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    excess = cosh_excess(x[..., i, :], x[..., j, :], c)
    pairs = 2 * (w[..., i, :] * w[..., j, :] * excess).sum(-2, keepdim=True)
    total = w.sum(-2, keepdim=True)
    mass = (total**2 + pairs).sqrt()
    # Derivatives in w are differences to the midpoint: close points from their differences.
    average = (w * x).sum(-2, keepdim=True).detach()
    centre = torch.where(pairs < 1, average, 0.0)
    return centre / (1 + pairs / total**2).sqrt() + (w * (x - centre)).sum(-2, keepdim=True) / mass


def _newton(mean: Tensor, x: Tensor, w: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Negative gradient of ``sum w d^2 / 2`` and Newton step, in `transp0`'s frame at the mean.

    The Hessian of ``d^2/2`` is 1 along the geodesic and ``s coth(s)`` across, ``s = sqrt(c) d``.
    """
    curv = c.squeeze(-1)
    v = transp0back(mean, logmap(mean, x, curv), curv)
    extra = w * c * coth_excess(c * dot(v, v))  # s coth(s) = 1 + extra |v|^2
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    across = (w + extra * dot(v, v)).sum(-2, keepdim=True)
    hessian = across * eye - (extra * v).mT @ v
    gradient = (w * v).sum(-2, keepdim=True)
    return gradient, torch.linalg.solve(hessian, gradient.mT).mT


def _move(mean: Tensor, step: Tensor, c: Tensor) -> Tensor:
    curv = c.squeeze(-1)
    return expmap(mean, transp0(mean, step, curv), curv)


def _minimise(x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """The Frechet mean of points without gradients, ``(..., 1, D)``, by damped Newton steps."""
    curv = c.squeeze(-1)

    def spread(mean: Tensor) -> Tensor:
        v = transp0back(mean, logmap(mean, x, curv), curv)
        return (w * dot(v, v)).sum(-2, keepdim=True)

    mean = _midpoint(x, w, c)
    size = torch.ones_like(mean[..., :1])
    for _ in range(_NEWTON_STEPS):
        gradient, step = _newton(mean, x, w, c)
        now = spread(mean)
        residual = norm(gradient) / now.sqrt().clamp_min(1e-300)
        if bool((residual <= _RESIDUAL * 2.0**-24).all()):
            break
        moved = _move(mean, size * step, c)
        # Close to the optimum the spread is flat to rounding, and Newton's step is right.
        better = spread(moved) <= now * (1 + 2.0**-45)
        mean = torch.where(better, moved, mean)
        size = torch.where(better, (2 * size).clamp_max(1.0), size / 2)
    gradient = norm(_newton(mean, x, w, c)[0])
    # What one rounding of the mean is worth, unless that itself is too much.
    unit = torch.finfo(mean.dtype).eps * norm(mean)
    coarsest = (64 * unit).minimum(_RESIDUAL / c.sqrt())
    allowed = torch.maximum(_RESIDUAL * spread(mean).sqrt(), coarsest)
    if bool((gradient > allowed).any()):
        worst = int((gradient / allowed.clamp_min(1e-300)).argmax())
        raise RuntimeError(
            f"frechet_mean: not converged in {_NEWTON_STEPS} Newton steps, residual |gradient| = "
            f"{float(gradient.flatten()[worst]):.2e}, expected at most "
            f"{float(allowed.flatten()[worst]):.2e}; points this far out are not resolved in "
            f"float64: move them towards the origin, or use einstein_midpoint, which has no limit"
        )
    return mean


__all__ = ["einstein_midpoint", "frechet_mean"]
