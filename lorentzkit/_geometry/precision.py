"""Matrix products with all digits of float32, whatever PyTorch is set to.

`torch.set_float32_matmul_precision`, `torch.backends.fp32_precision` and their like let all float32
products of the process round their operands to tf32 or bfloat16. None takes its precision as an
argument. So custom ops set the globals for as long as they run (`full_precision`), and what
autograd or a compiler takes apart multiplies in float64, which no setting concerns (`product`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry.special import values_known
from lorentzkit._geometry.vectors import wide_dtype

# Since torch 2.9 each level has a precision, and "none" stands for that of the level above.
_get: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_set: Any = getattr(torch._C, "_set_fp32_precision_setter", None)
_CUDA, _CPU = ("cuda", "matmul"), ("mkldnn", "matmul")
_LEVELS = (("generic", "all"), ("cuda", "all"), _CUDA, ("mkldnn", "all"), _CPU)
_FEWER_DIGITS = ("tf32", "bf16")


def reduced() -> bool:
    """Whether PyTorch is free to round the operands of float32 products."""
    if _get is None:
        return torch.get_float32_matmul_precision() != "highest"
    return _get(*_CUDA) in _FEWER_DIGITS or _get(*_CPU) in _FEWER_DIGITS


def product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.mT``, whose derivatives have all digits, too."""
    # Traced code must hold in every setting; eager float32 takes half the time.
    if x.dtype != wide_dtype(x) and (not values_known(x) or reduced()):
        wide = wide_dtype(x)
        return (x.to(wide) @ y.to(wide).mT).to(x.dtype)
    return x @ y.mT


def full_precision() -> AbstractContextManager[None]:
    """While it is entered, by any thread, float32 products keep all digits in all threads."""
    return _FULL


class _Settings(NamedTuple):
    levels: tuple[str, ...]
    legacy: str
    """Of `torch.set_float32_matmul_precision`"""


class _Full(AbstractContextManager[None]):
    """The first to enter sets the globals and the last to leave restores them, of all threads."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._saved: _Settings | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0 and reduced():
                self._saved = _set_full()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._saved is not None:
                saved, self._saved = self._saved, None
                _restore(saved)


_FULL = _Full()


def _set_full() -> _Settings:
    """Sets full precision; returns what was set."""
    levels = []
    for level in _LEVELS if _get else ():
        # Those above are "none" by now: what a level answers is its own.
        levels.append(_get(*level))
        _set(*level, "none")
    # Read last: it raises while a level contradicts it.
    legacy = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    return _Settings(tuple(levels), legacy)


def _restore(saved: _Settings) -> None:
    torch.set_float32_matmul_precision(saved.legacy)  # which sets some levels
    for level, precision in zip(_LEVELS if _get else (), saved.levels, strict=True):
        _set(*level, precision)
