"""Batches of the samples of shards, in an order that a seed and a position fix."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from .config import Config, UserError
from .images import as_pixels, augmented, jittered, part
from .schema import Sample, with_keywords
from .shards import IMAGES, expand, members, read, samples

PATIENCE = 20_000  # samples, two large shards' worth, of which one at least has to be whole


class Turn(NamedTuple):
    """A sample that a worker has to take: decoded if it is in memory, else its files."""

    position: int
    rng: random.Random
    raw: Any


def number(label: str | tuple[str, ...]) -> int:
    """The same int64 for equal labels, in every process."""
    written = json.dumps(label).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "big") >> 1


class Level(NamedTuple):
    """A text for each sample of a batch, and what tells whether two samples share it."""

    texts: list[str]
    labels: list[Any]


def drawn(batch: list[Sample], config: Config, rngs: list[random.Random]) -> list[Level]:
    """The captions of a batch, one of each sample's, and the texts of the levels above them."""
    captions = []
    for sample, rng in zip(batch, rngs, strict=True):
        caption = rng.choice(sample.captions) if len(sample.captions) > 1 else sample.caption
        some: list[str] = []
        if sample.keywords and rng.random() < config.keywords:
            some = rng.sample(sample.keywords, rng.randint(1, len(sample.keywords)))
        captions.append(with_keywords(caption, some))
    levels = [Level(captions, [sample.concept for sample in batch])]
    if config.keyword_level:  # several concepts share a keyword; one without any is its own
        single = [
            rng.choice(sample.keywords or [sample.caption])
            for sample, rng in zip(batch, rngs, strict=True)
        ]
        levels.append(Level(single, single))
    for level in range(1, config.ancestor_levels + 1):
        paths = [sample.path(level) for sample in batch]
        levels.append(Level([path[-1] for path in paths], paths))
    return levels


def collate(batch: list[Sample], config: Config, rngs: list[random.Random]) -> dict[str, Any]:
    """A batch: pixels, the distinct texts, and of each level the text and label of every pair.

    For hycoclip also one box of each sample that has some, drawn at random: the pixels follow those
    of the images, and `boxes` has their texts and their samples.
    """
    levels = drawn(batch, config, rngs)
    place: dict[str, int] = {}
    index = [[place.setdefault(text, len(place)) for text in one.texts] for one in levels]
    originals = [sample.image for sample in batch]
    about_boxes = {}
    if config.objective == "hycoclip":
        some = [i for i, sample in enumerate(batch) if sample.boxes]
        boxes = [rngs[i].choice(batch[i].boxes) for i in some]
        originals += [part(batch[i].image, box) for i, box in zip(some, boxes, strict=True)]
        texts = [place.setdefault(box.caption, len(place)) for box in boxes]
        about_boxes["boxes"] = torch.tensor([texts, some], dtype=torch.int64)
        rngs = [*rngs, *(random.Random(rngs[i].random()) for i in some)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # PIL lets go of the interpreter
        images = [*threads.map(augmented, originals, repeat(config), rngs)]
    return {
        "keys": [sample.key for sample in batch],
        "pixels": jittered(as_pixels(images), config, rngs),
        "texts": list(place),
        "index": torch.tensor(index),
        "labels": torch.tensor([[number(of) for of in one.labels] for one in levels]),
        **about_boxes,
    }


class Batches(IterableDataset):
    """An endless stream of one process's batches, in an order that seed and positions fix.

    Every worker of every process is a consumer. With as many shards as consumers each has shards of
    its own; else, and in memory, all read the same and take their turns of `batch` samples, so that
    the batches of several processes together are those of one. Every batch says how many samples
    its worker had gone past; `positions`, one number per worker, makes it go on behind them.
    """

    def __init__(
        self,
        config: Config,
        rank: int = 0,
        processes: int = 1,
        step: int = 0,
        positions: list[int] | None = None,
    ) -> None:
        self.config, self.rank, self.processes, self.step = config, rank, processes, step
        self.batch = config.batch_size // processes
        self.shards = expand(config.shards)
        self.positions = positions or [0] * max(config.workers, 1)
        self.memory: list[Sample] | None = None
        self.lost: list[str] = []
        if config.in_memory:
            stream = samples(self.shards, self.lost.append, config.ancestor_levels)
            self.memory = list(stream)
            if not self.memory:
                raise nothing(self.shards, self.lost)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A loader asks its workers in turn, from the first: the one whose turn it is comes first.
        workers = max(self.config.workers, 1)
        worker = get_worker_info()
        me = ((worker.id if worker else 0) + self.step) % workers
        lost, self.lost = self.lost, []
        batch: list[Sample] = []
        rngs: list[random.Random] = []
        first, tried = True, 0
        for turn in self._turns(self.rank * workers + me, self.positions[me], lost.append):
            found = turn.raw
            if not isinstance(found, Sample):
                tried += 1
                found = read(turn.raw, lost.append, self.config.ancestor_levels)
            if found is None:
                if first and not batch and tried >= PATIENCE:
                    raise nothing(self.shards, lost)
                continue
            batch.append(found)
            rngs.append(turn.rng)
            if len(batch) == self.batch:
                if first and self.config.objective == "hycoclip":
                    _check_boxes(batch)
                first = False
                about = {"worker": me, "position": turn.position + 1, "broken": lost.copy()}
                lost.clear()
                yield collate(batch, self.config, rngs) | about
                batch, rngs = [], []

    def _turns(self, consumer: int, start: int, broken: Callable[[str], None]) -> Iterator[Turn]:
        """This consumer's samples from its position `start` on."""
        consumers = self.processes * max(self.config.workers, 1)
        alone = self.memory is None and len(self.shards) >= consumers > 1
        shards = self.shards[consumer::consumers] if alone else self.shards
        seed = f"{self.config.seed}/{consumer if alone else ''}"
        endless = (
            one
            for epoch in count()
            for one in self._epoch(shards, random.Random(f"{seed}/{epoch}"), broken)
        )
        for position, one in islice(enumerate(endless), start, None):
            if alone or position // self.batch % consumers == consumer:
                yield Turn(position, random.Random(f"{seed}/at {position}"), one)

    def _epoch(
        self, shards: list[str], rng: random.Random, broken: Callable[[str], None]
    ) -> Iterator[Any]:
        """Each sample once: in memory in any order, else shards shuffled, and a buffer's worth."""
        if self.memory is not None:
            yield from rng.sample(self.memory, len(self.memory))
            return
        found, lost = 0, []
        stream = members(rng.sample(shards, len(shards)), lost.append)
        for found, one in enumerate(wds.shuffle(2000, rng=rng)(stream), 1):  # noqa: B007
            yield one
        if not found:
            raise nothing(shards, lost)
        for message in lost:
            broken(message)


def nothing(shards: list[str], lost: list[str]) -> UserError:
    """That shards hold no sample to train on, and what was wrong with the first."""
    why = f"; the first of {len(lost)} errors: {lost[0]}" if lost else ""
    return UserError(
        f"the dataset is empty: no whole KEY.{{{','.join(IMAGES)}}} with KEY.txt or KEY.json in "
        f"{len(shards)} shards, {shards[0]} the first{why}"
    )


def _check_boxes(batch: list[Sample]) -> None:
    if not any(sample.boxes for sample in batch):
        raise UserError(
            f"none of the first {len(batch)} samples has boxes in its json, and --objective "
            "hycoclip trains on them: add boxes to KEY.json, or choose another --objective"
        )
