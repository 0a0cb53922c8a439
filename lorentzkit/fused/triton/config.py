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


# The largest that leave all registers of a thread's pairs where they are, on every architecture.
_TABLE = {
    "matrix": Config(64, 64, 32, 4, 3),
    "log_sums": Config(64, 64, 32, 4, 3),
    "change": Config(64, 64, 32, 4, 3),
    "topk": Config(32, 128, 32, 4, 2),
    "product": Config(128, 64, 32, 4, 3),
}
_INTERPRETED = Config(16, 32, 32, 1, 1)

CHUNK = 2**26  # pairs whose derivative by h is kept at a time: 256 MB
MOST = 128  # columns of the top-k, for they stay in registers
PROGRAMS = 1024  # that fill a device


def config(kernel: str) -> Config:
    if INTERPRETED:
        return _INTERPRETED
    return _TABLE[kernel]
