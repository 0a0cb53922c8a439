"""Where there is no GPU, Triton's interpreter runs the kernels, in large steps."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "gpu"))


@pytest.fixture(autouse=True)
def _quick_interpreter(monkeypatch):
    if not torch.cuda.is_available():
        from interpreter import quicken

        quicken(monkeypatch.setattr)


@pytest.fixture
def uninitialised_memory_is_nan():
    """What a kernel should have written, and did not, shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
