"""Chosen pairs, by a kernel where there is a GPU, else by `_geometry`: positives and winners."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lorentzkit._geometry import pairs
from lorentzkit.fused.problems import ChosenPairs, Gradients
from lorentzkit.fused.rows import by_kernel


def selected(problem: ChosenPairs) -> Tensor:
    """Their values, ``(P, K)``."""
    run = _kernels() if _has_kernel(problem) else pairs
    values: Tensor = run.selected(
        problem.kind, problem.x, problem.y, problem.c, problem.i, problem.j
    )
    return values


def selected_gradients(problem: ChosenPairs, grad_output: Tensor) -> Gradients:
    """Derivatives of ``(grad_output * selected).sum()``."""
    if _has_kernel(problem):
        return Gradients(
            *_kernels().selected_gradients(
                problem.kind, problem.x, problem.y, problem.c, problem.i, problem.j, grad_output
            )
        )
    x, y = (
        torch.zeros_like(z, memory_format=torch.contiguous_format) for z in (problem.x, problem.y)
    )
    return Gradients(x, y, add_gradients(problem, grad_output, x, y))


def add_gradients(problem: ChosenPairs, grad_output: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Adds `selected_gradients` by the points to x and y, a block at a time; returns that by c."""
    if _has_kernel(problem):  # which takes all pairs at once
        gradients = selected_gradients(problem, grad_output)
        x += gradients.x
        y += gradients.y
        return gradients.c
    return pairs.add_selected_gradients(
        problem.kind, problem.x, problem.y, problem.c, problem.i, problem.j, grad_output, x, y
    )


def _has_kernel(problem: ChosenPairs) -> bool:
    return len(problem.i) > 0 and by_kernel([problem.c], [problem.x, problem.y])


def _kernels() -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton.chosen")
