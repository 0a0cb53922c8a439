"""Proposition 1 of "Accept the Modality Gap": of points at one distance from x that are as far
from each other as they can be, at least one lies outside the entailment cone of x.

The points are found by Riemannian Adam from many random starts and counted. What is known without
a computer is compared with that: the largest sum of distances, how many points of such a set a
cone can hold however the set is turned about x, and the share of all directions that it holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from common import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Case,
    measured,
    options,
    over_seeds,
    publish,
    spread,
)
from geoopt import ManifoldParameter
from geoopt.optim import RiemannianAdam
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import betainc
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from lorentzkit import ops, viz
from lorentzkit.manifolds import Lorentz

# The constants K of the cones whose points are counted, widest last; 0.1 is what the papers use.
STYLES = {
    0.1: (BLACK, "o", "-"),
    0.2: (BLUE, "^", "--"),
    0.4: (ORANGE, "s", "-."),
    0.49: (RED, "D", ":"),
}
USUAL_CONE, SHOWN_CONE = 0, 1  # indices into STYLES: the cone of the table, and of the disk
SETTING = ("dim", "n", "norm", "reach", "curv")


def at_distance(x: Tensor, u: Tensor, reach: float, curv: float) -> Tensor:
    """The points at distance `reach` from x in the directions of tangent vectors u."""
    return ops.expmap(x, reach * u / ops.tangent_norm(x, u, curv)[..., None], curv)


def total_distance(y: Tensor, curv: float) -> Tensor:
    """The sum of the distances of all pairs of each set `(..., n, D)`."""
    # Sets are small: plain PyTorch is faster than blocks.
    return ops.pairwise_dist(y, y, curv, impl="reference").sum((-2, -1)) / 2


def spread_out(x: Tensor, y: Tensor, reach: float, curv: float, steps: int) -> Tensor:
    """Sets y `(starts, n, D)` moved at distance `reach` from x until their sums are largest."""
    points = ManifoldParameter(y, manifold=Lorentz(curv))
    # A step along a geodesic at distance r turns by at most 1/sinh(r): far out it has to be long.
    lr = min(2.0, math.sinh(math.sqrt(curv) * reach) / 2) / math.sqrt(curv)
    optimizer = RiemannianAdam([points], lr=lr)
    scheduler = LambdaLR(optimizer, lambda step: 0.01 ** max(0.0, 2 * step / steps - 1))
    for _ in range(steps):
        optimizer.zero_grad()
        # Projecting inside the function too removes the gradient's part that leads away from x.
        projected = at_distance(x, ops.logmap(x, points, curv), reach, curv)
        total_distance(projected, curv).sum().neg().backward()
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            projected = at_distance(x, ops.logmap(x, points, curv), reach, curv)
            momentum = optimizer.state[points]["exp_avg"]  # is tangent where the step has led to
            momentum.copy_(ops.transp(points, projected, momentum, curv))
            points.copy_(projected)
    return points.detach()


def largest_total(dim: int, n: int, reach: float, curv: float) -> float | None:
    """The largest sum of distances, where it is known.

    The distance of two points is 2 asinh(sinh(r) sin(theta / 2)), theta the angle at x. It is
    concave in the angle, so that on a circle equal angles are best (Fejes Toth); it grows with the
    square of sin(theta / 2) and is concave in it, so that a regular simplex is; and its derivative
    by that square is completely monotone: Cohn and Kumar (2007) prove the cross-polytope best.
    """

    def distance(squared_sine: float) -> float:  # of theta / 2
        return 2 * math.asinh(math.sinh(root * reach) * math.sqrt(squared_sine)) / root

    root, pairs = math.sqrt(curv), n * (n - 1) / 2
    if n <= dim + 1:
        return pairs * distance(n / (2 * (n - 1)))
    if dim == 2:
        return n / 2 * sum(distance(math.sin(math.pi * k / n) ** 2) for k in range(1, n))
    return dim * distance(1.0) + (pairs - dim) * distance(0.5) if n == 2 * dim else None


def fewest_outside(dim: int, n: int, aperture: float) -> int | None:
    """The fewest points outside the cone, of all rotations of the set about x.

    Rotations change no distance. Where dim is above 2, the cone has to be narrower than a
    half-space.
    """
    squared_cosine = math.cos(aperture) ** 2
    if dim == 2:
        most_inside = n * aperture / math.pi + 1
    elif n <= dim + 1:  # k corners of a simplex fit if cos^2 <= (n - k) / (k (n - 1))
        most_inside = n / (1 + (n - 1) * squared_cosine)
    elif n == 2 * dim:  # k corners of a cross-polytope, no two opposite, fit if cos^2 <= 1 / k
        most_inside = min(dim, 1 / squared_cosine)
    else:
        return None
    return n - math.floor(most_inside + 1e-9)


def share_inside(dim: int, aperture: float) -> float:
    """The share of all directions in dim dimensions that lie within an angle of a given one."""
    return float(betainc((dim - 1) / 2, 0.5, math.sin(aperture) ** 2)) / 2


def count_outside(x: Tensor, y: Tensor, curv: float) -> list[Tensor]:
    """How many points of each set are outside the cone of x, for every K."""
    angles = ops.exterior_angle(x, y, curv)
    return [(angles > ops.half_aperture(x, curv, min_radius=k)).sum(-1) for k in STYLES]


def measure(
    seed: int, starts: int, steps: int, dim: int, n: int, norm: float, reach: float, curv: float
) -> Case:
    """Sets of n points in `dim` dimensions at distance `reach` from an x of this norm."""
    generator = torch.Generator().manual_seed(hash((seed, dim, n, norm, reach, curv)))
    x = torch.zeros(dim, dtype=torch.float64)
    x[0] = norm
    directions = torch.randn(starts, n, dim, generator=generator, dtype=torch.float64)
    y = at_distance(x, ops.transp0(x, directions, curv), reach, curv)
    y = spread_out(x, y, reach, curv, steps)
    totals = total_distance(y, curv)
    known = largest_total(dim, n, reach, curv)
    apertures = [ops.half_aperture(x, curv, min_radius=k).item() for k in STYLES]
    outside = count_outside(x, y, curv)
    best = totals.max().item() if known is None else known
    return {
        "gap": (1 - totals / best).abs().max().item(),
        "outside": [counts.tolist() for counts in outside],
        "share": [counts.double().mean().item() / n for counts in outside],
        "predicted": [1 - share_inside(dim, a) for a in apertures],
        "fewest": [fewest_outside(dim, n, a) for a in apertures],
        "example": y[outside[SHOWN_CONE].argmin()].tolist() if dim == 2 else None,
    }


def row(setting: tuple[float, ...], cases: list[Case]) -> list[str]:
    fewest, predicted = cases[0]["fewest"][USUAL_CONE], cases[0]["predicted"][USUAL_CONE]
    gap = f"{max(case['gap'] for case in cases):.0e}"
    return [
        *(f"{value:g}" for value in setting),
        spread([case["share"][USUAL_CONE] for case in cases]),
        f"{predicted:.3f}",
        str(min(min(case["outside"][USUAL_CONE]) for case in cases)),
        "" if fewest is None else str(fewest),
        f"({gap})" if fewest is None else gap,
    ]


def draw_disk(axes: Axes, case: Case) -> None:
    x = torch.tensor([case["norm"], 0.0], dtype=torch.float64)
    y = torch.tensor(case["example"], dtype=torch.float64)
    k, curv = [*STYLES][SHOWN_CONE], case["curv"]
    outside = ops.exterior_angle(x, y, curv) > ops.half_aperture(x, curv, min_radius=k)
    angles = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = at_distance(x, torch.stack([angles.cos(), angles.sin()], -1), case["reach"], curv)
    viz.poincare_disk(axes)
    viz.cones(x, curv, min_radius=k, ax=axes, color=GREEN)
    axes.plot(*viz.coordinates(circle, curv).T, color="#b9bfc6", linewidth=0.8, linestyle="--")
    viz.geodesics(x, y, curv, ax=axes, color="#777777", linewidth=0.8)
    viz.points(x, curv, ax=axes, color=BLACK, s=50, marker="*", label="x")
    viz.points(y[~outside], curv, ax=axes, color=GREEN, s=50, marker="o", label="inside its cone")
    viz.points(y[outside], curv, ax=axes, color=RED, s=50, marker="X", label="outside")
    viz.points(0 * x, curv, ax=axes, color="#777777", s=50, marker="+", label="origin")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    axes.set_title(f"n = {len(y)}, |x|/K = {case['norm'] / k:g}: {int(outside.sum())} outside")


def draw_shares(axes: Axes, groups: dict[float, list[Case]], inside: bool = False) -> None:
    """Shares, with two standard errors over the starts, and predictions, by the varied value."""
    for index, (k, (colour, marker, line)) in enumerate(STYLES.items()):
        set_shares = [
            torch.tensor([count for case in group for count in case["outside"][index]]).double()
            / group[0]["n"]
            for group in groups.values()
        ]
        set_shares = [1 - share if inside else share for share in set_shares]
        predicted = [abs(inside - group[0]["predicted"][index]) for group in groups.values()]
        axes.plot([*groups], predicted, color=colour, linestyle=line, linewidth=1.2)
        errors = [2 * share.std().item() / math.sqrt(len(share)) for share in set_shares]
        style = {"color": colour, "marker": marker, "linestyle": "", "capsize": 3, "markersize": 5}
        means = [share.mean().item() for share in set_shares]
        offset_values = [value * 1.03 ** (index - 1.5) for value in groups]
        axes.errorbar(offset_values, means, errors, label=f"|x|/K = {1 / k:.3g}", **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*groups], [f"{value:g}" for value in groups])
    axes.minorticks_off()


def draw(cases: list[Case], base: Case) -> Figure:
    def varied(name: str) -> dict[float, list[Case]]:
        same = [case for case in cases if all(case[k] == base[k] for k in SETTING if k != name)]
        return {value: group for (value,), group in sorted(over_seeds(same, name).items())}

    figure = Figure(figsize=(15.5, 5.2), layout="constrained")
    disk, by_n, by_dim = figure.subplots(1, 3)
    draw_disk(disk, varied("n")[base["n"]][0])
    draw_shares(by_n, varied("n"))
    by_n.set(xlabel="number of points n", ylabel=f"share outside the cone, D = {base['dim']}")
    draw_shares(by_dim, varied("dim"), inside=True)
    by_dim.set(xlabel="dimension D", ylabel=f"share inside the cone, n = {base['n']}")
    by_dim.set(yscale="log", ylim=(1e-4, None))
    by_dim.legend(frameon=False, loc="lower right", title="lines: share of\nall directions")
    by_n.set_title("bars: two standard errors over the starts")
    sets = [count for case in cases for count in case["outside"][-1]]
    shares = [share for case in cases for share in case["share"]]
    figure.suptitle(
        f"{sum(count > 0 for count in sets)} of {len(sets)} sets of points farthest apart have one "
        "outside even the widest cone;\n"
        f"the mean share outside a cone is {min(shares):.2f} to {max(shares):.2f}"
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    base = {"dim": 2, "n": 8, "norm": 1.0, "reach": 1.0, "curv": 1.0}
    variations = {
        "n": args.pick([3], [2, 3, 4, 5, 16, 32], [2, 3, 4, 5, 16, 32]),
        "dim": args.pick([4], [4, 8, 16, 64], [4, 8, 16, 64]),
        "reach": args.pick([], [0.1, 0.3, 3.0], [0.1, 0.3, 3.0]),
        "norm": args.pick([], [0.25, 0.5, 4.0], [0.25, 0.5, 4.0]),
        "curv": args.pick([], [0.1, 10.0], [0.1, 10.0]),
    }
    settings = [base, *(base | {name: v} for name, values in variations.items() for v in values)]
    settings += [base | {"dim": dim, "n": 16} for dim in variations["dim"]]
    size = {"starts": args.pick(4, 32, 40), "steps": args.pick(10, 200, 240)}
    cases = [{"seed": seed} | size | setting for setting in settings for seed in args.seeds]
    cases = measured("proposition1", measure, cases, args.out)
    rows = [row(setting, group) for setting, group in over_seeds(cases, *SETTING).items()]
    heading = [
        "D",
        "n",
        "|x|",
        "r",
        "curv",
        "outside",
        "predicted",
        "fewest",
        "of all turns",
        "gap",
    ]
    publish("proposition1", args, started, heading, rows, draw(cases, base), cases=cases)


if __name__ == "__main__":
    main()
