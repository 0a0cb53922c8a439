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
    ("frechet_mean", "value", torch.float64): (
        1e3,
        "float64 input has no wider type to iterate in: the mean is found up to the roundings of "
        "the tangent vectors at it, cosh(a) times those of its coordinates (a <= 8 here)",
    ),
    ("frechet_mean", "gradient", torch.float64): (
        1e10,
        "linearised at that mean: up to cosh(a)^2 = 2e6 times its error; where points are equal, "
        "so that the condition vanishes (curv does not matter), only the absolute error is small",
    ),
}


def tolerance(op: str, what: str, dtype: torch.dtype) -> float:
    """4 for the values of distances, angles and the like; 16 for vectors and for gradients."""
    usual = 4.0 if what == "value" and op in SCALARS else 16.0
    return EXCEPTIONS.get((op, what, dtype), (usual, ""))[0]
