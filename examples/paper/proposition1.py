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
USUAL, SHOWN = 0, 1  # the places of the cones in the table and in the disk
SETTING = ("dim", "n", "norm", "reach", "curv")


def at_distance(x: Tensor, u: Tensor, reach: float, curv: float) -> Tensor:
    """The points at distance `reach` from x in the directions of tangent vectors u."""
    return ops.expmap(x, reach * u / ops.tangent_norm(x, u, curv)[..., None], curv)


def total_distance(y: Tensor, curv: float) -> Tensor:
    """The sum over all pairs of each set `(..., n, D)`."""
    # Sets are small: plain PyTorch is faster than blocks.
    return ops.pairwise_dist(y, y, curv, impl="reference").sum((-2, -1)) / 2


def spread_out(x: Tensor, y: Tensor, reach: float, curv: float, steps: int) -> Tensor:
    """Sets y `(starts, n, D)` moved at distance `reach` from x until their sums are largest."""
    points = ManifoldParameter(y, manifold=Lorentz(curv))
    # A step along a geodesic at distance r turns by at most 1/sinh(r): far out it has to be long.
    rate = min(2.0, math.sinh(math.sqrt(curv) * reach) / 2) / math.sqrt(curv)
    optimizer = RiemannianAdam([points], lr=rate)
    decay = LambdaLR(optimizer, lambda step: 0.01 ** max(0.0, 2 * step / steps - 1))
    for _ in range(steps):
        optimizer.zero_grad()
        # Put back inside of the function too: its gradient then has no part that leads away from x.
        back = at_distance(x, ops.logmap(x, points, curv), reach, curv)
        total_distance(back, curv).sum().neg().backward()
        optimizer.step()
        decay.step()
        with torch.no_grad():
            back = at_distance(x, ops.logmap(x, points, curv), reach, curv)
            momentum = optimizer.state[points]["exp_avg"]  # is tangent where the step has led to
            momentum.copy_(ops.transp(points, back, momentum, curv))
            points.copy_(back)
    return points.detach()


def largest_total(dim: int, n: int, reach: float, curv: float) -> float | None:
    """The largest sum of distances, where it is known.

    The distance of two points is 2 asinh(sinh(r) sin(theta / 2)), theta the angle at x. It is
    concave in the angle, so that on a circle equal angles are best (Fejes Toth); it grows with the
    square of sin(theta / 2) and is concave in it, so that a regular simplex is; and its derivative
    by that square is completely monotone: Cohn and Kumar (2007) prove the cross-polytope best.
    """

    def distance(square: float) -> float:  # of sin(theta / 2)
        return 2 * math.asinh(math.sinh(root * reach) * math.sqrt(square)) / root

    root, pairs = math.sqrt(curv), n * (n - 1) / 2
    if n <= dim + 1:
        return pairs * distance(n / (2 * (n - 1)))
    if dim == 2:
        return n / 2 * sum(distance(math.sin(math.pi * k / n) ** 2) for k in range(1, n))
    return dim * distance(1.0) + (pairs - dim) * distance(0.5) if n == 2 * dim else None


def fewest_outside(dim: int, n: int, aperture: float) -> int | None:
    """Of such a set in the worst turn about x: no turn changes a distance.

    Where dim is above 2, of cones narrower than a half-space.
    """
    square = math.cos(aperture) ** 2
    if dim == 2:
        most = n * aperture / math.pi + 1
    elif n <= dim + 1:  # k corners of a simplex need a cap of square (n - k) / (k (n - 1))
        most = n / (1 + (n - 1) * square)
    elif n == 2 * dim:  # k corners of a cross-polytope, no two opposite, one of square 1 / k
        most = min(dim, 1 / square)
    else:
        return None
    return n - math.floor(most + 1e-9)


def share_inside(dim: int, aperture: float) -> float:
    """Of all directions in dim dimensions, those that make no larger angle with a given one."""
    return float(betainc((dim - 1) / 2, 0.5, math.sin(aperture) ** 2)) / 2


def count_outside(x: Tensor, y: Tensor, curv: float) -> list[Tensor]:
    """How many of each set are outside the cone of x, for every K."""
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
        "example": y[outside[SHOWN].argmin()].tolist() if dim == 2 else None,
    }


