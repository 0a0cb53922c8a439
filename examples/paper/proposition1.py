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
from statistics import mean

import torch
from common import BLACK, BLUE, GREEN, ORANGE, RED, Case, measured, options, over_seeds, publish
from common import spread as spread_of
from geoopt import ManifoldParameter
from geoopt.optim import RiemannianAdam
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import betainc
from torch import Tensor

from lorentzkit import ops, viz
from lorentzkit.manifolds import Lorentz

# The constants K of the cones whose points are counted; 0.1 is what the papers use.
STYLES = {
    0.1: (BLACK, "o", "-"),
    0.2: (BLUE, "^", "--"),
    0.4: (ORANGE, "s", "-."),
    0.49: (RED, "D", ":"),
}
USUAL, SHOWN = 0, 1  # the places in it of the cones in the table, and of that in the disk
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
    decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / steps))
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
    concave in the angle, so that on a circle equal angles are best; concave in the square of
    sin(theta / 2), so that a regular simplex is; and its derivative by that square is completely
    monotone, for which Cohn and Kumar (2007) prove the cross-polytope best.
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
    """Of the same sets, in the worst turn about x, of which none is better than another."""
    wide = math.cos(aperture) ** 2
    if dim == 2:
        most = math.floor(n * aperture / math.pi + 1e-9) + 1
    elif n <= dim + 1:  # k of a simplex fit a cap if (n - k) / (k (n - 1)) is at least its cos^2
        most = math.floor(n / (1 + (n - 1) * wide) + 1e-9)
    elif n == 2 * dim:  # k orthogonal ones fit if 1 / k is
        most = min(dim, math.floor(1 / max(wide, 1e-9) + 1e-9))
    else:
        return None
    return n - min(n, most)


def share_outside(dim: int, aperture: float) -> float:
    """Of all directions in dim dimensions, those that make a larger angle with a given one."""
    return 1 - float(betainc((dim - 1) / 2, 0.5, math.sin(aperture) ** 2)) / 2


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
    outside = [(ops.exterior_angle(x, y, curv) > a).sum(1) for a in apertures]
    best = totals.max().item() if known is None else known
    return {
        "gap": (1 - totals / best).abs().max().item(),
        "outside": [counts.tolist() for counts in outside],
        "share": [counts.double().mean().item() / n for counts in outside],
        "predicted": [share_outside(dim, a) for a in apertures],
        "fewest": [fewest_outside(dim, n, a) for a in apertures],
        "known": known is not None,
        "example": y[outside[SHOWN].argmin()].tolist() if dim == 2 else None,
    }


def row(setting: tuple[float, ...], cases: list[Case]) -> list[str]:
    first, counts = cases[0], [count for case in cases for count in case["outside"][USUAL]]
    fewest = first["fewest"][USUAL]
    return [
        *(f"{value:g}" for value in setting),
        spread_of([case["share"][USUAL] for case in cases], 4),
        f"{first['predicted'][USUAL]:.4f}",
        str(min(counts)),
        "" if fewest is None else str(fewest),
        f"{max(case['gap'] for case in cases):.0e}" + ("" if first["known"] else " (of the best)"),
    ]


def draw_disk(axes: Axes, case: Case) -> None:
    x = torch.tensor([case["norm"], 0.0], dtype=torch.float64)
    y, k, curv = torch.tensor(case["example"], dtype=torch.float64), [*STYLES][SHOWN], case["curv"]
    out = ops.exterior_angle(x, y, curv) > ops.half_aperture(x, curv, min_radius=k)
    viz.poincare_disk(axes)
    viz.cones(x, curv, min_radius=k, ax=axes, color=GREEN)
    viz.geodesics(x, y, curv, ax=axes, color="#777777", linewidth=0.8)
    viz.points(x, curv, ax=axes, color=BLACK, s=60, marker="*", label="x")
    viz.points(y[~out], curv, ax=axes, color=GREEN, s=45, marker="o", label="inside")
    viz.points(y[out], curv, ax=axes, color=RED, s=45, marker="X", label="outside")
    viz.points(0 * x, curv, ax=axes, color="#777777", s=25, marker="+", label="origin")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.12, -0.05))
    axes.set_title(
        f"{len(y)} points farthest apart: {int(out.sum())} outside the cone of x (K = {k})"
    )


