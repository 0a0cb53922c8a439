"""Products and sums of paired vectors, row by row.

The two are each other's derivative: that of a product is a sum of vectors, that of a coefficient is
a product. All numbers are ``(..., 1)``. Those of float32 vectors are float64: 29 bits to spare save
compensated arithmetic.

Each function exists twice. Eager calls and compilers take autograd Functions, which run in blocks
of rows that fit the cache. `torch.func`, forward mode and tracers take plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lorentzkit._geometry import numpy_products
from lorentzkit._geometry.array_functions import Numbers, as_tensor
from lorentzkit._geometry.elementary import exporting_values, floor_to_power_of_two, is_exporting
from lorentzkit._geometry.special import values_known

_BLOCK = 2**18  # elements in a block of rows: its intermediate results fit the cache
FEW = 8  # up to so many columns are taken one by one: sums over so short rows are slow

Parts = Sequence[Tensor]  # a vector as blocks of its columns


def has_float64(device: torch.device) -> bool:
    """Apple's GPUs have none."""
    return device.type != "mps"


def wide_dtype(x: Tensor) -> torch.dtype:
    """The dtype that vectors like x are measured in."""
    return torch.float64 if has_float64(x.device) else x.dtype


def eager(x: Tensor) -> bool:
    """Whether autograd Functions will do: no transform, tracer, export or forward mode."""
    if torch.compiler.is_compiling():
        return not is_exporting() or exporting_values()
    return forward_ad._current_level < 0 and values_known(x)


def run(function: type[Function], *args: Any) -> Any:
    """Applies the Function; only its forward, where Dynamo sees that no gradient is wanted."""
    if torch.compiler.is_compiling():
        wanted = any(isinstance(a, Tensor) and a.requires_grad for a in args)
        if not (wanted and torch.is_grad_enabled()) or exporting_values():
            return function.compute(*args)  # type: ignore[attr-defined]
        args = _distinct(args)
    return function.apply(*args)  # type: ignore[no-untyped-call]


def _distinct(args: Sequence[Any]) -> tuple[Any, ...]:
    """Views in place of tensors given again: Dynamo fails where an argument is repeated."""
    distinct: list[Any] = []
    for a in args:
        repeated = isinstance(a, Tensor) and any(a is b for b in distinct)
        distinct.append(a.view_as(a) if repeated else a)
    return tuple(distinct)


# --- Custom ops -----------------------------------------------------------------------------------

_library = torch.library.Library("lorentzkit", "FRAGMENT")  # type: ignore[no-untyped-call]


