"""Batches of the samples of shards, in an order that a seed and a position fix."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch.utils.data import IterableDataset, get_worker_info

from .augment import cropped, varied
from .config import Config, UserError
from .images import as_pixels, crop_box
from .schema import Sample, with_keywords
from .shards import IMAGE_ENDINGS, expand, first_of, raw_samples, read, samples

# So many samples, two large shards' worth, may be broken before the first whole one.
MAX_BROKEN_AT_START = 20_000
SHUFFLE_BUFFER = 2000  # samples


class Item(NamedTuple):
    """What a worker takes next: a `Sample` that is in memory, or the `RawSample` of a shard."""

    position: int
    rng: random.Random
    content: Any


def number(label: str | tuple[str, ...]) -> int:
    """The same int64 for equal labels, in every process."""
    written = json.dumps(label).encode()
    return int.from_bytes(hashlib.blake2b(written, digest_size=8).digest(), "big") >> 1


class Level(NamedTuple):
    """A text for each sample of a batch; two samples with equal labels share theirs."""

    texts: list[str]
    labels: list[Any]


def draw_levels(batch: list[Sample], config: Config, rngs: list[random.Random]) -> list[Level]:
    """One caption of each sample of a batch, and the texts of the levels above the captions."""
    captions = []
    for sample, rng in zip(batch, rngs, strict=True):
        caption = rng.choice(sample.captions) if len(sample.captions) > 1 else sample.caption
        keywords: list[str] = []
        if sample.keywords and rng.random() < config.keywords:
            keywords = rng.sample(sample.keywords, rng.randint(1, len(sample.keywords)))
        captions.append(with_keywords(caption, keywords))
    levels = [Level(captions, [sample.concept for sample in batch])]
    if config.keyword_level:
        # Several concepts share a keyword. A sample without any has its caption there.
        keywords = [
            rng.choice(sample.keywords or [sample.caption])
            for sample, rng in zip(batch, rngs, strict=True)
        ]
        levels.append(Level(keywords, keywords))
    for level in range(1, config.ancestor_levels + 1):
        paths = [sample.path(level) for sample in batch]
        levels.append(Level([path[-1] for path in paths], paths))
    return levels


def collate(batch: list[Sample], config: Config, rngs: list[random.Random]) -> dict[str, Any]:
    """A batch: pixels, the distinct texts, and of each level the text and label of every pair.

    For hycoclip also one box of each sample that has some, drawn at random. Its pixels follow those
    of the images; `boxes` has two rows: the boxes' texts, and the samples that they belong to.
    """
    levels = draw_levels(batch, config, rngs)
    text_index: dict[str, int] = {}  # every distinct text, by its place among them
    index = [
        [text_index.setdefault(text, len(text_index)) for text in level.texts] for level in levels
    ]
    originals = [sample.image for sample in batch]
    box_entry = {}
    if config.objective == "hycoclip":
        with_boxes = [i for i, sample in enumerate(batch) if sample.boxes]
        boxes = [rngs[i].choice(batch[i].boxes) for i in with_boxes]
        originals += [
            crop_box(batch[i].image, box) for i, box in zip(with_boxes, boxes, strict=True)
        ]
        box_texts = [text_index.setdefault(box.caption, len(text_index)) for box in boxes]
        box_entry["boxes"] = torch.tensor([box_texts, with_boxes], dtype=torch.int64)
        rngs = [*rngs, *(random.Random(rngs[i].random()) for i in with_boxes)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # PIL lets go of the interpreter
        images = [*threads.map(cropped, originals, repeat(config), rngs)]
    labels = [[number(label) for label in level.labels] for level in levels]
    return {
        "keys": [sample.key for sample in batch],
        "pixels": varied(as_pixels(images), config, rngs),
        "texts": list(text_index),
        "index": torch.tensor(index),
        "labels": torch.tensor(labels),
        **box_entry,
    }


class Batches(IterableDataset):
    """An endless stream of one process's batches, in an order that seed and positions fix.

    Every worker of every process is a consumer. With as many shards as consumers, each reads shards
    of its own, if they hold a whole sample. Otherwise, and in memory, all read the same samples and
    take turns of `batch_size` samples, so that the batches of several processes together are those
    of one.

    Every batch says how far its worker has read. `positions`, one number per worker, makes the
    stream go on from there. `memory` has all samples of the shards, if they are read already.
    """

    def __init__(
        self,
        config: Config,
        rank: int = 0,
        processes: int = 1,
        step: int = 0,
        positions: list[int] | None = None,
        memory: list[Sample] | None = None,
    ) -> None:
        self.config, self.rank, self.processes, self.step = config, rank, processes, step
        self.batch_size = config.batch_size // processes
        self.shards = expand(config.shards)
        self.workers = max(config.workers, 1)
        self.positions = positions or [0] * self.workers
        self.memory = memory
        self.broken: list[str] = []  # messages that the next batch will have
        if memory is None and config.in_memory:
            stream = samples(self.shards, self.broken.append, config.ancestor_levels)
            self.memory = list(stream)
        if self.memory == []:
            raise no_sample(self.shards, self.broken)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        # A loader always asks its first worker first, and the others in turn. After `step` batches
        # the worker whose turn it is has to take that place.
        worker = ((info.id if info else 0) + self.step) % self.workers
        broken, self.broken = self.broken, []
        try:
            yield from self._batches(worker, broken)
        except UserError as error:
            if info is None:
                raise
            # Of an exception, a loader would pass on the type and a traceback as text.
            yield {"error": str(error)}

    def _batches(self, worker: int, broken: list[str]) -> Iterator[dict[str, Any]]:
        """The batches of one worker; messages go to `broken`, and on to the next batch."""
        consumers = self.processes * self.workers
        consumer, start = self.rank * self.workers + worker, self.positions[worker]
        if self.memory is None and len(self.shards) >= consumers > 1:
            shards, errors = self.shards[consumer::consumers], []
            if next(samples(shards, errors.append, self.config.ancestor_levels), None) is None:
                if start == 0:
                    broken.append(f"{no_sample(shards, errors)}. Others are read instead")
                shards = self.shards
            items = self._items(shards, f"{consumer}", start, broken)
        else:
            shared = self._items(self.shards, "", start, broken)
            items = (i for i in shared if i.position // self.batch_size % consumers == consumer)
        yield from self._collated(items, worker, broken)

    def _collated(
        self, items: Iterator[Item], worker: int, broken: list[str]
    ) -> Iterator[dict[str, Any]]:
        batch: list[Sample] = []
        rngs: list[random.Random] = []
        is_first_batch, read_count = True, 0
        for item in items:
            sample = item.content
            if not isinstance(sample, Sample):
                read_count += 1
                sample = read(item.content, broken.append, self.config.ancestor_levels)
            if sample is None:
                if is_first_batch and not batch and read_count >= MAX_BROKEN_AT_START:
                    raise no_sample(self.shards, broken)
                continue
            batch.append(sample)
            rngs.append(item.rng)
            if len(batch) == self.batch_size:
                if is_first_batch and self.config.objective == "hycoclip":
                    _check_boxes(batch)
                is_first_batch = False
                progress = {"worker": worker, "position": item.position + 1}
                progress["broken"] = broken.copy()
                broken.clear()
                yield collate(batch, self.config, rngs) | progress
                batch, rngs = [], []

    def _items(
        self, shards: list[str], order: str, start: int, broken: list[str]
    ) -> Iterator[Item]:
        """The samples of shards from position `start` on, shuffled by the seed and `order`."""
        seed = f"{self.config.seed}/{order}"
        contents = (
            content
            for epoch in count()
            for content in self._epoch(shards, random.Random(f"{seed}/{epoch}"), broken)
        )
        numbered = enumerate(contents)
        for _ in islice(numbered, start):
            broken.clear()  # earlier batches had these messages
        for position, content in numbered:
            yield Item(position, random.Random(f"{seed}/at {position}"), content)

    def _epoch(self, shards: list[str], rng: random.Random, broken: list[str]) -> Iterator[Any]:
        """Each sample once, in random order.

        Samples in memory are shuffled as a whole; else the shards are, and samples in a buffer.
        """
        if self.memory is not None:
            yield from rng.sample(self.memory, len(self.memory))
            return
        sample_count = 0
        stream = raw_samples(rng.sample(shards, len(shards)), broken.append)
        for raw in wds.shuffle(SHUFFLE_BUFFER, rng=rng)(stream):
            sample_count += 1
            yield raw
        if not sample_count:
            raise no_sample(shards, broken)


def no_sample(shards: list[str], messages: list[str]) -> UserError:
    """The error that shards hold no sample to train on; it says what was wrong with the first."""
    return UserError(
        f"no sample to train on: no whole KEY.{{{','.join(IMAGE_ENDINGS)}}} with KEY.txt or "
        f"KEY.json in {len(shards)} shards, {shards[0]} the first{first_of(messages)}"
    )


def _check_boxes(batch: list[Sample]) -> None:
    if not any(sample.boxes for sample in batch):
        raise UserError(
            f"none of the first {len(batch)} samples has boxes in its json, and --objective "
            "hycoclip trains on them: add boxes to KEY.json, or choose another --objective"
        )
