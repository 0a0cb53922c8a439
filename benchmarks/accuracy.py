"""Measured errors in float32: lorentzkit against the formulas of MERU and the code of geoopt.

    python benchmarks/accuracy.py                    # prints the table
    python benchmarks/accuracy.py --write README.md  # and puts it between the file's markers

Each row is a radius (`sqrt(curv) * distance to the origin`) and the angle between the two points as
seen from the origin. Its figures are medians over seeded random pairs in 64 dimensions, with
curvatures from 0.1 to 10. The error is relative to the exact value, which is computed in 150 digits
from the same float32 inputs. Rounding the result to float32 costs up to 6e-8. The last column is
the error that rounding the inputs to float32 causes: a smaller error than this is more exact than
the points themselves.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from mpmath import mp, mpf
from report.markers import write
from rivals import geoopt_dist
from torch import Tensor
from usual_formulas import meru_angle, meru_dist

from lorentzkit import ops

DIMENSIONS = 64
ROWS = [(1.0, 1.0), (1.0, 1e-2), (1.0, 1e-4), (1e-3, 1.0), (8.0, 1e-4), (11.0, 1e-4)]
LARGEST_RADIUS = 39.0  # of a second point: beyond, sinh squared nears the end of float32
MARKERS = "<!-- accuracy:begin -->", "<!-- accuracy:end -->"

# --- Exact values, in 150 digits --------------------------------------------------------------


def exact_dist(x: Tensor, y: Tensor, c: float) -> mpf:
    return mp.acosh(-c * _exact_inner(*_exact(x, y), mpf(c))) / mp.sqrt(c)


def exact_angle(x: Tensor, y: Tensor, c: float) -> mpf:
    """pi minus the angle at x, from the hyperbolic law of cosines in the triangle origin, x, y."""
    u, v = _exact(x, y)
    cosh_a, cosh_b = (mp.sqrt(1 + c * mp.fdot(w, w)) for w in (u, v))
    cosh_d = -c * _exact_inner(u, v, mpf(c))
    sinh_a, sinh_d = mp.sqrt(cosh_a**2 - 1), mp.sqrt(cosh_d**2 - 1)
    return mp.pi - mp.acos((cosh_a * cosh_d - cosh_b) / (sinh_a * sinh_d))


def _exact(*vectors: Tensor) -> Iterator[list[mpf]]:
    return ([mpf(entry) for entry in vector.tolist()] for vector in vectors)


def _exact_inner(u: list[mpf], v: list[mpf], c: mpf) -> mpf:
    time_product = mp.sqrt(1 / c + mp.fdot(u, u)) * mp.sqrt(1 / c + mp.fdot(v, v))
    return mp.fdot(u, v) - time_product


# --- Measurements -----------------------------------------------------------------------------


def pair(seed: int, radius: float, angle: float) -> tuple[Tensor, Tensor, float]:
    """Two random points at this radius and angle, and a curvature that float32 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    u, w = torch.randn(2, DIMENSIONS, generator=generator, dtype=torch.float64)
    u = u / u.norm()
    w = w - u * (u @ w)
    v = math.cos(angle) * u + math.sin(angle) * w / w.norm()
    c = torch.tensor(10 ** torch.rand(1, generator=generator).mul(2).sub(1).item()).item()
    # The second point lies a little farther out, so that the angle at the first is generic.
    second_radius = min(radius * (1 + angle), max(radius, LARGEST_RADIUS))
    norms = (math.sinh(a) / math.sqrt(c) for a in (radius, second_radius))
    x, y = (norm * w for norm, w in zip(norms, (u, v), strict=True))
    return x.float(), y.float(), c


def relative_errors(
    function: Callable[..., Tensor], exact: Callable[..., mpf], row: tuple[float, float], cases: int
) -> list[float]:
    """The errors of `cases` random pairs; infinite where the result is not finite."""
    errors = []
    for seed in range(cases):
        x, y, c = pair(seed, *row)
        errors.append(relative_error(function(x, y, c).item(), exact(x, y, c)))
    return errors


