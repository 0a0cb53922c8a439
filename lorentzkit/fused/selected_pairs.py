"""Chosen pairs, by a kernel where there is a GPU, else by `_geometry`: positives and winners."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lorentzkit._geometry import pairs
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
    return pairs.add_selected_gradients(of.kind, of.x, of.y, of.c, of.i, of.j, at, x, y)


def _has_kernel(of: ChosenPairs) -> bool:
    return len(of.i) > 0 and by_kernel([of.c], [of.x, of.y])


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.chosen")
