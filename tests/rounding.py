"""How far a chain of computations may be off: first-order rounding analysis, by autograd.

A law of geometry compares two chains of ops, `expmap(x, logmap(x, y))` with `y`, say. Each op
answers for a few roundings of its inputs (`condition.py`), and the next one magnifies them.
`Rounded` carries a value and its blur: how far it moves if every input of every step is rounded
once. Two chains agree if they differ by at most `ROUNDINGS` times their blurs, the bound that
`tolerances.py` sets for a single op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDINGS = 16
UNIT = torch.finfo(torch.float64).eps / 2


class Rounded(NamedTuple):
    value: Tensor
    blur: float


def exact(x: Tensor | float) -> Rounded:
    """An input: what it is, with no error of its own."""
    return Rounded(torch.as_tensor(x, dtype=torch.float64), 0.0)


def apply(function: Callable[..., Tensor], *args: Rounded | Tensor | float) -> Rounded:
    """`function`, of any leading dimensions, and how far the arguments' blurs move it."""
    rounded = [a if isinstance(a, Rounded) else exact(a) for a in args]
    out = function(*(a.value for a in rounded))
    n = out.numel()
    # All rows of the Jacobians in one backward pass: a copy of the arguments for each entry.
    copies = [a.value.expand(n, *a.value.shape).clone().requires_grad_() for a in rounded]
    entries = function(*copies).reshape(n, n).diagonal().sum()
    rows = torch.autograd.grad(entries, copies, materialize_grads=True)
    blur = UNIT * out.norm().item()
    for a, jacobian in zip(rounded, rows, strict=True):
        norm = torch.linalg.matrix_norm(jacobian.reshape(n, -1), 2).item()
        blur += norm * (a.blur + UNIT * a.value.norm().item())
    return Rounded(out.detach(), blur)


def assert_agree(a: Rounded | Tensor | float, b: Rounded | Tensor | float) -> None:
    a, b = (v if isinstance(v, Rounded) else exact(v) for v in (a, b))
    allowed = ROUNDINGS * (a.blur + b.blur + UNIT * b.value.norm().item())
    off = (a.value - b.value).norm().item()
    assert off <= allowed, f"{a.value} and {b.value} differ by {off:.2e}, not {allowed:.2e}"
    size = 1 + a.value.norm().item() + b.value.norm().item()
    assert allowed < 1e-2 * size, f"the law is not tested: any difference up to {allowed} passes"
