"""Claim: a gap between texts and images does no harm to retrieval.

The distance between the centroids of texts and images, whether a plane parts them, and retrieval on
unseen vendors, over the training of each objective.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

from common import OBJECTIVES, options, publish, spread
from dynamics import all_objectives, at_end, curves
from matplotlib.figure import Figure

NAMES = ["gap", "gap, of pairs'", "pairs, of others'", "separable", "separable by direction"]


def main(argv: Sequence[str] | None = None) -> None:
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    cases = all_objectives(chosen)
    names = [*NAMES, "t2i R@1", "i2t R@1"]
    rows = [
        [objective, *(spread(at_end(cases, objective, name)) for name in names)]
        for objective in OBJECTIVES
    ]
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for objective, (colour, marker) in OBJECTIVES.items():
        style = {"color": colour, "marker": marker, "ms": 4}
        apart = curves(cases, objective, "gap, of pairs'")
        planes = curves(cases, objective, "separable by direction")
        at_1 = curves(cases, objective, "t2i R@1")
        for i, ((steps, of_pairs), (_, parted), (_, recall)) in enumerate(
            zip(apart, planes, at_1, strict=True)
        ):
            left.plot(steps, of_pairs, label=None if i else objective, **style)
            middle.plot(steps, parted, **style)
            right.plot(of_pairs, recall, lw=0.8, **style)
            right.plot(of_pairs[-1], recall[-1], color=colour, marker=marker, ms=11)
    left.set(xlabel="training steps", ylabel="distance of the centroids / of matching pairs")
    middle.set(xlabel="training steps", ylabel="directions that a plane tells apart (0.5: none)")
    right.set(
        xlabel="distance of the centroids / of matching pairs",
        ylabel="text to image R@1, unseen vendors (large: the end)",
    )
    left.legend(frameon=False)
    gaps = {o: mean(at_end(cases, o, "gap, of pairs'")) for o in OBJECTIVES}
    recalls = {o: mean(at_end(cases, o, "t2i R@1")) for o in OBJECTIVES}
    told = ", ".join(f"{o} {gaps[o]:.2f} (R@1 {recalls[o]:.2f})" for o in OBJECTIVES)
    figure.suptitle(f"The gap between texts and images, over the distance of pairs: {told}")
    publish("gap", chosen, begun, ["objective", *names], rows, figure, cases=cases)


if __name__ == "__main__":
    main()
