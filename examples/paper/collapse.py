"""Claim: contrasting distances pulls all images of a concept together; angles leave them apart.

Seven vendors' drawings of each concept, followed over the training of each objective: their mean
distance and covered angle, as shares of those of different concepts, and their effective rank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean

from common import OBJECTIVES, options, publish, spread
from dynamics import all_objectives, curves, final_values
from matplotlib.figure import Figure

SHOWN = {
    "distance, of others'": "mean distance within a concept\n/ between concepts",
    "angle, of others'": "mean angle at the origin within a concept\n/ between concepts",
    "rank": "effective rank of a concept's 7 drawings\n(at most 6)",
}


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    cases = all_objectives(args)
    names = ["distance", "distance, of others'", "angle", "angle, of others'", "rank", "t2i R@1"]
    rows = [
        [objective, *(spread(final_values(cases, objective, name)) for name in names)]
        for objective in OBJECTIVES
    ]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, 3), SHOWN.items(), strict=True):
        for objective, (colour, marker) in OBJECTIVES.items():
            for i, (steps, values) in enumerate(curves(cases, objective, name)):
                legend_label = None if i else objective
                axes.plot(steps, values, color=colour, marker=marker, ms=4, label=legend_label)
        axes.set(xlabel="training steps", ylabel=label)
    figure.axes[0].legend(frameon=False)
    final_distances = {o: final_values(cases, o, "distance, of others'") for o in OBJECTIVES}
    summary = ", ".join(f"{o} {mean(values):.2f}" for o, values in final_distances.items())
    figure.suptitle(
        f"Drawings of one concept, over those of different ones, end at a distance of: {summary}"
    )
    heading = ["objective", *names]
    publish("collapse", args, started, heading, rows, figure, cases=cases)


if __name__ == "__main__":
    main()
