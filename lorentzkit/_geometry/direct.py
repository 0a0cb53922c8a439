"""A compiled function, called past `torch.compile`'s own checks where they are known to hold.

Dynamo and AOTAutograd look at every argument before each call, which takes as long as a small op.
Of CPU tensors without derivatives, whose memory does not overlap where it is written to, the graph
that is chosen depends on nothing but what is in `_key`. So the graph that served one call serves
every later one with the same key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_KEYS = 256


class Compiled:
    """``torch.compile(function)`` of tensors, numbers and lists of them, without derivatives."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        guards = {k: options.pop(k) for k in ["guard_filter_fn"] if k in options}
        self._options = options
        self._thread = threading.local()
        self._known: dict[Hashable, _Direct] = {}
        self._function = torch.compile(
            function, dynamic=True, fullgraph=True, backend=self._backend, options=guards
        )

    def __call__(self, *args: Any) -> Any:
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self(*args)
        tensors: list[Tensor] = []
        key = _key(args, tensors)
        direct = self._known.get(key)
        return self._called(key, args) if direct is None else direct(tensors)

    def _called(self, key: Hashable, args: Sequence[Any]) -> Any:
        """By way of `torch.compile`."""
        # A parameter's sizes would be part of the code, and whether derivatives are wanted.
        tensors: list[Tensor] = []
        args = [_detached(a, tensors) for a in args]
        self._thread.call = None
        try:
            result = self._function(*args)
            direct = _direct(self._thread.call, tensors, result)
        finally:
            self._thread.call = None
        if direct is not None:
            if len(self._known) >= _MOST_KEYS:
                self._known.clear()
            self._known[key] = direct
        return result

    def _backend(self, module: Any, inputs: Sequence[Any]) -> Any:
        from torch._functorch import config
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def compile_graph(*args: Any, **kwargs: Any) -> Any:
            graph = compile_fx_inner(*args, **kwargs)

            def run(args: list[Any]) -> Any:
                same = list(args)  # for the graph empties it
                results = graph(args)
                self._thread.call = _Call(graph, same, results)
                return results

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        # What its cache has was compiled without `compile_graph`; that of inductor stays.
        with config.patch(enable_autograd_cache=False):
            return compile_fx(
                module, inputs, inner_compile=compile_graph, config_patches=self._options
            )


class _Call(NamedTuple):
    """Of a compiled graph."""

    graph: Any
    args: list[Any]
    results: Sequence[Any]


class _Direct(NamedTuple):
    """How to call a graph with tensors, and what to make of its results."""

    graph: Any
    args: list[Any]
    result: Callable[[Sequence[Tensor]], Any]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        args = [tensors[a.place] if type(a) is _At else a for a in self.args]
        return self.result(self.graph(args))


class _At(NamedTuple):
    """A tensor's place among others."""

    place: int


def _key(args: Sequence[Any], tensors: list[Tensor]) -> Hashable:
    """What the choice of a graph depends on. Adds the tensors to a list."""
    return (
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        *[_described(a, tensors) for a in args],
    )


def _described(a: Any, tensors: list[Tensor]) -> Hashable:
    if isinstance(a, Tensor):
        tensors.append(a)
        return a.dtype, a.shape, a.stride(), a.is_neg()
    if isinstance(a, (list, tuple)):
        return tuple([_described(z, tensors) for z in a])
    return a if isinstance(a, Hashable) else object()


def _detached(a: Any, tensors: list[Tensor]) -> Any:
    """The same with plain tensors, each another one, for Dynamo would tell equal ones apart.

    Adds them to a list, in the order of `_key`.
    """
    if isinstance(a, Tensor):
        tensors.append(a.detach())
        return tensors[-1]
    return _like(a, [_detached(z, tensors) for z in a]) if isinstance(a, (list, tuple)) else a


def _like(a: Any, items: list[Any]) -> Any:
    return getattr(a, "_make", type(a))(items)


def _direct(call: _Call | None, tensors: Sequence[Tensor], result: Any) -> _Direct | None:
    """How to make this call directly; None if the tensors are not those of the graph itself."""
    if call is None:
        return None
    args = [_placed(a, tensors) for a in call.args]
    build = _builder(result, call.results)
    # Dynamo makes tensors of floats: those of the key, and constants.
    others = [a for a in args if isinstance(a, Tensor)]
    if build is None or any(a.dim() > 0 for a in others):
        return None
    return _Direct(call.graph, args, build)


def _placed(a: Any, tensors: Sequence[Any]) -> Any:
    """A tensor's place among others, if it is there; else what was given."""
    return next((_At(i) for i, other in enumerate(tensors) if other is a), a)


def _builder(a: Any, results: Sequence[Any]) -> Callable[[Sequence[Tensor]], Any] | None:
    """Makes the like of a, a nest of a graph's results, of other results; None if it is not one."""
    if isinstance(a, Tensor):
        placed_ = _placed(a, results)
        return itemgetter(placed_.place) if type(placed_) is _At else None
    if not isinstance(a, (list, tuple)):
        return lambda _: a
    builders = [_builder(z, results) for z in a]
    if None in builders:
        return None
    return lambda others: _like(a, [build(others) for build in builders])  # type: ignore[misc]
