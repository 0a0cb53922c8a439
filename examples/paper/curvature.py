"""Claim: contrasting distances works near flat space only; angles work at high curvature too.

Frozen curvatures from 0.01 to 100, both hyperbolic objectives, twice: with lorentzkit's operations,
and with the formulas that papers use (usual.py), in float32 as well. What the second loses against
the first is rounding and clamping; only the rest can be the objective's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

import usual
from common import OBJECTIVES, Case, half_range, options, over_seeds, publish, spread
from matplotlib.figure import Figure
from training import Drawings, configuration, train, trained

CURVATURES = (0.01, 0.1, 1.0, 10.0, 100.0)
FORMULAS = {"lorentzkit": "-", "usual": ":"}
NAMES = ["t2i R@1", "i2t R@1", "i2t TIE"]


def reach(
    objective: str, formulas: str, curvature: float, seed: int, steps: int, smoke: bool
) -> Case:
    config = configuration(
        smoke, objective=objective, seed=seed, steps=steps, curv_init=curvature, freeze_curv=True
    )
    theirs = formulas == "usual"
    pieces = (usual.usual_towers, usual.UsualObjective) if theirs else ()
    model, words, taken = train(config, *pieces)
    drawings = Drawings(config)
    points, c = drawings.points(model, words), model.curv().detach()
    found = drawings.scores(points, model, objective) | {"taken": taken}
    ranked = drawings.scores_of(
        points, lambda asked, gallery, back: usual.ranking(objective, asked, gallery, c, back)
    )
    return found | {f"{name}, ranked by usual formulas": ranked[name] for name in NAMES}


def main(argv: Sequence[str] | None = None) -> None:
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    cases = [
        {"objective": objective, "formulas": formulas, "curvature": c, "seed": seed}
        for seed in chosen.seeds
        for objective in ("meru", "atmg")
        for formulas in FORMULAS
        for c in chosen.pick((100.0,), CURVATURES, CURVATURES)
    ]
    cases = trained("curvature", reach, cases, chosen, chosen.pick(3, 100, 150))
    steps = cases[0]["steps"]
    groups = over_seeds(cases, "objective", "formulas", "curvature")
    rows = [
        [
            objective,
            formulas,
            f"{c:g}",
            *(spread([case[name] for case in group]) for name in NAMES),
            spread([case["t2i R@1, ranked by usual formulas"] for case in group]),
            f"{min(case['taken'] for case in group)} of {steps}",
        ]
        for (objective, formulas, c), group in groups.items()
    ]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for objective, (colour, marker) in list(OBJECTIVES.items())[1:]:
        for formulas, line in FORMULAS.items():
            some = [(k[2], group) for k, group in groups.items() if k[:2] == (objective, formulas)]
            at = [c for c, _ in some]
            style = {"color": colour, "marker": marker, "ls": line, "capsize": 3}
            style["mfc"] = colour if formulas == "lorentzkit" else "white"
            for axes, name in zip(panels, ("t2i R@1", "i2t TIE", "taken"), strict=True):
                values = [[case[name] for case in group] for _, group in some]
                middle = [mean(v) if name != "taken" else min(v) for v in values]
                half = [half_range(v) if name != "taken" else 0 for v in values]
                axes.errorbar(at, middle, half, label=f"{objective}, {formulas}", **style)
    for axes, label in zip(
        panels,
        (
            "text to image R@1, unseen vendors",
            "tree-induced error, image to text (edges)",
            f"steps before NaN (of {steps})",
        ),
        strict=True,
    ):
        axes.set(xscale="log", xlabel="curvature c (frozen)", ylabel=label)
    panels[0].legend(frameon=False)
    lost = sum(case["taken"] < steps for case in cases if case["formulas"] == "usual")
    own = sum(case["taken"] < steps for case in cases if case["formulas"] != "usual")
    number = len(cases) // 2
    figure.suptitle(
        f"Trainings that end in NaN: {lost} of {number} with the usual float32 formulas, "
        f"{own} of {number} with lorentzkit's"
    )
    heading = ["objective", "formulas", "c", *NAMES, "t2i R@1 as usual formulas rank", "steps"]
    publish("curvature", chosen, begun, heading, rows, figure, cases=cases)


if __name__ == "__main__":
    main()
