"""Elementwise functions of tensors, NumPy arrays and floats alike.

The scalars of a few rows take a hundred operations on a few numbers each, and NumPy needs a third
of torch's time for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry import elementary

Numbers = Any  # Tensor, np.ndarray or float

FEW_ROWS = 2**13  # up to so many rows NumPy computes the scalars


def as_arrays(*numbers: Numbers) -> list[Numbers]:
    """Tensors as NumPy arrays, where those are quicker: for few rows, in eager code."""
    if torch.compiler.is_compiling() or len(numbers[0]) > FEW_ROWS:
        return list(numbers)
    return [n.numpy() if isinstance(n, Tensor) else n for n in numbers]


def as_tensor(numbers: Numbers) -> Tensor:
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


def is_double(x: Numbers) -> bool:
    return isinstance(x, np.ndarray) or x.dtype == torch.float64


def tiny(x: Numbers) -> float:
    """The least normal number of its type."""
    return np.finfo(np.float64).tiny if isinstance(x, np.ndarray) else torch.finfo(x.dtype).tiny


def _elementwise(tensor_function: Callable[..., Tensor], name: str) -> Any:
    array_function = getattr(np, name)
    float_function = getattr(math, {"arcsinh": "asinh", "arctan2": "atan2"}.get(name, name))

    def function(x: Numbers, *args: Numbers) -> Numbers:
        if isinstance(x, Tensor):
            return tensor_function(x, *args)
        return float_function(x, *args) if isinstance(x, float) else array_function(x, *args)

    function.__name__ = name
    return function


sqrt, log1p = _elementwise(torch.sqrt, "sqrt"), _elementwise(elementary.log1p, "log1p")
sinh, cosh = _elementwise(elementary.sinh, "sinh"), _elementwise(elementary.cosh, "cosh")
arcsinh, arctan2 = (
    _elementwise(elementary.asinh, "arcsinh"),
    _elementwise(elementary.atan2, "arctan2"),
)


def maximum(x: Numbers, y: Numbers) -> Numbers:
    return torch.maximum(x, y) if isinstance(x, Tensor) else np.maximum(x, y)


def where(condition: Numbers, x: Numbers, y: Numbers) -> Numbers:
    if isinstance(condition, Tensor):
        return torch.where(condition, x, y)
    return np.where(condition, x, y)


def or_one(x: Numbers) -> Numbers:
    """x as a divisor: 1 in place of 0."""
    return x + (x == 0)


def quotient(x: Numbers, y: Numbers) -> Numbers:
    """``x/y``, and 1 for 0/0."""
    zero = y == 0
    return (x + zero) / (y + zero)


def inverse(x: Numbers) -> Numbers:
    """``1/x``, and 0 for 0."""
    nonzero = x != 0
    return nonzero / (x + ~nonzero)


def polynomial(z: Numbers, *coefficients: float) -> Numbers:
    """``coefficients[0] + z (coefficients[1] + ...)``"""
    total: Numbers = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total
