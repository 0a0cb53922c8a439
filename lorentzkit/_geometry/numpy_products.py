"""Products of few short rows in NumPy, whose calls take a third of torch's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry.array_functions import FEW_ROWS

_FEW_ELEMENTS = 2**16

# NumPy has it since 2.0.
vecdot: Any = getattr(np, "vecdot", lambda x, y: np.einsum("nd,nd->n", x, y))


def is_small(x: Tensor) -> bool:
    """Whether rows ``(N, D)`` on a CPU are so few and short that NumPy is quicker."""
    if torch.compiler.is_compiling():
        return False
    return x.numel() <= _FEW_ELEMENTS and len(x) <= FEW_ROWS


def products(
    vectors: Mapping[str, Tensor], points: int, pairs: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """Products ``(N, 1)`` of pairs of vectors such as "xb", in float64.

    For two points ``vectors["b"]`` is y, and b is ``y - x``.
    """
    arrays = {name: v.numpy() for name, v in vectors.items()}
    y = arrays.pop("b") if points == 2 else None
    wide = {name: v.astype(np.float64) for name, v in arrays.items()}
    if y is not None:
        wide["b"] = y - wide["x"]
    return tuple(vecdot(wide[pair[0]], wide[pair[1]])[:, None] for pair in pairs)


def in_range(c: np.ndarray) -> bool:
    """Whether float32 holds the numbers: none is near the ends of its range."""
    sizes = np.abs(c)
    if not sizes.max() < 1e30:
        return False
    return bool(sizes.min() > 1e-30) or not bool(((sizes < 1e-30) & (sizes > 0)).any())
