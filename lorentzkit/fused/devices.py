"""Where there are kernels: on NVIDIA's GPUs from Ampere on, or in Triton's interpreter."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch

LEAST_CAPABILITY = (8, 0)  # older GPUs' tensor cores take no asynchronous copies


def interpreted() -> bool:
    """Whether kernels run on the CPU, as `TRITON_INTERPRET=1` has them do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_no_kernels(device: torch.device) -> str | None:
    """What keeps kernels from running on tensors of the device, as the end of a sentence."""
    if device.type != "cuda" and not (interpreted() and device.type == "cpu"):
        return f"needs CUDA tensors, got {device.type}"
    if device.type == "cuda":
        if torch.version.hip:
            return "needs a GPU of NVIDIA, got one of AMD"
        if _capability(device) < LEAST_CAPABILITY:
            return f"needs compute capability 8.0 or more, got {_capability(device)}"
    return _why_no_triton()


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _why_no_triton() -> str | None:
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    # Versions before 3.4 have no knobs, which `fused.triton` takes.
    if find_spec("triton.knobs") is None:
        return "needs triton 3.4 or newer, which torch 2.8 comes with"
    return None


__all__ = ["interpreted", "why_no_kernels"]
