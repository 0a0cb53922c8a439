"""lorentzkit, geoopt, HypLL and MERU's file side by side: the table of the README.

    python benchmarks/libraries.py             # on a quiet machine, two minutes
    python benchmarks/libraries.py --write     # and brings it into README.md

Errors are medians over the random pairs of accuracy.py, each at the library's own float32
coordinates: HypLL's points are those of the Poincaré ball. Times are taken in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accuracy import DIMENSIONS, exact_dist, median_of, pair, relative_error, relative_errors
from geoopt.manifolds.lorentz import math as lorentz
from hypll.manifolds.poincare_ball import Curvature, PoincareBall
from hypll.tensors import ManifoldTensor, TangentTensor
from measure import THREADS, added_by, environment, in_fresh_process, in_turns, keep_memory, step
from mpmath import acosh, fsum, mp, mpf, sqrt
from report import DOCS, RESULTS
from report.markers import write
from rivals import GEOOPT, geoopt_dist, in_geoopt
from suites import EARNED_AT, earning
from torch import Tensor
from usual_formulas import MERU, meru_dist, usual_loss

from lorentzkit import ops
from lorentzkit.losses import contrastive_loss

N, D = 4096, 512
BATCH = 8192  # of the loss
MARKERS = "<!-- libraries:begin -->", "<!-- libraries:end -->"
LIBRARIES = ("lorentzkit", "geoopt", "HypLL", "MERU's file")
# Features, as the libraries' own documentation lists them.
HAS = {
    "losses for image and text": ("CLIP, MERU, HyCoCLIP, ATMG; fused", "", "", "in MERU's model"),
    "search without the matrix": ("`pairwise_topk`", "", "", ""),
    "kernels for GPUs": ("Triton (not run on a GPU yet)", "torch's", "torch's", "torch's"),
    "optimisers on the manifold": ("geoopt's", "yes", "yes", ""),
    "layers of networks": ("`Lift`, `LorentzMLR`", "", "linear, convolution, norm", ""),
    "other manifolds": ("", "a dozen", "Euclidean", ""),
}


def ball(c: float | Tensor) -> PoincareBall:
    """HypLL's ball, whose curvature goes through a softplus unless told otherwise."""
    return PoincareBall(Curvature(torch.as_tensor(c), constraining_strategy=lambda value: value))


def hypll_dist(p: Tensor, q: Tensor, c: float | Tensor) -> Tensor:
    manifold = ball(c)
    x, y = (ManifoldTensor(data, manifold, man_dim=-1) for data in (p, q))
    return manifold.dist(x, y)


def exact_ball_dist(p: Tensor, q: Tensor, c: float) -> mpf:
    u, v = ([mpf(a) for a in point.tolist()] for point in (p, q))
    square_distance = fsum((a - b) ** 2 for a, b in zip(u, v, strict=True))
    conformal = (1 - c * fsum(a * a for a in u)) * (1 - c * fsum(b * b for b in v))
    return acosh(1 + 2 * c * square_distance / conformal) / sqrt(mpf(c))


def hypll_errors(row: tuple[float, float], cases: int) -> list[float]:
    """Like `relative_errors`, at the points' coordinates in the ball."""
    errors = []
    for seed in range(cases):
        x, y, c = pair(seed, *row)
        p, q = (ops.to_poincare(v.double(), c).float() for v in (x, y))
        errors.append(relative_error(hypll_dist(p, q, c).item(), exact_ball_dist(p, q, c)))
    return errors


def median_errors(row: tuple[float, float], cases: int) -> list[str]:
    errors = {
        "lorentzkit": relative_errors(ops.dist, exact_dist, row, cases),
        "geoopt": relative_errors(geoopt_dist, exact_dist, row, cases),
        "HypLL": hypll_errors(row, cases),
        "MERU's file": relative_errors(meru_dist, exact_dist, row, cases),
    }
    return [median_of(errors[name]) for name in LIBRARIES]


def gradients_at_x(cases: int) -> list[str]:
    """Whether the gradients of the distance of x and x are finite, and the share that is NaN."""
    cells = []
    for function in (ops.dist, geoopt_dist, hypll_dist, meru_dist):
        finite = 0
        for seed in range(cases):
            x, _, c = pair(seed, 1.0, 1.0)
            x = ops.to_poincare(x, c) if function is hypll_dist else x
            leaf = x.clone().requires_grad_()
            function(leaf, x, c).backward()
            finite += int(leaf.grad.isfinite().all())
        cells.append("finite" if finite == cases else f"{100 * (1 - finite / cases):.0f} % NaN")
    return cells


