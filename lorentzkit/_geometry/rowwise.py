"""Ops on rows of float32 vectors near the origin, on a CPU: arguments in, `gram_rows` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lorentzkit._geometry import gram_rows
from lorentzkit._geometry.arguments import (
    check_broadcast,
    curvature,
    curvature_number,
    vectors,
    working_dtype,
)
from lorentzkit._geometry.array_functions import FEW_ROWS, Numbers, as_tensor
from lorentzkit._geometry.compilation import earned
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.special import values_known
from lorentzkit._geometry.vectors import eager, flat, wide_dtype


class Rows(NamedTuple):
    """An op of rows ``(N, D)``, computed."""

    kind: str
    shape: torch.Size
    """The leading dimensions"""
    parameters: tuple[Any, ...]
    """c, t and ``min_radius``; the first two are floats, or ``(N, 1)``"""
    numbers: tuple[Numbers, ...]
    """The Gram numbers"""


def near_rows(
    kind: str,
    plain: Callable[..., Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: dict[str, Tensor],
) -> Tensor | None:
    """The op of these vectors; None if `gram` does not serve them.

    Args:
        plain: the op in torch, with derivatives of every order.
    """
    tensors = vectors(**named)
    numbers = [z for z in (curv, t) if isinstance(z, Tensor)]
    if kind not in OPS or not _serves(*tensors, *numbers):
        return None
    computed_rows = compute(kind, tensors, curv, t, min_radius, named)
    if computed_rows is None:
        return None
    _, values = computed_rows
    if torch.is_grad_enabled() and any(z.requires_grad for z in (*tensors, *numbers)):
        values = _NearRows.apply(computed_rows, plain, curv, t, *tensors)  # type: ignore[no-untyped-call]
    return values


@torch.no_grad()
@np.errstate(all="ignore")
def expmap_transp(x: Tensor, u: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, Tensor] | None:
    """`ops.expmap` of u, and v transported along it; no derivatives. None as in `near_rows`."""
    if not _serves(x, u, v, curv):
        return None
    named = {"x": x, "u": u, "v": v}
    shape, row_parameters = parameters([x, u, v], curv, None, 0.0, named)
    rows, results = [flat_rows(z, shape) for z in (x, u, v)], []
    function = earned(gram_rows.expmap_transp, "", rows[0])
    compiled = function is not gram_rows.expmap_transp
    for chunk in _chunks(rows[0], compiled):
        c, *_ = _chunk_parameters(row_parameters, chunk, compiled)
        result, near = function(c, *(_part(z, chunk) for z in rows))
        if not near:
            return None
        results.append(result)
    y, moved = (_joined(chunks).view(*shape, -1) for chunks in zip(*results, strict=True))
    return y, moved


def _serves(*tensors: Tensor) -> bool:
    """Whether these are float32 tensors on a CPU whose values can be looked at."""
    x = tensors[0]
    if not all(v.is_cpu and v.numel() > 0 for v in tensors):
        return False
    if working_dtype(*tensors) != torch.float32 or wide_dtype(x) != torch.float64:
        return False
    return eager(x) and not any(map(is_traceable_wrapper_subclass, tensors))


@torch.no_grad()
@np.errstate(all="ignore")  # what is not finite gives NaN
def compute(
    kind: str,
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: Mapping[str, Tensor],
) -> tuple[Rows, Tensor] | None:
    """The op as `Rows`, and its values; None if the vectors are too far out for `gram`."""
    shape, row_parameters = parameters(tensors, curv, t, min_radius, named)
    rows = [flat_rows(v, shape) for v in tensors]
    forward = earned(gram_rows.forward, kind, rows[0])
    compiled, results = forward is not gram_rows.forward, []
    for chunk in _chunks(rows[0], compiled):
        result = forward(
            kind,
            *_chunk_parameters(row_parameters, chunk, compiled),
            *(_part(v, chunk) for v in rows),
        )
        if not result.valid:
            return None
        results.append(result)
    values = _joined([result.values for result in results])
    values = values.view(*shape, -1) if OPS[kind].grad_dots else values.view(shape)
    numbers = tuple(map(_joined, zip(*(result.numbers for result in results), strict=True)))
    return Rows(kind, shape, row_parameters, numbers), values


def parameters(
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: Mapping[str, Tensor],
) -> tuple[torch.Size, tuple[Any, ...]]:
    """The leading dimensions, and the parameters of `Rows`."""
    if t is None and all(v.shape == tensors[0].shape for v in tensors):
        curv_number = curvature_number(curv)
        if curv_number is not None:
            return tensors[0].shape[:-1], (curv_number, None, min_radius)
    c = curvature(curv, torch.float32, _CPU)
    t_tensor = None if t is None else torch.as_tensor(t, dtype=torch.float32)
    shape = _shape(tensors, c, t_tensor, named)
    t_number = None if t_tensor is None else _number(t_tensor.unsqueeze(-1), shape)
    return shape, (_number(c, shape), t_number, min_radius)


def _part(z: Any, chunk: slice | None) -> Any:
    """These rows of a tensor; a float as it is."""
    return z[chunk] if isinstance(z, Tensor) and chunk else z


def _chunk_parameters(
    row_parameters: Sequence[Any], chunk: slice | None, compiled: bool
) -> list[Any]:
    """The parameters of these rows; for compiled code a number as a tensor, not as a constant."""
    c, t, min_radius = row_parameters
    chunk_parameters = [_part(z, chunk) for z in (c, t)]
    if compiled:
        chunk_parameters = [
            torch.from_numpy(np.array(z)) if isinstance(z, float) else z for z in chunk_parameters
        ]
    return [*chunk_parameters, min_radius]


_CPU = torch.device("cpu")


def _shape(
    tensors: Sequence[Tensor], c: Tensor, t: Tensor | None, named: Mapping[str, Tensor]
) -> torch.Size:
    """The leading dimensions that all broadcast to."""
    shape = tensors[0].shape[:-1]
    leading_shapes = [*(v.shape[:-1] for v in tensors[1:]), *([] if t is None else [t.shape])]
    if c.dim() == 1 and all(s == shape for s in leading_shapes):
        return shape
    leading = {name: v.shape[:-1] for name, v in zip(named, tensors, strict=True)}
    check_broadcast(c.shape[:-1], None if t is None else t.shape, **leading)
    return torch.broadcast_shapes(shape, *leading_shapes, c.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]


def flat_rows(v: Tensor, shape: Sequence[int]) -> Tensor:
    """As float32 rows ``(N, D)``."""
    if v.shape[:-1] != shape:
        v = v.expand(*shape, v.shape[-1])
    return (v if v.dim() == 2 else flat(v)).float()


def _number(z: Tensor, shape: Sequence[int]) -> Tensor | float:
    """One number for all rows as a float, or a tensor ``()`` if compiled; else ``(N, 1)``."""
    if z.numel() > 1:
        return z.double().expand(*shape, 1).reshape(-1, 1)
    return z.double().reshape(()) if torch.compiler.is_compiling() else float(z)


def _chunks(x: Tensor, whole: bool) -> list[slice] | list[None]:
    """Blocks of rows whose numbers fit the cache; ``[None]`` if one block is all of them."""
    rows = max(FEW_ROWS, 2**18 // max(x.shape[-1], 4))
    if whole or len(x) <= rows:
        return [None]
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


class _NearRows(Function):
    @staticmethod
    def forward(
        ctx: Any,
        computed_rows: tuple[Rows, Tensor],
        plain: Callable[..., Tensor],
        curv: float | Tensor,
        t: float | Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.rows, values = computed_rows
        ctx.plain = plain
        ctx.numbers = [None if isinstance(z, Tensor) else z for z in (curv, t)]
        ctx.save_for_backward(*(z if isinstance(z, Tensor) else None for z in (curv, t)), *tensors)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        curv, t, *tensors = ctx.saved_tensors
        curv, t = (z if n is None else n for z, n in zip((curv, t), ctx.numbers, strict=True))
        inputs, needed = [curv, t, *tensors], ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or not values_known(grad):
            return None, None, *differentiated(ctx.plain, inputs, grad, needed)
        return None, None, *gradients(ctx.rows, inputs, grad, needed)


@np.errstate(all="ignore")
def gradients(
    computed_rows: Rows,
    inputs: Sequence[Any],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients by curv, t and the tensors."""
    (curv, t, *tensors), (by_curv, by_t, *by_tensors) = inputs, needed
    rows = [flat_rows(v, computed_rows.shape) for v in tensors]
    grad = flat_rows(
        grad if OPS[computed_rows.kind].grad_dots else grad.unsqueeze(-1), computed_rows.shape
    )
    backward = earned(gram_rows.backward, computed_rows.kind, rows[0])
    compiled, results = backward is not gram_rows.backward, []
    for chunk in _chunks(rows[0], compiled):
        numbers: Sequence[Numbers] = computed_rows.numbers
        if chunk or compiled:
            numbers = [_part(n, chunk) for n in map(as_tensor, numbers)]
        own_grad, *own = (_part(v, chunk) for v in (grad, *rows))
        arguments: list[Any] = [numbers, own_grad, by_tensors, *own]
        result = backward(
            computed_rows.kind,
            *_chunk_parameters(computed_rows.parameters, chunk, compiled),
            *arguments,
        )
        if not result.valid:  # compiled, of all rows
            result = gram_rows.backward(computed_rows.kind, *computed_rows.parameters, *arguments)
        results.append(result)
    vector_grads = iter(map(_joined, zip(*(g.vectors for g in results), strict=True)))
    return [
        _summed_grad([g.c for g in results], curv, computed_rows.shape) if by_curv else None,
        _summed_grad([g.t for g in results], t, computed_rows.shape) if by_t else None,
        *(
            as_gradient(next(vector_grads), v, computed_rows.shape) if need else None
            for v, need in zip(tensors, by_tensors, strict=True)
        ),
    ]


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else torch.cat([as_tensor(p) for p in parts])


def as_gradient(grad: Tensor, v: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient by v, from that by its rows."""
    if grad.shape != v.shape:
        grad = grad.view(*shape, v.shape[-1]).sum_to_size(v.shape)
    return grad.to(v.dtype)


def _summed_grad(row_grads: Sequence[Any], z: Tensor, shape: Sequence[int]) -> Tensor:
    if z.numel() == 1:
        return z.new_full(z.shape, sum(float(g.sum()) for g in row_grads))
    return as_tensor(_joined(row_grads)).view(shape).sum_to_size(z.shape).to(z.dtype)


def differentiated(
    plain: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of ``plain(t, *tensors, curv)`` by autograd, themselves differentiable.

    Args:
        inputs: curv, t and the tensors; without t it is None.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        with_need = zip(inputs, needed, strict=True)
        curv, t, *tensors = leaves = [_leaf(z) if need else z for z, need in with_need]
        value = plain(*([] if t is None else [t]), *tensors, curv)
        wanted = [z for z, need in zip(leaves, needed, strict=True) if need]
        grads = iter(torch.autograd.grad(value, wanted, grad, create_graph=create_graph))
    return [next(grads) if need else None for need in needed]


def _leaf(z: Tensor) -> Tensor:
    return z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
