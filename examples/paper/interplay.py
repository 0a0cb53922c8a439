"""Claim: the contrast of distances works against the entailment loss; both angle terms agree.

During training, on one batch of pairs, the gradients of the two terms of a loss: for meru the
contrast and the entailment, for atmg the contrast at text apexes and at image apexes. A cosine
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
from clip_hyperbolic.data import Batches
from clip_hyperbolic.model import Towers
from clip_hyperbolic.tokenizer import Words
from common import BLUE, GREEN, ORANGE, Case, options, publish, spread
from matplotlib.figure import Figure
from torch import Tensor
from training import configuration, train, trained

from lorentzkit.losses import contrastive_loss, entailment_loss
from lorentzkit.manifolds import Lorentz

AT = (1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)
TERMS = {"meru": ("contrast", "entailment"), "atmg": ("text apex", "image apex")}
OTHERS = ["opposed", "outward, first", "outward, second", "length, second / first"]
TOWERS = ("vision_model", "text_model", "visual_projection", "text_projection")
WHERE = {"images": BLUE, "texts": ORANGE, "parameters": GREEN}


def terms(
    objective: str, texts: Tensor, images: Tensor, curv: Tensor, scale: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The two terms, weighted as in the loss."""
    if objective == "meru":
        near = contrastive_loss(texts, images, curv, scale, similarity="distance", targets=labels)
        assert isinstance(near, Tensor)
        return near, 0.2 * entailment_loss(texts, images, curv)
    of_texts, of_images = contrastive_loss(
        texts, images, curv, scale, similarity="angle", targets=labels, reduction="none"
    )
    return of_texts.mean() / 2, of_images.mean() / 2


def at_points(x: Tensor, curv: Tensor, *gradients: Tensor) -> dict[str, float]:
    """How two gradients at points (N, D) agree, where both are there; how far each goes outward."""
    manifold = Lorentz(float(curv))
    first, second = (manifold.egrad2rgrad(x, g) for g in gradients)
    lengths = manifold.norm(x, first), manifold.norm(x, second)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    cosine = manifold.inner(x, first, second) / (lengths[0] * lengths[1])
    away = -manifold.logmap(x, torch.zeros_like(x))
    away = away / manifold.norm(x, away)[:, None]
    outward = [
        (-manifold.inner(x, g, away) / length)[both].mean().item()
        for g, length in zip((first, second), lengths, strict=True)
    ]
    return {
        "cosine": cosine[both].mean().item(),
        "opposed": (cosine[both] < 0).double().mean().item(),
        "both": both.double().mean().item(),
        "outward, first": outward[0],
        "outward, second": outward[1],
        "length, second / first": (lengths[1].sum() / lengths[0].sum()).item(),
    }


def compare(objective: str, model: Towers, words: Words, batch: Case) -> Case:
    labels, index = batch["labels"][0], batch["index"][0]
    images, texts, curv, scale = model(batch["pixels"], *words(batch["texts"]))
    texts = texts[index]
    towers = [p for name, p in model.model.named_parameters() if name.startswith(TOWERS)]
    both = terms(objective, texts, images, curv, scale, labels)
    at = [torch.autograd.grad(term, [texts, images], retain_graph=True) for term in both]
    of_towers = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(
                    term, towers, retain_graph=True, materialize_grads=True, allow_unused=True
                )
            ]
        )
        for term in both
    ]
    curv, points = curv.detach(), (texts.detach(), images.detach())
    found: Case = {
        name: at_points(x.double(), curv.double(), *(g[i].double() for g in at))
        for i, (name, x) in enumerate(zip(("texts", "images"), points, strict=True))
    }
    cosine = torch.nn.functional.cosine_similarity(*of_towers, dim=0).item()
    return found | {"parameters": {"cosine": cosine}}


def follow(objective: str, seed: int, steps: int, smoke: bool) -> Case:
    config = configuration(smoke, objective=objective, seed=seed, steps=steps)
    batch, found = next(iter(Batches(replace(config, seed=seed + 1000)))), []

    def look(step: int, model: Towers, words: Words) -> None:
        found.append({"step": step} | compare(objective, model, words, batch))

    train(config, at={at for at in AT if at <= steps} | {steps}, probe=look)
    return {"found": found}


def main(argv: Sequence[str] | None = None) -> None:
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    cases = [{"objective": o, "seed": seed} for seed in chosen.seeds for o in TERMS]
    cases = trained("interplay", follow, cases, chosen, chosen.pick(3, 200, 300))
    cut = max(1, cases[0]["steps"] // 10)  # the learning rate has reached its height
    rows = []
    figure = Figure(figsize=(12, 8), layout="constrained")
    for panels, (objective, called) in zip(figure.subplots(2, 2).T, TERMS.items(), strict=True):
        runs = [case["found"] for case in cases if case["objective"] == objective]
        draw(panels, runs, called)
        spans = ((0, cut), (cut,))
        cosines = {
            where: [[over(run, where, "cosine", *span) for run in runs] for span in spans]
            for where in WHERE
        }
        early, late = map(mean, cosines["images"])
        panels[0].set_title(
            f"{objective}: {' and '.join(called)}: cosine at images\n"
            f"{early:+.2f} in the first {cut} steps, then {late:+.2f}"
        )
        for where in WHERE:
            row = [f"{objective}: {', '.join(called)}", where]
            row += [spread(values, 2) for values in cosines[where]]
            for name in OTHERS:
                values = [over(run, where, name, cut) for run in runs]
                row.append(spread(values, 2) if where != "parameters" else "")
            rows.append(row)
    heading = ["objective: terms", "gradients at", f"cosine, to step {cut}", "cosine, later"]
    publish("interplay", chosen, begun, [*heading, *OTHERS], rows, figure, cases=cases)


def over(run: list[Case], where: str, name: str, after: int, to: float = math.inf) -> float:
    """The mean of what was found after a step, up to another."""
    return mean(one[where].get(name, 0.0) for one in run if after < one["step"] <= to)


def draw(panels: Any, runs: list[list[Case]], called: Sequence[str]) -> None:
    upper, lower = panels
    steps = [one["step"] for one in runs[0]]
    for i, run in enumerate(runs):
        for where, colour in WHERE.items():
            cosines = [one[where]["cosine"] for one in run]
            upper.plot(steps, cosines, "o-", color=colour, ms=4, label=None if i else where)
        for term, name, style in zip(("first", "second"), called, ("o-", "s--"), strict=True):
            for where in ("images", "texts"):
                outward = [one[where][f"outward, {term}"] for one in run]
                label = None if i else f"{name}, at {where}"
                lower.plot(steps, outward, style, color=WHERE[where], ms=4, label=label)
    upper.set(ylabel="cosine of the two gradients", ylim=(-1.05, 1.05))
    lower.set(xlabel="training steps", ylabel="outward share of a step", ylim=(-1.05, 1.05))
    for axes in panels:
        axes.axhline(0, color="#999999", lw=0.8)
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
