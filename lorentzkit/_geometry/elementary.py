"""Elementary functions that not every runtime of an exported program has.

ONNX has no ``hypot``, ``frexp`` or bits of a number; its ``log1p`` and ``expm1`` are made of log
and exp, and cancel; and onnxruntime has no inverse or hyperbolic functions of float64. So under
`torch.export` these are made of arithmetic, ``sqrt``, ``exp``, ``log`` and ``tanh``, to a few
roundings and with derivatives of every order. Elsewhere they are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

Function = TypeVar("Function", bound=Callable[..., Any])

# torch 2.6 cannot tell.
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def exporting_values() -> bool:
    """Whether a program is exported that has no derivatives: by `torch.onnx.export`."""
    return is_exporting() and torch.onnx.is_in_onnx_export()


class _ExactConstants(TorchFunctionMode):
    """float64 tensors meet numbers as tensors: the ONNX exporter rounds numbers to float32."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.full, torch.full_like) and _inexact(args[1]):
            ones = func(args[0], 1.0, **kwargs)
            return ones * torch.tensor(args[1], dtype=ones.dtype, device=ones.device)
        wide = [a for a in args if isinstance(a, Tensor) and a.dtype == torch.float64]
        if wide:
            exact = partial(torch.tensor, dtype=torch.float64, device=wide[0].device)
            args = [exact(a) if _inexact(a) else a for a in args]
        return func(*args, **kwargs)


def _inexact(number: object) -> bool:
    """Whether it is a number that float32 has not."""
    if not isinstance(number, float) or not math.isfinite(number):
        return False
    mantissa, exponent = math.frexp(number)
    return not (mantissa * 2**24).is_integer() or not -120 < exponent < 120


def with_exact_constants(function: Function) -> Function:
    """The function; exported, with the digits of float64 in its constants."""

    @wraps(function)
    def exact(*args: Any, **kwargs: Any) -> Any:
        # Dynamo, in a strict export, does not take the mode: what it captures keeps its numbers.
        if not is_exporting() or torch.compiler.is_dynamo_compiling():
            return function(*args, **kwargs)
        with _ExactConstants():
            return function(*args, **kwargs)

    return exact  # type: ignore[return-value]


# atan(t)/t and atanh(t)/t in t**2, highest order first; used for t**2 <= 0.04 only.
_ATANC = [(-1) ** k / (2 * k + 1) for k in range(12, -1, -1)]
_ATANHC = [1 / (2 * k + 1) for k in range(12, -1, -1)]


def series(coefficients: Sequence[float], z: Tensor) -> Tensor:
    """A polynomial, its coefficients from the highest order down."""
    total = torch.full_like(z, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * z + coefficient
    return total


def _size(t: Tensor) -> Tensor:
    """``|t|``; unlike abs it has a derivative at 0."""
    return torch.where(t < 0, -t, t)


def hypot(a: Tensor, b: Tensor) -> Tensor:
    """``sqrt(a**2 + b**2)`` without overflow."""
    if not is_exporting():
        return torch.hypot(a, b)
    a, b = _size(a), _size(b)
    large = torch.maximum(a, b)
    ratio = torch.minimum(a, b) / torch.where(large == 0, 1.0, large)
    return large * (1 + ratio * ratio).sqrt()


def expm1(t: Tensor) -> Tensor:
    if not is_exporting():
        return torch.expm1(t)
    near = t.abs() <= 1
    tanh = torch.tanh(torch.where(near, t, 0.0) / 2)
    return torch.where(near, 2 * tanh / (1 - tanh), torch.where(near, 0.0, t).exp() - 1)


def log1p(x: Tensor) -> Tensor:
    if not is_exporting():
        return torch.log1p(x)
    near = x.abs() <= 0.25
    z = torch.where(near, x, 0.0)
    z = z / (2 + z)  # log((1 + z)/(1 - z)) = 2 atanh z
    return torch.where(near, 2 * z * series(_ATANHC, z * z), (1 + torch.where(near, 0.0, x)).log())


def cosh(t: Tensor) -> Tensor:
    return (t.exp() + (-t).exp()) / 2 if is_exporting() else torch.cosh(t)


def sinh(t: Tensor) -> Tensor:
    return (expm1(t) - expm1(-t)) / 2 if is_exporting() else torch.sinh(t)


def asinh(t: Tensor) -> Tensor:
    if not is_exporting():
        return torch.asinh(t)
    size = _size(t)
    value = log1p(size + size * (size / (1 + hypot(torch.ones_like(size), size))))
    return torch.where(t < 0, -value, value)


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """For ``y >= 0``, and not at (0, 0)."""
    if not is_exporting():
        return torch.atan2(y, x)
    size = _size(x)
    swapped = y > size
    t = torch.where(swapped, size, y) / torch.where(swapped, y, size)
    for _ in range(2):  # atan t = 2 atan(t / (1 + sqrt(1 + t^2))): t <= 1 becomes t <= 0.2
        t = t / (1 + (1 + t * t).sqrt())
    acute = 4 * t * series(_ATANC, t * t)
    acute = torch.where(swapped, math.pi / 2 - acute, acute)
    return torch.where(x < 0, math.pi - acute, acute)


def hardshrink(x: Tensor, least: float) -> Tensor:
    """0 in the place of what is not larger than ``least``."""
    if not is_exporting():
        return torch.hardshrink(x, least)
    # torch's takes no tensor for the bound, which `_ExactConstants` makes of it.
    return torch.where(x.abs() <= least, 0.0, x)


def floor_to_power_of_two(x: Tensor) -> Tensor:
    """The power of two at or under x, a positive and normal number; of infinity not to be used."""
    double = x.dtype == torch.float64
    if not is_exporting():
        integer, exponent = (torch.int64, 0x7FF << 52) if double else (torch.int32, 0xFF << 23)
        return (x.view(integer) & exponent).view(x.dtype)
    power = torch.where(x < 1, torch.finfo(x.dtype).tiny, torch.ones_like(x))
    for digit in range(9 if double else 6, -1, -1):  # of the exponent, in binary
        larger = power * 2.0 ** (2**digit)
        power = torch.where(larger <= x, larger, power)
    return power
