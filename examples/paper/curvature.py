"""Claim: contrasting distances works near flat space only; angles work at high curvature too.

Frozen curvatures from 0.01 to 100, both hyperbolic objectives, twice: with lorentzkit's operations,
and with the formulas that papers use (usual.py), in float32 as well. The difference between the two
is rounding and clamping; only what remains can be the objective's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

import usual
from common import OBJECTIVES, Case, half_range, options, over_seeds, publish, spread
from matplotlib.figure import Figure
from torch import Tensor
from training import Drawings, configuration, train, trained

CURVATURES = (0.01, 0.1, 1.0, 10.0, 100.0)
HYPERBOLIC = [objective for objective in OBJECTIVES if objective != "clip"]
FORMULAS = {"lorentzkit": "-", "usual": ":"}
NAMES = ["t2i R@1", "i2t R@1", "i2t TIE"]


def train_and_measure(
    objective: str, formulas: str, curvature: float, seed: int, steps: int, smoke: bool
) -> Case:
    config = configuration(
        smoke, objective=objective, seed=seed, steps=steps, curv_init=curvature, freeze_curv=True
    )
    use_usual = formulas == "usual"
    replacements = (usual.usual_towers, usual.UsualObjective) if use_usual else ()
    model, tokenizer, steps_taken = train(config, *replacements)
    drawings = Drawings(config)
    points, c = drawings.points(model, tokenizer), model.model.curv().detach()
    scores = drawings.scores(points, model) | {"taken": steps_taken}

    def usual_rank(queries: Tensor, gallery: Tensor, images_ask: bool) -> Tensor:
        return usual.ranking(config, queries, gallery, c, images_ask)

    usual_scores = drawings.scores_of(points, usual_rank)
    return scores | {f"{name}, ranked by usual formulas": usual_scores[name] for name in NAMES}


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    cases = [
        {"objective": objective, "formulas": formulas, "curvature": c, "seed": seed}
        for seed in args.seeds
        for objective in HYPERBOLIC
        for formulas in FORMULAS
        for c in args.pick((100.0,), CURVATURES, CURVATURES)
    ]
    cases = trained("curvature", train_and_measure, cases, args, args.pick(3, 100, 150))
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
    for objective in HYPERBOLIC:
        colour, marker = OBJECTIVES[objective]
        for formulas, line in FORMULAS.items():
            curve = [(k[2], group) for k, group in groups.items() if k[:2] == (objective, formulas)]
            curvatures = [c for c, _ in curve]
            style = {"color": colour, "marker": marker, "ls": line, "capsize": 3}
            style["mfc"] = colour if formulas == "lorentzkit" else "white"
            for axes, name in zip(panels, ("t2i R@1", "i2t TIE", "taken"), strict=True):
                values = [[case[name] for case in group] for _, group in curve]
                centres = [mean(v) if name != "taken" else min(v) for v in values]
                half_ranges = [half_range(v) if name != "taken" else 0 for v in values]
                axes.errorbar(
                    curvatures, centres, half_ranges, label=f"{objective}, {formulas}", **style
                )
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
    usual_failures = sum(case["taken"] < steps for case in cases if case["formulas"] == "usual")
    our_failures = sum(case["taken"] < steps for case in cases if case["formulas"] != "usual")
    trainings = len(cases) // 2
    figure.suptitle(
        f"Trainings that end in NaN: {usual_failures} of {trainings} with the usual float32 "
        f"formulas, {our_failures} of {trainings} with lorentzkit's"
    )
    heading = ["objective", "formulas", "c", *NAMES, "t2i R@1 as usual formulas rank", "steps"]
    publish("curvature", args, started, heading, rows, figure, cases=cases)


if __name__ == "__main__":
    main()
