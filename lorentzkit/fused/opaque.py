"""Ops on rows of vectors under `torch.compile`, on a CPU: custom ops that look at values.

Near the origin an op is a third of the work (`_geometry.formulas`), and whether the points are near
is seen at run time. Transforms, export and other devices compile the op in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lorentzkit._geometry import rowwise
from lorentzkit._geometry.arguments import working_dtype
from lorentzkit._geometry.arrays import as_tensor
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.vectors import is_exporting

_IN_TORCH: dict[str, Callable[..., Tensor]] = {}


def in_torch(*ops: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Marks an op's function in torch: it checks arguments and has derivatives of every order.

    It takes the op's arguments in their order; those on cones a keyword ``cone``.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _IN_TORCH.update(dict.fromkeys(ops, function))
        return function

    return add


def plain(op: str, cone: Sequence[float] | None) -> Callable[..., Tensor]:
    """Of ``(*vectors, curv)``, or ``(t, *vectors, curv)``."""
    return _IN_TORCH[op] if cone is None else partial(_IN_TORCH[op], cone=cone)


def serves(op: str, tensors: Sequence[Any], *numbers: Any) -> bool:
    """Whether there is a custom op: for float32 vectors on a CPU, and no transform of them."""
    every = [*tensors, *(z for z in numbers if isinstance(z, Tensor))]
    if op not in OPS or is_exporting() or not all(isinstance(v, Tensor) for v in every):
        return False
    if working_dtype(*every) != torch.float32 or not _no_transform():
        return False
    return all(v.device.type == "cpu" and v.dim() > 0 and v.numel() > 0 for v in tensors)


def _no_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


# As `torch.compiler.assume_constant_result` does, which would import the compiler.
_no_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def call(
    op: str,
    tensors: Sequence[Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    cone: tuple[float, float] | None,
) -> Tensor:
    if not isinstance(curv, Tensor):
        curv = torch.full((), curv)
    if t is not None and not isinstance(t, Tensor):
        t = torch.full((), t)
    values: Tensor = torch.ops.lorentzkit.rows(op, list(tensors), curv, t, cone)[0]
    return values


# --- The custom ops -------------------------------------------------------------------------------

_INPUTS = "str op, Tensor[] tensors, Tensor curv, Tensor? t, float[]? cone"


def _op(schema: str) -> Callable[..., Any]:
    name, _, signature = schema.partition("(")
    return torch.library.custom_op(f"lorentzkit::{name}", mutates_args=(), schema=f"({signature}")


@_op(f"rows({_INPUTS}) -> (Tensor, Tensor)")
def rows(
    op: str,
    tensors: Sequence[Tensor],
    curv: Tensor,
    t: Tensor | None,
    cone: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    """The values, and the Gram numbers ``(K, N, 1)``: infinite where the points are too far."""
    min_radius = cone[0] if cone else 0.0
    named = _named(tensors)
    found = rowwise.computed(op, tensors, curv, t, min_radius, named, at_once=True)
    if found is not None:
        of, values = found
        return values, torch.stack([as_tensor(n) for n in of.numbers])
    values = _plainly(op, tensors, curv, t, cone)
    count = math.prod(_shape(tensors, curv, t))
    return values, curv.new_full((len(OPS[op].numbers), count, 1), torch.inf, dtype=torch.float64)


@rows.register_fake  # type: ignore[untyped-decorator]
def _(
    op: str,
    tensors: Sequence[Tensor],
    curv: Tensor,
    t: Tensor | None,
    cone: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    x, shape = tensors[0], _shape(tensors, curv, t)
    values = x.new_empty((*shape, x.shape[-1]) if OPS[op].along else shape, dtype=torch.float32)
    count = math.prod(shape)
    return values, x.new_empty((len(OPS[op].numbers), count, 1), dtype=torch.float64)


@_op(f"rows_gradients({_INPUTS}, Tensor numbers, Tensor grad, bool[] needed) -> Tensor[]")
def rows_gradients(
    op: str,
    tensors: Sequence[Tensor],
    curv: Tensor,
    t: Tensor | None,
    cone: Sequence[float] | None,
    numbers: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    """By curv, t and the tensors: those needed."""
    inputs = [curv, t, *tensors]
    if bool(numbers.isinf().any()):
        # torch keeps autograd out of a custom op, but not out of another thread.
        with ThreadPoolExecutor(1) as thread:
            args = plain(op, cone), inputs, grad, needed
            found = thread.submit(rowwise.differentiated, *args).result()
    else:
        min_radius = cone[0] if cone else 0.0
        shape, parameters = rowwise.parameters(tensors, curv, t, min_radius, _named(tensors))
        of = rowwise.Rows(op, shape, parameters, tuple(numbers))
        found = rowwise.gradients(of, inputs, grad, needed, at_once=True)
    return [by for by in found if by is not None]


@rows_gradients.register_fake  # type: ignore[untyped-decorator]
def _(
    op: str,
    tensors: Sequence[Tensor],
    curv: Tensor,
    t: Tensor | None,
    cone: Sequence[float] | None,
    numbers: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
) -> list[Tensor]:
    every = zip([curv, t, *tensors], needed, strict=True)
    wanted = [z for z, need in every if need and z is not None]
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in wanted]


def _plainly(
    op: str,
    tensors: Sequence[Tensor],
    curv: Tensor,
    t: Tensor | None,
    cone: Sequence[float] | None,
) -> Tensor:
    return plain(op, cone)(*([] if t is None else [t]), *tensors, curv)


def _named(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip("xyu", tensors, strict=False))


def _shape(tensors: Sequence[Tensor], curv: Tensor, t: Tensor | None) -> torch.Size:
    shapes = [v.shape[:-1] for v in tensors] + [z.shape for z in (curv, t) if z is not None]
    return torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call, no-any-return]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.op, tensors, curv, t, ctx.cone = inputs
    ctx.save_for_backward(curv, t, output[1], *tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    curv, t, numbers, *tensors = ctx.saved_tensors
    by_tensors, by_curv, by_t = ctx.needs_input_grad[1:4]
    needed = [by_curv, by_t, *by_tensors]
    if grad is None or not any(needed):
        return (None,) * 5
    args = ctx.op, tensors, curv, t, ctx.cone
    given = iter(torch.ops.lorentzkit.rows_gradients(*args, numbers, grad, needed))
    of_curv, of_t, *of_tensors = (next(given) if need else None for need in needed)
    return None, of_tensors, of_curv, of_t, None


rows.register_autograd(_backward, setup_context=_save)
