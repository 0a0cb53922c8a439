"""Proposition 2 of "Accept the Modality Gap": the nearer to x the points in its entailment cone
have to be, d_max at most, the less area there is for them, exponentially less.

The area in the hyperbolic plane is found three times: in closed form; by Green's theorem, from
the boundary as seen from the origin; and by samples. How fast it shrinks is then read off, also
in more dimensions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import NormalDist, mean

import numpy as np
import torch
from common import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    Case,
    measured,
    options,
    over_seeds,
    publish,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from proposition1 import share_inside
from torch import Tensor

from lorentzkit import ops

STYLES = ((BLUE, "o"), (ORANGE, "^"), (BLACK, "s"), (GREEN, "D"), (RED, "v"))
POWER, EXPONENTIAL = (0.0, 0.1), (3.0, 10.0)  # where each law is fitted, in sqrt(curv) d_max
DRAWN_NORM = 1.0  # the norm of x in the figure's first part


def legendre(panels: int, nodes_per_panel: int = 20) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on each of equal parts of [0, 1]."""
    nodes, weights = (
        torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(nodes_per_panel)
    )
    nodes = (torch.arange(panels)[:, None] + (nodes + 1) / 2).flatten() / panels
    return nodes, (weights / (2 * panels)).repeat(panels)


def path_integral(
    path: Callable[[Tensor], Tensor], curv: float, panels: int
) -> tuple[Tensor, Tensor]:
    """The integral of (cosh(sqrt(curv) rho) - 1)/curv dtheta along a path, and its length."""
    t, weights = legendre(panels)
    p = path(t.requires_grad_())
    components = [
        torch.autograd.grad(coordinate.sum(), t, retain_graph=True)[0] for coordinate in p.T
    ]
    velocity = torch.stack(components, -1)  # exact: a point depends on no t but its own
    # dtheta is this over |p|^2. The other factor, where cosh - 1 would lose digits, is |p|^2 over
    # 1 + cosh.
    cross_product = p[:, 0] * velocity[:, 1] - p[:, 1] * velocity[:, 0]
    area = cross_product / (1 + (1 + curv * p.square().sum(-1)).sqrt())
    return (weights * area).sum(), (weights * ops.tangent_norm(p, velocity, curv)).sum()


def from_apex(x: Tensor, distance: Tensor, angle: Tensor, curv: float) -> Tensor:
    """The points at a distance from x, on the first axis, and at an angle to the outward ray."""
    u = distance[:, None] * torch.stack([angle.cos(), angle.sin()], -1)
    return ops.expmap(x, ops.transp0(x, u, curv), curv)


def by_quadrature(x: Tensor, reach: float, curv: float) -> tuple[float, float]:
    """The area of the part of x's cone within `reach`, and the length of the arc that ends it.

    Green's theorem in polar coordinates around the origin, not around x: out along one side of the
    cone, along the arc, and back along the other side.
    """

    aperture = ops.half_aperture(x, curv)
    panels = math.ceil(math.sqrt(curv) * reach)

    def side_integral(angle: Tensor) -> Tensor:
        def side_at(t: Tensor) -> Tensor:
            return from_apex(x, reach * t, angle + 0 * t, curv)

        return path_integral(side_at, curv, panels)[0]

    def arc_at(t: Tensor) -> Tensor:
        return from_apex(x, reach + 0 * t, (2 * t - 1) * aperture, curv)

    arc_integral, arc_length = path_integral(arc_at, curv, 4)
    area = side_integral(-aperture) + arc_integral - side_integral(aperture)
    return area.item(), arc_length.item()


def by_samples(
    x: Tensor, reach: float, curv: float, samples: int, generator: torch.Generator
) -> tuple[int, float]:
    """How many of points drawn evenly from a part of the plane are in the cone within `reach`.

    The part, whose area is the second result, is bounded by two circles and two rays around the
    origin. So the area within a radius of x is not used here.
    """
    aperture, root = ops.half_aperture(x, curv), math.sqrt(curv)
    side = from_apex(x, torch.full((1,), reach, dtype=x.dtype), aperture, curv)[0]
    largest_angle = torch.atan2(side[1], side[0]).item()
    # q = sinh^2(sqrt(curv) rho / 2): the area within rho of the origin is 4 pi q / curv.
    nearest = root * ops.dist0(x, curv).item()
    low, high = (math.sinh(rho / 2) ** 2 for rho in (nearest, nearest + root * reach))
    uniform = torch.rand(2, samples, generator=generator, dtype=x.dtype)
    q, theta = low + (high - low) * uniform[0], largest_angle * (2 * uniform[1] - 1)
    radius = 2 * (q * (1 + q)).sqrt() / root
    y = radius[:, None] * torch.stack([theta.cos(), theta.sin()], -1)
    hits = (ops.exterior_angle(x, y, curv) <= aperture) & (ops.dist(x, y, curv) <= reach)
    return int(hits.sum()), 4 * largest_angle * (high - low) / curv


