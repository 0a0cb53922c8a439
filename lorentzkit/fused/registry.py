"""The fused functions as ops of PyTorch, and which implementation runs them.

Each is a pair of opaque custom ops, forward and gradient, under two autograd Functions: under
autograd, `torch.func` and `torch.compile` alike. The gradient's own derivative is that of the
reference: exact, with N x M matrices.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry import pairs
from lorentzkit._geometry.precision import full_precision
from lorentzkit.fused import reference, rows, streaming

MOST_SELECTED = 128  # by Triton's top-k, which keeps them in registers
IMPLEMENTATIONS = ("auto", "reference", "streaming", "triton")
PRECISIONS = ("highest", "high", "medium")


# --- Choice ---------------------------------------------------------------------------------------


def choose(impl: str, x: Tensor, precision: str, k: int = 0) -> str:
    """The implementation that runs for ``impl``; raises if there is none. ``k`` of a top-k."""
    check_how(impl, precision)
    missing = _why_no_triton(x, k)
    if impl == "triton" and missing:
        raise ValueError(f"impl: 'triton' {missing}; use impl='streaming' or 'auto'")
    if impl == "auto":
        return "streaming" if missing else "triton"
    return impl


def check_how(impl: str, precision: str) -> None:
    """Raises unless there are such an implementation and precision, and the two go together."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: expected one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if impl == "reference" and precision != "highest":
        raise ValueError(
            f"precision: impl='reference' has only 'highest', got {precision!r}; "
            f"use impl='streaming'"
        )


def _why_no_triton(x: Tensor, k: int) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != "cuda" and not (interpreted and x.device.type == "cpu"):
        return f"needs CUDA tensors, got {x.device.type}"
    if x.dtype == torch.float64:
        return "computes in float32, got float64"
    if k > MOST_SELECTED:
        return f"selects at most k = {MOST_SELECTED}, got {k}"
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    return None


def _module(impl: str) -> ModuleType:
    # Triton is slow to import, and absent on many machines.
    return import_module("lorentzkit.fused.triton") if impl == "triton" else streaming


# --- Custom ops: forward and gradient of each function --------------------------------------------
# Autocast has no rule for them, and would turn the products inside into half precision. So would
# the precision that PyTorch is set to.