def draw_shares(axes: Axes, groups: dict[float, list[Case]], inside: bool = False) -> None:
    """Shares with the range over seeds against what is varied, and the predictions as lines."""
    for place, (k, (colour, marker, line)) in enumerate(STYLES.items()):
        # The share inside, where the figure has it on a logarithmic axis.
        shares = [[abs(inside - case["share"][place]) for case in g] for g in groups.values()]
        known = [abs(inside - group[0]["predicted"][place]) for group in groups.values()]
        middle = [mean(values) for values in shares]
        ends = [[m - min(v) for m, v in zip(middle, shares, strict=True)]]
        ends += [[max(v) - m for m, v in zip(middle, shares, strict=True)]]
        axes.plot([*groups], known, color=colour, linestyle=line, linewidth=1.2)
        style = {"color": colour, "marker": marker, "linestyle": "", "capsize": 3}
        axes.errorbar([*groups], middle, ends, markersize=5, label=f"|x|/K = {1 / k:.3g}", **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks([*groups], [f"{value:g}" for value in groups])
    axes.minorticks_off()


def draw(cases: list[Case], base: Case) -> Figure:
    def varied(name: str, **others: float) -> dict[float, list[Case]]:
        fixed = {key: base[key] for key in SETTING if key != name} | others
        chosen = [case for case in cases if all(case[key] == fixed[key] for key in fixed)]
        return {v: group for (v,), group in sorted(over_seeds(chosen, name).items())}

    figure = Figure(figsize=(12.5, 9.6), layout="constrained")
    ((disk, by_n), (by_dim, by_reach)) = figure.subplots(2, 2)
    draw_disk(disk, varied("n")[base["n"]][0])
    draw_shares(by_n, varied("n"))
    by_n.set(xlabel="number of points n", ylabel="share outside the cone, H^2")
    draw_shares(by_dim, varied("dim"), inside=True)
    by_dim.set(xlabel="dimension D", ylabel=f"share inside the cone, n = {base['n']}", yscale="log")
    by_dim.set_ylim(bottom=1e-5)
    draw_shares(by_reach, varied("reach"))
    by_reach.set(xlabel="distance r of the points from x", ylabel="share outside the cone, H^2")
    by_n.legend(frameon=False, title="lines: 1 − share of the directions")
    sets = [count for case in cases for counts in case["outside"] for count in counts]
    shares = [share for case in cases for share in case["share"]]
    figure.suptitle(
        f"{sum(count > 0 for count in sets):,} of {len(sets):,} farthest sets have a point outside "
        f"the cone; the mean share outside is {min(shares):.2f} to {max(shares):.2f}"
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    base = {"dim": 2, "n": 8, "norm": 1.0, "reach": 1.0, "curv": 1.0}
    vary = {
        "n": chosen.pick([3], [2, 3, 4, 5, 16, 32, 64], [2, 3, 4, 5, 16, 32, 64]),
        "dim": chosen.pick([4], [4, 8, 16, 64], [4, 8, 16, 64]),
        "reach": chosen.pick([], [0.1, 0.3, 3.0], [0.1, 0.3, 3.0]),
        "norm": chosen.pick([], [0.25, 0.5, 4.0], [0.25, 0.5, 4.0]),
        "curv": chosen.pick([], [0.1, 10.0], [0.1, 10.0]),
    }
    settings = [base, *(base | {name: v} for name, values in vary.items() for v in values)]
    settings += [base | {"dim": dim, "n": 16} for dim in vary["dim"]]
    size = {"starts": chosen.pick(4, 32, 64), "steps": chosen.pick(10, 250, 250)}
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
