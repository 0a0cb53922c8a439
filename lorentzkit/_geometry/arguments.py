"""Argument handling: errors that name the argument, promotion, the clamp to the dtype's range.

Checks of types and shapes always run. Checks of *values* need the numbers: they run in eager mode
and are left out under ``torch.compile``, ``torch.func`` and tracing, where an invalid value gives
NaN.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorentzkit._geometry.special import (
    dot,
    largest_radius,
    onto_sphere,
    scale_of,
    values_at_hand,
    values_known,
)

SMALLEST_CURV, LARGEST_CURV = 1e-8, 1e8
_LEAST_CURV = SMALLEST_CURV * (1 - 2**-24)  # as a float32 the smallest is a little less


def floating(name: str, value: object) -> Tensor:
    """``value`` if it is a floating-point tensor with at least one dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a floating-point torch.Tensor, got {type(value).__name__}; "
            f"convert it with torch.as_tensor"
        )
    if not value.is_floating_point():
        raise TypeError(
            f"{name}: expected a floating-point tensor, got {value.dtype}; "
            f"convert it with .float() or .double()"
        )
    return value


def vectors(**tensors: object) -> list[Tensor]:
    """Floating tensors ``(..., D)`` with one and the same D >= 1."""
    checked = [floating(name, value) for name, value in tensors.items()]
    for name, tensor in zip(tensors, checked, strict=True):
        if tensor.dim() == 0 or tensor.shape[-1] == 0:
            raise ValueError(
                f"{name}: expected space components (..., D) with D >= 1, "
                f"got shape {tuple(tensor.shape)}"
            )
    if len({tensor.shape[-1] for tensor in checked}) > 1:
        got = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(tensors, checked, strict=True))
        raise ValueError(
            f"{', '.join(tensors)}: expected one trailing size D, got {got}; "
            f"points are their D space components (drop_time converts D + 1 components)"
        )
    return checked


def require(condition: Tensor, message: str) -> None:
    """Raise ValueError unless every element of ``condition`` holds; needs known values."""
    if values_known(condition) and not bool(condition.all()):
        raise ValueError(message)


def curvature(curv: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``curv`` as a tensor ``(..., 1)``, broadcast against the leading dimensions of the points."""
    if isinstance(curv, Tensor):
        c = floating("curv", curv).to(device if curv.dim() == 0 else curv.device, dtype)
        c = c.unsqueeze(-1)
        if _is_known_scalar(c):
            _curvature_value(c)
            return c
        valid = (c >= _LEAST_CURV) & (c <= LARGEST_CURV)
        # On an accelerator the check would stop the queue at every op: invalid values are NaN.
        if values_at_hand(c) and not bool((valid | c.isnan()).all()):
            raise ValueError(_bad_curvature(f"a tensor with minimum {float(curv.min()):g}"))
        return torch.where(valid, c, torch.nan)
    return torch.full((1,), _valid_curvature(curv), dtype=dtype, device=device)


def curvature_number(curv: object) -> float | None:
    """`curvature` as a float32 number; None if it is a tensor with dimensions, or not at hand."""
    if not isinstance(curv, Tensor):
        value = _valid_curvature(curv)
    elif curv.is_cpu and curv.dim() == 0 and curv.is_floating_point() and values_known(curv):
        value = _curvature_value(curv.float())
    else:
        return None
    return float(np.float32(value))


def _valid_curvature(curv: object) -> float:
    value = number("curv", curv, "a float or a floating tensor")
    if not SMALLEST_CURV <= value <= LARGEST_CURV:
        raise ValueError(_bad_curvature(repr(curv)))
    return value


def _curvature_value(c: Tensor) -> float:
    value = float(c.detach())
    if not _LEAST_CURV <= value <= LARGEST_CURV and not math.isnan(value):
        raise ValueError(_bad_curvature(f"a tensor with the value {value:g}"))
    return value


def number(name: str, value: object, expected: str) -> float:
    """``value`` as a float: one real number of Python, of NumPy or with a ``__float__``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _as_float(value)
    scalar = value
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):  # a NumPy array
        scalar = value.item()
    not_real = isinstance(scalar, (bool, str)) or (
        isinstance(scalar, numbers.Complex) and not isinstance(scalar, numbers.Real)
    )
    if not not_real and hasattr(scalar, "__float__"):
        try:
            return _as_float(scalar)
        except (TypeError, ValueError):  # several numbers, or no number
            pass
    shape = getattr(value, "shape", ())
    raise TypeError(
        f"{name}: expected {expected}, got {type(value).__name__}"
        + (f" of shape {tuple(shape)}; convert it with torch.as_tensor" if shape else "")
    )


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


def _bad_curvature(got: str) -> str:
    return (
        f"curv: expected a positive number in [{SMALLEST_CURV:g}, {LARGEST_CURV:g}], got {got}; "
        f"curv is the negative of the sectional curvature"
    )


