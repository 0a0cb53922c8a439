"""Sizes of the tiles, in which a program holds all pairs of some rows and columns."""

from __future__ import annotations

from typing import NamedTuple

import triton

INTERPRETED: bool = triton.knobs.runtime.interpret


class Config(NamedTuple):
    rows: int
    columns: int
    depth: int
    """How many dimensions a step of the product takes."""
    warps: int
    stages: int


# What `tuning` chooses from; the first where nothing can be timed. That is the largest of which all
# numbers stay in registers, on sm_80, sm_90 and sm_100 (docs/kernels.md); the others' do, too.
CONFIGS = {
    "matrix": (Config(64, 128, 32, 8, 3), Config(64, 64, 32, 4, 3)),
    "log_sums": (Config(64, 128, 32, 8, 3), Config(64, 64, 32, 4, 3)),
    "change": (Config(64, 64, 32, 8, 3), Config(64, 32, 32, 4, 3)),
    "topk": (Config(32, 64, 32, 8, 2),),  # for k <= 32
    "topk, many": (Config(16, 128, 32, 8, 2),),
    "product": (Config(128, 128, 32, 8, 3),),
}

CHUNK = 2**26  # pairs whose derivative by h is kept at a time: 256 MB
PROGRAMS = 1024  # that fill a device
