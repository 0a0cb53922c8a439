"""Claim: the contrast of distances works against the entailment loss; both angle terms agree.

During training, on one batch of pairs, the gradients of the two terms of a loss: for meru the
contrast and the entailment, for atmg the contrasts of both directions, by both readings. A cosine
below 0 means that a step down the one is a step up the other. At points it is that of tangent
vectors, in the Riemannian metric, pair by pair; at the parameters it is that of the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic.config import Config
from clip_hyperbolic.model import Towers
from clip_hyperbolic.tokenizer import CaptionTokenizer
from common import ATMG_QUERY, BLUE, GREEN, ORANGE, Case, options, publish, spread
from matplotlib.figure import Figure
from torch import Tensor
from training import batches, configuration, train, trained

from lorentzkit.losses import contrastive_loss, entailment_loss
from lorentzkit.manifolds import Lorentz

PROBE_STEPS = (1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)
TERMS = {
    "meru": ("contrast", "entailment"),
    "atmg": ("text to image", "image to text"),
    ATMG_QUERY: ("text to image", "image to text"),
}
COLUMNS = ["opposed", "outward, first", "outward, second", "length, second / first"]
TOWERS = ("vision_model", "text_model", "visual_projection", "text_projection")
PLACES = {"images": BLUE, "texts": ORANGE, "parameters": GREEN}


def terms(
    config: Config, texts: Tensor, images: Tensor, numbers: dict[str, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The two terms, weighted as in the loss."""
    if config.objective == "meru":
        contrast = contrastive_loss(texts, images, similarity="distance", targets=labels, **numbers)
        return contrast, 0.2 * entailment_loss(texts, images, numbers["curv"])
    text_losses, image_losses = contrastive_loss(
        texts,
        images,
        similarity="angle",
        apex="x" if config.apex == "text" else "query",
        targets=labels,
        reduction="none",
        **numbers,
    )
    return text_losses.mean() / 2, image_losses.mean() / 2


def gradient_agreement(x: Tensor, curv: Tensor, *gradients: Tensor) -> dict[str, float]:
    """How far two gradients at points (N, D) agree where both are nonzero, and point outward."""
    manifold = Lorentz(float(curv))
    first, second = (manifold.egrad2rgrad(x, g) for g in gradients)
    lengths = manifold.norm(x, first), manifold.norm(x, second)
    both_nonzero = (lengths[0] > 0) & (lengths[1] > 0)
    cosine = manifold.inner(x, first, second) / (lengths[0] * lengths[1])
    away_from_origin = -manifold.logmap(x, torch.zeros_like(x))
    away_from_origin = away_from_origin / manifold.norm(x, away_from_origin)[:, None]
    outward = [
        (-manifold.inner(x, g, away_from_origin) / length)[both_nonzero].mean().item()
        for g, length in zip((first, second), lengths, strict=True)
    ]
    return {
        "cosine": cosine[both_nonzero].mean().item(),
        "opposed": (cosine[both_nonzero] < 0).double().mean().item(),
        "both": both_nonzero.double().mean().item(),
        "outward, first": outward[0],
        "outward, second": outward[1],
        "length, second / first": (lengths[1].sum() / lengths[0].sum()).item(),
    }


def compare(config: Config, model: Towers, tokenizer: CaptionTokenizer, batch: Case) -> Case:
    labels, index = batch["labels"][0], batch["index"][0]
    images, texts, numbers = model(batch["pixels"], *tokenizer(batch["texts"]))
    texts = texts[index]
    tower_parameters = [p for name, p in model.model.named_parameters() if name.startswith(TOWERS)]
    losses = terms(config, texts, images, numbers, labels)
    point_gradients = [
        torch.autograd.grad(loss, [texts, images], retain_graph=True) for loss in losses
    ]
    tower_gradients = [flat_gradient(loss, tower_parameters) for loss in losses]
    curv, points = numbers["curv"].detach(), (texts.detach(), images.detach())
    agreement: Case = {
        name: gradient_agreement(
            x.double(), curv.double(), *(g[i].double() for g in point_gradients)
        )
        for i, (name, x) in enumerate(zip(("texts", "images"), points, strict=True))
    }
    cosine = torch.nn.functional.cosine_similarity(*tower_gradients, dim=0).item()
    return agreement | {"parameters": {"cosine": cosine}}


