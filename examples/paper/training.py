"""Short trainings of the example's towers on the emoji, looked at on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from statistics import mean
from typing import Any

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic import emoji
from clip_hyperbolic.config import Config
from clip_hyperbolic.data import Batches
from clip_hyperbolic.evaluate import embed_texts, hierarchy, ranking, retrieval
from clip_hyperbolic.images import as_pixels, fitted
from clip_hyperbolic.model import Towers
from clip_hyperbolic.objective import Objective
from clip_hyperbolic.run import optimizer_of
from clip_hyperbolic.schema import Sample
from clip_hyperbolic.shards import expand, samples
from clip_hyperbolic.tokenizer import CaptionTokenizer
from common import ATMG_QUERY, Case, Options, console, measured
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from train_clip_hyperbolic import learning_rate

UNSEEN = ("Goog", "Twtr")
Probe = Callable[[int, Towers, CaptionTokenizer], None]


def trained(
    name: str, function: Callable[..., Case], cases: list[Case], args: Options, steps: int
) -> list[Case]:
    """The cases, measured by `function` in trainings of `steps` steps; prepares the data first."""
    if not emoji.is_complete(emoji.default_cache()):
        console.print(f"Emoji drawings, into {emoji.default_cache()}. {emoji.LICENCE}")
        emoji.prepare(emoji.default_cache())
    settings = {"steps": steps, "smoke": args.size == "smoke"}
    return measured(name, function, [case | settings for case in cases], args.out)


def configuration(smoke: bool = False, *, objective: str, **changes: Any) -> Config:
    """A small configuration of the example: a sweep takes minutes. `smoke` has few drawings too.

    `objective` is one of `common.OBJECTIVES`.
    """
    if objective == ATMG_QUERY:
        objective, changes["apex"] = "atmg", "query"
    small: dict[str, Any] = {"image_size": 32, "crop": 0.6, "rotate": 12.0, "ancestor_weight": 0.3}
    small |= {"warp": 0.0, "restyle": 0.0, "tint": 0.0, "centroid_weight": 0.1}
    small |= {"stem_width": 32, "text_width": 128, "embed_dim": 64, "steps": 300, "warmup": 30}
    if smoke:
        # In 4 dimensions there is too little work for compiling, which would take longest.
        small |= {"steps": 4, "warmup": 2, "batch_size": 32, "embed_dim": 4, "text_width": 32}
    folder, fold = emoji.default_cache(), "rare" if smoke else "*"
    shards = [f"{folder}/{vendor}-{fold}.tar" for vendor in emoji.TRAINING]
    return Config(objective=objective, shards=shards, **small | changes)


@cache
def decoded(shard: str) -> list[Sample]:
    """The samples of a shard, decoded once for all cases of a process."""
    return [*samples([shard], print)]


def drawings_in(shards: list[str]) -> list[Sample]:
    """The samples of all shards of these patterns."""
    return [*chain.from_iterable(map(decoded, expand(shards)))]


def batches(config: Config) -> Batches:
    """The example's batches of a configuration, of samples that no other case decodes again."""
    return Batches(config, memory=drawings_in(config.shards))


@dataclass
class Points:
    """A model's points: every vendor's drawing of every concept, and the concepts' names."""

    images: Tensor  # (vendors, concepts, D)
    texts: Tensor  # (concepts, D)


class Drawings:
    """All vendors' drawings of the concepts of a configuration, the unseen ones too."""

    def __init__(self, config: Config) -> None:
        samples_by_vendor: dict[str, list[Sample]] = {}
        for vendor in emoji.VENDORS:
            shards = [name.replace(emoji.TRAINING[0], vendor) for name in config.shards[:1]]
            samples_by_vendor[vendor] = drawings_in(shards)
        self.concepts = samples_by_vendor[emoji.VENDORS[0]]
        self.pixels = torch.stack(
            [
                as_pixels([fitted(sample.image, config.image_size) for sample in vendor_samples])
                for vendor_samples in samples_by_vendor.values()
            ]
        )

    @torch.no_grad()
    def points(self, model: Towers, tokenizer: CaptionTokenizer) -> Points:
        model.eval()
        images = [model.images(chunk) for chunk in self.pixels.flatten(0, 1).split(256)]
        names = [sample.caption for sample in self.concepts]
        shape = self.pixels.shape[:2]
        points = Points(torch.cat(images).unflatten(0, shape), embed_texts(model, tokenizer, names))
        model.train()
        return points

    def scores(self, points: Points, model: Towers) -> dict[str, float]:
        """Retrieval and tree-induced error on the unseen vendors, means over them."""

        def rank(queries: Tensor, gallery: Tensor, images_ask: bool) -> Tensor:
            return ranking(model, queries, gallery, images_ask=images_ask)

        return self.scores_of(points, rank)

    def scores_of(
        self, points: Points, rank: Callable[[Tensor, Tensor, bool], Tensor]
    ) -> dict[str, float]:
        names = [sample.caption for sample in self.concepts]
        paths = [[*sample.ancestors, sample.caption] for sample in self.concepts]
        vendor_scores = []
        for vendor in UNSEEN:
            images = points.images[emoji.VENDORS.index(vendor)]
            t2i, i2t = rank(points.texts, images, False), rank(images, points.texts, True)
            tree = hierarchy([paths[best] for best in i2t[:, 0].tolist()], paths)
            metrics = {"t2i": retrieval(t2i, names, names), "i2t": retrieval(i2t, names, names)}
            recalls = {
                f"{direction} R@{k}": metric[f"R@{k}"]
                for direction, metric in metrics.items()
                for k in (1, 10)
            }
            vendor_scores.append(recalls | {"i2t TIE": tree["TIE"]})
        return {name: mean(scores[name] for scores in vendor_scores) for name in vendor_scores[0]}


def train(
    config: Config,
    modify_towers: Callable[[Towers], Towers] = lambda model: model,
    make_objective: Callable[[Config], Objective] = Objective,
    probe_steps: Collection[int] = (),
    probe: Probe | None = None,
) -> tuple[Towers, CaptionTokenizer, int]:
    """The example's loop without its safeguards: the model, its tokenizer and the steps taken.

    `probe` is called after each of `probe_steps`; 0 is before the first step. A loss or gradient
    that is not finite ends the training before it changes the model.
    """
    torch.manual_seed(config.seed)
    tokenizer = CaptionTokenizer.from_samples(config, drawings_in(config.shards))
    model = modify_towers(Towers.from_config(config, len(tokenizer)))
    objective, optimizer = make_objective(config), optimizer_of(model, config)
    model.train()
    if probe and 0 in probe_steps:
        probe(0, model, tokenizer)
    for step, batch in enumerate(islice(batches(config), config.steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        outputs = model(batch["pixels"], *tokenizer(batch["texts"]))
        loss, _ = objective(*outputs, batch["index"], batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        norm = float(clip_grad_norm_(model.parameters(), config.clip_norm))
        if not math.isfinite(loss.item() + norm):
            return model, tokenizer, step - 1
        optimizer.step()
        if probe and step in probe_steps:
            probe(step, model, tokenizer)
    return model, tokenizer, config.steps