def relative_error(value: float, expected: mpf) -> float:
    return float(abs(mpf(value) - expected) / expected) if math.isfinite(value) else math.inf


def rounding_errors(exact: Callable[..., mpf], row: tuple[float, float], cases: int) -> list[float]:
    """The relative changes of the exact result when the points are rounded once more, at random."""
    errors = []
    for seed in range(cases):
        x, y, c = pair(seed, *row)
        generator = torch.Generator().manual_seed(-1 - seed)
        signs = torch.randint(0, 2, (2, DIMENSIONS), generator=generator).double() * 2 - 1
        u, v = (p.double() * (1 + 2.0**-25 * s) for p, s in zip((x, y), signs, strict=True))
        expected = exact(x, y, c)
        errors.append(float(abs(exact(u, v, c) - expected) / expected))
    return errors


def median_of(errors: list[float]) -> str:
    """The median error as text, and how many of the results are not finite."""
    not_finite = sum(math.isinf(e) for e in errors)
    median_error = median(errors)
    if math.isinf(median_error):
        return "not finite"
    if median_error > 0.1:
        text = f"{100 * median_error:.0f} %"
    else:
        text = f"{median_error:.0e}".replace("e-0", "e-")
    return text + (f" ({not_finite} of {len(errors)} not finite)" if not_finite else "")


def at_equal_points(radius: float, cases: int) -> Iterator[list[str]]:
    """Table rows for the distance and angle of x and x, exactly 0, and their NaN gradients."""
    for name, functions in (
        ("distance", [meru_dist, geoopt_dist, ops.dist]),
        ("exterior angle", [meru_angle, None, ops.exterior_angle]),
    ):
        cells = [_at_equal_points(f, radius, cases) if f else "" for f in functions]
        yield [f"{name} of x and x, radius {radius:g}: values; NaN gradients", *cells, ""]


def _at_equal_points(function: Callable[..., Tensor], radius: float, cases: int) -> str:
    values, nan_gradients = [], 0
    for seed in range(cases):
        x, _, c = pair(seed, radius, 1.0)
        leaf = x.clone().requires_grad_()
        value = function(leaf, x, c)
        value.backward()
        values.append(value.item())
        nan_gradients += not leaf.grad.isfinite().all()
    numbers = [v for v in values if not math.isnan(v)]
    value_range = "0" if not any(numbers) else f"{min(numbers):.2g} to {max(numbers):.2g}"
    return f"{value_range}; {100 * nan_gradients / cases:.0f} %"


def table(cases: int) -> str:
    header = [
        "float32, 64 dimensions",
        "MERU's formula",
        "geoopt 0.5.1",
        "lorentzkit",
        "inputs' rounding",
    ]
    rows = [header, ["---"] * len(header)]
    for name, exact, functions in (
        ("distance", exact_dist, [meru_dist, geoopt_dist, ops.dist]),
        ("exterior angle", exact_angle, [meru_angle, None, ops.exterior_angle]),
    ):
        for row in ROWS:
            cells = [
                median_of(relative_errors(f, exact, row, cases)) if f else "" for f in functions
            ]
            label = f"{name}, radius {row[0]:g}, angle {row[1]:g}"
            rows.append([label, *cells, median_of(rounding_errors(exact, row, cases))])
    rows += [row for radius in (1.0, 8.0) for row in at_equal_points(radius, cases)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=50, help="random pairs per row")
    parser.add_argument("--write", type=Path, metavar="FILE", help="file with the markers")
    args = parser.parse_args()
    mp.dps = 150
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # geoopt scripts with torch.jit
    text = table(args.cases)
    print(text)
    if args.write:
        write(args.write, text, MARKERS)


if __name__ == "__main__":
    main()