def working_dtype(*values: object) -> torch.dtype:
    """The dtype to compute in: torch's promotion of the tensors, but at least float32."""
    dtype = torch.float32
    for value in values:
        # Like torch: a 0-dim tensor (a learnable curvature) does not widen those with dimensions.
        if isinstance(value, Tensor) and value.dtype != dtype and value.dim() > 0:
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def points_and(
    curv: object,
    points: Mapping[str, object],
    unclamped: Mapping[str, object] | None = None,
    scalars: object = None,
) -> list[Tensor]:
    """Checked, promoted ``[*points, *unclamped, c]``: points clamped, ``c`` of shape ``(..., 1)``.

    ``scalars``, a parameter or weights, takes part in the promotion only.
    """
    named = {**points, **(unclamped or {})}
    tensors = vectors(**named)
    dtype = working_dtype(*tensors, curv, scalars)
    c = curvature(curv, dtype, tensors[0].device)
    tensors = [tensor.to(dtype) for tensor in tensors]
    leading = {name: tensor.shape[:-1] for name, tensor in zip(named, tensors, strict=True)}
    check_broadcast(c.shape[:-1], **leading)
    count = len(points)
    if count:
        limit = norm_limit(c.detach())
        tensors = [*(clamp_norm(x, limit) for x in tensors[:count]), *tensors[count:]]
    return [*tensors, c]


def check_broadcast(
    curv: Sequence[int], t: Sequence[int] | None = None, **leading: Sequence[int]
) -> None:
    """Raise ValueError unless the shapes of curvature, parameter and points broadcast.

    Also if points ``(N, D)`` come with a curvature ``(N, 1)``: that would make ``(N, N)``, which
    hardly anyone means. Under a compiler other mistakes are left to torch's own error.
    """
    points = {name: tuple(shape) for name, shape in leading.items()}
    if len(curv) > max(map(len, points.values())):
        _check_no_column(tuple(curv), list(points.values()))
    if torch.compiler.is_compiling():
        return
    shapes = {**({} if t is None else {"t": tuple(t)}), **points, "curv": tuple(curv)}
    if _broadcast(shapes.values()) is None:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"{', '.join(shapes)}: leading dimensions do not broadcast: {got}; "
            f"curv broadcasts against the leading dimensions (no trailing 1)"
        )


def _check_no_column(curv: tuple[int, ...], points: list[tuple[int, ...]]) -> None:
    """Raise ValueError if ``curv`` is the leading shape of points and a trailing 1."""
    for shape in (*points, _broadcast(points)):
        if shape and curv == (*shape, 1) and any(size != 1 for size in shape):
            raise ValueError(
                f"curv: expected at most the points' leading dimensions {shape}, got {curv}, which "
                f"would pair every curvature with every point; curv broadcasts against the leading "
                f"dimensions: squeeze(-1). For a table of curvatures and points, unsqueeze the "
                f"points"
            )


def _broadcast(shapes: Iterable[Sequence[int]]) -> tuple[int, ...] | None:
    """The shape that all broadcast to; None if there is none."""
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def norm_limit(c: Tensor) -> Tensor:
    """The largest Euclidean norm of a point: ``sinh(max_radius)/sqrt(c)``.

    A little more, so that a rounded point at that radius is not clamped. For tiny curvature it is
    less, so that the cubes of lengths in derivatives with respect to ``c`` stay finite.
    """
    radius = math.sinh(largest_radius(c.dtype)) * (1 + 2.0**-12)
    cube = 2.0**500 if c.dtype == torch.float64 else 2.0**62
    if _is_known_scalar(c) and not c.requires_grad:  # floats are quicker than one-element tensors
        value = float(c)
        return c.new_full(c.shape, min(radius / math.sqrt(value), cube * value**0.25))
    return torch.minimum(radius / c.sqrt(), cube * c.sqrt().sqrt())


def clamp_norm(x: Tensor, limit: Tensor) -> Tensor:
    """``x`` shortened to Euclidean norm ``limit`` where it is longer; else ``x`` itself."""
    if within(x, limit):
        return x
    scale = scale_of(x)
    z = x / scale
    n = dot(z, z).clamp_min(1.0).sqrt().detach()  # >= 1 for all but denormal vectors
    beyond = n > limit / scale
    unit, factor = z / n, limit / scale / n
    return torch.where(beyond, onto_sphere(x, limit, torch.where(beyond, factor, 0.0), unit), x)


def within(x: Tensor, limit: Tensor) -> bool:
    """Whether a quick bound shows that all of ``x`` is at most as long as ``limit``."""
    if not values_at_hand(x) or x.numel() == 0 or limit.numel() == 0:
        return False
    least, most = x.detach().aminmax()
    largest = max(-float(least), float(most)) * math.sqrt(x.shape[-1])
    return largest * (1 + 2.0**-20) <= float(limit.detach().min())


def _is_known_scalar(c: Tensor) -> bool:
    return c.numel() == 1 and values_at_hand(c)
