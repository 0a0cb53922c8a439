"""The fused functions as ops of PyTorch, and which implementation runs them.

Each function is a pair of opaque custom ops, forward and gradient. Two autograd Functions make them
differentiable under autograd, `torch.func` and `torch.compile` alike. Second derivatives are those
of the reference: exact, with N x M matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd import Function

from lorentzkit._geometry.precision import full_precision
from lorentzkit.fused import reference, selected_pairs, streaming
from lorentzkit.fused.devices import why_no_kernels
from lorentzkit.fused.problems import (
    Backend,
    Gradients,
    LogSums,
    LossGradients,
    LossProblem,
    LossTerms,
    PairwiseProblem,
    Prepared,
    Search,
    SelectedPairs,
    built,
    flat,
    layout,
)

P = ParamSpec("P")
R = TypeVar("R")
MOST_SELECTED = 128  # by Triton's top-k, which keeps them in registers
PRECISIONS = ("highest", "high", "medium")


# --- Choice ---------------------------------------------------------------------------------------


class Implementation(NamedTuple):
    """A backend, and what the choice of one depends on."""

    name: str
    backend: Callable[[], Backend]
    precisions: tuple[str, ...] = PRECISIONS
    by_autograd: bool = False
    """Whether autograd goes through its functions, in place of custom ops"""
    with_group: bool = True
    """Whether it runs on batches spread over processes"""
    prepares: bool = False
    """Whether a loss keeps what its gradient uses again"""
    compiles: bool = False
    """Whether `torch.compile` makes its passes over blocks, where that pays"""


def _triton() -> Backend:
    # Slow to import, and absent on many machines.
    from lorentzkit.fused import triton

    return triton


_REFERENCE = Implementation(
    "reference", lambda: reference, ("highest",), by_autograd=True, with_group=False
)
_STREAMING = Implementation("streaming", lambda: streaming, prepares=True, compiles=True)
_TRITON = Implementation("triton", _triton)
_IMPLEMENTATIONS = {
    implementation.name: implementation for implementation in (_REFERENCE, _STREAMING, _TRITON)
}


def choose(impl: str, x: Tensor, precision: str, k: int = 0) -> Implementation:
    """The implementation that runs for ``impl``; raises if there is none. ``k`` is a top-k's."""
    check_options(impl, precision)
    missing = _why_no_triton(x, k)
    if impl == "auto":
        return _STREAMING if missing else _TRITON
    implementation = _IMPLEMENTATIONS[impl]
    if implementation is _TRITON and missing:
        raise ValueError(f"impl: 'triton' {missing}; use impl='streaming' or 'auto'")
    return implementation


def check_options(impl: str, precision: str) -> None:
    """Raises unless there are such an implementation and precision, and the two go together."""
    names = ("auto", *_IMPLEMENTATIONS)
    if impl not in names:
        raise ValueError(f"impl: expected one of {', '.join(names)}, got {impl!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if impl != "auto" and precision not in _IMPLEMENTATIONS[impl].precisions:
        raise ValueError(
            f"precision: impl={impl!r} has only 'highest', got {precision!r}; use impl='streaming'"
        )


def _why_no_triton(x: Tensor, k: int) -> str | None:
    missing = why_no_kernels(x.device)
    if missing:
        return missing
    if x.dtype == torch.float64:
        return "computes in float32, got float64"
    if k > MOST_SELECTED:
        return f"selects at most k = {MOST_SELECTED}, got {k}"
    return None


# --- Functions ------------------------------------------------------------------------------------


def matrix(problem: PairwiseProblem, impl: Implementation) -> Tensor:
    """``(..., N, D), (..., M, D), (..., 1) -> (..., N, M)``"""
    x, y, c = problem.x, problem.y, problem.c
    if impl.by_autograd:
        with torch.autocast(x.device.type, enabled=False):
            return impl.backend().matrix(problem)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], c.shape[:-1])  # type: ignore[no-untyped-call]
    x, y = (z.expand(*batch, *z.shape[-2:]).reshape(-1, *z.shape[-2:]).contiguous() for z in (x, y))
    c = c.expand(*batch, 1).reshape(-1, 1).contiguous()
    batched = PairwiseProblem(x, y, c, problem.kind, problem.precision)
    out: Tensor = _differentiable_matrix(batched, impl.name)
    return out.reshape(*batch, *out.shape[1:])


