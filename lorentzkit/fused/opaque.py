"""Ops on rows of vectors under `torch.compile`, on a CPU.

Near the origin an op is a third of the work (`_geometry.formulas`), but compiled code does not see
whether the points are near. So it takes them to be, and ends with a custom op: that looks, and
where they are not, computes the op again. Transforms, export and other devices compile the op in
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from lorentzkit._geometry import rowwise, sweeps
from lorentzkit._geometry.arguments import valid_curvature, working_dtype
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.vectors import flat, is_exporting, library, run

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
    """Whether `call` does: for float32 vectors on a CPU, and no transform of them."""
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
    values: Tensor = run(_Near, op, cone, curv, t, *tensors)
    return values


class _Rows(NamedTuple):
    """An op's arguments."""

    op: str
    cone: Sequence[float] | None
    curv: Tensor
    t: Tensor | None
    tensors: list[Tensor]

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions."""
        numbers = [z.shape for z in (self.curv, self.t) if z is not None]
        return torch.broadcast_shapes(*(v.shape[:-1] for v in self.tensors), *numbers)  # type: ignore[no-untyped-call, no-any-return]

    def of_sweeps(self) -> tuple[Tensor, Tensor | None, float]:
        """The parameters in float64, ``()`` or ``(N, 1)``."""
        c, t = (z if z is None else self._number(z.double()) for z in (self.curv, self.t))
        assert c is not None
        return c, t, self.cone[0] if self.cone else 0.0

    def _number(self, z: Tensor) -> Tensor:
        return z if z.dim() == 0 else z.expand(self.shape).reshape(-1, 1)

    def flat(self, v: Tensor) -> Tensor:
        return flat(v.expand(*self.shape, v.shape[-1])).float()


class _Near(Function):
    @staticmethod
    def compute(op: str, cone: Any, curv: Tensor, t: Tensor | None, *tensors: Tensor) -> Tensor:
        return _Near.found(_Rows(op, cone, curv, t, list(tensors)))[0]

    @staticmethod
    def found(of: _Rows) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        c, t, min_radius = of.of_sweeps()
        found = sweeps.forward(of.op, c, t, min_radius, *map(of.flat, of.tensors))
        right = found.right & valid_curvature(c).all()
        of_row = of.tensors[0].shape[-1:] if OPS[of.op].along else ()
        values = found.values.reshape(*of.shape, *of_row)
        torch.ops.lorentzkit.recompute_far(values, right, *of)
        return values, right, found.numbers

    @staticmethod
    def forward(ctx: Any, op: str, cone: Any, curv: Tensor, t: Any, *tensors: Tensor) -> Tensor:
        values, right, numbers = _Near.found(_Rows(op, cone, curv, t, list(tensors)))
        ctx.op, ctx.cone, ctx.count = op, cone, len(tensors)
        ctx.save_for_backward(curv, t, *tensors, right, *numbers)
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        curv, t, *saved = ctx.saved_tensors
        tensors, (right, *numbers) = saved[: ctx.count], saved[ctx.count :]
        of = _Rows(ctx.op, ctx.cone, curv, t, list(tensors))
        needed = ctx.needs_input_grad[2:]
        rows = [of.flat(v) for v in tensors]
        of_grad = of.flat(grad if OPS[of.op].along else grad.unsqueeze(-1))
        by = sweeps.backward(of.op, *of.of_sweeps(), numbers, of_grad, needed[2:], *rows)
        of_vectors = iter(by.vectors)
        found = [
            *(
                z.view(of.shape).sum_to_size(like.shape).to(like.dtype) if need else None
                for z, like, need in zip((by.c, by.t), (curv, t), needed[:2], strict=True)
            ),
            *(
                rowwise.like(next(of_vectors), v, of.shape) if need else None
                for v, need in zip(tensors, needed[2:], strict=True)
            ),
        ]
        torch.ops.lorentzkit.recompute_far_gradients(
            [z for z in found if z is not None], right & by.right, grad, list(needed), *of
        )
        return None, None, *found


# --- The custom ops -------------------------------------------------------------------------------

_OP = "str op, float[]? cone, Tensor curv, Tensor? t, Tensor[] tensors"


def _op(schema: str) -> Callable[..., Any]:
    library.define(f"{schema} -> ()")
    name, _, _ = schema.partition("(")

    def register(function: Callable[..., None]) -> Callable[..., None]:
        library.impl(name, function, "CPU")
        torch.library.register_fake(f"lorentzkit::{name}", lambda *_: None, lib=library)
        return function

    return register


@_op(f"recompute_far(Tensor(a!) values, Tensor right, {_OP})")
def recompute_far(values: Tensor, right: Tensor, *op: Any) -> None:
    if right:
        return
    of = _Rows(*op)
    t = [] if of.t is None else [of.t]
    values.copy_(plain(of.op, of.cone)(*t, *of.tensors, of.curv))


@_op(f"recompute_far_gradients(Tensor(a!)[] found, Tensor right, Tensor grad, bool[] needed, {_OP})")
def recompute_far_gradients(
    found: Sequence[Tensor],
    right: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
    *op: Any,
) -> None:
    if right:
        return
    of = _Rows(*op)
    # torch keeps autograd out of a custom op, but not out of another thread.
    with ThreadPoolExecutor(1) as thread:
        far = plain(of.op, of.cone), [of.curv, of.t, *of.tensors], grad, needed
        again = thread.submit(rowwise.differentiated, *far).result()
    for place, z in zip(found, (z for z in again if z is not None), strict=True):
        place.copy_(z)
