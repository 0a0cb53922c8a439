"""One table: how large each op's condition-scaled error may be (`condition.py` defines it)."""

from __future__ import annotations

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

# (op, "value" or "gradient") -> (the tolerance, and why it is not the one below)
EXCEPTIONS: dict[tuple[str, str], tuple[float, str]] = {}


def tolerance(op: str, what: str) -> float:
    """4 for the values of distances, angles and the like; 16 for vectors and for gradients."""
    usual = 4.0 if what == "value" and op in SCALARS else 16.0
    return EXCEPTIONS.get((op, what), (usual, ""))[0]