def _op(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    name, _, signature = schema.partition("(")

    def run(*args: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False), full_precision():
            return function(*args)

    definition = torch.library.custom_op(
        f"lorentzkit::{name}", run, mutates_args=(), schema=f"({signature}"
    )
    definition.register_fake(fake)
    # Dynamo knows the op itself, not its definition.
    op: Callable[..., Any] = getattr(torch.ops.lorentzkit, name).default
    definition.register_vmap(lambda info, dims, *args: _one_by_one(op, info.batch_size, dims, args))
    return op


def _one_by_one(
    op: Callable[..., Any], size: int, dims: tuple[int | None, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """The batching rule under vmap: a product of matrices fills the machine already."""
    results = [
        op(*(a if d is None else a.select(d, n) for a, d in zip(args, dims, strict=True)))
        for n in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = _stacked(results)
    return stacked, (0,) * len(stacked)


def _matrix(x: Tensor, y: Tensor, c: Tensor, kind: str, impl: str, precision: str) -> Tensor:
    run = _module(impl).matrix
    return torch.stack([run(kind, *xyc, precision) for xyc in zip(x, y, c, strict=True)])


def _matrix_gradients(
    x: Tensor, y: Tensor, c: Tensor, at: Tensor, kind: str, impl: str, precision: str
) -> tuple[Tensor, ...]:
    run = _module(impl).matrix_gradients
    batch = zip(x, y, c, at, strict=True)
    return _stacked([run(kind, *xyc_at, precision)[:3] for xyc_at in batch])


def _prepare(
    x: Tensor, y: Tensor, similarity: str, impl: str, precision: str
) -> tuple[Tensor, ...]:
    if impl == "triton":  # whose own preparation, in other operands, is not kept
        return tuple(x.new_empty(0) for _ in range(_PREPARED))
    return streaming.prepare(similarity, x, y, precision)


def _prepare_fake(
    x: Tensor, y: Tensor, similarity: str, impl: str, precision: str
) -> tuple[Tensor, ...]:
    (N, D), M = x.shape, y.shape[0]
    shapes = [(N, D + 2), (M, D + 2), (N, 1), (M, 1), (D,), streaming.only_block(N, M)]
    return tuple(x.new_empty((0,) if impl == "triton" else shape) for shape in shapes)


def _log_sums(
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    *prepared, similarity, impl, precision = args
    run = _module(impl).log_sums
    return tuple(run(similarity, x, y, c, scale, (row_ids, column_ids), prepared, precision))


def _log_sums_gradients(
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    row_ids: Tensor,
    column_ids: Tensor,
    *args: Any,
) -> tuple[Tensor, ...]:
    *prepared, row_sums, column_sums, at_rows, at_columns, similarity, impl, precision = args
    ids, sums, at = (row_ids, column_ids), (row_sums, column_sums), (at_rows, at_columns)
    run = _module(impl).log_sums_gradients
    return tuple(run(similarity, x, y, c, scale, ids, prepared, sums, at, precision))


def _selected(x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, kind: str) -> Tensor:
    of: Tensor = _of_chosen(x, y, c, i).selected(kind, x, y, c, i, j)
    return of


def _selected_gradients(
    x: Tensor, y: Tensor, c: Tensor, i: Tensor, j: Tensor, at: Tensor, kind: str
) -> tuple[Tensor, ...]:
    run = _of_chosen(x, y, c, i).selected_gradients
    by: tuple[Tensor, ...] = run(kind, x, y, c, i, j, at)
    return by


def _of_chosen(x: Tensor, y: Tensor, c: Tensor, i: Tensor) -> ModuleType:
    by_kernel = len(i) > 0 and rows.by_kernel([c], [x, y])
    return import_module("lorentzkit.fused.triton.chosen") if by_kernel else pairs


def _stacked(rows: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(column) for column in zip(*rows, strict=True))


def _like(count: int) -> Callable[..., tuple[Tensor, ...]]:
    return lambda *args: tuple(torch.empty_like(t, memory_format=_DENSE) for t in args[:count])


_DENSE = torch.contiguous_format
_POINTS = "Tensor x, Tensor y, Tensor c"
_HOW = "str impl, str precision"
_PREPARED = 6
_LOGITS = f"{_POINTS}, Tensor scale, Tensor row_ids, Tensor column_ids, " + ", ".join(
    f"Tensor prepared{n}" for n in range(_PREPARED)
)

_matrix_op = _op(
    f"matrix({_POINTS}, str kind, {_HOW}) -> Tensor",
    _matrix,
    lambda x, y, *_: x.new_empty(*x.shape[:-1], y.shape[-2]),
)
_matrix_gradients_op = _op(
    f"matrix_gradients({_POINTS}, Tensor at, str kind, {_HOW}) -> (Tensor, Tensor, Tensor)",
    _matrix_gradients,
    _like(3),
)
_prepare_op = _op(
    f"prepare(Tensor x, Tensor y, str similarity, {_HOW}) -> ({', '.join(['Tensor'] * _PREPARED)})",
    _prepare,
    _prepare_fake,
)
_log_sums_op = _op(
    f"log_sums({_LOGITS}, str similarity, {_HOW}) -> (Tensor, Tensor)",
    _log_sums,
    lambda x, y, *_: (x.new_empty(x.shape[0]), x.new_empty(y.shape[0])),
)
_log_sums_gradients_op = _op(
    f"log_sums_gradients({_LOGITS}, Tensor row_sums, Tensor column_sums, Tensor at_rows, "
    f"Tensor at_columns, str similarity, {_HOW}) -> (Tensor, Tensor, Tensor, Tensor)",
    _log_sums_gradients,
    _like(4),
)
_selected_op = _op(
    f"selected({_POINTS}, Tensor i, Tensor j, str kind) -> Tensor",
    _selected,
    lambda x, y, c, i, j, kind: x.new_empty(i.shape[0], 2 if kind == "angle" else 1),
)
_selected_gradients_op = _op(
    f"selected_gradients({_POINTS}, Tensor i, Tensor j, Tensor at, str kind) "
    f"-> (Tensor, Tensor, Tensor)",
    _selected_gradients,
    _like(3),
)
_topk_op = _op(
    f"topk({_POINTS}, str kind, int k, bool largest, int chunk, {_HOW}) -> Tensor",
    lambda x, y, c, kind, k, largest, chunk, impl, precision: _module(impl).topk(
        kind, x, y, c, k, largest, chunk, precision
    ),
    lambda x, y, c, kind, k, *_: x.new_empty(x.shape[0], k, dtype=torch.int64),
)


# --- From a pair of custom ops to a differentiable function ---------------------------------------


def _differentiable(
    forward_op: Callable[..., Any],
    gradient_op: Callable[..., Any],
    expected: Callable[..., Any],
    inputs: int,
    outputs: int = 0,
) -> Callable[..., Any]:
    """``forward_op(*tensors, *rest)``, differentiable in the first `inputs` of its tensors.

    The gradient is ``gradient_op(*tensors, *saved, *cotangents, *rest)``, with so many of the
    outputs saved; ``expected`` is the reference, with the arguments of ``forward_op``.
    """

    class Gradient(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(tensors: int, *args: Any) -> tuple[Tensor, ...]:
            return tuple(gradient_op(*args))

        @staticmethod
        def setup_context(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
            ctx.tensors, *rest = args
            ctx.rest = [a for a in rest if not isinstance(a, Tensor)]
            ctx.save_for_backward(*(a for a in rest if isinstance(a, Tensor)))

        @staticmethod
        def backward(ctx: Any, *seconds: Tensor) -> tuple[Tensor | None, ...]:
            tensors = ctx.saved_tensors[: ctx.tensors]
            at = ctx.saved_tensors[ctx.tensors + outputs :]

            def values(*variables: Tensor) -> tuple[Tensor, ...]:
                value = expected(*variables, *tensors[inputs:], *ctx.rest)
                return value if isinstance(value, tuple) else (value,)

            by = _second(values, tensors[:inputs], at, seconds)
            none = [None] * (ctx.tensors - inputs + outputs)
            return (None, *by[:inputs], *none, *by[inputs:], *([None] * len(ctx.rest)))

    class Forward(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return forward_op(*args)

        @staticmethod
        def setup_context(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
            saved = output if isinstance(output, tuple) else (output,)
            ctx.rest = [a for a in args if not isinstance(a, Tensor)]
            ctx.save_for_backward(*(a for a in args if isinstance(a, Tensor)), *saved[:outputs])

        @staticmethod
        def backward(ctx: Any, *at: Tensor) -> tuple[Tensor | None, ...]:
            tensors = len(ctx.saved_tensors) - outputs
            args = (*ctx.saved_tensors, *at, *ctx.rest)
            # Dynamo fails at a Function in a Function, and has no second derivatives anyway.
            compiling = torch.compiler.is_compiling()
            by = gradient_op(*args) if compiling else Gradient.apply(tensors, *args)  # type: ignore[no-untyped-call]
            return (*by, *([None] * (tensors - inputs + len(ctx.rest))))

    def apply(*args: Any) -> Any:
        wanted = any(a.requires_grad for a in args if isinstance(a, Tensor))
        if torch.compiler.is_compiling() and not (wanted and torch.is_grad_enabled()):
            return forward_op(*args)  # Dynamo fails at a Function of which no gradient is wanted
        return Forward.apply(*args)  # type: ignore[no-untyped-call]

    return apply


def _second(
    values: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    at: tuple[Tensor, ...],
    seconds: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """``seconds`` pulled back through the gradient of ``values``: by its inputs, by cotangents."""
    if torch._C._functorch.peek_interpreter_stack() is not None:

        def gradient(*args: Tensor) -> tuple[Tensor, ...]:
            pull = torch.func.vjp(values, *args[: len(inputs)])[1]
            return tuple(pull(args[len(inputs) :]))

        return tuple(torch.func.vjp(gradient, *inputs, *at)[1](seconds))
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: a tensor given twice is two variables.
        inputs, at = (
            tuple(t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in some)
            for some in (inputs, at)
        )
        first = torch.autograd.grad(
            values(*inputs), inputs, at, create_graph=True, materialize_grads=True
        )
        return torch.autograd.grad(
            first, (*inputs, *at), seconds, create_graph=further, materialize_grads=True
        )


matrix = _differentiable(
    _matrix_op,
    _matrix_gradients_op,
    lambda x, y, c, kind, *_: reference.matrix(kind, x, y, c),
    inputs=3,
)
_of_prepared = _differentiable(
    _log_sums_op,
    _log_sums_gradients_op,
    lambda *args: reference.log_sums(args[6 + _PREPARED], *args[:6]),
    inputs=4,
    outputs=2,
)
selected = _differentiable(
    _selected_op,
    _selected_gradients_op,
    lambda x, y, c, i, j, kind: reference.selected(kind, x, y, c, i, j),
    inputs=3,
)
selected_gradients = _selected_gradients_op
topk = _topk_op


def log_sums(*args: Any) -> tuple[Tensor, Tensor]:
    """``(x, y, c, scale, row_ids, column_ids, similarity, impl, precision)``"""
    sums: tuple[Tensor, Tensor] = _of_prepared(*args[:6], *_prepared(*args), *args[6:])
    return sums


def log_sums_gradients(*args: Any) -> tuple[Tensor, ...]:
    """As `log_sums`, with both sums and their cotangents before the similarity."""
    by: tuple[Tensor, ...] = _log_sums_gradients_op(*args[:6], *_prepared(*args), *args[6:])
    return by


def _prepared(*args: Any) -> tuple[Tensor, ...]:
    """Once for a loss and its gradient; how it depends on the points is the latter's affair.

    Not in compiled code: what is kept of a single block has a shape of its own, and one graph is to
    serve all sizes.
    """
    if torch.compiler.is_compiling():
        return tuple(args[0].new_empty(0) for _ in range(_PREPARED))
    prepared: tuple[Tensor, ...] = _prepare_op(args[0].detach(), args[1].detach(), *args[-3:])
    return prepared
