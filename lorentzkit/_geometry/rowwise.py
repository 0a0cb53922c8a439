"""Ops on rows of float32 vectors near the origin, on a CPU: the way in to `sweeps`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry import sweeps
from lorentzkit._geometry.arguments import check_broadcast, curvature, vectors, working_dtype
from lorentzkit._geometry.arrays import FEW_ROWS, as_tensor
from lorentzkit._geometry.compilation import compiled_rows, earned
from lorentzkit._geometry.gram import OPS
from lorentzkit._geometry.special import values_known
from lorentzkit._geometry.vectors import eager, flat, wide_dtype


class _Rows(NamedTuple):
    """An op of rows ``(N, D)``, computed."""

    kind: str
    shape: torch.Size
    """The leading dimensions"""
    parameters: tuple[Any, ...]
    """c, t and ``min_radius``; the first two are floats, or ``(N, 1)``"""
    numbers: list[tuple[Any, ...]]
    """The Gram numbers, of some rows after the other"""
    compiled: bool
    values: Tensor


def near_rows(
    name: str,
    plain: Callable[..., Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: dict[str, Tensor],
) -> Tensor | None:
    """The op of these vectors; None if it is not for `gram`.

    Args:
        plain: the op in torch, with derivatives of every order.
    """
    tensors = vectors(**named)
    numbers = [z for z in (curv, t) if isinstance(z, Tensor)]
    if name not in OPS or working_dtype(*tensors, *numbers) != torch.float32:
        return None
    if wide_dtype(tensors[0]) != torch.float64 or not eager(tensors[0]):
        return None
    if not all(v.device.type == "cpu" and v.numel() > 0 for v in (*tensors, *numbers)):
        return None
    rows = _computed(name, tensors, curv, t, min_radius, named)
    if rows is None or not torch.is_grad_enabled():
        return rows and rows.values
    if any(z.requires_grad for z in (*tensors, *numbers)):
        of: Tensor = _Near.apply(rows, plain, curv, t, *tensors)  # type: ignore[no-untyped-call]
        return of
    return rows.values


@torch.no_grad()
@np.errstate(all="ignore")  # of what is not finite, NaN
def _computed(
    kind: str,
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: dict[str, Tensor],
) -> _Rows | None:
    c = curvature(curv, torch.float32, _CPU)
    if t is not None:
        t = torch.as_tensor(t, dtype=torch.float32)
    shape = _shape(tensors, c, t, named)
    rows = [_flat(v, shape) for v in tensors]
    c, t = (None if z is None else _number(z, shape) for z in (c, t if t is None else t[..., None]))
    forward = earned(sweeps.forward, kind, rows[0])
    compiled, found = forward is not sweeps.forward, []
    parameters = (_traced(c), _traced(t), min_radius) if compiled else (c, t, min_radius)
    for chunk in _chunks(rows[0], compiled):
        some = forward(kind, *_some(parameters, chunk), *(v[chunk] for v in rows))
        if some is None or (compiled and not sweeps.within(OPS[kind], some[1], c, t)):
            return None
        found.append(some)
    values = _joined([value for value, *_ in found])
    values = values.view(*shape, -1) if OPS[kind].along else values.view(shape)
    return _Rows(kind, shape, parameters, [numbers for _, numbers, _ in found], compiled, values)


def _traced(z: Tensor | float | None) -> Tensor | None:
    """A number as a tensor: as a number it would be compiled in."""
    return torch.tensor(z, dtype=torch.float64) if isinstance(z, float) else z


def _some(parameters: Sequence[Any], chunk: slice) -> list[Any]:
    return [z[chunk] if isinstance(z, Tensor) and z.dim() else z for z in parameters]


_CPU = torch.device("cpu")


def _shape(
    tensors: Sequence[Tensor], c: Tensor, t: Tensor | None, named: dict[str, Tensor]
) -> torch.Size:
    """The leading dimensions of all."""
    shape = tensors[0].shape[:-1]
    others = [*(v.shape[:-1] for v in tensors[1:]), *([] if t is None else [t.shape])]
    if c.dim() == 1 and all(s == shape for s in others):
        return shape
    leading = {name: v[..., 0] for name, v in zip(named, tensors, strict=True)}
    leading |= {"curv": c[..., 0]} if t is None else {"t": t, "curv": c[..., 0]}
    check_broadcast(**leading)
    return torch.broadcast_shapes(shape, *others, c.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]


def _flat(v: Tensor, shape: Sequence[int]) -> Tensor:
    """As float32 rows ``(N, D)``."""
    if v.shape[:-1] != shape:
        v = v.expand(*shape, v.shape[-1])
    return flat(v).float()


def _number(z: Tensor, shape: Sequence[int]) -> Tensor | float:
    """One for all rows as a float, else ``(N, 1)``."""
    return float(z) if z.numel() == 1 else z.double().expand(*shape, 1).reshape(-1, 1)


def _chunks(x: Tensor, whole: bool) -> list[slice]:
    """So many rows that their numbers fit the cache as well."""
    if whole:
        return [slice(None)]
    rows = max(FEW_ROWS, 2**18 // max(x.shape[-1], 4))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


class _Near(Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: _Rows,
        plain: Callable[..., Tensor],
        curv: float | Tensor,
        t: float | Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.rows, ctx.plain = rows, plain
        ctx.numbers = [None if isinstance(z, Tensor) else z for z in (curv, t)]
        ctx.save_for_backward(*(z if isinstance(z, Tensor) else None for z in (curv, t)), *tensors)
        return rows.values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        curv, t, *tensors = ctx.saved_tensors
        curv, t = (z if n is None else n for z, n in zip((curv, t), ctx.numbers, strict=True))
        needed = ctx.needs_input_grad[2:]
        if torch.is_grad_enabled() or not values_known(grad):
            return (None, None, *differentiated(ctx.plain, [curv, t, *tensors], grad, needed))
        return (None, None, *_gradients(ctx.rows, curv, t, tensors, grad, needed))


@np.errstate(all="ignore")
def _gradients(
    of: _Rows,
    curv: float | Tensor,
    t: float | Tensor | None,
    tensors: Sequence[Tensor],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """By curv, t and the tensors."""
    by_curv, by_t, *by_tensors = needed
    rows = [_flat(v, of.shape) for v in tensors]
    grad = _flat(grad if OPS[of.kind].along else grad.unsqueeze(-1), of.shape)
    backward = sweeps.backward
    if of.compiled:
        backward = compiled_rows(backward, of.kind, rows[0])
    found = []
    for chunk, numbers in zip(_chunks(rows[0], of.compiled), of.numbers, strict=True):
        parameters = _some(of.parameters, chunk)
        some = [v[chunk] for v in rows]
        found.append(backward(of.kind, *parameters, numbers, grad[chunk], by_tensors, *some))
    of_vectors = iter(map(_joined, zip(*(g.vectors for g in found), strict=True)))
    of_numbers = (by_curv, curv, [g.c for g in found]), (by_t, t, [g.t for g in found])
    return [
        *(_of_number(by, z, of.shape) if need else None for need, z, by in of_numbers),
        *(
            _like(next(of_vectors), v, of.shape) if need else None
            for v, need in zip(tensors, by_tensors, strict=True)
        ),
    ]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _like(found: Tensor, v: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient by v of that by its rows."""
    if found.shape != v.shape:
        found = found.view(*shape, v.shape[-1]).sum_to_size(v.shape)
    return found.to(v.dtype)


def _of_number(by_row: Sequence[Any], z: Tensor, shape: Sequence[int]) -> Tensor:
    if z.numel() == 1:
        return z.new_full(z.shape, sum(float(by.sum()) for by in by_row))
    by = _joined([as_tensor(by) for by in by_row])
    return by.view(shape).sum_to_size(z.shape).to(z.dtype)


def differentiated(
    plain: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of ``plain(t, *tensors, curv)`` by autograd, themselves differentiable.

    Args:
        inputs: curv, t and the tensors; without t it is None.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        curv, t, *tensors = leaves = [
            z.view_as(z) if need else z for z, need in zip(inputs, needed, strict=True)
        ]
        of = plain(*([] if t is None else [t]), *tensors, curv)
        wanted = [z for z, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(of, wanted, grad, create_graph=again))
    return [next(found) if need else None for need in needed]
