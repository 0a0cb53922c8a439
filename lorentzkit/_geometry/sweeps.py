"""`gram`'s formulas of rows of float32 vectors: two sweeps over them, and numbers between.

One sweep takes the products of the vectors in float64, the other sums them up with coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.arrays import Numbers, as_arrays, as_tensor, where
from lorentzkit._geometry.gram import OPS, Gram, Op, Settings, Slopes, Sum, side
from lorentzkit._geometry.vectors import (
    Parts,
    dot,
    joined,
    parts,
    row_blocks,
    square,
    sums,
)


class Measured(NamedTuple):
    """The numbers of rows ``(N, D)``."""

    gram: Gram
    settings: Settings

    def within(self, op: Op) -> bool:
        """Whether float64 is enough for all of them."""
        gram, (c, _, t, _) = self
        most_x, most_b = op.reach
        if t is not None and not _all((t >= 0) & (t <= 1)):
            return False
        if not float((c * gram.xx).max()) <= most_x:
            return False
        return gram.bb is None or float((c * gram.bb).max()) <= most_b


def _all(holds: Any) -> bool:
    return holds if isinstance(holds, bool) else bool(holds.all())


def measured(
    op: Op, vectors: Sequence[Tensor], c: Numbers, t: Numbers, min_radius: float
) -> Measured:
    """c and t are floats, or ``(N, 1)``."""
    numbers = as_arrays((*_products(op, vectors), *(z for z in (c, t) if isinstance(z, Tensor))))
    gram = Gram(**dict(zip(op.numbers, numbers, strict=False)))
    rest = iter(numbers[len(op.numbers) :])
    c, t = (next(rest) if isinstance(z, Tensor) else z for z in (c, t))
    third = side(gram, c) if op.points == 2 else None
    return Measured(gram, Settings(c, third, t, min_radius))


def _products(op: Op, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    blocks = []
    for block in row_blocks(vectors[0]):
        v = dict(zip("xbu", _wide(op, [v[block] for v in vectors]), strict=False))
        each = (square(v[i]) if i == j else dot(v[i], v[j]) for i, j in op.numbers)
        blocks.append(tuple(each))
    return joined(blocks)


def _wide(op: Op, vectors: Sequence[Tensor]) -> list[Parts]:
    """x, b and u in float64."""
    p = [parts(v, torch.float64) for v in vectors]
    if op.points == 2 and len(p) > 1:
        p[1] = [b - a for a, b in zip(p[0], p[1], strict=True)]
    return p


def values(op: Op, of: Measured, vectors: Sequence[Tensor]) -> Tensor:
    """``(N, 1)`` or ``(N, D)``"""
    value = op.value(*of)
    if not op.along:
        return as_tensor(value).to(torch.float32)
    # What cancels of several vectors is not left to their own dtype's rounding.
    return _sums(op, of, vectors, [value], wide=len(vectors) > 1)[0]


class Gradients(NamedTuple):
    c: Numbers
    t: Numbers
    vectors: list[Tensor]


def gradients(
    op: Op, of: Measured, vectors: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
) -> Gradients:
    """Derivatives of ``(grad * values).sum()``: by c and t row by row, by the vectors needed."""
    value, every = Sum(None), vectors
    if op.along:
        along: Any = Sum(*as_arrays(_along(op, vectors, grad)))
        value = op.value(*of)
        every = [*vectors, *[None] * (3 - len(vectors)), grad]
    else:
        (along,) = as_arrays((grad.double(),))
    by = op.slopes(*of, along)
    rows = _by_vector(op, by, value)
    wanted = [row for row, need in zip(rows, needed, strict=False) if need]
    return Gradients(by.c, by.t, _sums(op, of, every, wanted) if wanted else [])


def _along(op: Op, vectors: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Products of grad with x and b."""
    blocks = []
    for block in row_blocks(grad):
        p = _wide(op, [v[block] for v in vectors[: len(op.along)]])
        g = parts(grad[block], torch.float64)
        blocks.append(tuple(dot(v, g) for v in p))
    return joined(blocks)


def _by_vector(op: Op, by: Slopes, value: Sum) -> list[list[Numbers]]:
    """The gradients by x, y and u, as sums of x, b, u and grad."""
    x = [_twice(by.xx), by.xb, by.xu, value.x]
    b = [by.xb, _twice(by.bb), by.bu, value.b]
    if op.points == 2:  # b is y - x
        x = [_less(p, q) for p, q in zip(x, b, strict=True)]
    return [x, b, [by.xu, by.bu, None, value.u]]


def _twice(x: Numbers) -> Numbers:
    return None if x is None else 2 * x


def _less(x: Numbers, y: Numbers) -> Numbers:
    if y is None:
        return x
    return -y if x is None else x - y


def _sums(
    op: Op,
    of: Measured,
    vectors: Sequence[Tensor | None],
    rows: Sequence[Sequence[Numbers]],
    wide: bool = False,
) -> list[Tensor]:
    """For each row of coefficients that sum of x, b, ..."""
    if op.points < 2:
        return sums(vectors, rows, wide=wide)
    # y - x where it is no larger than half of x, else y
    close = 4 * of.gram.bb <= of.gram.xx
    if not torch.compiler.is_compiling():
        if close.all():
            return sums(vectors, rows, True, wide)
        if not close.any():
            return sums(vectors, [[_less(x, b), b, *z] for x, b, *z in rows], wide=wide)
    apart = [[_less(x, where(close, 0.0, b)), b, *z] for x, b, *z in rows]
    return sums(vectors, apart, as_tensor(close), wide)


# --- To be compiled: the same in one pass ---------------------------------------------------------


def forward(kind: str, c: Tensor, t: Numbers, min_radius: float, *vectors: Tensor) -> Any:
    """`values`, and the Gram numbers."""
    op = OPS[kind]
    of = measured(op, vectors, c, t, min_radius)
    return values(op, of, vectors), [n for n in of.gram if n is not None]


def backward(
    kind: str, c: Tensor, t: Numbers, min_radius: float, numbers: Any, grad: Tensor, *vectors: Tensor
) -> Any:
    op = OPS[kind]
    gram = Gram(**dict(zip(op.numbers, numbers, strict=True)))
    third = side(gram, c) if op.points == 2 else None
    of = Measured(gram, Settings(c, third, t, min_radius))
    return gradients(op, of, vectors, grad, [True] * len(vectors))
