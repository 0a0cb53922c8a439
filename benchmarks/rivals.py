"""What lorentzkit is measured against besides `usual_formulas`: geoopt, and the floor.

accuracy.py measures their errors in float32, run.py their speed.
"""

from __future__ import annotations

from typing import Any

import geoopt
import geoopt.manifolds.lorentz.math as lorentz
import torch
from measure import now
from torch import Tensor
from usual_formulas import Function

from lorentzkit import ops
from lorentzkit.manifolds import Lorentz

# --- Point by point -------------------------------------------------------------------------------


# geoopt's own functions, which unlike its manifold are differentiable in the curvature.
GEOOPT: dict[str, Function] = {
    "inner": lambda x, y, c: lorentz.inner(x, y),
    "tangent_inner": lambda x, u, v, c: lorentz.inner(u, v),
    "tangent_norm": lambda x, u, c: lorentz.norm(u),
    "dist": lambda x, y, c: lorentz.dist(x, y, k=1 / c),
    "dist0": lambda x, c: lorentz.dist0(x, k=1 / c),
    "expmap": lambda x, u, c: lorentz.expmap(x, u, k=1 / c),
    "logmap": lambda x, y, c: lorentz.logmap(x, y, k=1 / c),
    "expmap0": lambda u, c: lorentz.expmap0(u, k=1 / c),
    "logmap0": lambda x, c: lorentz.logmap0(x, k=1 / c),
    "transp": lambda x, y, u, c: lorentz.parallel_transport(x, y, u, k=1 / c),
    "transp0": lambda y, u, c: lorentz.parallel_transport0(y, u, k=1 / c),
    "transp0back": lambda x, u, c: lorentz.parallel_transport0back(x, u, k=1 / c),
    # a copy, for it changes the gradient in place
    "egrad2rgrad": lambda x, g, c: lorentz.egrad2rgrad(x, g.clone(), k=1 / c),
    "to_poincare": lambda x, c: lorentz.lorentz_to_poincare(x, k=1 / c),
    "from_poincare": lambda p, c: lorentz.poincare_to_lorentz(p, k=1 / c),
}


def in_geoopt(names: list[str], *args: Tensor) -> list[Tensor]:
    """The arguments of an op, with the time components that geoopt's functions expect."""
    *inputs, c = args
    x = inputs[0] if names[0] == "x" else None

    def with_time(name: str, v: Tensor) -> Tensor:
        if name in ("x", "y"):
            return ops.add_time(v, c)
        if name == "p":
            return v
        # A tangent vector at x is orthogonal to x. At the origin, and of a gradient, the time is 0.
        at_x = x is not None and name in ("u", "v")
        time = (x * v).sum(-1, keepdim=True) / ops.time(x, c)[..., None] if at_x else v[..., :1] * 0
        return torch.cat([time, v], -1)

    return [*(with_time(name, v) for name, v in zip(names, inputs, strict=True)), c]


def geoopt_dist(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    return geoopt.Lorentz(k=1 / c).dist(ops.add_time(x, c), ops.add_time(y, c))


# --- All pairs ------------------------------------------------------------------------------------


def pairwise_geoopt_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """By broadcasting, as geoopt has no pairwise form."""
    return geoopt_dist(x[:, None], y[None], c)


# --- Optimisers -----------------------------------------------------------------------------------


class Adam:
    """Steps of geoopt's RiemannianAdam on one parameter, always with the same gradient."""

    def __init__(self, manifold: Any, x: Tensor, gradient: Tensor) -> None:
        self.x = geoopt.ManifoldParameter(x.clone(), manifold=manifold.to(x.device))
        self.x.grad = gradient
        self.optimiser = geoopt.optim.RiemannianAdam([self.x], lr=1e-3)

    def step(self) -> tuple[float, float]:
        started = now()
        self.optimiser.step()
        return now() - started, 0.0


def adams(x: Tensor, gradient: Tensor) -> dict[str, Adam]:
    """The same points and gradients on our manifold, twice, and on geoopt's with a time of 0."""
    c = torch.ones((), dtype=x.dtype, device=x.device)
    with_time = ops.add_time(x, c), torch.cat([gradient[:, :1] * 0, gradient], -1)
    optimisers = {name: Adam(Lorentz(), x, gradient) for name in ("auto", "auto_later")}
    return optimisers | {"geoopt": Adam(geoopt.Lorentz(), *with_time)}


# --- Floors ---------------------------------------------------------------------------------------


class Floor:
    """The unavoidable products: one of N x M x D forward, and two backward.

    With `recompute`, backward needs the one of forward once more.
    """

    def __init__(self, x: Tensor, y: Tensor, *, recompute: bool) -> None:
        self.x, self.y, self.recompute = x.detach(), y.detach(), recompute
        self.out = torch.empty(len(x), len(y), device=x.device)

    def forward(self) -> None:
        torch.mm(self.x, self.y.mT, out=self.out)

    def backward(self) -> None:
        if self.recompute:
            self.forward()
        torch.mm(self.out, self.y)
        torch.mm(self.out.mT, self.x)


class Copies:
    """Reads every argument and writes as much: forward, and again for the gradients."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = [t.detach() for t in tensors]

    def forward(self) -> None:
        for tensor in self.tensors:
            tensor.clone()

    backward = forward
