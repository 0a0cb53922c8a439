"""Ops on rows of float32 vectors near the origin, on a CPU: the way in to `gram_rows`."""

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
    if name not in OPS or not _serves(*tensors, *numbers):
        return None
    found = computed(name, tensors, curv, t, min_radius, named)
    if found is None:
        return None
    _, values = found
    if torch.is_grad_enabled() and any(z.requires_grad for z in (*tensors, *numbers)):
        values = _Near.apply(found, plain, curv, t, *tensors)  # type: ignore[no-untyped-call]
    return values


@torch.no_grad()
@np.errstate(all="ignore")
def expmap_transp(x: Tensor, u: Tensor, v: Tensor, curv: Tensor) -> tuple[Tensor, Tensor] | None:
    """`ops.expmap` of u, and v transported along it; no derivatives. None as of `near_rows`."""
    if not _serves(x, u, v, curv):
        return None
    named = {"x": x, "u": u, "v": v}
    shape, given = parameters([x, u, v], curv, None, 0.0, named)
    rows, found = [flat_rows(z, shape) for z in (x, u, v)], []
    function = earned(gram_rows.expmap_transp, "", rows[0])
    compiled = function is not gram_rows.expmap_transp
    for chunk in _chunks(rows[0], compiled):
        c, *_ = _some(given, chunk, compiled)
        some, near = function(c, *(_part(z, chunk) for z in rows))
        if not near:
            return None
        found.append(some)
    y, moved = (_joined(of).view(*shape, -1) for of in zip(*found, strict=True))
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
@np.errstate(all="ignore")  # of what is not finite, NaN
def computed(
    kind: str,
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: Mapping[str, Tensor],
) -> tuple[Rows, Tensor] | None:
    """The op of these vectors, and its values; None if they are too far out for `gram`."""
    shape, given = parameters(tensors, curv, t, min_radius, named)
    rows = [flat_rows(v, shape) for v in tensors]
    forward = earned(gram_rows.forward, kind, rows[0])
    compiled, found = forward is not gram_rows.forward, []
    for chunk in _chunks(rows[0], compiled):
        some = forward(kind, *_some(given, chunk, compiled), *(_part(v, chunk) for v in rows))
        if not some.right:
            return None
        found.append(some)
    values = _joined([of.values for of in found])
    values = values.view(*shape, -1) if OPS[kind].along else values.view(shape)
    numbers = tuple(map(_joined, zip(*(of.numbers for of in found), strict=True)))
    return Rows(kind, shape, given, numbers), values


def parameters(
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    min_radius: float,
    named: Mapping[str, Tensor],
) -> tuple[torch.Size, tuple[Any, ...]]:
    """The leading dimensions, and the parameters of `Rows`."""
    if t is None and all(v.shape == tensors[0].shape for v in tensors):
        known = curvature_number(curv)
        if known is not None:
            return tensors[0].shape[:-1], (known, None, min_radius)
    c = curvature(curv, torch.float32, _CPU)
    place = None if t is None else torch.as_tensor(t, dtype=torch.float32)
    shape = _shape(tensors, c, place, named)
    number = None if place is None else _number(place.unsqueeze(-1), shape)
    return shape, (_number(c, shape), number, min_radius)


def _part(z: Any, chunk: slice | None) -> Any:
    """Those rows; of a float itself."""
    return z[chunk] if isinstance(z, Tensor) and chunk else z


def _some(given: Sequence[Any], chunk: slice | None, compiled: bool) -> list[Any]:
    """Of these rows; a number is compiled as a tensor, lest it become a constant."""
    c, t, min_radius = given
    some = [_part(z, chunk) for z in (c, t)]
    if compiled:
        some = [torch.from_numpy(np.array(z)) if isinstance(z, float) else z for z in some]
    return [*some, min_radius]


_CPU = torch.device("cpu")


def _shape(
    tensors: Sequence[Tensor], c: Tensor, t: Tensor | None, named: Mapping[str, Tensor]
) -> torch.Size:
    """The leading dimensions of all."""
    shape = tensors[0].shape[:-1]
    others = [*(v.shape[:-1] for v in tensors[1:]), *([] if t is None else [t.shape])]
    if c.dim() == 1 and all(s == shape for s in others):
        return shape
    leading = {name: v.shape[:-1] for name, v in zip(named, tensors, strict=True)}
    check_broadcast(c.shape[:-1], None if t is None else t.shape, **leading)
    return torch.broadcast_shapes(shape, *others, c.shape[:-1])  # type: ignore[no-untyped-call, no-any-return]


