"""Where kernels run, and what "auto" takes elsewhere."""

import importlib.util

import pytest
import torch

from lorentzkit.fused import devices, registry

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch):
    monkeypatch.setattr(devices, "_capability", lambda device: (9, 0))
    devices._why_no_triton.cache_clear()
    yield
    devices._why_no_triton.cache_clear()


def without(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(devices, "find_spec", lambda name: None if name == package else find(name))


def test_a_gpu_of_nvidia_has_kernels():
    pytest.importorskip("triton")
    assert devices.why_no_kernels(CUDA) is None


@pytest.mark.parametrize("package", ["triton", "triton.knobs"])
def test_without_triton_or_with_one_that_is_too_old_there_are_none(monkeypatch, package):
    without(monkeypatch, package)
    assert "needs" in devices.why_no_kernels(CUDA)


def test_older_gpus_have_none(monkeypatch):
    monkeypatch.setattr(devices, "_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in devices.why_no_kernels(CUDA)


def test_gpus_of_amd_and_intel_have_none(monkeypatch):
    assert "needs CUDA tensors, got xpu" in devices.why_no_kernels(torch.device("xpu"))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "needs a GPU of NVIDIA" in devices.why_no_kernels(CUDA)


def test_auto_takes_what_runs(monkeypatch):
    class OnAGpu:
        device, dtype = CUDA, torch.float32

    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert registry.choose("auto", OnAGpu(), "highest").name == "streaming"
    with pytest.raises(ValueError, match=r"needs a GPU of NVIDIA.*use impl='streaming'"):
        registry.choose("triton", OnAGpu(), "highest")
    monkeypatch.setattr(torch.version, "hip", None)
    pytest.importorskip("triton")
    assert registry.choose("auto", OnAGpu(), "highest").name == "triton"
