"""Claim: a gap between texts and images does no harm to retrieval.

The distance between the centroids of texts and images, whether a plane parts them, and retrieval on
unseen vendors, over the training of each objective.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

from common import OBJECTIVES, options, publish, spread
from dynamics import all_objectives, curves, final_values
from matplotlib.figure import Figure

NAMES = ["gap", "gap, of pairs'", "pairs, of others'", "separable", "separable by direction"]


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    cases = all_objectives(args)
    names = [*NAMES, "t2i R@1", "i2t R@1"]
    rows = [
        [objective, *(spread(final_values(cases, objective, name)) for name in names)]
        for objective in OBJECTIVES
    ]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for objective, (colour, marker) in OBJECTIVES.items():
        style = {"color": colour, "marker": marker, "ms": 4}
        gap_curves = curves(cases, objective, "gap, of pairs'")
        plane_curves = curves(cases, objective, "separable by direction")
        recall_curves = curves(cases, objective, "t2i R@1")
        for i, ((steps, relative_gaps), (_, accuracies), (_, recall_values)) in enumerate(
            zip(gap_curves, plane_curves, recall_curves, strict=True)
        ):
            left.plot(steps, relative_gaps, label=None if i else objective, **style)
            middle.plot(steps, accuracies, **style)
            right.plot(relative_gaps, recall_values, lw=0.8, **style)
            right.plot(relative_gaps[-1], recall_values[-1], color=colour, marker=marker, ms=11)
    left.set(xlabel="training steps", ylabel="distance of the centroids / of matching pairs")
    middle.set(xlabel="training steps", ylabel="directions that a plane tells apart (0.5: none)")
    right.set(
        xlabel="distance of the centroids / of matching pairs",
        ylabel="text to image R@1, unseen vendors (large: the end)",
    )
    left.legend(frameon=False)
    gaps = {o: mean(final_values(cases, o, "gap, of pairs'")) for o in OBJECTIVES}
    recalls = {o: mean(final_values(cases, o, "t2i R@1")) for o in OBJECTIVES}
    summary = ", ".join(f"{o} {gaps[o]:.2f} (R@1 {recalls[o]:.2f})" for o in OBJECTIVES)
    figure.suptitle(f"The gap between texts and images, over the distance of pairs:\n{summary}")
    publish("gap", args, started, ["objective", *names], rows, figure, cases=cases)


if __name__ == "__main__":
    main()
