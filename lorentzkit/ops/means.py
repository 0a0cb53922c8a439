"""Means of points: the Einstein midpoint and the Frechet mean, the same with other weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit._geometry import means
from lorentzkit._geometry.arguments import check_broadcast, points_and, require, vectors
from lorentzkit._geometry.elementary import with_exact_constants
from lorentzkit._geometry.vectors import wide_dtype
from lorentzkit.fused import traced_mean


@with_exact_constants
def einstein_midpoint(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Einstein midpoint: ``sum w (x_0, x)`` scaled back to the hyperboloid.

    In Klein coordinates the average ``sum w gamma k / sum w gamma``, with the Lorentz factors
    gamma. It is the point that minimises ``sum w (cosh(sqrt(curv) d) - 1)``. Time and memory grow
    as ``N D``.

    Values and gradients are exact at any radius, on a CPU also under ``torch.compile``, where one
    compilation serves all sizes. Where derivatives are transformed or taken again (``torch.func``,
    forward mode, second derivatives) and on accelerators that holds for up to 8 points, or 64 of
    float64, which go by their pairs there. More are computed with in float64: of float32, values
    are exact at any radius, and gradients as long as the midpoint is within radius 10. Float64
    itself has no wider type: values are exact as long as the midpoint is within radius 15;
    gradients lose digits with the radius, and where the points nearly coincide. In an exported
    program float32 points are taken for more than 8, whatever their number.

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
    mean = traced_mean.midpoint(x, w, c)
    return mean.to(x.dtype).squeeze(-2)


def frechet_mean(
    x: Tensor, weights: Tensor | None = None, curv: float | Tensor = 1.0, *, dim: int = -2
) -> Tensor:
    r"""Frechet (Karcher) mean: the point that minimises ``sum w dist(x, mean)^2``.

    It is the Einstein midpoint of the weights ``w_i s_i / sinh(s_i)``, ``s_i`` the distance from
    the mean to ``x_i`` times ``sqrt(curv)``. Those are found in float64: simple steps look at the
    distances from the last midpoint, and Newton's method helps where they are slow. The derivatives
    are those of the optimum (implicit differentiation), not of the iterations.

    Up to 8 points, or 64 of float64, go by their pairs and are exact at any radius. Of more, those
    of float32 have exact values at any radius, and exact gradients as long as the mean is within
    radius 10; of float64, both lose digits with the radius.

    The iteration stops on the values, so it does not run
    under ``torch.compile(fullgraph=True)`` or ``torch.vmap``; leading dimensions are batched.

    Args:
        x: points, space components, ``(..., N, D)``. Time grows as ``N D`` for each simple step,
            as ``N D^2 + D^3`` for the others, at least one; memory as ``N D + D^2``.
        weights: non-negative, not all zero, of any sum; broadcast to the shape of ``x`` without
            its last dimension, ``(..., N)``. All equal if not given.
        curv: positive, broadcasts against the leading dimensions of the result.
        dim: the dimension of ``x`` to reduce, not the last one.

    Returns:
        Space components ``(..., D)``. Smooth everywhere, in the weights too.

    Raises:
        ValueError: for negative or all-zero weights.
        RuntimeError: with the residual, if the iteration does not converge.

    Source: Karcher 1977; Lou et al. 2020, "Differentiating through the Frechet Mean", whose
    algorithm for the hyperboloid iterates over the same midpoints.

    >>> frechet_mean(torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0]))
    tensor([0.6440, 0.0000])
    """
    x, w, c = _weighted(x, weights, curv, dim)
    mean = means.frechet_mean(x, w, c)
    return mean.to(x.dtype).squeeze(-2)


def _weighted(
    x: Tensor, weights: Tensor | None, curv: float | Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``(..., N, D)``; wide, weights ``(..., N, 1)`` of sum 1 and ``c``, ``(..., 1, 1)``."""
    (x,) = vectors(x=x)
    if x.dim() < 2 or not -x.dim() <= dim < x.dim() - 1 or dim == -1:
        raise ValueError(
            f"dim: expected a dimension of x other than the last, got {dim} for x of shape "
            f"{tuple(x.shape)}"
        )
    dim = dim - x.dim() if dim >= 0 else dim
    x = x.movedim(dim, -2)
    if isinstance(curv, Tensor) and curv.dim() > 0:
        check_broadcast(curv.shape, x=x.shape[:-2])
        x = x[(None,) * (curv.dim() - (x.dim() - 2))]  # else curv would look like a column
        curv = curv.unsqueeze(-1)
    x, c = points_and(curv, {"x": x}, scalars=weights)
    if x.shape[-2] == 0:
        raise ValueError(f"x: expected at least one point, got shape {tuple(x.shape)}")
    w = torch.ones_like(x[..., :1], dtype=wide_dtype(x))
    if weights is not None:
        w = _checked_weights(weights, x, dim)
    c = (c.unsqueeze(-2) if c.dim() == 1 else c).to(w.dtype)
    # The mean does not depend on the sum: as a constant it adds no rounding to the derivatives.
    return x, w / w.sum(-2, keepdim=True).detach(), c


def _checked_weights(weights: Tensor, x: Tensor, dim: int) -> Tensor:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"weights: expected a floating-point tensor, got {got}")
    shape = x.movedim(-2, dim).shape[:-1]
    try:
        w = weights.to(wide_dtype(x)).expand(shape).movedim(dim + 1, -1).unsqueeze(-1)
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


__all__ = ["einstein_midpoint", "frechet_mean"]
