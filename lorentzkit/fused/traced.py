"""Ops on rows of vectors under `torch.compile`, on a CPU.

Near the origin an op takes a third of the work (`_geometry.formulas`), but compiled code cannot
branch on whether the points are near. So it assumes that they are, and ends with a custom op, which
looks at the points and recomputes the op if they are not. Transforms, export and other devices
compile the op in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lorentzkit._geometry import gram_rows, rowwise
from lorentzkit._geometry.arguments import check_broadcast, vectors, working_dtype
from lorentzkit._geometry.elementary import is_exporting, with_exact_constants
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.vectors import by_autograd, cpu_op, run

_IN_TORCH: dict[str, Callable[..., Tensor]] = {}


def in_torch(op: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Marks an op's function in torch: it checks arguments and has derivatives of every order.

    It takes the op's arguments in their order; those on cones a keyword ``cone``.
    """

    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        _IN_TORCH[op] = with_exact_constants(function)
        return function

    return add


def plain(op: str, cone: Sequence[float] | None) -> Callable[..., Tensor]:
    """Of ``(*vectors, curv)``, or ``(t, *vectors, curv)``."""
    return _IN_TORCH[op] if cone is None else partial(_IN_TORCH[op], cone=cone)


def serves(op: str, tensors: Sequence[Any], *numbers: Any) -> bool:
    """Whether `call` does: for float32 vectors on a CPU, and no transform of them."""
    all_tensors = [*tensors, *(z for z in numbers if isinstance(z, Tensor))]
    if op not in OPS or is_exporting() or not all(isinstance(v, Tensor) for v in all_tensors):
        return False
    if working_dtype(*all_tensors) != torch.float32 or not no_transform():
        return False
    return all(v.device.type == "cpu" and v.dim() > 0 and v.numel() > 0 for v in tensors)


def no_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is None and forward_ad._current_level < 0


# As `torch.compiler.assume_constant_result` does, which would import the compiler.
no_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def call(
    op: str,
    named: Mapping[str, Tensor],
    curv: float | Tensor,
    t: float | Tensor | None,
    cone: tuple[float, float] | None,
) -> Tensor:
    """The op of these vectors, by the names that errors give them."""
    tensors = vectors(**named)
    if not isinstance(curv, Tensor):
        curv = torch.full((), curv)
    if t is not None and not isinstance(t, Tensor):
        t = torch.full((), t)
    leading = {name: v.shape[:-1] for name, v in zip(named, tensors, strict=True)}
    # In `_near_rows` an error would be the compiler's.
    check_broadcast(curv.shape, None if t is None else t.shape, **leading)
    _leave_to_autograd()
    values: Tensor = _near_rows(op, cone, curv, t, *tensors)
    return values


def _near_rows(op: str, cone: Any, curv: Tensor, t: Tensor | None, *tensors: Tensor) -> Tensor:
    values: Tensor | None
    if torch.compiler.is_compiling():
        values = run(_NearRows, op, cone, curv, t, *tensors)
    else:  # by a backend that runs Dynamo's graph as it is
        torch_op, min_radius = plain(op, cone), cone[0] if cone else 0.0
        values = rowwise.near_rows(
            op, torch_op, curv, t, min_radius, dict(zip("xyu", tensors, strict=False))
        )
        if values is None:
            values = torch_op(*([] if t is None else [t]), *tensors, curv)
    return values


def _leave_to_autograd() -> None:
    """Has `_near_rows` traced below Dynamo.

    Dynamo would look at each of its functions before each call, which takes as long as a small op.
    """
    if hasattr(torch.compiler, "_compile_session_context"):  # `is_compiling` holds there as well
        torch._dynamo.allow_in_graph(_near_rows)  # type: ignore[no-untyped-call]