def row(setting: tuple[float, ...], cases: list[Case]) -> list[str]:
    known, predicted = cases[0]["fewest"][USUAL], cases[0]["predicted"][USUAL]
    gap = f"{max(case['gap'] for case in cases):.0e}"
    return [
        *(f"{value:g}" for value in setting),
        spread([case["share"][USUAL] for case in cases]),
        f"{predicted:.3f}",
        str(min(min(case["outside"][USUAL]) for case in cases)),
        "" if known is None else str(known),
        f"({gap})" if known is None else gap,
    ]


def draw_disk(axes: Axes, case: Case) -> None:
    x = torch.tensor([case["norm"], 0.0], dtype=torch.float64)
    y, k, curv = torch.tensor(case["example"], dtype=torch.float64), [*STYLES][SHOWN], case["curv"]
    out = ops.exterior_angle(x, y, curv) > ops.half_aperture(x, curv, min_radius=k)
    turn = torch.linspace(0, 2 * torch.pi, 200, dtype=torch.float64)
    circle = at_distance(x, torch.stack([turn.cos(), turn.sin()], -1), case["reach"], curv)
    viz.poincare_disk(axes)
    viz.cones(x, curv, min_radius=k, ax=axes, color=GREEN)
    axes.plot(*viz.coordinates(circle, curv).T, color="#b9bfc6", linewidth=0.8, linestyle="--")
    viz.geodesics(x, y, curv, ax=axes, color="#777777", linewidth=0.8)
    viz.points(x, curv, ax=axes, color=BLACK, s=50, marker="*", label="x")
    viz.points(y[~out], curv, ax=axes, color=GREEN, s=50, marker="o", label="inside its cone")
    viz.points(y[out], curv, ax=axes, color=RED, s=50, marker="X", label="outside")
    viz.points(0 * x, curv, ax=axes, color="#777777", s=50, marker="+", label="origin")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)
    axes.set_title(f"n = {len(y)}, |x|/K = {case['norm'] / k:g}: {int(out.sum())} outside")


def draw_shares(axes: Axes, groups: dict[float, list[Case]], inside: bool = False) -> None:
    """Shares with two standard errors over the starts, against what is varied, and predictions."""
    for place, (k, (colour, marker, line)) in enumerate(STYLES.items()):
        found = [
            torch.tensor([count for case in group for count in case["outside"][place]]).double()
            / group[0]["n"]
            for group in groups.values()
        ]
        found = [1 - share if inside else share for share in found]
        known = [abs(inside - group[0]["predicted"][place]) for group in groups.values()]
        axes.plot([*groups], known, color=colour, linestyle=line, linewidth=1.2)
        errors = [2 * share.std().item() / math.sqrt(len(share)) for share in found]
        style = {"color": colour, "marker": marker, "linestyle": "", "capsize": 3, "markersize": 5}
        shares = [share.mean().item() for share in found]
        beside = [value * 1.03 ** (place - 1.5) for value in groups]
        axes.errorbar(beside, shares, errors, label=f"|x|/K = {1 / k:.3g}", **style)
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
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    base = {"dim": 2, "n": 8, "norm": 1.0, "reach": 1.0, "curv": 1.0}
    vary = {
        "n": chosen.pick([3], [2, 3, 4, 5, 16, 32], [2, 3, 4, 5, 16, 32]),
        "dim": chosen.pick([4], [4, 8, 16, 64], [4, 8, 16, 64]),
        "reach": chosen.pick([], [0.1, 0.3, 3.0], [0.1, 0.3, 3.0]),
        "norm": chosen.pick([], [0.25, 0.5, 4.0], [0.25, 0.5, 4.0]),
        "curv": chosen.pick([], [0.1, 10.0], [0.1, 10.0]),
    }
    settings = [base, *(base | {name: v} for name, values in vary.items() for v in values)]
    settings += [base | {"dim": dim, "n": 16} for dim in vary["dim"]]
    size = {"starts": chosen.pick(4, 32, 40), "steps": chosen.pick(10, 200, 240)}
    cases = [{"seed": seed} | size | setting for setting in settings for seed in chosen.seeds]
    cases = measured("proposition1", measure, cases, chosen.out)
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
    publish("proposition1", chosen, begun, heading, rows, draw(cases, base), cases=cases)


if __name__ == "__main__":
    main()
