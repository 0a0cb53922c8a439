"""What the centroid regulariser of "Accept the Modality Gap" changes, by its weight and radii."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from common import (
    ATMG_QUERY,
    OBJECTIVES,
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
WEIGHT, RADII = 0.1, (0.5, 1.0)  # the radii of texts and of images
WEIGHTS = [(weight, *RADII) for weight in (0.0, 0.01, WEIGHT, 1.0)]
OTHER_RADII = [(WEIGHT, 0.25, 0.5), (WEIGHT, 1.0, 2.0)]
NAMES = ["t2i R@1", "i2t R@1", "i2t TIE", "captions", "images", "curvature"]


def train_and_measure(seed: int, steps: int, smoke: bool, **settings: Any) -> Case:
    """Trains with one weight and radii, and measures what the model reaches."""
    # Whatever the radii, texts and images start at the same ones.
    settings |= dict(zip(("text_start", "image_start"), RADII, strict=True))
    config = configuration(smoke, seed=seed, steps=steps, **settings)
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


def figure_of(groups: dict[tuple[Any, ...], list[Case]]) -> Figure:
    """R@1 by the weight, and by the radii, for each reading of the angle."""
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    by_radii = sorted([(WEIGHT, *RADII), *OTHER_RADII])
    for axes, settings in zip(panels, (WEIGHTS, by_radii), strict=True):
        for reading in READINGS:
            recalls = {
                place: [case["t2i R@1"] for case in groups[(reading, *setting)]]
                for place, setting in enumerate(settings)
                if (reading, *setting) in groups
            }
            colour, marker = OBJECTIVES[reading]
            axes.errorbar(
                list(recalls),
                [mean(values) for values in recalls.values()],
                [half_range(values) for values in recalls.values()],
                color=colour,
                marker=marker,
                capsize=3,
                label=reading,
            )
    weights = [f"{weight:g}" for weight, *_ in WEIGHTS]
    panels[0].set_xticks(range(len(WEIGHTS)), weights)
    panels[0].set(
        xlabel=f"weight lambda, with radii of {RADII[0]:g} and {RADII[1]:g}",
        ylabel="text to image R@1, unseen vendors",
    )
    radii = [f"{texts:g}, {images:g}" for _, texts, images in by_radii]
    panels[1].set_xticks(range(len(by_radii)), radii)
    panels[1].set(xlabel=f"radii of texts and images, with lambda = {WEIGHT:g}")
    panels[0].legend(frameon=False)
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    settings = args.pick(WEIGHTS[:2], WEIGHTS + OTHER_RADII, WEIGHTS + OTHER_RADII)
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
    publish("centroid", args, started, heading, rows, figure_of(groups), cases=cases)


if __name__ == "__main__":
    main()
