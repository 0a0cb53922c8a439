"""What the centroid regulariser of "Accept the Modality Gap" changes, by its weight and radii."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from common import (
    ATMG_QUERY,
    BLUE,
    GREEN,
    ORANGE,
    Case,
    half_range,
    options,
    over_seeds,
    publish,
    spread,
)
from dynamics import gap
from matplotlib.figure import Figure
from training import Drawings, configuration, train, trained

from lorentzkit import ops

READINGS = ["atmg", ATMG_QUERY]
WEIGHTS = [0.01, 0.1, 1.0]
DEFAULT_RADII = (0.5, 1.0)  # of texts and of images
RADII = {(0.25, 0.5): (ORANGE, "^"), DEFAULT_RADII: (BLUE, "o"), (1.0, 2.0): (GREEN, "s")}
NAMES = ["t2i R@1", "i2t R@1", "i2t TIE", "captions", "images", "curvature"]


def train_and_measure(seed: int, steps: int, smoke: bool, **settings: Any) -> Case:
    """Trains with one weight and radii, and measures what the model reaches."""
    # Whatever the radii, texts and images start at the same ones.
    starts = {"text_start": 0.5, "image_start": 1.0}
    config = configuration(smoke, seed=seed, steps=steps, **starts, **settings)
    model, tokenizer, steps_taken = train(config)
    drawings = Drawings(config)
    points, curv = drawings.points(model, tokenizer), model.model.curv().detach()
    with torch.no_grad():
        radii = {
            name: ops.dist0(x, curv).mean().item()
            for name, x in (("captions", points.texts), ("images", points.images))
        }
    scores = drawings.scores(points, model) | gap(points, curv) | radii
    return scores | {"taken": steps_taken, "curvature": curv.item()}


def figure_of(cases: list[Case]) -> Figure:
    """R@1 against the weight, for each reading of the angle and each pair of radii."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, len(READINGS), sharey=True)
    for axes, reading in zip(panels, READINGS, strict=True):
        own_cases = [case for case in cases if case["objective"] == reading]
        plain = mean(case["t2i R@1"] for case in own_cases if not case["centroid_weight"])
        axes.axhline(plain, color="#777777", ls="--", label="without the regulariser")
        for radii, (colour, marker) in RADII.items():
            same_radii = [c for c in own_cases if (c["text_radius"], c["image_radius"]) == radii]
            groups = over_seeds([c for c in same_radii if c["centroid_weight"]], "centroid_weight")
            recalls = [[case["t2i R@1"] for case in group] for group in groups.values()]
            axes.errorbar(
                [weight for (weight,) in groups],
                [mean(values) for values in recalls],
                [half_range(values) for values in recalls],
                color=colour,
                marker=marker,
                capsize=3,
                label=f"texts {radii[0]:g}, images {radii[1]:g}",
            )
        axes.set(xscale="log", xlabel="weight of the regulariser, lambda", title=reading)
    panels[0].set(ylabel="text to image R@1, unseen vendors")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=4,
        title="distance of the centroids from the origin",
    )
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    regularised = [(weight, *radii) for weight in WEIGHTS for radii in RADII]
    settings = [(0.0, *DEFAULT_RADII), *args.pick(regularised[:1], regularised, regularised)]
    cases = [
        {
            "objective": reading,
            "seed": seed,
            "centroid_weight": weight,
            "text_radius": text_radius,
            "image_radius": image_radius,
        }
        for seed in args.seeds
        for reading in READINGS
        for weight, text_radius, image_radius in settings
    ]
    cases = trained("centroid", train_and_measure, cases, args, args.pick(3, 100, 150))
    groups = over_seeds(cases, "objective", "centroid_weight", "text_radius", "image_radius")
    rows = [
        [
            reading,
            f"{weight:g}",
            f"{text_radius:g}, {image_radius:g}" if weight else "",
            *(spread([case[name] for case in group]) for name in NAMES),
        ]
        for (reading, weight, text_radius, image_radius), group in groups.items()
    ]
    heading = ["objective", "lambda", "radius of texts, images", *NAMES[:3]]
    heading += ["captions at", "images at", "curvature"]
    publish("centroid", args, started, heading, rows, figure_of(cases), cases=cases)


if __name__ == "__main__":
    main()
