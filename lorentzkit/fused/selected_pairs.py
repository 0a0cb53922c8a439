"""Values of selected pairs, such as the positives of a loss or the results of a search.

On a GPU a kernel computes them, elsewhere `_geometry.pairs`.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lorentzkit._geometry import pairs
from lorentzkit.fused.problems import Gradients, SelectedPairs
from lorentzkit.fused.rows import by_kernel


def selected(problem: SelectedPairs) -> Tensor:
    """Their values, ``(P, K)``."""
    module = _kernels() if _has_kernel(problem) else pairs
    values: Tensor = module.selected(*_fields(problem))
    return values


def selected_gradients(problem: SelectedPairs, grad_output: Tensor) -> Gradients:
    """Derivatives of ``(grad_output * selected).sum()``."""
    if _has_kernel(problem):
        return Gradients(*_kernels().selected_gradients(*_fields(problem), grad_output))
    grad_x, grad_y = (
        torch.zeros_like(z, memory_format=torch.contiguous_format) for z in (problem.x, problem.y)
    )
    return Gradients(grad_x, grad_y, add_gradients(problem, grad_output, grad_x, grad_y))


def add_gradients(
    problem: SelectedPairs, grad_output: Tensor, grad_x: Tensor, grad_y: Tensor
) -> Tensor:
    """Adds the gradients by x and y to these, a block at a time; returns that by c."""
    if _has_kernel(problem):  # which takes all pairs at once
        by_c: Tensor = _kernels().add_gradients(*_fields(problem), grad_output, grad_x, grad_y)
        return by_c
    return pairs.add_selected_gradients(*_fields(problem), grad_output, grad_x, grad_y)


def _fields(problem: SelectedPairs) -> tuple[str, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return problem.kind, problem.x, problem.y, problem.c, problem.i, problem.j


def _has_kernel(problem: SelectedPairs) -> bool:
    return len(problem.i) > 0 and by_kernel([problem.c], [problem.x, problem.y])


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.chosen")
