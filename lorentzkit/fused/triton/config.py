"""Sizes of the tiles, in which a program holds all pairs of some rows and columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

INTERPRETED: bool = triton.knobs.runtime.interpret


class Config(NamedTuple):
    rows: int
    columns: int
    depth: int
    """How many dimensions a step of the product takes."""
    warps: int
    stages: int


# By compute capability: those of the table in docs/kernels.md, of which all numbers stay in
# registers. `benchmarks/gpu` times others. "few": of `FEW_DIMENSIONS`, which are summed without a
# product, in other registers.
CONFIGS = {
    80: {
        "matrix": Config(64, 128, 32, 8, 3),
        "matrix, few": Config(64, 64, 32, 8, 3),
        "log_sums": Config(64, 32, 32, 4, 3),
        "log_sums, few": Config(64, 32, 32, 8, 3),
        "vjp": Config(64, 32, 32, 4, 3),
        "topk": Config(32, 64, 32, 8, 2),  # for k <= 32
        "topk, many": Config(16, 128, 32, 8, 2),
        "product": Config(64, 128, 32, 8, 3),
    },
    90: {
        "matrix": Config(128, 64, 32, 8, 3),
        "matrix, few": Config(64, 64, 32, 8, 3),
        "log_sums": Config(128, 64, 32, 8, 3),
        "log_sums, few": Config(64, 64, 32, 8, 3),
        "vjp": Config(128, 32, 32, 8, 3),
        "topk": Config(64, 32, 32, 8, 2),  # of 64 columns it spills, of 32 rows there is no wgmma
        "topk, many": Config(16, 128, 32, 8, 2),
        "product": Config(128, 128, 64, 8, 3),
    },
}
# Products of 64 rows and more are taken by these tensor cores' own instructions. Log-sum-exps of
# 128 x 64 spill.
CONFIGS[100] = CONFIGS[90] | {
    "matrix": Config(128, 64, 64, 8, 3),
    "log_sums": Config(128, 32, 64, 8, 3),
    "log_sums, few": Config(64, 32, 32, 8, 3),
    "vjp": Config(64, 32, 32, 8, 3),  # of 64 x 64 or 128 rows, that of matrices spills
    "vjp, few": Config(32, 32, 32, 8, 3),
}

WIDTH = 64  # a multiple of each depth: rows of directions are filled up to multiples of it
FEW_WIDTH = 16  # those of few dimensions, of which no kernel takes a product
CHUNK = 2**25  # pairs whose derivative by h is kept at a time: 128 MB


def config(kernel: str, parts: int = 1) -> Config:
    """Of the current device; interpreted, of the newest. ``parts`` as in `prepare.Operands`."""
    capability = max(CONFIGS)
    if not INTERPRETED:
        capability = triton.runtime.driver.active.get_current_target().arch
    configs = CONFIGS[max(known for known in CONFIGS if known <= max(80, capability))]
    return configs[kernel] if parts else configs.get(f"{kernel}, few", configs[kernel])


def programs(device: torch.device) -> int:
    """That fill a device."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