def measure(seed: int, points: int, samples: int, curv: float, norm: float) -> Case:
    """Areas for d_max from 0.01 to 10, and further where the fits need it."""
    generator = torch.Generator().manual_seed(hash((seed, curv, norm)))
    x, root = torch.tensor([norm, 0.0], dtype=torch.float64), math.sqrt(curv)
    aperture = ops.half_aperture(x, curv).item()
    reaches = np.geomspace(min(0.01, 0.01 / root), max(10, 12 / root), points)
    closed = 4 * aperture * np.sinh(root * reaches / 2) ** 2 / curv
    areas, lengths = np.array([by_quadrature(x, r, curv) for r in reaches]).T
    sampled = np.arange(0, points, 4)  # sampling takes longest
    sample_results = [by_samples(x, reaches[i], curv, samples, generator) for i in sampled]
    hits, whole_areas = np.array(sample_results).T
    share = closed[sampled] / whole_areas
    error = np.sqrt(share * (1 - share) / samples)
    return {
        "reaches": reaches.tolist(),
        "closed": closed.tolist(),
        "quadrature": areas.tolist(),
        "rates": (lengths / areas).tolist(),
        "difference": np.abs(areas / closed - 1).max(),
        "sampled": sampled.tolist(),
        "samples_area": (hits / samples * whole_areas).tolist(),
        "samples_error": (error * whole_areas).tolist(),
        "z": ((hits / samples - share) / error).tolist(),
        "power": slope(np.log(reaches), np.log(areas), root * reaches, POWER),
        "exponent": slope(root * reaches, np.log(areas), root * reaches, EXPONENTIAL),
    }


def volumes(dim: int, norm: float, points: int) -> Case:
    """In `dim` dimensions and curvature -1: the cone's share of all directions, times the ball."""
    reaches = np.geomspace(0.01, 12, points)
    t, weights = legendre(100)
    radii = torch.from_numpy(reaches)[:, None] * t
    # In logarithms: sinh^63 of a small radius is no float64.
    ball = (weights.log() + (dim - 1) * radii.sinh().log()).logsumexp(1).numpy() + np.log(reaches)
    sphere = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    x = torch.tensor([norm], dtype=torch.float64)
    cone = math.log(share_inside(dim, ops.half_aperture(x).item()))
    return {
        "dim": dim,
        "reaches": reaches.tolist(),
        "log_volume": (ball + sphere + cone).tolist(),
        "rates": np.exp((dim - 1) * np.log(np.sinh(reaches)) - ball).tolist(),
        "power": slope(np.log(reaches), ball, reaches, POWER),
        "exponent": slope(reaches, ball, reaches, EXPONENTIAL),
    }


def slope(x: NDArray, y: NDArray, scale: NDArray, bounds: tuple[float, float]) -> float:
    selected = (scale >= bounds[0]) & (scale <= bounds[1])
    return float(np.polyfit(x[selected], y[selected], 1)[0])


def worst_expected(tests: int) -> float:
    """The median of the largest of `tests` many |z|."""
    return NormalDist().inv_cdf((1 + 0.5 ** (1 / tests)) / 2)


def rows_of(cases: list[Case], volume_cases: list[Case]) -> list[list[str]]:
    """One row for each curvature, and one for each dimension."""
    rows = []
    for (curv,), group in over_seeds(cases, "curv").items():
        scores = [abs(z) for case in group for z in case["z"]]
        rows.append(
            ["2", f"{curv:g}"]
            + [f"{mean(case[name] for case in group):.3f}" for name in ("exponent", "power")]
            + [f"{min(min(case['rates']) for case in group) / math.sqrt(curv):.4f}"]
            + [f"{max(case['difference'] for case in group):.0e}"]
            + [f"{max(scores):.2f} of {len(scores)}", f"{worst_expected(len(scores)):.2f}"]
        )
    for case in volume_cases[1:]:  # the plane is above
        least_rate = min(case["rates"]) / (case["dim"] - 1)
        exponent = case["exponent"] / (case["dim"] - 1)
        rows.append([f"{case['dim']}", "1", f"{exponent:.3f}", f"{case['power']:.3f}"])
        rows[-1] += [f"{least_rate:.4f}", "", "", ""]
    return rows


