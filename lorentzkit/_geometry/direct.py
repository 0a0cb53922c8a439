"""Compiled functions that skip `torch.compile`'s own checks where these are known to hold.

Dynamo and AOTAutograd look at every argument before each call, which takes as long as a small op.
For CPU tensors without derivatives, whose memory does not overlap where it is written to, the
choice of a graph depends only on what `_key` contains. So the graph that served one call serves
every later call with the same key.
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
        return self._through_compile(key, args) if direct is None else direct(tensors)

    def _through_compile(self, key: Hashable, args: Sequence[Any]) -> Any:
        """Calls the function of `torch.compile`, and keeps its graph for the next call."""
        # Detached: the sizes of a parameter, and its derivatives, would be part of the code.
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

            def run(inputs: list[Any]) -> Any:
                kept = list(inputs)  # the graph empties its list
                results = graph(inputs)
                self._thread.call = _Call(graph, kept, results)
                return results

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        # AOTAutograd's cache has graphs compiled without `compile_graph`; inductor's cache stays.
        with config.patch(enable_autograd_cache=False):
            return compile_fx(
                module, inputs, inner_compile=compile_graph, config_patches=self._options
            )


class _Call(NamedTuple):
    """A call of a compiled graph."""

    graph: Any
    inputs: list[Any]
    results: Sequence[Any]


class _Direct(NamedTuple):
    """How to call a graph with tensors, and what to make of its results."""

    graph: Any
    inputs: list[Any]
    result: Callable[[Sequence[Tensor]], Any]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        inputs = [tensors[a.slot] if type(a) is _Position else a for a in self.inputs]
        return self.result(self.graph(inputs))


class _Position(NamedTuple):
    """A tensor's position in a list."""

    slot: int


def _key(args: Sequence[Any], tensors: list[Tensor]) -> Hashable:
    """What the choice of a graph depends on; adds the tensors to the list."""
    return (
        torch.get_num_threads(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        *[_signature(a, tensors) for a in args],
    )


def _signature(a: Any, tensors: list[Tensor]) -> Hashable:
    if isinstance(a, Tensor):
        tensors.append(a)
        return a.dtype, a.shape, a.stride(), a.is_neg()
    if isinstance(a, (list, tuple)):
        return tuple([_signature(z, tensors) for z in a])
    return a if isinstance(a, Hashable) else object()


def _detached(a: Any, tensors: list[Tensor]) -> Any:
    """The argument with detached tensors, each a new one: Dynamo treats repeated ones apart.

    Adds them to the list, in the order of `_key`.
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
    inputs = [_position(a, tensors) for a in call.inputs]
    build = _builder(result, call.results)
    # What is left are tensors that Dynamo makes of floats: those in the key, and constants.
    constants = [a for a in inputs if isinstance(a, Tensor)]
    if build is None or any(a.dim() > 0 for a in constants):
        return None
    return _Direct(call.graph, inputs, build)


def _position(a: Any, tensors: Sequence[Any]) -> Any:
    """A tensor's position in the list, if it is there; else the argument itself."""
    return next((_Position(i) for i, tensor in enumerate(tensors) if tensor is a), a)


def _builder(a: Any, results: Sequence[Any]) -> Callable[[Sequence[Tensor]], Any] | None:
    """A function that nests a graph's results as ``a`` nests these; None if it holds others."""
    if isinstance(a, Tensor):
        position = _position(a, results)
        return itemgetter(position.slot) if type(position) is _Position else None
    if not isinstance(a, (list, tuple)):
        return lambda _: a
    builders = [_builder(z, results) for z in a]
    if None in builders:
        return None
    return lambda values: _like(a, [build(values) for build in builders])  # type: ignore[misc]
