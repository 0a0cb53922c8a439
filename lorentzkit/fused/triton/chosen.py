"""`pairs.selected` and its gradients by the kernels of rows, which take gathered points."""

from __future__ import annotations

import torch
from torch import Tensor

from lorentzkit.fused.triton import rows

OPS = {
    "angles": "angles",
    "exterior": "exterior_angle",
    "interior": "interior_angle",
    "distance": "dist",
    "inner": "inner",
    "cosine": "cosine",
}


def selected(kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Of at least one pair (i, j), ``(P, K)``."""
    return rows.values(OPS[kind], (x[i], y[j]), c).view(len(i), -1)


def selected_gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, grad_output: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of ``(at * selected).sum()`` by x, y and c."""
    grad_output = grad_output if kind == "angles" else grad_output[:, 0]
    gradients = rows.gradients(OPS[kind], (x[i], y[j]), c, grad_output, (True, True, True, False))
    of_x, of_y = (
        _summed(v, index, by)
        for v, index, by in zip((x, y), (i, j), gradients.vectors, strict=True)
        if by is not None
    )
    assert gradients.c is not None
    return of_x, of_y, gradients.c


def _summed(v: Tensor, index: Tensor, by: Tensor) -> Tensor:
    """The gradient of ``v`` for ``by``, that of ``v[index]``, as torch has it.

    On a GPU it sorts the index, and adds up each row's in that order: the same bits on every run,
    where `index_add_` has atomics. The indices are not looked at again, for `v[index]` has been;
    the host would wait for that.
    """
    total = v.new_zeros(v.shape)
    return torch._index_put_impl_(total, (index,), by, accumulate=True, unsafe=True)
