"""What benchmarks/roofline.py counts."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("roofline")


def test_traffic_of_large_tensors(roofline: ModuleType) -> None:
    x, small = torch.ones(2, roofline.BLOCK // 4), torch.ones(9)
    with roofline.Traffic() as counted:
        y = x.mT + 1  # a view, and one tensor read and one written
        y += 1  # in place: read and written as well
        small.exp()
        torch.empty_like(x)
    assert counted.bytes == 4 * x.nbytes


def test_what_the_page_says_of_the_kernels(roofline: ModuleType) -> None:
    """Memory binds the backward pass of "high" alone, far under the products' rate."""
    pytest.importorskip("triton")
    for precision, rate in roofline.H100.items():
        for part, of in roofline.kernels(32768, 512, precision).items():
            by_memory = of * roofline.H100_MEMORY < rate
            assert by_memory == ((precision, part) == ("high", "backward"))
            assert roofline.bound(precision)[part] < 0.6 * rate, (precision, part)
