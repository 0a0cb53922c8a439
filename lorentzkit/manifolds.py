"""Hyperbolic space as a geoopt manifold, in space components.

Points are unconstrained vectors: every finite vector is the space part of exactly one point, so
there is nothing to project onto, no drift, and no stabilisation step. All computation is that of
`lorentzkit.ops`. Needs ``pip install 'lorentzkit[geoopt]'``; `import lorentzkit` does not.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

try:
    import geoopt
    from geoopt.manifolds.base import Manifold, ScalingInfo
except ModuleNotFoundError as error:
    if error.name != "geoopt":
        raise
    raise ImportError(
        "lorentzkit.manifolds needs geoopt: pip install 'lorentzkit[geoopt]'"
    ) from error

from lorentzkit import ops
from lorentzkit._geometry import rowwise, vectors
from lorentzkit._geometry.arguments import norm_limit, working_dtype
from lorentzkit._geometry.special import differentiable, dot, log_sinhc, norm, values_known
from lorentzkit.nn import Curvature
from lorentzkit.space import OpsAtCurv


class Lorentz(OpsAtCurv, Manifold):
    r"""Hyperbolic space of sectional curvature ``-curv`` in space components ``(..., D)``.

    The metric at x is ``I - x x^T / x_0^2``, its inverse ``I + curv x x^T``. Works with
    ``geoopt.ManifoldParameter``, ``geoopt.optim.RiemannianSGD``, ``RiemannianAdam`` and
    ``geoopt.Scaled``. The other ops are methods too, as those of `lorentzkit.Lorentz`; but `inner`
    is geoopt's, of tangent vectors.

    Args:
        curv: one positive number. geoopt's ``Lorentz(k)`` has ``k = 1/curv``.
        learnable: make the curvature a parameter, an `nn.Curvature` named ``curvature``: learned as
            its logarithm, so that no step makes it negative. `curv` is the curvature itself.
        bounds: least and largest curvature that is learned, as factors of ``curv``.

    Raises:
        TypeError, ValueError: for a curvature that is not one positive number.

    >>> manifold = Lorentz(curv=2.0)
    >>> x = geoopt.ManifoldParameter(torch.zeros(5, 3), manifold=manifold)
    >>> optimizer = geoopt.optim.RiemannianSGD([x], lr=0.5)
    >>> manifold.dist(x, torch.ones(3)).pow(2).sum().backward()
    >>> optimizer.step()  # half the squared distance: this step lands on the target
    >>> torch.allclose(x, torch.ones(3), atol=1e-5)
    True
    """

    ndim = 1
    reversible = True
    name = "Lorentz (space components)"
    __scaling__ = Manifold.__scaling__.copy()
    # Of the ops that are inherited; angles, transport and means do not change with the scale.
    __scaling__ |= {
        **dict.fromkeys(("dist0", "logmap0", "pairwise_dist"), ScalingInfo(1)),
        "expmap0": ScalingInfo(u=-1),
        "pairwise_topk": ScalingInfo.NotCompatible,
    }

    def __init__(
        self,
        curv: float = 1.0,
        learnable: bool = False,
        *,
        bounds: tuple[float, float] = (0.1, 10.0),
    ) -> None:
        super().__init__()
        ops.time(torch.zeros(1, dtype=torch.float64), curv)  # raises what a bad curv raises
        value = torch.as_tensor(curv, dtype=torch.float64).detach().clone()
        if value.numel() != 1:
            raise ValueError(
                f"curv: expected one number, got shape {tuple(value.shape)}; a manifold has one "
                f"curvature, so make a Lorentz for each (geoopt.ProductManifold joins them), or "
                f"call lorentzkit.ops with the tensor"
            )
        if learnable:
            self.curvature = Curvature(value.item(), bounds=bounds).double()
            self.curvature.reset_parameters()  # to float64's digits
        else:
            self.register_buffer("curvature", value.reshape(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Lorentz:
        # Where there is no float64 the curvature could not move in it.
        narrow = not vectors.has_float64(fn(torch.zeros(1)).device)
        moved: Lorentz = super()._apply((lambda t: fn(t.float())) if narrow else fn, recurse)
        return moved

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *report: Any) -> None:
        for old, name in (("_curv", "curvature"), ("log_curv", "curvature.log_curv")):
            if prefix + old in state:  # its name in 0.1
                value = state.pop(prefix + old)
                state[prefix + name] = value.reshape(1) if old == "log_curv" else value
        super()._load_from_state_dict(state, prefix, *report)

    def extra_repr(self) -> str:
        learnable = isinstance(self.curvature, Curvature)
        return f"curv={float(self.curv.detach()):g}, learnable={learnable}"

    # -- what geoopt requires -------------------------------------------------------------------

    def projx(self, x: Tensor) -> Tensor:
        """The point itself: there is no constraint to restore."""
        return x

    def proju(self, x: Tensor, u: Tensor) -> Tensor:
        """The vector itself: any vector is tangent."""
        return u

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:
        """Riemannian inner product of tangent vectors at x (of u with itself without v)."""
        product = ops.tangent_inner(x, u, u if v is None else v, self.curv)
        return product.unsqueeze(-1) if keepdim else product

    def norm(self, x: Tensor, u: Tensor, *, keepdim: bool = False) -> Tensor:
        """Riemannian length of a tangent vector at x."""
        length = ops.tangent_norm(x, u, self.curv)
        return length.unsqueeze(-1) if keepdim else length

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:
        """Riemannian gradient of a Euclidean one."""
        return ops.egrad2rgrad(x, u, self.curv)

    @__scaling__(ScalingInfo(2))
    def dist2(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        """Squared geodesic distance."""
        return ops.dist(x, y, self.curv, keepdim=keepdim) ** 2

    @__scaling__(ScalingInfo(u=-1))
    def retr(self, x: Tensor, u: Tensor) -> Tensor:
        """The exponential map itself: it is as cheap as any retraction."""
        return ops.expmap(x, u, self.curv)

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v from x to y."""
        return ops.transp(x, y, v, self.curv)

    @__scaling__(ScalingInfo(u=-1))
    def transp_follow_retr(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v along the geodesic of initial velocity u."""
        moved: Tensor = self.expmap_transp(x, u, v)[1]
        return moved

    @__scaling__(ScalingInfo(u=-1))
    def transp_follow_expmap(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Parallel transport of v along the geodesic of initial velocity u."""
        moved: Tensor = self.expmap_transp(x, u, v)[1]
        return moved

    @__scaling__(ScalingInfo(u=-1))
    def expmap_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The exponential map of u, and the parallel transport of v along it, at once."""
        if not differentiable(x, u, v, self.curv):
            both = rowwise.expmap_transp(x, u, v, self.curv)
            if both is not None:
                return both
        y = self.expmap(x, u)
        return y, self.transp(x, y, v)

    @__scaling__(ScalingInfo(u=-1))
    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """`expmap_transp`, as `retr` is `expmap`."""
        both: tuple[Tensor, Tensor] = self.expmap_transp(x, u, v)
        return both

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        # By the length that the ops clamp to: a distance is that of the clamped point already.
        x = x.detach().to(working_dtype(x))
        if bool((norm(x) <= norm_limit(self.curv.detach().to(x))).all()):
            return True, None
        limit = ops.max_radius(x.dtype)
        return False, f"expected finite points within max_radius({x.dtype}) = {limit}"

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if bool(u.isfinite().all()):
            return True, None
        return False, "expected finite tangent vectors"

    # -- points ----------------------------------------------------------------------------------

    def origin(
        self,
        *size: int | tuple[int, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> geoopt.ManifoldTensor:
        """The origin, repeated to ``size``; ``seed`` is there for geoopt's signature."""
        device = self.curv.device if device is None else device
        zeros = torch.zeros(_shape(size), dtype=dtype, device=device)
        return geoopt.ManifoldTensor(zeros, manifold=self)

    @__scaling__(ScalingInfo(std=-1))
    def random(
        self,
        *size: int | tuple[int, ...],
        std: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> geoopt.ManifoldTensor:
        """Points of the wrapped normal distribution around the origin."""
        return self.wrapped_normal(*size, std=std, dtype=dtype, device=device)

    @__scaling__(ScalingInfo(std=-1))
    def wrapped_normal(
        self,
        *size: int | tuple[int, ...],
        mean: Tensor | None = None,
        std: float | Tensor = 1.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> geoopt.ManifoldTensor:
        """Points of shape ``size`` from the wrapped normal distribution; see `WrappedNormal`."""
        shape = _shape(size)
        if mean is None:
            mean = self.origin(shape[-1], dtype=dtype, device=device)
        noise = torch.randn(shape, dtype=dtype or mean.dtype, device=device or mean.device)
        sample = WrappedNormal(self, mean.to(noise), std)._from_noise(noise)
        return geoopt.ManifoldTensor(sample, manifold=self)

    @__scaling__(ScalingInfo.NotCompatible)
    def log_prob(self, x: Tensor, mean: Tensor | None = None, std: float | Tensor = 1.0) -> Tensor:
        """Log density of `wrapped_normal` at x ``(..., D)``; see `WrappedNormal`."""
        mean = torch.zeros_like(x) if mean is None else mean
        return WrappedNormal(self, mean, std).log_prob(x)


class WrappedNormal(Distribution):
    r"""Wrapped normal distribution: a normal vector at the origin, transported and mapped.

    ``v ~ N(0, diag(std^2))``, ``x = expmap(mean, transp0(mean, v))``. Its density with respect to
    the Riemannian volume is ``N(v) / (sinh(s)/s)^(D-1)`` with ``s = sqrt(curv) |v|``.

    Args:
        manifold: a `Lorentz` manifold.
        mean: space components, ``(..., D)``.
        std: standard deviations, a number or ``(..., D)``, in the metric of the manifold.

    The density is symmetric about `mean`, which is its Frechet mean. There is no closed form of the
    KL divergence of two of them: `torch.distributions.kl_divergence` raises, and says how to
    estimate it.

    Samples beyond ``ops.max_radius`` are moved to it, with a warning: in many dimensions the length
    of v is about ``std sqrt(D)``.

    Source: Nagano et al. 2019, "A Wrapped Normal Distribution on Hyperbolic Space", alg. 1 and 2.

    >>> manifold = Lorentz()
    >>> normal = WrappedNormal(manifold, torch.zeros(2), 0.5)
    >>> normal.log_prob(torch.zeros(2)), normal.sample((7,)).shape
    (tensor(-0.4516), torch.Size([7, 2]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (the base class declares it so)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, manifold: Lorentz, mean: Tensor, std: float | Tensor = 1.0) -> None:
        self.manifold = manifold
        std = torch.as_tensor(std, dtype=mean.dtype, device=mean.device)
        if not bool((std > 0).all()):
            raise ValueError(f"std: expected positive standard deviations, got {std}")
        shape = torch.broadcast_shapes(mean.shape, std.shape)  # type: ignore[no-untyped-call]
        self.mean_point, self.std = mean.expand(shape), std.expand(shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The Frechet mean, ``(..., D)``."""
        return self.mean_point

    @property
    def variance(self) -> Tensor:
        """Raises: the distribution has standard deviations, `std`, in the tangent space alone."""
        raise NotImplementedError(
            "variance: a wrapped normal has none in space components; its standard deviations in "
            "the tangent space of the origin are `std`"
        )

    def expand(self, batch_shape: Any, _instance: WrappedNormal | None = None) -> WrappedNormal:
        """The same distribution for ``batch_shape``, to which its own broadcasts."""
        new: WrappedNormal = self._get_checked_instance(WrappedNormal, _instance)  # type: ignore[no-untyped-call]
        shape = (*batch_shape, *self.event_shape)
        new.manifold = self.manifold
        new.mean_point, new.std = self.mean_point.expand(shape), self.std.expand(shape)
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples ``(*sample_shape, ..., D)``, differentiable in mean, std and curvature."""
        shape = self._extended_shape(torch.Size(sample_shape))
        mean = self.mean_point
        return self._from_noise(torch.randn(shape, dtype=mean.dtype, device=mean.device))

    def _from_noise(self, noise: Tensor) -> Tensor:
        u = self.manifold.transp0(self.mean_point, self.std * noise)
        point = self.manifold.expmap(self.mean_point, u)
        self._warn_of_moved(point.detach())
        return point

    def _warn_of_moved(self, point: Tensor) -> None:
        if not values_known(point):
            return
        limit = ops.max_radius(point.dtype)
        radius = self.manifold.curv.detach().sqrt() * self.manifold.dist0(point)
        moved = int((radius > limit * (1 - 1e-6)).sum())
        if moved:
            warnings.warn(
                f"std: {moved} of {radius.numel()} samples lay beyond max_radius({point.dtype}) = "
                f"{limit:g} and were moved to it; a std of 1/sqrt(D) keeps them about 1 from the "
                f"mean, and float64 reaches {ops.max_radius(torch.float64):g}",
                stacklevel=3,
            )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``(...)`` at points ``(..., D)``, with respect to the Riemannian volume."""
        u = self.manifold.logmap(self.mean_point, value)
        v = self.manifold.transp0back(self.mean_point, u)
        normal = -(v / self.std).square() / 2 - self.std.log() - math.log(2 * math.pi) / 2
        volume = log_sinhc(self.manifold.curv.to(v) * dot(v, v)).squeeze(-1)
        density: Tensor = normal.sum(-1) - (v.shape[-1] - 1) * volume
        return density


@register_kl(WrappedNormal, WrappedNormal)  # type: ignore[no-untyped-call]
def _kl(p: WrappedNormal, q: WrappedNormal) -> Tensor:
    raise NotImplementedError(
        "kl_divergence: that of wrapped normals has no closed form; estimate it by samples: "
        "x = p.rsample((n,)), then (p.log_prob(x) - q.log_prob(x)).mean(0)"
    )


def to_geoopt(x: Tensor, manifold: Manifold) -> Tensor:
    """Points in space components as points of a geoopt manifold of the same curvature.

    Args:
        x: space components, ``(..., D)``.
        manifold: ``geoopt.Lorentz`` (curvature ``-1/k``) or ``geoopt.PoincareBall`` (``-c``).

    Returns:
        Full vectors ``(..., D + 1)``, time first, or ball coordinates ``(..., D)``.

    Raises:
        TypeError: for any other manifold.

    >>> to_geoopt(torch.tensor([3.0, 0.0]), geoopt.Lorentz(k=16.0))
    tensor([5., 3., 0.])
    """
    model, curv = _model(manifold)
    return ops.add_time(x, curv) if model == "full" else ops.to_poincare(x, curv)


def from_geoopt(p: Tensor, manifold: Manifold) -> Tensor:
    """Space components of points of a geoopt manifold; the inverse of `to_geoopt`.

    Args:
        p: full vectors ``(..., D + 1)`` of ``geoopt.Lorentz`` or points ``(..., D)`` of
            ``geoopt.PoincareBall``.
        manifold: the manifold of the points.

    Returns:
        Space components ``(..., D)``. Pair them with ``Lorentz(curv=1/k)`` or ``Lorentz(curv=c)``.

    Raises:
        TypeError: for any other manifold.

    >>> from_geoopt(torch.tensor([0.5, 0.0]), geoopt.PoincareBall(c=1.0))
    tensor([1.3333, 0.0000])
    """
    model, curv = _model(manifold)
    return ops.drop_time(p) if model == "full" else ops.from_poincare(p, curv)


def _model(manifold: Manifold) -> tuple[str, Tensor]:
    """Which model a geoopt manifold is, and its ``curv``, by what it has: versions are alike."""
    if isinstance(manifold, geoopt.Lorentz) and hasattr(manifold, "k"):
        return "full", 1 / manifold.k
    if isinstance(manifold, geoopt.PoincareBall) and hasattr(manifold, "c"):
        return "ball", manifold.c
    raise TypeError(
        f"manifold: expected geoopt.Lorentz or geoopt.PoincareBall, got {type(manifold).__name__}"
    )


def _shape(size: tuple[int | tuple[int, ...], ...]) -> tuple[int, ...]:
    """A shape given as numbers or as one tuple, as everywhere in torch and geoopt."""
    shape: Any = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    if len(shape) == 0:
        raise ValueError("size: expected at least one dimension, got none")
    return tuple(shape)


__all__ = ["Lorentz", "WrappedNormal", "from_geoopt", "to_geoopt"]
