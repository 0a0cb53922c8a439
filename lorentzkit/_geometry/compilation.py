"""Chains of elementwise operations compiled to one pass over memory, where inductor can.

That needs a CPU with a C++ compiler, and pays for much work only. Otherwise the same functions run
as they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lorentzkit._geometry.direct import Compiled
from lorentzkit._geometry.special import values_known
from lorentzkit._geometry.vectors import FEW

_WORTH_COMPILING = 2**18  # elements
# In numbers of rows: an eager call takes some 5 ns for each, and compiling takes 10 s or so.
_EARNS_COMPILING = 2**31
_CALL, _SCALARS = 2**18, 64  # the fixed cost of a call, and of a row
_done: dict[tuple[Callable[..., Any], str, torch.dtype], int] = {}
_CHUNK = 2**17  # elements: two threads share them, in the cache
_ROWS: dict[str, Any] = {}
if hasattr(torch.compiler, "skip_guard_on_globals_unsafe"):  # older torch has none
    # Our modules do not change, and a hundred guards on them cost as much as a small step.
    _ROWS["guard_filter_fn"] = torch.compiler.skip_guard_on_globals_unsafe
_ELEMENTWISE: dict[str, Any] = {
    **_ROWS,
    # Fused multiply-adds round less often, and are a seventh of the time.
    "cpp.enable_floating_point_contract_flag": "fast",
    # Fewer intermediate results in memory (2 of a block, not 9); more takes minutes to compile.
    "realize_opcount_threshold": 100,
}


def fused(function: Callable[..., Any], kind: str, x: Tensor, work: int) -> Callable[..., Any]:
    """``function(kind, ...)``, compiled if that pays for so much work on tensors like x."""
    return compiled(function, kind, x.dtype) if compiles(x, work) else function


def by_rows(
    function: Callable[..., None], kind: str, rowwise: Sequence[Tensor], *rest: Tensor
) -> None:
    """``function(kind, *rowwise, *rest)``: compiled, or in blocks of rows that fit the cache.

    The function writes its results into some of the tensors.
    """
    x = rowwise[0]
    run = fused(function, kind, x, x.numel())
    whole = run is not function
    for rows in [slice(0, len(x))] if whole else row_chunks(*x.shape):
        run(kind, *(t[rows] for t in rowwise), *rest)


def row_chunks(count: int, width: int) -> Iterator[slice]:
    """Row blocks that fit the cache."""
    return row_blocks(count, max(1, _CHUNK // width))


def row_blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def earned(function: Callable[..., Any], kind: str, x: Tensor) -> Callable[..., Any]:
    """``function(kind, ...)`` of rows x: compiled once it has done as much work as compiling costs.

    So a program that calls it a few times never waits for a compiler, and one that calls it often
    at most doubles its time. Work is counted, not time: a program that is run again compiles at the
    same call.
    """
    if not x.is_cpu or not values_known(x):
        return function
    N, D = x.shape
    kind = f"{kind}_{D if D <= FEW else 0}"  # short rows have code of their own
    work = _CALL + N * (D + _SCALARS)
    return (
        compiled(function, kind, x.dtype, rows=True) if earns(function, kind, x, work) else function
    )


def earns(function: Callable[..., Any], kind: str, x: Tensor, work: int) -> bool:
    """Whether the function has now done enough work on tensors like x to be compiled."""
    key = (function, kind, x.dtype)
    _done[key] = _done.get(key, 0) + work
    return _done[key] >= _EARNS_COMPILING and _has_compiler()


def compiles(x: Tensor, work: int) -> bool:
    """Whether so much work on tensors like x is compiled: on a CPU with a C++ compiler."""
    return work >= _WORTH_COMPILING and x.device.type == "cpu" and _has_compiler()


@cache
def _has_compiler() -> bool:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:  # whatever is missing: the functions also run uncompiled
        return False
    return True


@cache
def compiled(
    function: Callable[..., Any], kind: str, dtype: torch.dtype, rows: bool = False
) -> Callable[..., Any]:
    # Each kind gets a code object of its own: torch compiles 8 variants of one, and then fails.
    name = f"{function.__name__}_{kind}_{dtype}".replace(".", "_")
    code = function.__code__.replace(co_name=name)
    options = _ROWS if rows else _ELEMENTWISE  # sums over rows make loops of their own
    own = FunctionType(code, function.__globals__, name)
    own.__kwdefaults__ = function.__kwdefaults__
    return Compiled(own, **options)