def topk(problem: PairwiseProblem, search: Search, impl: Implementation) -> Tensor:
    """Indices, ``(N, k)``."""
    return _topk(problem, search, impl.name)


def loss_terms(problem: LossProblem, impl: Implementation) -> LossTerms:
    """Log-sum-exps of the negatives and values of the positives: one op, and so one gradient."""
    if impl.by_autograd:
        with torch.autocast(problem.x.device.type, enabled=False):
            sums = impl.backend().log_sums(problem)
            return LossTerms(*sums, reference.selected(problem.positives))
    return _differentiable_loss_terms(_prepared(problem, impl), impl.name)


def loss_terms_gradients(
    problem: LossProblem, sums: LogSums, grad_terms: LossTerms, impl: Implementation
) -> LossGradients:
    return _loss_terms_gradients(_prepared(problem, impl), sums, grad_terms, impl.name)


def _prepared(problem: LossProblem, impl: Implementation) -> LossProblem:
    """The problem with what its loss and gradient share; constant, for the gradient op covers it.

    In compiled code nothing is prepared: the shape of what is kept depends on the number of pairs,
    and one graph has to serve all sizes.
    """
    if torch.compiler.is_compiling() or not impl.prepares:
        return replace(problem, prepared=Prepared.nothing(problem.x))
    x, y, c = (t.detach() for t in (problem.x, problem.y, problem.c))
    pairwise = PairwiseProblem(x, y, c, problem.similarity, problem.precision)
    return replace(problem, prepared=_prepare(pairwise))


def selected(problem: SelectedPairs) -> Tensor:
    """Values of the pairs, ``(P, K)``: K = 2 for "angles", at x and at y, and else 1."""
    return _differentiable_selected(problem)


def selected_gradients(problem: SelectedPairs, grad_output: Tensor) -> Gradients:
    """Derivatives of ``(grad_output * selected).sum()``."""
    return _selected_gradients(problem, grad_output)


# --- Custom ops: forward and gradient of each function --------------------------------------------
# Autocast has no rule for them and would round the products inside to half precision, and so would
# PyTorch's setting of the matmul precision. Both are off while an op runs.


class _Op(Generic[P, R]):
    """A custom op that is called with problems; it makes flat lists of them, as PyTorch needs."""

    def __init__(
        self, function: Callable[P, R], fake: Callable[..., Any], batching: Callable[..., Any]
    ) -> None:
        hints = get_type_hints(function)
        self._gives = hints.pop("return")
        self._takes = list(hints.values())
        arguments = ", ".join(f"{_IN_SCHEMAS[kind]} {name}" for name, kind in layout(hints))
        results = ", ".join(_IN_SCHEMAS[kind] for _, kind in layout({"out": self._gives}))
        name = function.__name__.strip("_")

        def run(*leaves: Any) -> Any:
            with torch.autocast(leaves[0].device.type, enabled=False), full_precision():
                return self._packed(function, leaves)

        definition = torch.library.custom_op(
            f"lorentzkit::{name}", run, mutates_args=(), schema=f"({arguments}) -> ({results})"
        )
        definition.register_fake(lambda *leaves: self._packed(fake, leaves))
        # Dynamo handles the op, but not its definition.
        self.flat: Callable[..., Any] = getattr(torch.ops.lorentzkit, name).default
        definition.register_vmap(
            lambda info, dims, *leaves: batching(self.flat, info.batch_size, dims, leaves)
        )

    def __call__(self, *args: P.args, **_: P.kwargs) -> R:
        return self.named(self.flat(*flat(*args)))

    def parts(self, leaves: Sequence[Any]) -> list[Any]:
        """The arguments of the function."""
        return built(self._takes, leaves)

    def named(self, out: Any) -> R:
        return out if isinstance(out, Tensor) else self._gives(*out)  # type: ignore[return-value]

    def _packed(self, function: Callable[..., Any], leaves: Sequence[Any]) -> Any:
        out = function(*self.parts(leaves))
        return out if isinstance(out, Tensor) else tuple(out)


