"""Functions of numbers that are tensors, NumPy arrays or floats.

NumPy takes a third of torch's time for an operation on a few numbers, and the scalars of a few rows
are a hundred such operations.
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

FEW_ROWS = 2**13  # whose scalars are NumPy's


def as_arrays(*numbers: Numbers) -> list[Numbers]:
    """Tensors as NumPy's arrays where those are quicker: of few rows, not compiled."""
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


def _of(of_tensor: Callable[..., Tensor], name: str) -> Any:
    of_array = getattr(np, name)
    of_float = getattr(math, {"arcsinh": "asinh", "arctan2": "atan2"}.get(name, name))

    def function(x: Numbers, *others: Numbers) -> Numbers:
        if isinstance(x, Tensor):
            return of_tensor(x, *others)
        return of_float(x, *others) if isinstance(x, float) else of_array(x, *others)

    function.__name__ = name
    return function


sqrt, log1p = _of(torch.sqrt, "sqrt"), _of(elementary.log1p, "log1p")
sinh, cosh = _of(elementary.sinh, "sinh"), _of(elementary.cosh, "cosh")
arcsinh, arctan2 = _of(elementary.asinh, "arcsinh"), _of(elementary.atan2, "arctan2")


def maximum(x: Numbers, y: Numbers) -> Numbers:
    return torch.maximum(x, y) if isinstance(x, Tensor) else np.maximum(x, y)


def where(condition: Numbers, x: Numbers, y: Numbers) -> Numbers:
    if isinstance(condition, Tensor):
        return torch.where(condition, x, y)
    return np.where(condition, x, y)


def or_one(x: Numbers) -> Numbers:
    """A divisor: 1 in the place of 0."""
    return x + (x == 0)


def quotient(x: Numbers, y: Numbers) -> Numbers:
    """``x/y``, and 1 of 0/0."""
    zero = y == 0
    return (x + zero) / (y + zero)


def inverse(x: Numbers) -> Numbers:
    """``1/x``, and 0 of 0"""
    apart = x != 0
    return apart / (x + ~apart)


def polynomial(z: Numbers, *coefficients: float) -> Numbers:
    """``coefficients[0] + z (coefficients[1] + ...)``"""
    total: Numbers = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * z + coefficient
    return total