def flat_gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    """The gradient of all parameters as one vector, 0 for those that the loss does not use."""
    gradients = torch.autograd.grad(
        loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
    )
    return torch.cat([g.flatten() for g in gradients])


def train_and_compare(objective: str, seed: int, steps: int, smoke: bool) -> Case:
    config = configuration(smoke, objective=objective, seed=seed, steps=steps)
    batch, records = next(iter(batches(replace(config, seed=seed + 1000)))), []

    def probe(step: int, model: Towers, tokenizer: CaptionTokenizer) -> None:
        records.append({"step": step} | compare(config, model, tokenizer, batch))

    probe_steps = {step for step in PROBE_STEPS if step <= steps} | {steps}
    train(config, probe_steps=probe_steps, probe=probe)
    return {"found": records}


def main(argv: Sequence[str] | None = None) -> None:
    started, args = time.perf_counter(), options(__doc__ or "", argv)
    cases = [{"objective": o, "seed": seed} for seed in args.seeds for o in TERMS]
    cases = trained("interplay", train_and_compare, cases, args, args.pick(3, 200, 300))
    warmup_steps = max(1, cases[0]["steps"] // 10)  # then the learning rate is at its peak
    rows = []
    figure = Figure(figsize=(18, 8), layout="constrained")
    for panels, (objective, term_names) in zip(
        figure.subplots(2, len(TERMS)).T, TERMS.items(), strict=True
    ):
        runs = [case["found"] for case in cases if case["objective"] == objective]
        draw(panels, runs, term_names)
        spans = ((0, warmup_steps), (warmup_steps,))
        cosines = {
            place: [
                [mean_over_steps(run, place, "cosine", *span) for run in runs] for span in spans
            ]
            for place in PLACES
        }
        early, late = map(mean, cosines["images"])
        panels[0].set_title(
            f"{objective}: {' and '.join(term_names)}\ncosine at images {early:+.2f} in the first "
            f"{warmup_steps} steps, then {late:+.2f}"
        )
        for place in PLACES:
            row = [f"{objective}: {', '.join(term_names)}", place]
            row += [spread(values, 2) for values in cosines[place]]
            for name in COLUMNS:
                values = [mean_over_steps(run, place, name, warmup_steps) for run in runs]
                row.append(spread(values, 2) if place != "parameters" else "")
            rows.append(row)
    heading = ["objective: terms", "gradients at", f"cosine, to step {warmup_steps}"]
    heading += ["cosine, later", *COLUMNS]
    publish("interplay", args, started, heading, rows, figure, cases=cases)


def mean_over_steps(
    run: list[Case], place: str, name: str, after: int, up_to: float = math.inf
) -> float:
    """The mean of the values measured after one step, up to another."""
    return mean(record[place].get(name, 0.0) for record in run if after < record["step"] <= up_to)


def draw(panels: Any, runs: list[list[Case]], term_names: Sequence[str]) -> None:
    upper, lower = panels
    steps = [record["step"] for record in runs[0]]
    for i, run in enumerate(runs):
        for place, colour in PLACES.items():
            cosines = [record[place]["cosine"] for record in run]
            upper.plot(steps, cosines, "o-", color=colour, ms=4, label=None if i else place)
        for term, name, style in zip(("first", "second"), term_names, ("o-", "s--"), strict=True):
            for place in ("images", "texts"):
                outward = [record[place][f"outward, {term}"] for record in run]
                label = None if i else f"{name}, at {place}"
                lower.plot(steps, outward, style, color=PLACES[place], ms=4, label=label)
    upper.set(ylabel="cosine of the two gradients", ylim=(-1.05, 1.05))
    lower.set(xlabel="training steps", ylabel="outward share of a step", ylim=(-1.05, 1.05))
    for axes in panels:
        axes.axhline(0, color="#999999", lw=0.8)
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
