"""Claim: the contrast of distances works against the entailment loss; both angle terms agree.

During training, on one batch of pairs, the gradients of the two terms of a loss: for meru the
contrast and the entailment, for atmg the contrast at text apexes and at image apexes. A cosine
below 0 means that a step down the one is a step up the other. At points it is that of tangent
vectors, in the Riemannian metric, pair by pair; at the parameters it is that of the whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic.data import Batches
from clip_hyperbolic.model import TwoTowers, Words
from common import BLUE, GREEN, ORANGE, Case, options, publish, spread
from matplotlib.figure import Figure
from torch import Tensor
from training import configuration, train, trained

from lorentzkit.losses import contrastive_loss, entailment_loss
from lorentzkit.manifolds import Lorentz

AT = (1, 5, 10, 20, 30, 50, 75, 100, 150, 200, 250, 300)
TERMS = {"meru": ("contrast", "entailment"), "atmg": ("text apex", "image apex")}
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


def compare(objective: str, model: TwoTowers, words: Words, batch: Case) -> Case:
    labels, index = batch["labels"][0], batch["index"][0]
    images, texts, curv, scale = model(batch["pixels"], *words(batch["texts"]))
    texts = texts[index]
    towers = [
        p
        for part in (model.image_tower, model.text_tower, model.image_head, model.text_head)
        for p in part.parameters()
    ]
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

    def look(step: int, model: TwoTowers, words: Words) -> None:
        found.append({"step": step} | compare(objective, model, words, batch))

    train(config, at={at for at in AT if at <= steps} | {steps}, probe=look)
    return {"found": found}


def main(argv: Sequence[str] | None = None) -> None:
    begun, chosen = time.perf_counter(), options(__doc__ or "", argv)
    cases = [{"objective": o, "seed": seed} for seed in chosen.seeds for o in TERMS]
    cases = trained("interplay", follow, cases, chosen, chosen.pick(3, 200, 300))
    figure = Figure(figsize=(12, 8), layout="constrained")
    rows, means = [], {}
    for (upper, lower), (objective, (first, second)) in zip(
        figure.subplots(2, 2).T, TERMS.items(), strict=True
    ):
        runs = [case["found"] for case in cases if case["objective"] == objective]
        steps = [one["step"] for one in runs[0]]
        for where, colour in WHERE.items():
            for i, run in enumerate(runs):
                cosines = [one[where]["cosine"] for one in run]
                upper.plot(steps, cosines, "o-", color=colour, ms=4, label=None if i else where)
        for term, name, style in (("first", first, "o-"), ("second", second, "s--")):
            for where in ("images", "texts"):
                for i, run in enumerate(runs):
                    lower.plot(
                        steps,
                        [one[where][f"outward, {term}"] for one in run],
                        style,
                        color=WHERE[where],
                        ms=4,
                        label=None if i else f"{name}, at {where}",
                    )
        for where in WHERE:
            means[objective, where] = [_mean(run, where, "cosine") for run in runs]
            others = ("opposed", "outward, first", "outward, second", "length, second / first")
            rest = [spread([_mean(run, where, n) for run in runs], 2) for n in others]
            row = [f"{objective}: {first}, {second}", where, spread(means[objective, where], 2)]
            rows.append([*row, *(rest if where != "parameters" else [""] * len(rest))])
        told = sum(means[objective, "images"]) / len(runs)
        upper.set_title(f"{objective}: {first} and {second}, mean cosine at images {told:+.2f}")
        upper.set(ylabel="cosine of the two gradients", ylim=(-1.05, 1.05))
        lower.set(
            xlabel="training steps",
            ylabel="outward share of a step",
            ylim=(-1.05, 1.05),
        )
        for axes in (upper, lower):
            axes.axhline(0, color="#999999", lw=0.8)
            axes.legend(frameon=False)
    heading = ["objective: terms", "gradients at", "cosine", "pairs opposed"]
    heading += ["first, outward", "second, outward", "length, second / first"]
    publish("interplay", chosen, begun, heading, rows, figure, cases=cases)


def _mean(run: list[Case], where: str, name: str) -> float:
    values = [one[where][name] for one in run if name in one[where]]
    finite = [value for value in chain(values) if value == value]
    return sum(finite) / len(finite) if finite else float("nan")


if __name__ == "__main__":
    main()
