"""The geometry: pure functions of the space components of points of the hyperboloid.

Points and tangent vectors are tensors ``(..., D)``; ``curv > 0`` is the negative of the sectional
curvature, a number or a tensor that broadcasts against the leading dimensions. All ops are
differentiable in every tensor argument, twice and more where they are smooth; where they are not
(distances of equal points, angles at the origin) the gradient is that of docs/numerics.md, and no
second derivative exists. float64 is computed in float64, all else in float32.
"""

from lorentzkit.ops.angles import (
    entailment_residual,
    exterior_angle,
    half_aperture,
    interior_angle,
)
from lorentzkit.ops.distances import dist, dist0
from lorentzkit.ops.maps import (
    egrad2rgrad,
    expmap,
    expmap0,
    geodesic,
    logmap,
    logmap0,
    transp,
    transp0,
    transp0back,
)
from lorentzkit.ops.means import einstein_midpoint, frechet_mean
from lorentzkit.ops.models import (
    from_halfspace,
    from_klein,
    from_poincare,
    to_halfspace,
    to_klein,
    to_poincare,
)
from lorentzkit.ops.pairwise import (
    pairwise_dist,
    pairwise_exterior_angle,
    pairwise_impl,
    pairwise_inner,
    pairwise_topk,
)
from lorentzkit.ops.points import (
    add_time,
    drop_time,
    inner,
    max_radius,
    tangent_inner,
    tangent_norm,
    time,
)

__all__ = [
    "add_time",
    "dist",
    "dist0",
    "drop_time",
    "egrad2rgrad",
    "einstein_midpoint",
    "entailment_residual",
    "expmap",
    "expmap0",
    "exterior_angle",
    "frechet_mean",
    "from_halfspace",
    "from_klein",
    "from_poincare",
    "geodesic",
    "half_aperture",
    "inner",
    "interior_angle",
    "logmap",
    "logmap0",
    "max_radius",
    "pairwise_dist",
    "pairwise_exterior_angle",
    "pairwise_impl",
    "pairwise_inner",
    "pairwise_topk",
    "tangent_inner",
    "tangent_norm",
    "time",
    "to_halfspace",
    "to_klein",
    "to_poincare",
    "transp",
    "transp0",
    "transp0back",
]
