"""Differentiable hyperbolic geometry for PyTorch.

`lorentzkit.Lorentz` is hyperbolic space of one curvature, with the geometry as methods;
`lorentzkit.ops` holds the geometry as plain functions of tensors, `lorentzkit.losses` the losses,
`lorentzkit.nn` modules and `lorentzkit.distributed` what batches spread over processes need.
`lorentzkit.manifolds` makes it a geoopt manifold for Riemannian optimisers, and is imported only
when asked for: importing `lorentzkit` loads nothing beyond PyTorch.
"""

from lorentzkit import losses, nn, ops
from lorentzkit.space import Lorentz

__version__ = "0.2.0"

__all__ = ["Lorentz", "__version__", "losses", "nn", "ops"]
