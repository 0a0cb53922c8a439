"""`gram`'s formulas of rows of float32 vectors: two sweeps over them, and numbers between.

One sweep takes the products of the vectors in float64, the other sums them up with coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry import numpy_products
from lorentzkit._geometry.array_functions import Numbers, as_arrays, as_tensor, where
from lorentzkit._geometry.formulas import EXPMAP_TRANSP, OPS, side
from lorentzkit._geometry.gram import Apart, Gram, Op, Settings, Slopes, Sum
from lorentzkit._geometry.vectors import (
    joined,
    sums,
    sums_unseen,
    wide_blocks,
    wide_dots,
)


class Values(NamedTuple):
    values: Any
    """``(N, 1)`` or ``(N, D)``; None in eager code if the vectors are too far out"""
    numbers: tuple[Numbers, ...] = ()
    """The Gram numbers"""
    right: Numbers = False
    """One bool: whether the vectors are near enough. Compiled code does not look at it"""


class Gradients(NamedTuple):
    c: Numbers
    """Row by row, as t"""
    t: Numbers
    vectors: list[Tensor]
    right: Numbers = True
    """As of `Values`"""


def _gram(op: Op, numbers: Sequence[Numbers]) -> Gram:
    return Gram(**dict(zip(op.numbers, numbers, strict=True)))


def forward(kind: str, c: Numbers, t: Numbers, min_radius: float, *vectors: Tensor) -> Values:
    """The op of rows of vectors. c and t are floats, or ``(N, 1)``."""
    op = OPS[kind]
    *numbers, c, t = as_arrays(*_numbers(op, vectors), c, t)
    gram, settings = _measured(op, numbers, c, t, min_radius)
    near = op.within(gram, settings)
    if not torch.compiler.is_compiling() and not near:
        return Values(None)
    value = op.value(gram, settings)
    if op.apart:
        (found,), right = _sums(op, gram, vectors, [value[:1]])
        return Values(_with_last(found, value.last), tuple(numbers), near & right)
    if op.along:
        (found,), right = _sums(op, gram, vectors, [value])
        return Values(found, tuple(numbers), near & right)
    return Values(as_tensor(value).to(torch.float32), tuple(numbers), near)


def _with_last(found: Tensor, last: Numbers) -> Tensor:
    found[:, -1:] = as_tensor(last)
    return found


def _rest(v: Tensor) -> Tensor:
    """All coordinates but the last; a zero in the place of none."""
    return v[:, :-1] if v.shape[1] > 1 else torch.zeros_like(v)


def expmap_transp(c: Numbers, *vectors: Tensor) -> tuple[list[Tensor], Numbers]:
    """`expmap` of the second vector, and the third one transported along it; no derivatives.

    And whether the vectors are near enough; if eager code sees that they are not, nothing else.
    """
    op = EXPMAP_TRANSP
    *numbers, c = as_arrays(*_numbers(op, vectors), c)
    gram, settings = _measured(op, numbers, c, None, 0.0)
    near = op.within(gram, settings)
    if not torch.compiler.is_compiling() and not near:
        return [], False
    found, right = _sums(op, gram, vectors, op.value(gram, settings))
    return found, near & right


def _measured(
    op: Op, numbers: Sequence[Numbers], c: Numbers, t: Numbers, min_radius: float
) -> tuple[Gram, Settings]:
    gram, of = _gram(op, numbers), Settings(c, t=t, min_radius=min_radius)
    return gram, of._replace(side=side(gram, c)) if op.points == 2 else of


def _numbers(op: Op, vectors: Sequence[Tensor]) -> tuple[Numbers, ...]:
    if not op.apart:
        return _products(op, dict(zip("xbu", vectors, strict=False)), op.numbers)
    (x,) = vectors
    return *_products(op, {"x": _rest(x)}, ["xx"]), x[:, -1:].double()


def _products(op: Op, vectors: Mapping[str, Tensor], pairs: Sequence[str]) -> tuple[Numbers, ...]:
    """Products ``(N, 1)`` of the vectors x, b, u and g, by letters; two points' b as y."""
    if numpy_products.is_small(vectors["x"]):
        return numpy_products.products(vectors, op.points, pairs)
    blocks = []
    for block in wide_blocks(list(vectors.values())):
        v = dict(zip(vectors, block, strict=True))
        if op.points == 2:
            for p, q in zip(v["x"], v["b"], strict=True):
                q -= p
        blocks.append(wide_dots([(v[pair[0]], v[pair[1]]) for pair in pairs]))
    return joined(blocks)


def backward(
    kind: str,
    c: Numbers,
    t: Numbers,
    min_radius: float,
    numbers: Sequence[Numbers],
    grad: Tensor,
    needed: Sequence[bool],
    *vectors: Tensor,
) -> Gradients:
    """Derivatives of ``(grad * values).sum()``, of the vectors those needed."""
    op, value = OPS[kind], Sum(None)
    every: tuple[Tensor | None, ...] = vectors
    *numbers, c, t = as_arrays(*numbers, c, t)
    gram, settings = _measured(op, numbers, c, t, min_radius)
    if op.apart:
        return _backward_apart(op, gram, settings, grad, *vectors)
    if op.along:
        with_grad = dict(zip(op.along, vectors, strict=False)) | {"g": grad}
        of_grad = _products(op, with_grad, [f"{v}g" for v in op.along])
        along: Any = Sum(*as_arrays(*of_grad))
        value = op.value(gram, settings)
        every = (*vectors, *[None] * (3 - len(vectors)), grad)
    else:
        (along,) = as_arrays(grad.double())
    by = op.slopes(gram, settings, along)
    rows = _by_vector(op, by, value)
    wanted = [row for row, need in zip(rows, needed, strict=False) if need]
    return Gradients(by.c, by.t, *(_sums(op, gram, every, wanted) if wanted else ([], True)))


def _backward_apart(op: Op, gram: Gram, settings: Settings, grad: Tensor, x: Tensor) -> Gradients:
    of_rest = _products(op, {"x": _rest(x), "g": _rest(grad)}, ["xg"])
    along = Apart(*as_arrays(*of_rest, grad[:, -1:].double()))
    by = op.slopes(gram, settings, along)
    row = [_twice(by.xx), op.value(gram, settings).rest]
    (found,), right = _sums(op, gram, [x, grad], [row])
    return Gradients(by.c, None, [_with_last(found, by.last)], right)


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
    gram: Gram,
    vectors: Sequence[Tensor | None],
    rows: Sequence[Sequence[Numbers]],
) -> tuple[list[Tensor], Numbers]:
    """For each row of coefficients that sum of x, b, ...; and whether compiled code is right."""
    rows, close = _in_basis(op, gram, rows)
    near = close if close is True or close is False else as_tensor(close)
    if torch.compiler.is_compiling():
        return sums_unseen(vectors, rows, near)
    return sums(vectors, rows, near), True


def _in_basis(
    op: Op, gram: Gram, rows: Sequence[Sequence[Numbers]]
) -> tuple[Sequence[Sequence[Numbers]], Numbers]:
    """In terms of ``y - x`` where that is no larger than half of x, else of y."""
    if op.points < 2:
        return rows, False
    close = 4 * gram.bb <= gram.xx
    if not torch.compiler.is_compiling():
        if close.all():
            return rows, True
        if not close.any():
            return [[_less(x, b), b, *others] for x, b, *others in rows], False
    return [[_less(x, where(close, 0.0, b)), b, *others] for x, b, *others in rows], close
