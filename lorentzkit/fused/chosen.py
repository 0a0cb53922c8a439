"""Chosen pairs, by a kernel where there is a GPU, else by `_geometry`: positives and winners."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lorentzkit._geometry import pairs
from lorentzkit._geometry.invariants import measured
from lorentzkit._geometry.vectors import row_blocks, wide_dtype
from lorentzkit.fused.problems import ChosenPairs, Gradients
from lorentzkit.fused.rows import by_kernel


def selected(of: ChosenPairs) -> Tensor:
    """Their values, ``(P, K)``."""
    run = _kernels() if _has_kernel(of) else pairs
    found: Tensor = run.selected(of.kind, of.x, of.y, of.c, of.i, of.j)
    return found


def selected_gradients(of: ChosenPairs, at: Tensor) -> Gradients:
    """Derivatives of ``(at * selected).sum()``."""
    if _has_kernel(of):
        return Gradients(*_kernels().selected_gradients(of.kind, of.x, of.y, of.c, of.i, of.j, at))
    x, y = (torch.zeros_like(z, memory_format=torch.contiguous_format) for z in (of.x, of.y))
    return Gradients(x, y, add_gradients(of, at, x, y))


def add_gradients(of: ChosenPairs, at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Adds `selected_gradients` by the points to x and y, a block at a time; returns that by c."""
    if _has_kernel(of):  # which takes all pairs at once
        by = selected_gradients(of, at)
        x += by.x
        y += by.y
        return by.c
    c = torch.zeros(1, dtype=wide_dtype(x), device=x.device)
    for some in row_blocks(of.x, len(of.i)):
        i, j = of.i[some], of.j[some]
        p, q = of.x[i], of.y[j]
        by_c, by_x, by_y, *_ = pairs.gradients(of.kind, p, q, of.c, at[some], *measured(p, q))
        x.index_add_(0, i, by_x)
        y.index_add_(0, j, by_y)
        c += by_c.sum()
    return c.to(of.c.dtype)


def _has_kernel(of: ChosenPairs) -> bool:
    return len(of.i) > 0 and by_kernel([of.c], [of.x, of.y])


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.chosen")