def farthest(cases: int = 200) -> list[str]:
    """The largest radius at which `expmap0` and the distance from the origin agree to 1e-3."""
    torch.manual_seed(0)
    u = torch.randn(cases, DIMENSIONS)
    u /= u.norm(dim=1, keepdim=True)
    radii, unit_curv = torch.linspace(0.5, 60, 120), torch.ones(())

    def hypll(v: Tensor) -> Tensor:
        manifold = ball(1.0)
        x = manifold.expmap(TangentTensor(v / 2, manifold=manifold, man_dim=-1))
        return hypll_dist(torch.zeros_like(v), x.tensor, 1.0)

    def geoopt(v: Tensor) -> Tensor:
        with_time = torch.nn.functional.pad(v, (1, 0))
        return lorentz.dist0(lorentz.expmap0(with_time, k=unit_curv), k=unit_curv)

    def meru(v: Tensor) -> Tensor:
        return MERU["dist"](torch.zeros_like(v), MERU["expmap0"](v, unit_curv), unit_curv)

    cells = []
    for round_trip in (lambda v: ops.dist0(ops.expmap0(v)), geoopt, hypll, meru):
        accurate = [(round_trip(r * u) / r - 1).abs().median().item() < 1e-3 for r in radii]
        reached = accurate.index(False) if False in accurate else len(radii)
        cells.append(f"{radii[reached - 1]:.0f}{' and more' * (reached == len(radii))}")
    return cells


def points(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(2, count, D) * D**-0.5
    return [x.requires_grad_(), y.requires_grad_(), torch.ones((), requires_grad=True)]


def times(budget_s: float) -> list[str]:
    x, y, c = points(N)
    p, q = (ops.to_poincare(v, c).detach().requires_grad_() for v in (x, y))
    with_time = [v.detach().requires_grad_() for v in in_geoopt(["x", "y"], x, y, c)]
    # HypLL's curvature is a parameter of its own, whose gradient is not computed here.
    steps = {
        "lorentzkit": partial(earning, EARNED_AT["auto_later"], partial(step, ops.dist, [x, y, c])),
        "geoopt": partial(step, GEOOPT["dist"], with_time),
        "HypLL": partial(step, lambda a, b: hypll_dist(a, b, 1.0), [p, q]),
        "MERU's file": partial(step, meru_dist, [x, y, c]),
    }
    return relative_times(in_turns(steps, budget_s))


def relative_times(quantiles: dict[str, Any]) -> list[str]:
    """Table cells: the time of lorentzkit, and the others' times as multiples of it."""
    ours = quantiles["lorentzkit"]["both"][1]
    cells = [f"{ours / 1e3:.1f} s" if ours >= 1e3 else f"{ours:.1f} ms"] + [""] * (
        len(LIBRARIES) - 1
    )
    for name, parts in quantiles.items():
        if name != "lorentzkit":
            cells[LIBRARIES.index(name)] = f"{parts['both'][1] / ours:.1f} times as long"
    return cells


def losses() -> dict[str, Callable[..., Tensor]]:
    ours = partial(contrastive_loss, similarity="distance")
    return {"lorentzkit": ours, "MERU's file": partial(usual_loss, similarity="distance")}


def loss_times(budget_s: float) -> list[str]:
    inputs = [*points(BATCH), torch.tensor(14.0, requires_grad=True)]
    return relative_times(
        in_turns({n: partial(step, f, inputs) for n, f in losses().items()}, budget_s)
    )


def memory(name: str) -> int:
    torch.set_num_threads(THREADS)
    scale = torch.tensor(14.0, requires_grad=True)
    step(losses()[name], [*points(512), scale])
    inputs = [*points(BATCH), scale]
    return added_by(lambda: step(losses()[name], inputs))


def memories() -> list[str]:
    peaks = {name: in_fresh_process(memory, name) for name in losses()}
    return [f"{peaks[name]} MB" if name in peaks else "" for name in LIBRARIES]


def measured(cases: int, budget_s: float) -> dict[str, list[str]]:
    mp.dps = 150
    keep_memory()
    torch.set_num_threads(THREADS)
    return {
        "error of the distance in float32, points 0.01 rad apart": median_errors(
            (1.0, 1e-2), cases
        ),
        "the same, 0.0001 rad apart": median_errors((1.0, 1e-4), cases),
        "gradient of `dist(x, x)`": gradients_at_x(cases),
        "largest distance from the origin in float32": farthest(),
        f"`dist`, {N:,} x {D}, forward and backward": times(budget_s),
        f"contrastive loss by distances, {BATCH:,} x {D}": loss_times(budget_s),
        "memory that the loss adds": memories(),
    }


def table(results: dict[str, Any]) -> str:
    lines = [f"| | {' | '.join(LIBRARIES)} |", f"| --- |{' --- |' * len(LIBRARIES)}"]
    rows = {**results["rows"], **{name: list(cells) for name, cells in HAS.items()}}
    return "\n".join([*lines, *(f"| {name} | {' | '.join(c)} |" for name, c in rows.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=50, help="random pairs per row")
    parser.add_argument("--seconds", type=float, default=20, help="for the turns of one row")
    parser.add_argument("--write", action="store_true", help="into the README, as measured before")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # geoopt scripts with torch.jit
    file = RESULTS / "libraries.json"
    if not args.write:
        results = {"environment": environment("hypll"), "rows": measured(args.cases, args.seconds)}
        file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    results = json.loads(file.read_text("utf-8"))
    print(table(results))
    write(DOCS.parent / "README.md", table(results), MARKERS)


if __name__ == "__main__":
    main()
