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
    pytest.importorskip("triton")
    for precision, rate in roofline.H100.items():
        intensities = roofline.kernels(32768, 512, precision)
        memory_bound = {
            part: intensity * roofline.H100_MEMORY < rate for part, intensity in intensities.items()
        }
        assert memory_bound == {"forward": False, "backward": precision == "bf16"}