def draw_areas(axes: Axes, cases: list[Case]) -> None:
    for (colour, marker), case in zip(STYLES, cases, strict=False):
        reaches, sampled = np.array(case["reaches"]), case["sampled"]
        label = f"curvature {case['curv']:g}"
        axes.plot(reaches, case["closed"], color=colour, linewidth=1, label=label)
        style = {"color": colour, "linestyle": "", "markersize": 5}
        axes.plot(reaches, case["quadrature"], marker=marker, markerfacecolor="none", **style)
        bars = (reaches[sampled], case["samples_area"], 2 * np.array(case["samples_error"]))
        axes.errorbar(*bars, marker="x", capsize=3, **style)
    axes.plot([], [], color="#777777", label="line: closed form")
    axes.plot([], [], "o", color="#777777", markerfacecolor="none", label="open: quadrature")
    axes.errorbar([], [], [], fmt="x", color="#777777", capsize=3, label="x: samples, 2 s.e.")
    axes.set(yscale="log", xlim=(-0.2, 10.2), ylim=(1e-6, 1e12))
    axes.set(xlabel="d_max", ylabel=f"area in the cone within d_max, D = 2, |x| = {DRAWN_NORM:g}")
    axes.legend(frameon=False, fontsize="small", loc="lower right", ncols=2)


def draw_rates(axes: Axes, curves: dict[str, tuple[float, Case]], dims: Sequence[int]) -> None:
    """d log(area) / d d_max in units of sqrt(curv), and its value for exponentials and powers."""
    for (colour, marker), (label, (root, case)) in zip(STYLES, curves.items(), strict=False):
        scale, rates = root * np.array(case["reaches"]), np.array(case["rates"]) / root
        style = {"color": colour, "linestyle": "", "markersize": 5, "markerfacecolor": "none"}
        axes.plot(scale, rates, marker=marker, label=label, **style)
    s = np.geomspace(0.01, 20, 50)
    for dim in dims:
        axes.plot(s, 0 * s + dim - 1, color="#777777", linewidth=0.8, linestyle="--")
        axes.plot(s[s < 3], dim / s[s < 3], color="#777777", linewidth=0.8, linestyle=":")
    axes.axvspan(0.008, POWER[1], color=PINK, alpha=0.12, linewidth=0)
    axes.axvspan(*EXPONENTIAL, color=BLUE, alpha=0.12, linewidth=0)
    axes.set(xscale="log", yscale="log", xlim=(0.008, 25), xlabel="sqrt(curv) d_max")
    axes.set_ylabel("d log(volume) / d d_max, over sqrt(curv)")
    axes.plot([], [], color="#777777", linestyle="--", label="exponential: D - 1")
    axes.plot([], [], color="#777777", linestyle=":", label="power: D / (sqrt(curv) d_max)")
    axes.legend(frameon=False, fontsize="small", title="shaded: where fitted")


def draw(cases: list[Case], volume_cases: list[Case]) -> Figure:
    figure = Figure(figsize=(16, 5.4), layout="constrained")
    areas, rates, high_dims = figure.subplots(1, 3)
    shown = [case for case in cases if case["norm"] == DRAWN_NORM and case["seed"] == 0]
    draw_areas(areas, shown)
    planar = {f"curvature {c['curv']:g}": (math.sqrt(c["curv"]), c) for c in shown}
    draw_rates(rates, planar, [2])
    rates.set_title("D = 2")
    dims = [case["dim"] for case in volume_cases]
    draw_rates(high_dims, {f"D = {case['dim']}": (1.0, case) for case in volume_cases}, dims)
    high_dims.set_title("curvature 1")
    least_rate = min(min(case["rates"]) / math.sqrt(case["curv"]) for case in cases)
    powers, exponents = ([case[name] for case in cases] for name in ("power", "exponent"))
    figure.suptitle(
        f"The area grows as exp({mean(exponents):.2f} sqrt(curv) d_max) where sqrt(curv) d_max is "
        f"{EXPONENTIAL[0]:g} to {EXPONENTIAL[1]:g}, as d_max^{mean(powers):.2f} where it is below "
        f"{POWER[1]:g};\nits least relative rate anywhere is {least_rate:.3f} sqrt(curv)"
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    curvs = args.pick([1.0, 10.0], [0.01, 0.1, 1.0, 10.0, 100.0], [0.01, 0.1, 1.0, 10.0, 100.0])
    norms = args.pick([1.0], [0.3, 1.0, 3.0, 10.0], [0.3, 1.0, 3.0, 10.0])
    size = {"points": args.pick(20, 40, 40), "samples": args.pick(1000, 100_000, 100_000)}
    cases = [
        {"seed": seed, "curv": curv, "norm": norm} | size
        for curv in curvs
        for norm in norms
        for seed in args.seeds
    ]
    cases = measured("proposition2", measure, cases, args.out)
    volume_cases = [volumes(dim, DRAWN_NORM, size["points"]) for dim in (2, 4, 8, 16, 64)]
    heading = ["D", "curv", "rate", "power", "least rate", "difference", "worst z", "expected"]
    figure = draw(cases, volume_cases)
    rows = rows_of(cases, volume_cases)
    publish("proposition2", args, started, heading, rows, figure, cases=cases, volumes=volume_cases)


if __name__ == "__main__":
    main()
