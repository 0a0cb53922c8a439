"""The fastest sizes of tiles, found at the first use of a kernel for arguments of a kind."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
import triton
from torch import Tensor

from lorentzkit.fused.triton.config import CONFIGS, Config

T = TypeVar("T")
_fastest: dict[Hashable, Config] = {}


def tuned(name: str, like: Tensor, key: tuple[Hashable, ...], run: Callable[[Config], T]) -> T:
    """``run`` of the fastest of the kernel's configurations.

    They are timed once for the device, the key and the sizes ``like``, up to powers of two; not
    while a CUDA graph is recorded, nor where there is one only. `triton.autotune` does not serve
    here: how many partial sums there are to be allocated depends on the configuration.
    """
    configs = CONFIGS[name]
    if len(configs) == 1 or not like.is_cuda or torch.cuda.is_current_stream_capturing():
        return run(configs[0])
    sizes = tuple(triton.next_power_of_2(size) for size in like.shape)
    found = (name, like.device.index, sizes, *key)
    if found not in _fastest:
        _fastest[found] = fastest(configs, run)
    return run(_fastest[found])


def fastest(configs: tuple[Config, ...], run: Callable[[Config], T]) -> Config:
    """Of which ``run`` takes the least time on the current device."""
    return min(configs, key=lambda use: triton.testing.do_bench(lambda: run(use), 10, 50))