_IN_SCHEMAS = {Tensor: "Tensor", str: "str", int: "int", bool: "bool"}


def _one_by_one(
    op: Callable[..., Any], size: int, dims: tuple[int | None, ...], leaves: tuple[Any, ...]
) -> tuple[Any, Any]:
    """A batching rule under vmap: one call for each; a matrix product fills the machine."""
    results = [
        op(*(a if d is None else a.select(d, n) for a, d in zip(leaves, dims, strict=True)))
        for n in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _as_one_batch(
    op: Callable[..., Any], size: int, dims: tuple[int | None, ...], leaves: tuple[Any, ...]
) -> tuple[Any, Any]:
    """That of ops whose tensors all have a batch dimension: one call."""
    folded = [
        (a.movedim(d, 0) if d is not None else a.expand(size, *a.shape)).flatten(0, 1)
        if isinstance(a, Tensor)
        else a
        for a, d in zip(leaves, dims, strict=True)
    ]
    out = op(*folded)
    if isinstance(out, Tensor):
        return out.view(size, -1, *out.shape[1:]), 0
    return tuple(z.view(size, -1, *z.shape[1:]) for z in out), (0,) * len(out)


def _op(
    fake: Callable[..., Any], batching: Callable[..., Any] = _one_by_one
) -> Callable[[Callable[P, R]], _Op[P, R]]:
    """The op of a function; ``fake`` gives tensors of the same shapes."""
    return lambda function: _Op(function, fake, batching)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    dense = torch.contiguous_format
    return tuple(torch.empty_like(t, memory_format=dense) for t in tensors)


def _terms_like(problem: LossProblem) -> LossTerms:
    rows, columns = (z.new_empty(z.shape[0]) for z in (problem.x, problem.y))
    return LossTerms(rows, columns, _values_like(problem.positives))


def _values_like(problem: SelectedPairs) -> Tensor:
    return problem.x.new_empty(problem.i.shape[0], 2 if problem.kind == "angles" else 1)


def _backend(impl: str) -> Backend:
    return _IMPLEMENTATIONS[impl].backend()


@_op(
    lambda problem, impl: problem.x.new_empty(*problem.x.shape[:-1], problem.y.shape[-2]),
    _as_one_batch,
)
def _matrix(problem: PairwiseProblem, impl: str) -> Tensor:
    return _backend(impl).matrix(problem)


@_op(lambda problem, grad_output, impl: _like(problem.x, problem.y, problem.c), _as_one_batch)
def _matrix_gradients(problem: PairwiseProblem, grad_output: Tensor, impl: str) -> Gradients:
    return _backend(impl).matrix_gradients(problem, grad_output)


@_op(
    lambda problem, search, impl: problem.x.new_empty(
        problem.x.shape[0], search.k, dtype=torch.int64
    )
)
def _topk(problem: PairwiseProblem, search: Search, impl: str) -> Tensor:
    return _backend(impl).topk(problem, search)


@_op(lambda problem: streaming.prepared_like(problem))
def _prepare(problem: PairwiseProblem) -> Prepared:
    return streaming.prepare(problem)


@_op(lambda problem, impl: _terms_like(problem))
def _loss_terms(problem: LossProblem, impl: str) -> LossTerms:
    return LossTerms(*_backend(impl).log_sums(problem), selected_pairs.selected(problem.positives))


@_op(lambda problem, *_: _like(problem.x, problem.y, problem.c, problem.scale))
def _loss_terms_gradients(
    problem: LossProblem, sums: LogSums, grad_terms: LossTerms, impl: str
) -> LossGradients:
    grads = _backend(impl).log_sums_gradients(problem, sums, grad_terms.sums)
    # Added in place: gradients are most of the memory of a step.
    selected_c = selected_pairs.add_gradients(
        problem.positives, grad_terms.values, grads.x, grads.y
    )
    return grads._replace(c=grads.c + selected_c)


@_op(lambda problem: _values_like(problem))
def _selected(problem: SelectedPairs) -> Tensor:
    return selected_pairs.selected(problem)


@_op(lambda problem, grad_output: _like(problem.x, problem.y, problem.c))
def _selected_gradients(problem: SelectedPairs, grad_output: Tensor) -> Gradients:
    return selected_pairs.selected_gradients(problem, grad_output)


# --- From a pair of custom ops to a differentiable function ---------------------------------------


def _differentiable(
    forward: _Op[P, R],
    gradient: _Op[..., Any],
    expected: Callable[..., tuple[Tensor, ...]],
    inputs: int,
    outputs: int = 0,
) -> Callable[P, R]:
    """The op ``forward``, differentiable in the first `inputs` of its tensors.

    ``gradient`` takes the problem, the first `outputs` of the forward's results, the gradients of
    the results, and the settings. ``expected`` is the reference's, with the same arguments.
    """
    forward_op, gradient_op = forward.flat, gradient.flat

    class Gradient(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(tensors: int, *args: Any) -> tuple[Tensor, ...]:
            return tuple(gradient_op(*args))

        @staticmethod
        def setup_context(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
            ctx.tensors, *leaves = args
            ctx.settings = [a for a in leaves if not isinstance(a, Tensor)]
            ctx.save_for_backward(*(a for a in leaves if isinstance(a, Tensor)))

        @staticmethod
        def backward(ctx: Any, *grad_grads: Tensor) -> tuple[Tensor | None, ...]:
            fixed = slice(inputs, ctx.tensors + outputs)
            saved = list(ctx.saved_tensors)

            def first_gradients(*variables: Tensor) -> tuple[Tensor, ...]:
                input_values, output_grads = variables[:inputs], variables[inputs:]
                arguments = gradient.parts(
                    [*input_values, *saved[fixed], *output_grads, *ctx.settings]
                )
                return tuple(expected(*arguments))

            variables = (*saved[:inputs], *saved[fixed.stop :])
            grads = reference.vjp(first_gradients, variables, grad_grads)
            none = [None] * (fixed.stop - inputs)
            return (None, *grads[:inputs], *none, *grads[inputs:], *([None] * len(ctx.settings)))

    class Forward(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return forward_op(*args)

        @staticmethod
        def setup_context(ctx: Any, args: tuple[Any, ...], output: Any) -> None:
            saved = output if isinstance(output, tuple) else (output,)
            ctx.settings = [a for a in args if not isinstance(a, Tensor)]
            ctx.save_for_backward(*(a for a in args if isinstance(a, Tensor)), *saved[:outputs])

        @staticmethod
        def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
            tensors = len(ctx.saved_tensors) - outputs
            args = (*ctx.saved_tensors, *grad_outputs, *ctx.settings)
            # Dynamo fails at a Function inside a Function, and has no second derivatives anyway.
            compiling = torch.compiler.is_compiling()
            grads = gradient_op(*args) if compiling else Gradient.apply(tensors, *args)  # type: ignore[no-untyped-call]
            return (*grads, *([None] * (tensors - inputs + len(ctx.settings))))

    def apply(*args: P.args, **_: P.kwargs) -> R:
        leaves = flat(*args)
        wanted = any(a.requires_grad for a in leaves if isinstance(a, Tensor))
        if torch.compiler.is_compiling() and not (wanted and torch.is_grad_enabled()):
            # Dynamo fails at a Function if no gradient is wanted.
            return forward.named(forward_op(*leaves))
        return forward.named(Forward.apply(*leaves))  # type: ignore[no-untyped-call]

    return apply


_differentiable_matrix = _differentiable(
    _matrix,
    _matrix_gradients,
    lambda problem, grad_output, impl: reference.matrix_gradients(problem, grad_output),
    inputs=3,
)
_differentiable_loss_terms = _differentiable(
    _loss_terms,
    _loss_terms_gradients,
    lambda problem, sums, grad_terms, impl: reference.loss_terms_gradients(problem, grad_terms),
    inputs=4,
    outputs=2,
)
_differentiable_selected = _differentiable(
    _selected, _selected_gradients, reference.selected_gradients, inputs=3
)
