"""Triton's interpreter, made quick: for checks and tests of kernels where there is no GPU.

It takes as long for one row as for a thousand, multiplies float16 numbers one by one, and sorts by
exclusive or of one number after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

from lorentzkit.fused.triton import prepare, rows


def quicken(assign: Callable[[Any, str, Any], None] = setattr) -> None:
    """Few programs with large steps, and products by NumPy; ``assign`` is `setattr` or the like."""
    assign(prepare, "_ROWS", 512)
    assign(prepare, "_BLOCK", 256)
    assign(rows, "_ROWS", 128)
    assign(InterpreterBuilder, "create_dot", fast_product)
    assign(ReduceOps, "generic_reduce", fast_reduction)


def fast_product(
    self: Any, a: TensorHandle, b: TensorHandle, total: TensorHandle, *_: Any
) -> TensorHandle:
    """Of float16 numbers, in float32."""
    product = a.data.astype(np.float32) @ b.data.astype(np.float32)
    return TensorHandle(product + total.data, total.dtype.scalar)


_generic_reduce = ReduceOps.generic_reduce


def fast_reduction(self: Any, operands: Any) -> Any:
    if self.combine_fn != tl.standard._xor_combine:
        return _generic_reduce(self, operands)
    (operand,) = operands
    array = operand.handle.data
    reduced = np.bitwise_xor.reduce(array, axis=self.axis, keepdims=self.keep_dims)
    return [self.to_tensor(reduced, operand.dtype)]
