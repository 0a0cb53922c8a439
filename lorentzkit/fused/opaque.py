"""Ops on rows of vectors under `torch.compile`, on a CPU: custom ops that look at values.

Near the origin an op is a third of the work (`_geometry.formulas`), and whether the points are near
is seen at run time. Transforms, export and other devices compile the op in torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lorentzkit._geometry import rowwise
from lorentzkit._geometry.arguments import working_dtype
from lorentzkit._geometry.arrays import as_tensor
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.vectors import is_exporting

_IN_TORCH: dict[str, Callable[..., Tensor]] = {}


def in_torch(op: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Marks an op's function in torch: it checks arguments and has derivatives of every order.

    It takes the op's arguments in their order; those on cones a keyword ``cone``.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _IN_TORCH[op] = function
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


class _Call(NamedTuple):
    """The arguments of both ops."""

    op: str
    tensors: Sequence[Tensor]
    curv: Tensor
    t: Tensor | None
    cone: Sequence[float] | None

    def shape(self) -> torch.Size:
        """The leading dimensions."""
        numbers = [z.shape for z in (self.curv, self.t) if z is not None]
        return torch.broadcast_shapes(*(v.shape[:-1] for v in self.tensors), *numbers)  # type: ignore[no-untyped-call, no-any-return]

    def numbers(self) -> tuple[int, int, int]:
        """The shape of the Gram numbers."""
        return len(OPS[self.op].numbers), math.prod(self.shape()), 1

    def near(self) -> tuple[Sequence[Tensor], Tensor, Tensor | None, float, dict[str, Tensor]]:
        """As `rowwise` takes them."""
        named = dict(zip("xyu", self.tensors, strict=False))
        return self.tensors, self.curv, self.t, self.cone[0] if self.cone else 0.0, named


def _op(schema: str) -> Callable[..., Any]:
    name, _, signature = schema.partition("(")
    return torch.library.custom_op(f"lorentzkit::{name}", mutates_args=(), schema=f"({signature}")


@_op(f"rows({_INPUTS}) -> (Tensor, Tensor)")
def rows(*args: Any) -> tuple[Tensor, Tensor]:
    """The values, and the Gram numbers ``(K, N, 1)``: infinite where the points are too far."""
    call = _Call(*args)
    found = rowwise.computed(call.op, *call.near(), at_once=True)
    if found is not None:
        of, values = found
        return values, torch.stack([as_tensor(n) for n in of.numbers])
    t = [] if call.t is None else [call.t]
    values = plain(call.op, call.cone)(*t, *call.tensors, call.curv)
    return values, call.curv.new_full(call.numbers(), torch.inf, dtype=torch.float64)


@rows.register_fake  # type: ignore[untyped-decorator]
def _(*args: Any) -> tuple[Tensor, Tensor]:
    call = _Call(*args)
    x, shape = call.tensors[0], call.shape()
    of_row = x.shape[-1:] if OPS[call.op].along else ()
    values = x.new_empty((*shape, *of_row), dtype=torch.float32)
    return values, x.new_empty(call.numbers(), dtype=torch.float64)


@_op(f"rows_gradients({_INPUTS}, Tensor numbers, Tensor grad, bool[] needed) -> Tensor[]")
def rows_gradients(*args: Any) -> list[Tensor]:
    """By curv, t and the tensors: those needed."""
    *given, numbers, grad, needed = args
    call = _Call(*given)
    inputs = [call.curv, call.t, *call.tensors]
    if bool(numbers.isinf().any()):
        # torch keeps autograd out of a custom op, but not out of another thread.
        with ThreadPoolExecutor(1) as thread:
            far = plain(call.op, call.cone), inputs, grad, needed
            found = thread.submit(rowwise.differentiated, *far).result()
    else:
        shape, parameters = rowwise.parameters(*call.near())
        of = rowwise.Rows(call.op, shape, parameters, tuple(numbers))
        found = rowwise.gradients(of, inputs, grad, needed, at_once=True)
    return [by for by in found if by is not None]


@rows_gradients.register_fake  # type: ignore[untyped-decorator]
def _(*args: Any) -> list[Tensor]:
    *given, _, _, needed = args
    call = _Call(*given)
    every = zip([call.curv, call.t, *call.tensors], needed, strict=True)
    wanted = [z for z, need in every if need and z is not None]
    return [torch.empty_like(z, memory_format=torch.contiguous_format) for z in wanted]


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