def cpu_op(
    schema: str, fake: Callable[..., Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An op of tensors on a CPU, without derivatives, that is opaque to compilers.

    A `torch.library.custom_op` would cost 0.1 ms a call, as much as the work on a thousand rows.
    """
    _library.define(schema)  # type: ignore[no-untyped-call]
    name, _, _ = schema.partition("(")
    torch.library.register_fake(f"lorentzkit::{name}", fake, lib=_library)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _library.impl(name, function, "CPU")  # type: ignore[no-untyped-call]
        return function

    return register


def by_autograd(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, which takes derivatives, inside a custom op.

    torch disables autograd inside a custom op, but not in another thread.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


# --- Rows -----------------------------------------------------------------------------------------


def parts(x: Tensor, dtype: torch.dtype) -> Parts:
    if x.shape[-1] > FEW or is_exporting():
        return (x.to(dtype),)
    return [column.to(dtype) for column in torch.tensor_split(x, x.shape[-1], -1)]


def dot(x: Parts, y: Parts) -> Tensor:
    """``(..., 1)``"""
    total: Tensor | None = None
    for p, q in zip(x, y, strict=True):
        product = p * q
        if product.shape[-1] > 1:
            product = product.sum(-1, keepdim=True)
        total = product if total is None else total + product
    assert total is not None
    return total


def wide_blocks(vectors: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Rows of vectors as float64 `Parts`, block by block, each written over the one before.

    New memory for each block would cost more than the work on it.
    """
    x, blocks = vectors[0], list(row_blocks(vectors[0]))
    if len(blocks) == 1:
        yield [list(parts(v, torch.float64)) for v in vectors]
        return
    width, few = x.shape[-1], x.shape[-1] <= FEW
    shape = (width, blocks[0].stop, 1) if few else (1, blocks[0].stop, width)
    space = [x.new_empty(shape, dtype=torch.float64) for _ in vectors]
    for block in blocks:
        views = [s[:, : len(x[block])] for s in space]
        for v, wide in zip(vectors, views, strict=True):
            wide.copy_(v[block].mT.unsqueeze(-1) if few else v[block])
        yield [list(wide) for wide in views]


def dots(pairs: Sequence[tuple[Parts, Parts]]) -> tuple[Tensor, ...]:
    return tuple(dot(x, y) for x, y in pairs)


def wide_dots(pairs: Sequence[tuple[Parts, Parts]]) -> tuple[Tensor, ...]:
    """`dots` of float64 vectors on a CPU, without derivatives."""
    return tuple(_blas_dot(x, y) if len(x) == 1 else dot(x, y) for x, y in pairs)


def _blas_dot(x: Parts, y: Parts) -> Tensor:
    (p,), (q,) = x, y
    # BLAS goes over the vectors once; torch makes a product of them first, but by all threads.
    if torch.compiler.is_compiling() or p.numel() * torch.get_num_threads() > 2**21:
        return dot(x, y)
    return torch.from_numpy(numpy_products.vecdot(p.numpy(), q.numpy())).unsqueeze(-1)


def or_one(x: Tensor) -> Tensor:
    """x as a divisor: 1 in place of 0."""
    return torch.where(x == 0, 1.0, x)


def power_of_two(x: Parts) -> Tensor:
    """The power of two ``(..., 1)`` at or under the largest entry of x; 1 where x is 0."""
    each = [torch.linalg.vector_norm(p.detach(), torch.inf, -1, keepdim=True) for p in x]
    largest = each[0]
    for part_largest in each[1:]:
        largest = torch.maximum(largest, part_largest)
    power = floor_to_power_of_two(largest.clamp_min(torch.finfo(largest.dtype).tiny))
    return torch.where(largest > 0, power, torch.where(largest == 0, 1.0, largest))


def flat(x: Tensor) -> Tensor:
    """``(..., D)`` as rows ``(N, D)``."""
    return x.reshape(-1, x.shape[-1])


def row_blocks(x: Tensor, count: int | None = None) -> Iterator[slice]:
    """Slices of ``(N, D)``, or of `count` such rows, that fit the cache; on a GPU all at once."""
    if torch.compiler.is_compiling():
        return iter([slice(None)])
    count = len(x) if count is None else count
    rows = max(1, _BLOCK // max(x.shape[-1], 4)) if x.device.type == "cpu" else max(1, count)
    return (slice(start, start + rows) for start in range(0, max(1, count), rows))


def joined(blocks: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return blocks[0] if len(blocks) == 1 else tuple(map(torch.cat, zip(*blocks, strict=True)))


# --- Products -------------------------------------------------------------------------------------


def product(x: Tensor, y: Tensor) -> Tensor:
    """``x.y``, ``(..., 1)``."""
    if not eager(x):
        return _plain_product(x, y)
    if x is y:
        square: Tensor = run(_Square, flat(x))
        return square.view(*x.shape[:-1], 1)
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]
    result: Tensor = run(_Product, flat(x), flat(y))
    return result.view(*x.shape[:-1], 1)


def _plain_product(x: Tensor, y: Tensor) -> Tensor:
    p = parts(x, wide_dtype(x))
    return dot(p, p if y is x else parts(y, wide_dtype(y)))


def _dots(x: Tensor, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Products of the rows of x with those of the vectors."""
    # Plain operations in a backward pass that is itself differentiated or mapped.
    if torch.is_grad_enabled() or not values_known(x):
        return tuple(_plain_product(x, y) for y in vectors)
    dtype, blocks = wide_dtype(x), []
    for rows in row_blocks(x):
        p = parts(x[rows], dtype)
        blocks.append(tuple(dot(p, p if y is x else parts(y[rows], dtype)) for y in vectors))
    return joined(blocks)


class _Product(Function):
    """`_plain_product` in blocks of rows."""

    @staticmethod
    def compute(x: Tensor, y: Tensor) -> Tensor:
        return _dots(x, [y])[0]

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return _Product.compute(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        by_x, by_y = ctx.needs_input_grad
        return (
            expand([y], None, [grad])[0] if by_x else None,
            expand([x], None, [grad])[0] if by_y else None,
        )


class _Square(Function):
    """`_Product` of a vector with itself."""

    @staticmethod
    def compute(x: Tensor) -> Tensor:
        return _dots(x, [x])[0]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _Square.compute(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return expand(ctx.saved_tensors, None, [2 * grad])[0]


# --- Sums -----------------------------------------------------------------------------------------


def combine(coefficients: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """``sum_i coefficients[i] vectors[i]``, in the vectors' dtype, ``(..., D)``."""
    if not eager(vectors[0]):
        return _plain_sum(coefficients, vectors)
    shape = torch.broadcast_shapes(*(v.shape for v in (*coefficients, *vectors)))  # type: ignore[no-untyped-call]
    columns = [c.expand(*shape[:-1], 1).reshape(-1, 1) for c in coefficients]
    rows = [flat(v.expand(shape)) for v in vectors]
    total: Tensor = run(_Combination, len(rows), *columns, *rows)
    return total.view(shape)


def _plain_sum(coefficients: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    total: Tensor | None = None
    for c, v in zip(coefficients, vectors, strict=True):
        term = c * v.to(c.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total.to(vectors[0].dtype)


class _Combination(Function):
    """`_plain_sum` in blocks of rows."""

    @staticmethod
    def compute(count: int, *tensors: Tensor) -> Tensor:
        # Several vectors may cancel, so they are summed in the wider dtype.
        return expand(tensors[count:], None, tensors[:count], wide=count > 1)[0]

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors)
        return _Combination.compute(count, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        coefficients, vectors = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        needed = ctx.needs_input_grad[1:]
        wanted = [v for v, want in zip(vectors, needed[: ctx.count], strict=True) if want]
        columns = [[c] for c, want in zip(coefficients, needed[ctx.count :], strict=True) if want]
        grads = [
            *(_dots(grad, wanted) if wanted else ()),
            *(expand([grad], None, *columns) if columns else ()),
        ]
        grad_iter = iter(grads)
        return (None, *(next(grad_iter) if want else None for want in needed))


def expand(
    vectors: Sequence[Tensor],
    close: Tensor | None,
    *rows: Sequence[Tensor],
    wide: bool = False,
) -> tuple[Tensor, ...]:
    """For each row of coefficients the sum of x, y (``y - x`` where ``close``), and the others."""
    x = vectors[0]
    if torch.is_grad_enabled() or not values_known(rows[0][0]):  # as in `_dots`
        basis = [v.to(wide_dtype(x)) for v in vectors]
        basis = basis if close is None else _basis(basis, close)
        return tuple(_plain_sum(row, basis).to(x.dtype) for row in rows)
    return tuple(sums(vectors, rows, False if close is None else close, wide))


def sums(
    vectors: Sequence[Tensor | None],
    coefficients: Sequence[Sequence[Numbers]],
    close: Tensor | bool = False,
    wide: bool = False,
) -> list[Tensor]:
    """For each row of coefficients the sum of the vectors; None stands for no coefficient.

    ``close``: where the second vector is to be replaced by its difference to the first.
    """
    x = vectors[0]
    assert x is not None
    if torch.compiler.is_compiling():
        return [t.to(x.dtype) for t in _block_sums(vectors, coefficients, close, wide_dtype(x))]
    stacked = _stacked([c for row in coefficients for c in row if _varies(c)], x)
    dtype = x.dtype if not wide and _in_range(stacked, x.dtype) else wide_dtype(x)
    columns = iter(torch.split(as_tensor(stacked).to(dtype), 1, 1))
    rows = [[next(columns) if _varies(c) else c for c in row] for row in coefficients]
    with_coefficients = zip(vectors, zip_longest(*rows), strict=False)
    used = [v if any(c is not None for c in column) else None for v, column in with_coefficients]
    blocks = list(row_blocks(x))
    if len(blocks) == 1 and x.shape[-1] > FEW:
        return [total.to(x.dtype) for total in _block_sums(used, rows, close, dtype)]
    totals = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in rows]
    for block in blocks:
        block_vectors = [v if v is None else v[block] for v in used]
        block_rows = [[c[block] if isinstance(c, Tensor) else c for c in row] for row in rows]
        block_close = close if isinstance(close, bool) else close[block]
        _block_sums(
            block_vectors, block_rows, block_close, dtype, [total[block] for total in totals]
        )
    return totals


def sums_unseen(
    vectors: Sequence[Tensor | None],
    coefficients: Sequence[Sequence[Numbers]],
    close: Tensor | bool,
) -> tuple[list[Tensor], Tensor]:
    """`sums` for compiled code, which cannot check its coefficients; and whether they are right."""
    x = vectors[0]
    assert x is not None
    varying = [c for row in coefficients for c in row if _varies(c)]
    columns = iter([stored(c.to(x.dtype)) for c in varying])
    rows = [[next(columns) if _varies(c) else c for c in row] for row in coefficients]
    return _block_sums(vectors, rows, close, x.dtype), _all_in_range(torch.cat(varying, 1))


def stored(numbers: Tensor) -> Tensor:
    """The numbers in memory: inductor would compute them again at each use."""
    return numbers.as_strided(numbers.shape, numbers.stride())


def _block_sums(
    vectors: Sequence[Tensor | None],
    rows: Sequence[Sequence[Tensor | float | None]],
    close: Tensor | bool,
    dtype: torch.dtype,
    out: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    basis: list[Any] = [v if v is None else v.to(dtype) for v in vectors]
    if close is not False and basis[1] is not None:  # a bool is True then
        basis = _basis(basis, close)
    each = [[(c, v) for c, v in zip(row, basis, strict=False) if c is not None] for row in rows]
    if out is None:
        return [_sum(terms) for terms in each]
    return [_sum(terms, total) for terms, total in zip(each, out, strict=True)]


def _varies(c: Numbers) -> bool:
    return c is not None and not isinstance(c, float)


def _stacked(numbers: Sequence[Numbers], like: Tensor) -> Numbers:
    """Side by side, ``(N, K)``."""
    if len(numbers) < 2:
        return numbers[0] if numbers else like.new_empty((len(like), 0), dtype=wide_dtype(like))
    if isinstance(numbers[0], Tensor):
        return torch.cat(list(numbers), 1)
    return np.concatenate(numbers, 1)


def _basis(vectors: Sequence[Tensor], close: Tensor | bool) -> list[Tensor]:
    x, y, *tail = vectors
    if isinstance(close, bool):
        return [x, y - x, *tail]
    return [x, torch.addcmul(y, x, close.to(x.dtype), value=-1), *tail]


def _sum(terms: Sequence[tuple[Tensor | float, Tensor]], out: Tensor | None = None) -> Tensor:
    if out is not None and 1 < out.shape[-1] <= FEW:  # sums over short rows are slow
        for j in range(out.shape[-1]):
            _sum([(c, v[:, j : j + 1]) for c, v in terms], out[:, j : j + 1])
        return out
    (c, v), *tail = terms
    total = torch.mul(v, c, out=out if out is not None and out.dtype == v.dtype else None)
    for c, v in tail:
        total = total.add_(v, alpha=c) if isinstance(c, float) else total.addcmul_(v, c)
    if out is not None and total is not out:
        out.copy_(total)
    return total


def _in_range(coefficients: Numbers, dtype: torch.dtype) -> bool:
    """Whether the coefficients may be rounded to the dtype: none is near the ends of its range."""
    if isinstance(coefficients, np.ndarray):
        return numpy_products.in_range(coefficients)
    if coefficients.dtype == dtype or coefficients.numel() == 0:
        return True
    if coefficients.device.type != "cpu":  # where one would wait for the answer
        return False
    return bool(_all_in_range(coefficients))


def _all_in_range(coefficients: Tensor) -> Tensor:
    """Whether float32 holds the coefficients, none near the ends of its range."""
    sizes = coefficients.abs()
    return (torch.where(sizes == 0, 1.0, sizes).amin() > 1e-30) & (sizes.amax() < 1e30)
