"""`gram`'s formulas for rows of float32 vectors, in two passes over the vectors.

The first pass takes the products of the vectors in float64. The formulas make coefficients of them,
and the second pass sums the vectors up with those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry import numpy_products
from lorentzkit._geometry.array_functions import Numbers, as_arrays, as_tensor, where
from lorentzkit._geometry.formulas import EXPMAP_TRANSP, OPS, side
from lorentzkit._geometry.gram import Coefficients, Gram, Op, Partials, Settings, SplitVector
from lorentzkit._geometry.vectors import (
    joined,
    sums,
    sums_unseen,
    wide_blocks,
    wide_dots,
)


class Values(NamedTuple):
    values: Any
    """``(N, 1)`` or ``(N, D)``; None if eager code sees that the vectors are too far out"""
    numbers: tuple[Numbers, ...] = ()
    """The Gram numbers"""
    valid: Numbers = False
    """One bool: whether the vectors were near enough. Compiled code cannot branch on it"""


class Gradients(NamedTuple):
    c: Numbers
    """Row by row, like t"""
    t: Numbers
    vectors: list[Tensor]
    valid: Numbers = True
    """As in `Values`"""


def _named_gram(op: Op, numbers: Sequence[Numbers]) -> Gram:
    return Gram(**dict(zip(op.numbers, numbers, strict=True)))


def forward(kind: str, c: Numbers, t: Numbers, min_radius: float, *vectors: Tensor) -> Values:
    """The op of rows of vectors. c and t are floats, or ``(N, 1)``."""
    op = OPS[kind]
    *numbers, c, t = as_arrays(*_gram_numbers(op, vectors), c, t)
    gram, settings = _gram_and_settings(op, numbers, c, t, min_radius)
    near = op.within(gram, settings)
    if not torch.compiler.is_compiling() and not near:
        return Values(None)
    value = op.value(gram, settings)
    if op.splits_last:
        (result,), valid = _sums(op, gram, vectors, [value[:1]])
        return Values(_with_last(result, value.last), tuple(numbers), near & valid)
    if op.grad_dots:
        (result,), valid = _sums(op, gram, vectors, [value])
        return Values(result, tuple(numbers), near & valid)
    return Values(as_tensor(value).to(torch.float32), tuple(numbers), near)


def _with_last(result: Tensor, last: Numbers) -> Tensor:
    result[:, -1:] = as_tensor(last)
    return result


def _rest(v: Tensor) -> Tensor:
    """All coordinates but the last; if there are no others, a zero."""
    return v[:, :-1] if v.shape[1] > 1 else torch.zeros_like(v)


def expmap_transp(c: Numbers, *vectors: Tensor) -> tuple[list[Tensor], Numbers]:
    """`expmap` of the second vector, and the third one transported along it; no derivatives.

    Also whether the vectors are near enough. If eager code sees that they are not, the list is
    empty.
    """
    op = EXPMAP_TRANSP
    *numbers, c = as_arrays(*_gram_numbers(op, vectors), c)
    gram, settings = _gram_and_settings(op, numbers, c, None, 0.0)
    near = op.within(gram, settings)
    if not torch.compiler.is_compiling() and not near:
        return [], False
    results, valid = _sums(op, gram, vectors, op.value(gram, settings))
    return results, near & valid


def _gram_and_settings(
    op: Op, numbers: Sequence[Numbers], c: Numbers, t: Numbers, min_radius: float
) -> tuple[Gram, Settings]:
    gram, settings = _named_gram(op, numbers), Settings(c, t=t, min_radius=min_radius)
    return gram, settings._replace(side=side(gram, c)) if op.points == 2 else settings


def _gram_numbers(op: Op, vectors: Sequence[Tensor]) -> tuple[Numbers, ...]:
    if not op.splits_last:
        return _products(op, dict(zip("xbu", vectors, strict=False)), op.numbers)
    (x,) = vectors
    return *_products(op, {"x": _rest(x)}, ["xx"]), x[:, -1:].double()


def _products(op: Op, vectors: Mapping[str, Tensor], pairs: Sequence[str]) -> tuple[Numbers, ...]:
    """Products ``(N, 1)`` of pairs of the vectors x, b, u and g, such as "xb".

    For an op of two points, ``vectors["b"]`` is the second point y.
    """
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
    """Derivatives of ``(grad * values).sum()``; by the vectors, those that are needed."""
    op, value = OPS[kind], Coefficients(None)
    all_vectors: tuple[Tensor | None, ...] = vectors
    *numbers, c, t = as_arrays(*numbers, c, t)
    gram, settings = _gram_and_settings(op, numbers, c, t, min_radius)
    if op.splits_last:
        return _backward_split(op, gram, settings, grad, *vectors)
    if op.grad_dots:
        named = dict(zip(op.grad_dots, vectors, strict=False)) | {"g": grad}
        dots = _products(op, named, [f"{v}g" for v in op.grad_dots])
        grad_dots: Any = Coefficients(*as_arrays(*dots))
        value = op.value(gram, settings)
        all_vectors = (*vectors, *[None] * (3 - len(vectors)), grad)
    else:
        (grad_dots,) = as_arrays(grad.double())
    partials = op.vjp(gram, settings, grad_dots)
    rows = _vector_coefficients(op, partials, value)
    wanted = [row for row, need in zip(rows, needed, strict=False) if need]
    return Gradients(
        partials.c, partials.t, *(_sums(op, gram, all_vectors, wanted) if wanted else ([], True))
    )


def _backward_split(op: Op, gram: Gram, settings: Settings, grad: Tensor, x: Tensor) -> Gradients:
    rest_dot = _products(op, {"x": _rest(x), "g": _rest(grad)}, ["xg"])
    grad_dots = SplitVector(*as_arrays(*rest_dot, grad[:, -1:].double()))
    partials = op.vjp(gram, settings, grad_dots)
    row = [_twice(partials.xx), op.value(gram, settings).rest]
    (grad_x,), valid = _sums(op, gram, [x, grad], [row])
    return Gradients(partials.c, None, [_with_last(grad_x, partials.last)], valid)


def _vector_coefficients(op: Op, partials: Partials, value: Coefficients) -> list[list[Numbers]]:
    """The gradients by x, y and u, as sums of x, b, u and grad."""
    x = [_twice(partials.xx), partials.xb, partials.xu, value.x]
    b = [partials.xb, _twice(partials.bb), partials.bu, value.b]
    if op.points == 2:  # b is y - x
        x = [_minus(p, q) for p, q in zip(x, b, strict=True)]
    return [x, b, [partials.xu, partials.bu, None, value.u]]


def _twice(x: Numbers) -> Numbers:
    return None if x is None else 2 * x


def _minus(x: Numbers, y: Numbers) -> Numbers:
    if y is None:
        return x
    return -y if x is None else x - y


def _sums(
    op: Op,
    gram: Gram,
    vectors: Sequence[Tensor | None],
    rows: Sequence[Sequence[Numbers]],
) -> tuple[list[Tensor], Numbers]:
    """For each row of coefficients the sum of x, b, ...; and whether compiled code may use them."""
    rows, close = _in_basis(op, gram, rows)
    close_rows = close if close is True or close is False else as_tensor(close)
    if torch.compiler.is_compiling():
        return sums_unseen(vectors, rows, close_rows)
    return sums(vectors, rows, close_rows), True


def _in_basis(
    op: Op, gram: Gram, rows: Sequence[Sequence[Numbers]]
) -> tuple[Sequence[Sequence[Numbers]], Numbers]:
    """The coefficients in terms of ``y - x`` where that is at most half of x, else of y."""
    if op.points < 2:
        return rows, False
    close = 4 * gram.bb <= gram.xx
    if not torch.compiler.is_compiling():
        if close.all():
            return rows, True
        if not close.any():
            return [[_minus(x, b), b, *tail] for x, b, *tail in rows], False
    return [[_minus(x, where(close, 0.0, b)), b, *tail] for x, b, *tail in rows], close
