"""The interpreter takes as long for one row as for a thousand: few programs, large steps."""

import gpu_arithmetic
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from lorentzkit.fused.triton import prepare


@pytest.fixture(autouse=True)
def _quick_interpreter(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(prepare, "_ROWS", 512)
        monkeypatch.setattr(prepare, "_BLOCK", 256)
        monkeypatch.setattr(InterpreterBuilder, "create_dot", gpu_arithmetic.fast_product)
