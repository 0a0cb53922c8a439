"""Triton's interpreter with a GPU's arithmetic: what PTX promises, and no more.

Minimum and maximum drop NaN. Division, roots, powers of 2 and logarithms of float32 numbers are
approximate, and know no denormal ones; those of float64 are not. A product of float16 tiles adds
what a step of the tensor cores takes, 16 dimensions, to a sum whose last digits are cut off.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

TINY = np.float32(2.0**-126)
STEP = 16
# Largest errors in units of the last place, by PTX's manual: div.full, sqrt.approx, rsqrt.approx,
# ex2.approx, lg2.approx.
ULPS = {"fdiv": 2.0, "sqrt": 1.0, "rsqrt": 2.0, "exp2": 2.0, "log2": 1.0, "log": 1.0}


def imitate(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test, which is to run in the interpreter."""
    noise = np.random.default_rng(0)

    def off(exact: Any, ulps: float) -> Any:
        with np.errstate(all="ignore"):
            error = noise.uniform(-ulps, ulps, np.shape(exact)) * 2.0**-24
            return _flushed((exact * (1 + error)).astype(np.float32))

    def approximate(name: str, function: Callable[..., Any]) -> None:
        plain = getattr(InterpreterBuilder, f"create_{name}")

        def run(self: Any, *args: TensorHandle) -> TensorHandle:
            if args[0].data.dtype != np.float32:
                return plain(self, *args)
            given = [_flushed(arg.data).astype(np.float64) for arg in args]
            with np.errstate(all="ignore"):
                return TensorHandle(off(function(*given), ULPS[name]), args[0].dtype.scalar)

        monkeypatch.setattr(InterpreterBuilder, f"create_{name}", run)

    approximate("fdiv", np.divide)
    approximate("sqrt", np.sqrt)
    approximate("rsqrt", lambda z: 1 / np.sqrt(z))
    approximate("exp2", np.exp2)
    approximate("log2", np.log2)
    approximate("log", np.log)
    for name, function in (("minnumf", np.fmin), ("maxnumf", np.fmax)):
        monkeypatch.setattr(
            InterpreterBuilder,
            f"create_{name}",
            lambda self, a, b, of=function: self.binary_op(a, b, of),
        )
    monkeypatch.setattr(InterpreterBuilder, "create_dot", cut_off_product)


def _flushed(z: Any) -> Any:
    return np.where(np.abs(z) < TINY, np.copysign(np.float32(0), z), z)


def cut_off_product(
    self: Any, a: TensorHandle, b: TensorHandle, total: TensorHandle, *_: Any
) -> TensorHandle:
    """Of float16 numbers, in the steps of a tensor core."""
    found = total.data.astype(np.float64)
    for k in range(0, a.data.shape[1], STEP):
        part = a.data[:, k : k + STEP].astype(np.float64) @ b.data[k : k + STEP].astype(np.float64)
        found = cut_off(found + part).astype(np.float64)
    return TensorHandle(found.astype(np.float32), total.dtype.scalar)


def cut_off(exact: Any) -> Any:
    """Towards zero, to the digits of float32."""
    nearest = exact.astype(np.float32)
    with np.errstate(all="ignore"):
        away = np.abs(nearest.astype(np.float64)) > np.abs(exact)
        return np.where(away, np.nextafter(nearest, np.float32(0)), nearest)
