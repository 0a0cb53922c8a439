"""What lorentzkit is timed against: the usual formulas on whole matrices, geoopt, and the floor.

`usual_*` are the formulas of MERU (Desai et al. 2023) and ATMG (Ramasinghe et al. 2024), written
plainly; how wrong they are in float32 is another benchmark's subject (accuracy.py).
"""

from __future__ import annotations

from collections.abc import Callable

import geoopt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from lorentzkit import ops

Function = Callable[..., Tensor]


def usual_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y.mT - _time(x, c) * _time(y, c).mT


def usual_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return torch.acosh((-c * usual_inner(x, y, c)).clamp_min(1 + 1e-8)) / c.sqrt()


def usual_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    c_xy = c * usual_inner(x, y, c)
    over = _time(y, c).mT + _time(x, c) * c_xy
    under = x.norm(dim=-1, keepdim=True) * (c_xy.square() - 1).clamp_min(1e-8).sqrt() + 1e-8
    return torch.acos((over / under).clamp(-1 + 1e-6, 1 - 1e-6))


def usual_loss(x: Tensor, y: Tensor, c: Tensor, scale: Tensor, similarity: str) -> Tensor:
    if similarity == "angle":
        rows, columns = -usual_angle(x, y, c), usual_angle(y, x, c)
    elif similarity == "distance":
        rows = -usual_dist(x, y, c)
        columns = rows.mT
    else:
        rows = normalize(x, dim=-1) @ normalize(y, dim=-1).mT
        columns = rows.mT
    of = torch.arange(len(x), device=x.device)
    return (cross_entropy(scale * rows, of) + cross_entropy(scale * columns, of)) / 2


def _time(x: Tensor, c: Tensor) -> Tensor:
    return (1 / c + x.square().sum(-1, keepdim=True)).sqrt()


USUAL = {"inner": usual_inner, "dist": usual_dist, "exterior_angle": usual_angle}


def geoopt_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Of all pairs, by broadcasting: it has no pairwise form."""
    full = (ops.add_time(z, c) for z in (x[:, None], y[None]))
    return geoopt.Lorentz(k=1 / c).dist(*full)


class Floor:
    """The unavoidable products alone: one N x M x D forward; backward that again, and two more."""

    def __init__(self, x: Tensor, y: Tensor, *, again: bool) -> None:
        self.x, self.y, self.again = x.detach(), y.detach(), again
        self.out = torch.empty(len(x), len(y), device=x.device)

    def forward(self) -> None:
        torch.mm(self.x, self.y.mT, out=self.out)

    def backward(self) -> None:
        if self.again:
            self.forward()
        torch.mm(self.out, self.y)
        torch.mm(self.out.mT, self.x)
