"""One table: how large each op's condition-scaled error may be (`condition.py` defines it)."""

from __future__ import annotations

import torch

SCALARS = {
    "time",
    "inner",
    "tangent_inner",
    "tangent_norm",
    "dist",
    "dist0",
    "exterior_angle",
    "interior_angle",
    "half_aperture",
    "entailment_residual",
}

# (op, "value" or "gradient", dtype) -> (the tolerance, and why it is not the one below)
EXCEPTIONS: dict[tuple[str, str, torch.dtype], tuple[float, str]] = {
    ("frechet_mean", "gradient", torch.float64): (
        600.0,
        "Along a line through points at distances s, the mean moves as 1/s of their pulls do: the "
        "equations for its derivatives have a condition number of s coth(s), up to 600, that the "
        "mean itself has not, and float64 input has no wider type to solve them in. Within radius "
        "8, where that number is 16, the usual bound holds (test_exactness.py).",
    ),
}


def tolerance(op: str, what: str, dtype: torch.dtype) -> float:
    """4 for the values of distances, angles and the like; 16 for vectors and for gradients."""
    usual = 4.0 if what == "value" and op in SCALARS else 16.0
    return EXCEPTIONS.get((op, what, dtype), (usual, ""))[0]
