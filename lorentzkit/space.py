"""Hyperbolic space as an object: every op as a method, at the curvature that the object holds.

A function that is called without `curv` takes 1 for it, which is silently wrong where a model has
learned another. A `Lorentz` is given its curvature once, and there is no argument to forget.

The methods are written out, one line each: so editors and type checkers see their signatures, and a
reader what is called. Their docstrings are those of the ops.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from lorentzkit import ops
from lorentzkit.ops.pairwise import Implementation, Precision

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _documented(op: Callable[..., Any]) -> Callable[[_Method], _Method]:
    """Gives a method the docstring of its op, without `curv` and without the op's example."""
    text, _, _ = inspect.cleandoc(op.__doc__ or "").partition("\n>>>")
    text = re.sub(r"\n    curv: .*(\n        .*)*", "", text)

    def documented(method: _Method) -> _Method:
        method.__doc__ = (
            f"{text.rstrip()}\n\nThe method of `ops.{op.__name__}`, at `curv` of the object."
        )
        return method

    return documented


class OpsAtCurv:
    """The ops as methods, at the curvature that is held as `curvature`."""

    curvature: Any
    """A number, a tensor, or a module or function that gives one."""

    @property
    def curv(self) -> Any:
        """The curvature as it is now: what the ops take, a number or a tensor."""
        return self.curvature() if callable(self.curvature) else self.curvature

    # -- points ----------------------------------------------------------------------------------

    @_documented(ops.time)
    def time(self, x: Tensor) -> Tensor:
        return ops.time(x, self.curv)

    @_documented(ops.add_time)
    def add_time(self, x: Tensor) -> Tensor:
        return ops.add_time(x, self.curv)

    @staticmethod
    @_documented(ops.drop_time)
    def drop_time(p: Tensor) -> Tensor:
        return ops.drop_time(p)

    @staticmethod
    @_documented(ops.max_radius)
    def max_radius(dtype: torch.dtype) -> float:
        return ops.max_radius(dtype)

    @_documented(ops.inner)
    def inner(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.inner(x, y, self.curv)

    @_documented(ops.tangent_inner)
    def tangent_inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return ops.tangent_inner(x, u, v, self.curv)

    @_documented(ops.tangent_norm)
    def tangent_norm(self, x: Tensor, u: Tensor) -> Tensor:
        return ops.tangent_norm(x, u, self.curv)

    # -- distances and angles --------------------------------------------------------------------

    @_documented(ops.dist)
    def dist(self, x: Tensor, y: Tensor, *, keepdim: bool = False) -> Tensor:
        return ops.dist(x, y, self.curv, keepdim=keepdim)

    @_documented(ops.dist0)
    def dist0(self, x: Tensor, *, keepdim: bool = False) -> Tensor:
        return ops.dist0(x, self.curv, keepdim=keepdim)

    @_documented(ops.exterior_angle)
    def exterior_angle(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.exterior_angle(x, y, self.curv)

    @_documented(ops.interior_angle)
    def interior_angle(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.interior_angle(x, y, self.curv)

    @_documented(ops.half_aperture)
    def half_aperture(self, x: Tensor, *, min_radius: float = 0.1) -> Tensor:
        return ops.half_aperture(x, self.curv, min_radius=min_radius)

    @_documented(ops.entailment_residual)
    def entailment_residual(
        self, x: Tensor, y: Tensor, *, min_radius: float = 0.1, aperture_scale: float = 1.0
    ) -> Tensor:
        return ops.entailment_residual(
            x, y, self.curv, min_radius=min_radius, aperture_scale=aperture_scale
        )

    # -- maps ------------------------------------------------------------------------------------

    @_documented(ops.expmap)
    def expmap(self, x: Tensor, u: Tensor) -> Tensor:
        return ops.expmap(x, u, self.curv)

    @_documented(ops.logmap)
    def logmap(self, x: Tensor, y: Tensor) -> Tensor:
        return ops.logmap(x, y, self.curv)

    @_documented(ops.expmap0)
    def expmap0(self, u: Tensor) -> Tensor:
        return ops.expmap0(u, self.curv)

    @_documented(ops.logmap0)
    def logmap0(self, x: Tensor) -> Tensor:
        return ops.logmap0(x, self.curv)

    @_documented(ops.geodesic)
    def geodesic(self, t: float | Tensor, x: Tensor, y: Tensor) -> Tensor:
        return ops.geodesic(t, x, y, self.curv)

    @_documented(ops.transp)
    def transp(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return ops.transp(x, y, u, self.curv)

    @_documented(ops.transp0)
    def transp0(self, y: Tensor, u: Tensor) -> Tensor:
        return ops.transp0(y, u, self.curv)

    @_documented(ops.transp0back)
    def transp0back(self, x: Tensor, u: Tensor) -> Tensor:
        return ops.transp0back(x, u, self.curv)

    @_documented(ops.egrad2rgrad)
    def egrad2rgrad(self, x: Tensor, g: Tensor) -> Tensor:
        return ops.egrad2rgrad(x, g, self.curv)

    # -- means -----------------------------------------------------------------------------------

    @_documented(ops.einstein_midpoint)
    def einstein_midpoint(
        self, x: Tensor, weights: Tensor | None = None, *, dim: int = -2
    ) -> Tensor:
        return ops.einstein_midpoint(x, weights, self.curv, dim=dim)

    @_documented(ops.frechet_mean)
    def frechet_mean(self, x: Tensor, weights: Tensor | None = None, *, dim: int = -2) -> Tensor:
        return ops.frechet_mean(x, weights, self.curv, dim=dim)

    # -- other models ----------------------------------------------------------------------------

    @_documented(ops.to_klein)
    def to_klein(self, x: Tensor) -> Tensor:
        return ops.to_klein(x, self.curv)

    @_documented(ops.from_klein)
    def from_klein(self, k: Tensor) -> Tensor:
        return ops.from_klein(k, self.curv)

    @_documented(ops.to_poincare)
    def to_poincare(self, x: Tensor) -> Tensor:
        return ops.to_poincare(x, self.curv)

    @_documented(ops.from_poincare)
    def from_poincare(self, p: Tensor) -> Tensor:
        return ops.from_poincare(p, self.curv)

    @_documented(ops.to_halfspace)
    def to_halfspace(self, x: Tensor) -> Tensor:
        return ops.to_halfspace(x, self.curv)

    @_documented(ops.from_halfspace)
    def from_halfspace(self, p: Tensor) -> Tensor:
        return ops.from_halfspace(p, self.curv)

    # -- all pairs -------------------------------------------------------------------------------

    @_documented(ops.pairwise_inner)
    def pairwise_inner(
        self,
        x: Tensor,
        y: Tensor,
        *,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> Tensor:
        return ops.pairwise_inner(x, y, self.curv, impl=impl, precision=precision)

    @_documented(ops.pairwise_dist)
    def pairwise_dist(
        self,
        x: Tensor,
        y: Tensor,
        *,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> Tensor:
        return ops.pairwise_dist(x, y, self.curv, impl=impl, precision=precision)

    @_documented(ops.pairwise_exterior_angle)
    def pairwise_exterior_angle(
        self,
        x: Tensor,
        y: Tensor,
        *,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> Tensor:
        return ops.pairwise_exterior_angle(x, y, self.curv, impl=impl, precision=precision)

    @_documented(ops.pairwise_topk)
    def pairwise_topk(
        self,
        x: Tensor,
        y: Tensor,
        *,
        k: int,
        similarity: Literal["distance", "angle", "inner"] = "distance",
        apex: Literal["x", "y"] = "x",
        largest: bool = False,
        chunk: int | None = None,
        impl: Literal["auto", "streaming", "triton"] = "auto",
        precision: Precision = "highest",
    ) -> tuple[Tensor, Tensor]:
        return ops.pairwise_topk(
            x,
            y,
            self.curv,
            k=k,
            similarity=similarity,
            apex=apex,
            largest=largest,
            chunk=chunk,
            impl=impl,
            precision=precision,
        )

    @staticmethod
    @_documented(ops.pairwise_impl)
    def pairwise_impl(x: Tensor, y: Tensor, impl: Implementation = "auto") -> str:
        return ops.pairwise_impl(x, y, impl)


class Lorentz(OpsAtCurv, nn.Module):
    r"""Hyperbolic space of sectional curvature ``-curv``: the ops of `lorentzkit.ops` as methods.

    ``space.dist(x, y)`` is ``ops.dist(x, y, space.curv)``. Gradients reach the curvature.

    Args:
        curv: a positive number; a tensor, which broadcasts as `curv` of the ops does; or a module
            such as `nn.Curvature` (or any function without arguments), which is called whenever an
            op runs. Modules and parameters are registered: optimisers see them, and the state dict
            has them. Other tensors are buffers. A number is not part of the state.

    Raises:
        TypeError, ValueError: as the ops, for a curvature that is not positive.

    `lorentzkit.manifolds.Lorentz` is the same for geoopt's optimisers.

    >>> from lorentzkit.nn import Curvature
    >>> space = Lorentz(Curvature(0.25))
    >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    >>> space.dist(x, y).backward()  # ops.dist(x, y, curv=0.25)
    >>> space.curvature.log_curv.grad
    tensor([-0.2200])
    >>> [name for name, _ in space.named_parameters()]
    ['curvature.log_curv']
    >>> Lorentz(1.0).expmap(x, Lorentz(1.0).logmap(x, y))
    tensor([ 0.5000, -1.0000])
    """

    def __init__(self, curv: float | Tensor | Callable[[], Tensor]) -> None:
        super().__init__()
        if isinstance(curv, Tensor) and not isinstance(curv, nn.Parameter):
            self.register_buffer("curvature", curv)
        else:
            self.curvature = curv
        ops.time(torch.zeros(1), self._detached())  # raises what a bad curv raises

    def _detached(self) -> Any:
        curv = self.curv
        return curv.detach() if isinstance(curv, Tensor) else curv

    def extra_repr(self) -> str:
        return "" if isinstance(self.curvature, nn.Module) else f"curv={self._detached()}"


__all__ = ["Lorentz"]
