"""The usual formulas: what lorentzkit is measured against, where nothing but PyTorch is installed.

`meru_*` are those of MERU (Desai et al. 2023) for points side by side, with their clamps; `usual_*`
those and ATMG's (Ramasinghe et al. 2024) on whole matrices, written plainly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

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


def usual_midpoint(x: Tensor, c: Tensor) -> Tensor:
    """Klein points' mean by Lorentz factors, mapped back. Source: Gulcehre et al. 2019, eq. 2."""
    lorentz_factors = c.sqrt() * _time(x, c)
    mean = (lorentz_factors * (x / _time(x, c))).sum(-2) / lorentz_factors.sum(-2)
    return mean / (c * (1 - mean.square().sum(-1, keepdim=True)).clamp_min(EPS)).sqrt()


# --- All pairs ------------------------------------------------------------------------------------


def usual_inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y.mT - _time(x, c) * _time(y, c).mT


def usual_dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return torch.acosh((-c * usual_inner(x, y, c)).clamp_min(1 + EPS)) / c.sqrt()


def usual_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    c_xy = c * usual_inner(x, y, c)
    over = _time(y, c).mT + _time(x, c) * c_xy
    under = x.norm(dim=-1, keepdim=True) * (c_xy.square() - 1).clamp_min(EPS).sqrt() + EPS
    return torch.acos((over / under).clamp(-1 + 1e-6, 1 - 1e-6))


# What `contrastive_loss` and `usual_loss` take, by the name of a row; "both angles" is ATMG's code.
LOSSES: dict[str, Any] = {
    "angle": {"similarity": "angle"},
    "both angles": {"similarity": "angle", "apex": "query"},
    "distance": {"similarity": "distance"},
    "cosine": {"similarity": "cosine"},
}


def usual_loss(
    x: Tensor, y: Tensor, c: Tensor, scale: Tensor, similarity: str, apex: str = "x"
) -> Tensor:
    if similarity == "angle":
        rows = -usual_angle(x, y, c)
        columns = rows.mT if apex == "x" else usual_angle(y, x, c)
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
