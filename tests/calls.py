"""Arguments for a call of every op, at generic points, by the names in its signature."""

from __future__ import annotations

import torch
from condition import OPS
from torch import Tensor

SIGNATURES = {op: of.split(" -> ")[0].split() for op, of in OPS.items()} | {"add_time": ["x"]}
# What all ops have from one function needs no more: a number, a vector, a parameter, a set.
ONE_OF_EACH = ["dist", "expmap", "geodesic", "einstein_midpoint"]
CURV = 0.7
DTYPES = [torch.float32, torch.float64]


def arguments(
    op: str,
    batch: tuple[int, ...] = (4,),
    D: int = 3,
    radius: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """What goes before ``curv``, for any curvature up to 1; points are about ``radius`` out."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def argument(name: str) -> Tensor:
        if name == "t":
            return uniform(*batch)
        if name == "points":
            return radius * normal(*batch, 3, D)
        if name == "weights":
            return 0.1 + uniform(*batch, 3)
        v = normal(*batch, D)
        if name in ("k", "p"):  # inside the unit ball
            return 0.9 * min(radius, 1) * torch.nn.functional.normalize(v, dim=-1)
        if name == "h":  # around the half-space's origin, at height about 1
            return torch.cat([radius * v[..., :-1], (radius * v[..., -1:]).exp()], -1)
        return radius * v if name in ("x", "y") else v

    return [argument(name).to(dtype) for name in SIGNATURES[op]]
