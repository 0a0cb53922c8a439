"""What the centroid regulariser of "Accept the Modality Gap" changes, by its weight and radii."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from common import BLUE, GREEN, ORANGE, Case, half_range, options, over_seeds, publish, spread
from dynamics import gap
from matplotlib.figure import Figure
from training import Drawings, configuration, train, trained

from lorentzkit import ops

RADII = {(0.25, 0.5): (ORANGE, "^"), (0.5, 1.0): (BLUE, "o"), (1.0, 2.0): (GREEN, "s")}
NAMES = ["t2i R@1", "i2t R@1", "i2t TIE", "captions", "images", "curvature"]


def train_and_measure(seed: int, steps: int, smoke: bool, **settings: Any) -> Case:
    """Trains with one weight and radii, and measures what the model reaches."""
    config = configuration(smoke, objective="atmg", seed=seed, steps=steps, **settings)
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


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    weights = (0.1, 1.0)
    settings = [(0.0, 0.5, 1.0), *((weight, *radii) for weight in weights for radii in RADII)]
    settings = args.pick(settings[:2], settings, settings)
    cases = [
        {"seed": seed, "centroid_weight": weight, "text_radius": q, "image_radius": p}
        for seed in args.seeds
        for weight, q, p in settings
    ]
    cases = trained("centroid", train_and_measure, cases, args, args.pick(3, 100, 150))
    groups = over_seeds(cases, "centroid_weight", "text_radius", "image_radius")
    rows = [
        [
            f"{weight:g}",
            f"{q:g}, {p:g}" if weight else "",
            *(spread([case[name] for case in group]) for name in NAMES),
        ]
        for (weight, q, p), group in groups.items()
    ]
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for radii, (colour, marker) in RADII.items():
        groups_by_weight = {
            w: group
            for (w, *group_radii), group in groups.items()
            if w and tuple(group_radii) == radii
        }
        label = f"text {radii[0]:g}, image {radii[1]:g}"
        style = {"color": colour, "marker": marker, "capsize": 3, "label": label}
        for axes, name in ((left, "t2i R@1"), (right, "i2t TIE")):
            axes.errorbar(list(groups_by_weight), *_bars(groups_by_weight.values(), name), **style)
    (unregularised,) = (group for (weight, *_), group in groups.items() if not weight)
    for axes, name, label in (
        (left, "t2i R@1", "text to image R@1, unseen vendors"),
        (right, "i2t TIE", "tree-induced error, image to text (edges)"),
    ):
        (baseline,), _ = _bars([unregularised], name)
        axes.axhline(baseline, color="#777777", ls="--", label="without the regulariser")
        axes.set(xscale="log", xlabel="weight of the regulariser, lambda", ylabel=label)
    handles = left.get_legend_handles_labels()
    figure.legend(
        *handles,
        loc="outside lower center",
        ncols=4,
        title="distance of the centroids from the origin",
    )
    recalls, _ = _bars(groups.values(), "t2i R@1")
    figure.suptitle(
        f"R@1 is {recalls[0]:.3f} without the centroid regulariser, and {min(recalls[1:]):.3f} to "
        f"{max(recalls[1:]):.3f} with it"
    )
    heading = ["lambda", "radius of texts, images", *NAMES[:3], "captions at", "images at"]
    publish("centroid", args, started, [*heading, "curvature"], rows, figure, cases=cases)


def _bars(groups: Any, name: str) -> tuple[list[float], list[float]]:
    """The means of the groups, and half of their ranges: the arguments of `errorbar`."""
    values = [[case[name] for case in group] for group in groups]
    return [mean(v) for v in values], [half_range(v) for v in values]


if __name__ == "__main__":
    main()
