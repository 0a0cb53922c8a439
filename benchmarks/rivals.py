"""What lorentzkit is measured against: the usual formulas, geoopt, and the floor.

`meru_*` are the formulas of MERU (Desai et al. 2023), with their clamps, for points side by side.
`usual_*` are the same formulas, and those of ATMG (Ramasinghe et al. 2024), on whole matrices,
written plainly. accuracy.py measures their errors in float32, run.py their speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import geoopt
import geoopt.manifolds.lorentz.math as lorentz
import torch
from measure import now
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lorentzkit import ops
from lorentzkit.manifolds import Lorentz

Function = Callable[..., Tensor]
EPS = 1e-8

# --- Point by point -------------------------------------------------------------------------------


def meru_inner(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    return (x * y).sum(-1) - (1 / c + x.square().sum(-1)).sqrt() * (
        1 / c + y.square().sum(-1)
    ).sqrt()


def meru_dist(x: Tensor, y: Tensor, c: float | Tensor, eps: float = EPS) -> Tensor:
    return torch.acosh((-c * meru_inner(x, y, c)).clamp(min=1 + eps)) / c**0.5


def meru_angle(x: Tensor, y: Tensor, c: float | Tensor, eps: float = EPS) -> Tensor:
    x0, y0 = (1 / c + x.square().sum(-1)).sqrt(), (1 / c + y.square().sum(-1)).sqrt()
    c_xy = c * meru_inner(x, y, c)
    cosine = (y0 + x0 * c_xy) / (x.norm(dim=-1) * (c_xy**2 - 1).clamp(min=eps).sqrt() + eps)
    return torch.acos(cosine.clamp(-1 + eps, 1 - eps))


def meru_expmap0(u: Tensor, c: Tensor) -> Tensor:
    length = c.sqrt() * u.norm(dim=-1, keepdim=True)
    return length.clamp(EPS, math.asinh(2**15)).sinh() * u / length.clamp_min(EPS)


def meru_logmap0(x: Tensor, c: Tensor) -> Tensor:
    cosh = (1 + c * x.square().sum(-1, keepdim=True)).sqrt()
    length = c.sqrt() * x.norm(dim=-1, keepdim=True)
    return cosh.clamp_min(1 + EPS).acosh() * x / length.clamp_min(EPS)


def meru_aperture(x: Tensor, c: Tensor) -> Tensor:
    sine = 2 * 0.1 / (x.norm(dim=-1) * c.sqrt() + EPS)
    return sine.clamp(-1 + EPS, 1 - EPS).asin()


def meru_residual(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (meru_angle(x, y, c) - meru_aperture(x, c)).clamp_min(0)


MERU: dict[str, Function] = {
    "inner": meru_inner,
    "dist": meru_dist,
    "exterior_angle": meru_angle,
    "expmap0": meru_expmap0,
    "logmap0": meru_logmap0,
    "half_aperture": meru_aperture,
    "entailment_residual": meru_residual,
}

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


def usual_midpoint(x: Tensor, c: Tensor) -> Tensor:
    """Klein points' mean by Lorentz factors, mapped back. Source: Gulcehre et al. 2019, eq. 2."""
    lorentz_factors = c.sqrt() * _time(x, c)
    mean = (lorentz_factors * (x / _time(x, c))).sum(-2) / lorentz_factors.sum(-2)
    return mean / (c * (1 - mean.square().sum(-1, keepdim=True)).clamp_min(EPS)).sqrt()


def geoopt_dist(x: Tensor, y: Tensor, c: float | Tensor) -> Tensor:
    return geoopt.Lorentz(k=1 / c).dist(ops.add_time(x, c), ops.add_time(y, c))


# --- All pairs ------------------------------------------------------------------------------------


def usual_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y.mT - _time(x, c) * _time(y, c).mT


def usual_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return torch.acosh((-c * usual_inner(x, y, c)).clamp_min(1 + EPS)) / c.sqrt()


def usual_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    c_xy = c * usual_inner(x, y, c)
    numerator = _time(y, c).mT + _time(x, c) * c_xy
    denominator = x.norm(dim=-1, keepdim=True) * (c_xy.square() - 1).clamp_min(EPS).sqrt() + EPS
    return torch.acos((numerator / denominator).clamp(-1 + 1e-6, 1 - 1e-6))


def usual_loss(x: Tensor, y: Tensor, c: Tensor, scale: Tensor, similarity: str) -> Tensor:
    if similarity == "angle":
        rows, columns = -usual_angle(x, y, c), usual_angle(y, x, c)
    elif similarity == "distance":
        rows = -usual_dist(x, y, c)
        columns = rows.mT
    else:
        rows = normalize(x, dim=-1) @ normalize(y, dim=-1).mT
        columns = rows.mT
    targets = torch.arange(len(x), device=x.device)
    return (cross_entropy(scale * rows, targets) + cross_entropy(scale * columns, targets)) / 2


def _time(x: Tensor, c: Tensor) -> Tensor:
    return (1 / c + x.square().sum(-1, keepdim=True)).sqrt()


USUAL = {"inner": usual_inner, "dist": usual_dist, "exterior_angle": usual_angle}


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
