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
    """Derivatives of ``(grad_output * selected).sum()`` by x, y and c."""
    of_x, of_y = x.new_zeros(x.shape), y.new_zeros(y.shape)
    return of_x, of_y, add_gradients(kind, x, y, c, i, j, grad_output, of_x, of_y)


def add_gradients(
    kind: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    i: Tensor,
    j: Tensor,
    grad_output: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
) -> Tensor:
    """Adds those by x and y to these; returns that by c.

    On a GPU torch sorts the index, and adds up each row's in that order: the same bits on every
    run, where `index_add_` has atomics. The indices are not looked at again, for `x[i]` has been;
    the host would wait for that.
    """
    grad_output = grad_output if kind == "angles" else grad_output[:, 0]
    gradients = rows.gradients(OPS[kind], (x[i], y[j]), c, grad_output, (True, True, True, False))
    for total, index, by in zip((grad_x, grad_y), (i, j), gradients.vectors, strict=True):
        assert by is not None
        torch._index_put_impl_(total, (index,), by.to(total.dtype), accumulate=True, unsafe=True)
    assert gradients.c is not None
    return gradients.c