def flat_rows(v: Tensor, shape: Sequence[int]) -> Tensor:
    """As float32 rows ``(N, D)``."""
    if v.shape[:-1] != shape:
        v = v.expand(*shape, v.shape[-1])
    return (v if v.dim() == 2 else flat(v)).float()


def _number(z: Tensor, shape: Sequence[int]) -> Tensor | float:
    """One for all rows as a float (``()`` where values are not seen), else ``(N, 1)``."""
    if z.numel() > 1:
        return z.double().expand(*shape, 1).reshape(-1, 1)
    return z.double().reshape(()) if torch.compiler.is_compiling() else float(z)


def _chunks(x: Tensor, whole: bool) -> list[slice] | list[None]:
    """So many rows that their numbers fit the cache as well; None if that is all of them."""
    rows = max(FEW_ROWS, 2**18 // max(x.shape[-1], 4))
    if whole or len(x) <= rows:
        return [None]
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


class _Near(Function):
    @staticmethod
    def forward(
        ctx: Any,
        found: tuple[Rows, Tensor],
        plain: Callable[..., Tensor],
        curv: float | Tensor,
        t: float | Tensor | None,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.rows, values = found
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
    of: Rows,
    inputs: Sequence[Any],
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """By curv, t and the tensors."""
    (curv, t, *tensors), (by_curv, by_t, *by_tensors) = inputs, needed
    rows = [flat_rows(v, of.shape) for v in tensors]
    grad = flat_rows(grad if OPS[of.kind].along else grad.unsqueeze(-1), of.shape)
    backward = earned(gram_rows.backward, of.kind, rows[0])
    compiled, found = backward is not gram_rows.backward, []
    for chunk in _chunks(rows[0], compiled):
        numbers: Sequence[Numbers] = of.numbers
        if chunk or compiled:
            numbers = [_part(n, chunk) for n in map(as_tensor, numbers)]
        own_grad, *own = (_part(v, chunk) for v in (grad, *rows))
        some: list[Any] = [numbers, own_grad, by_tensors, *own]
        by = backward(of.kind, *_some(of.parameters, chunk, compiled), *some)
        if not by.right:  # compiled, of all rows
            by = gram_rows.backward(of.kind, *of.parameters, *some)
        found.append(by)
    of_vectors = iter(map(_joined, zip(*(g.vectors for g in found), strict=True)))
    return [
        _of_number([g.c for g in found], curv, of.shape) if by_curv else None,
        _of_number([g.t for g in found], t, of.shape) if by_t else None,
        *(
            like(next(of_vectors), v, of.shape) if need else None
            for v, need in zip(tensors, by_tensors, strict=True)
        ),
    ]


def _joined(parts: Sequence[Any]) -> Any:
    return parts[0] if len(parts) == 1 else torch.cat([as_tensor(p) for p in parts])


def like(found: Tensor, v: Tensor, shape: Sequence[int]) -> Tensor:
    """The gradient by v of that by its rows."""
    if found.shape != v.shape:
        found = found.view(*shape, v.shape[-1]).sum_to_size(v.shape)
    return found.to(v.dtype)


def _of_number(by_row: Sequence[Any], z: Tensor, shape: Sequence[int]) -> Tensor:
    if z.numel() == 1:
        return z.new_full(z.shape, sum(float(by.sum()) for by in by_row))
    return as_tensor(_joined(by_row)).view(shape).sum_to_size(z.shape).to(z.dtype)


def differentiated(
    plain: Callable[..., Tensor], inputs: Sequence[Any], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of ``plain(t, *tensors, curv)`` by autograd, themselves differentiable.

    Args:
        inputs: curv, t and the tensors; without t it is None.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        every = zip(inputs, needed, strict=True)
        curv, t, *tensors = leaves = [_leaf(z) if need else z for z, need in every]
        of = plain(*([] if t is None else [t]), *tensors, curv)
        wanted = [z for z, need in zip(leaves, needed, strict=True) if need]
        found = iter(torch.autograd.grad(of, wanted, grad, create_graph=again))
    return [next(found) if need else None for need in needed]


def _leaf(z: Tensor) -> Tensor:
    return z.view_as(z) if z.requires_grad else z.detach().requires_grad_()
