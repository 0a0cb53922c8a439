"""Calls of the pairwise ops: one pair among others, and every custom op below them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from condition import exact_dot
from mpmath import mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lorentzkit import ops

# The pairwise op, by the elementwise one whose values it has.
PAIRWISE = {
    "inner": ops.pairwise_inner,
    "dist": ops.pairwise_dist,
    "exterior_angle": ops.pairwise_exterior_angle,
}
# What `pairwise_topk` ranks by: its options, and the matrix of what it compares.
SEARCHES = {
    "distance": ({"similarity": "distance"}, ops.pairwise_dist),
    "angle": ({"similarity": "angle"}, ops.pairwise_exterior_angle),
    "angle at y": (
        {"similarity": "angle", "apex": "y"},
        lambda x, y, curv: ops.pairwise_exterior_angle(y, x, curv).mT,
    ),
    "inner": ({"similarity": "inner"}, ops.pairwise_inner),
}
BOUND = 16  # condition-scaled; docs/kernels.md


def points(n, D, dtype=torch.float64, radius=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=-1)
    return (unit * radius * torch.rand(n, 1, generator=generator)).to(dtype)


def in_a_crowd(op: str, **how: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Entry (0, 0) of the pairwise op; the crowd keeps the directions' mean away from the pair."""

    def function(x: Tensor, y: Tensor, curv: Tensor) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(x.shape[-1])
        shape = 3, x.shape[-1]
        crowd = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(x)
        xs, ys = torch.cat([x[None], crowd]), torch.cat([y[None], -crowd])
        return PAIRWISE[op](xs, ys, curv, **how)[0, 0]

    return function


def measurable(x: Tensor, y: Tensor, curv: Tensor) -> bool:
    """Whether the pairwise ops, which round directions to unit vectors, can be measured.

    Points are at the origin or at radii from 1e-6, and exactly aligned or farther from it than that
    rounding: closer, the measure's first order says nothing of what one rounding changes.
    """
    if any(z.any() and curv.sqrt() * z.double().norm() < 9e-7 for z in (x, y)):
        return False
    with mp.workdps(400):
        xx, yy, xy = exact_dot(x, x), exact_dot(y, y), exact_dot(x, y)
        square = 1 - xy * xy / (xx * yy) if xx and yy else 0
        return square == 0 or square > (4 * torch.finfo(x.dtype).eps) ** 2


def custom_ops(impl: str, dtype: torch.dtype) -> list[tuple[Any, tuple[Any, ...]]]:
    """Each with arguments for it."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 20, generator=generator, dtype=torch.float64).to(dtype) for _ in "xy")
    c, scale, at = x.new_tensor([0.7]), x.new_tensor(5.0), x.new_ones(4, 4)
    pairs = torch.arange(4), torch.arange(4)
    ids = tuple(i.int() for i in pairs)
    how = "highest", impl
    library = torch.ops.lorentzkit
    prepare = (library.prepare, (x, y, c, "angles", "highest"))
    loss = (x, y, c, scale, *ids, *pairs, *prepare[0](*prepare[1]))
    terms = library.loss_terms(*loss, "angles", *how)
    calls = [
        (library.matrix, (x[None], y[None], c[None], "distance", *how)),
        (library.matrix_gradients, (x[None], y[None], c[None], at[None], "distance", *how)),
        (library.loss_terms, (*loss, "angles", *how)),
        (library.loss_terms_gradients, (*loss, *terms[:2], *terms, "angles", *how)),
        (library.topk, (x, y, c, "distance", "highest", 2, False, "x", 0, impl)),
    ]
    if impl == "streaming":  # these ops take no impl: once is enough
        calls += [
            prepare,
            (library.selected, (x, y, c, *pairs, "angles")),
            (library.selected_gradients, (x, y, c, *pairs, at[:, :2], "angles")),
        ]
    return calls


class Largest(TorchDispatchMode):
    """The most elements of any tensor made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else [out]
        sizes = [t.numel() for t in tensors if isinstance(t, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return out


class Allocated(TorchDispatchMode):
    """Bytes of all that is allocated: as much as is held at once, or more."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "empty" in func.name():
            self.bytes += out.numel() * out.element_size()
        return out