# Dynamo calls it as it comes by, before it comes to `_near_rows`.
_leave_to_autograd._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _NearRows(Function):
    @staticmethod
    def compute(op: str, cone: Any, curv: Tensor, t: Tensor | None, *tensors: Tensor) -> Tensor:
        return _forward(_Call(op, cone, curv, t, list(tensors)))[0]

    @staticmethod
    def forward(
        ctx: Any, op: str, cone: Any, curv: Tensor, t: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        values, valid, numbers = _forward(_Call(op, cone, curv, t, list(tensors)))
        ctx.op, ctx.cone, ctx.count = op, cone, len(tensors)
        ctx.save_for_backward(curv, t, *tensors, valid, *numbers)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        curv, t, *saved = ctx.saved_tensors
        tensors, (valid, *numbers) = saved[: ctx.count], saved[ctx.count :]
        call = _Call(ctx.op, ctx.cone, curv, t, list(tensors))
        return None, None, *_gradients(call, valid, numbers, grad, ctx.needs_input_grad[2:])


class _Call(NamedTuple):
    op: str
    cone: Sequence[float] | None
    curv: Tensor
    t: Tensor | None
    tensors: list[Tensor]

    def parameters(self) -> tuple[torch.Size, tuple[Any, ...]]:
        """See `rowwise.parameters`."""
        named = dict(zip("xyu", self.tensors, strict=False))
        min_radius = self.cone[0] if self.cone else 0.0
        return rowwise.parameters(self.tensors, self.curv, self.t, min_radius, named)


def _forward(call: _Call) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """The values, whether they were valid before `recompute_far`, and the Gram numbers."""
    shape, parameters = call.parameters()
    rows = [rowwise.flat_rows(v, shape) for v in call.tensors]
    result = gram_rows.forward(call.op, *parameters, *rows)
    along = rows[0].shape[1:] if OPS[call.op].grad_dots else ()
    values = result.values.reshape((*shape, *along))  # a tuple, for it may be empty
    torch.ops.lorentzkit.recompute_far(values, result.valid, *call)
    return values, result.valid, result.numbers


def _gradients(
    call: _Call, valid: Tensor, numbers: Sequence[Tensor], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """By curv, t and the tensors."""
    shape, parameters = call.parameters()
    rows = [rowwise.flat_rows(v, shape) for v in call.tensors]
    grad_rows = rowwise.flat_rows(grad if OPS[call.op].grad_dots else grad.unsqueeze(-1), shape)
    arguments: list[Any] = [numbers, grad_rows, needed[2:], *rows]
    result = gram_rows.backward(call.op, *parameters, *arguments)
    vector_grads = iter(result.vectors)
    grads = [
        z.view(shape).sum_to_size(like.shape).to(like.dtype) if need and like is not None else None
        for z, like, need in zip((result.c, result.t), (call.curv, call.t), needed, strict=False)
    ] + [
        rowwise.as_gradient(next(vector_grads), v, shape) if need else None
        for v, need in zip(call.tensors, needed[2:], strict=True)
    ]
    computed_grads = [z for z in grads if z is not None]
    torch.ops.lorentzkit.recompute_far_gradients(
        computed_grads, valid & result.valid, grad, list(needed), *call
    )
    return grads


# --- The custom ops -------------------------------------------------------------------------------

_OP = "str op, float[]? cone, Tensor curv, Tensor? t, Tensor[] tensors"


@cpu_op(f"recompute_far(Tensor(a!) values, Tensor valid, {_OP}) -> ()", lambda *_: None)
def recompute_far(values: Tensor, valid: Tensor, *op: Any) -> None:
    if valid:
        return
    call = _Call(*op)
    t = [] if call.t is None else [call.t]
    values.copy_(plain(call.op, call.cone)(*t, *call.tensors, call.curv))


@cpu_op(
    "recompute_far_gradients("
    f"Tensor(a!)[] grads, Tensor valid, Tensor grad, bool[] needed, {_OP}) -> ()",
    lambda *_: None,
)
def recompute_far_gradients(
    grads: Sequence[Tensor],
    valid: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
    *op: Any,
) -> None:
    if valid:
        return
    call = _Call(*op)
    inputs = [call.curv, call.t, *call.tensors]
    recomputed = by_autograd(
        rowwise.differentiated, plain(call.op, call.cone), inputs, grad, needed
    )
    for grad_out, z in zip(grads, (z for z in recomputed if z is not None), strict=True):
        grad_out.copy_(z)
