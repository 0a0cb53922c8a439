"""The two sweeps over few short rows in NumPy, whose calls take a third of the time of torch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry.arrays import FEW_ROWS, Numbers

_FEW_ELEMENTS = 2**16

# NumPy has it since 2.0.
vecdot: Any = getattr(np, "vecdot", lambda x, y: np.einsum("nd,nd->n", x, y))


def is_small(x: Tensor) -> bool:
    """Of rows ``(N, D)`` on a CPU."""
    if torch.compiler.is_compiling():
        return False
    return x.numel() <= _FEW_ELEMENTS and len(x) <= FEW_ROWS


def products(
    vectors: Mapping[str, Tensor], points: int, pairs: Sequence[str]
) -> tuple[np.ndarray, ...]:
    """Products ``(N, 1)`` of float64 numbers, by letters; of two points, b is y - x."""
    wide = {name: v.numpy().astype(np.float64) for name, v in vectors.items()}
    if points == 2:
        wide["b"] -= wide["x"]
    return tuple(vecdot(wide[pair[0]], wide[pair[1]])[:, None] for pair in pairs)


def sums(
    vectors: Sequence[Tensor | None],
    coefficients: Sequence[Sequence[Numbers]],
    close: np.ndarray | bool,
) -> list[Tensor]:
    """See `vectors.sums`."""
    arrays: list[Any] = [None if v is None else v.numpy() for v in vectors]
    if close is not False:
        x, y, *others = arrays
        arrays = [x, y - (x if close is True else x * close), *others]
    return [
        _sum([(c, v) for c, v in zip(row, arrays, strict=False) if c is not None])
        for row in coefficients
    ]


def _sum(terms: Sequence[tuple[Numbers, Any]]) -> Tensor:
    dtype = terms[0][1].dtype
    if not all(in_range(c) for c, _ in terms):
        dtype = np.dtype(np.float64)
    products = [
        (c if isinstance(c, float) else c.astype(dtype, copy=False)) * v.astype(dtype, copy=False)
        for c, v in terms
    ]
    total = products[0]
    for product in products[1:]:
        total += product
    return torch.from_numpy(total.astype(np.float32, copy=False))


def in_range(c: Numbers) -> bool:
    """Whether float32 holds the numbers, none near the ends of its range."""
    if isinstance(c, float):
        return True
    sizes = np.abs(c)
    if not sizes.max() < 1e30:
        return False
    return bool(sizes.min() > 1e-30) or not bool(((sizes < 1e-30) & (sizes > 0)).any())
