"""Pairs of images and texts from webdataset shards, in an order that a seed and a position fix.

Layout of a shard: `KEY.jpg`, `.jpeg`, `.png` or `.webp`; `KEY.txt` with a caption, or `KEY.json`
with any of `caption`, `concept` (pairs of one concept are all positives), `keywords`, `ancestors`
(broadest first), `class`, `split`, `boxes` (parts of the image: `{"box": [x0, y0, x1, y1],
"caption": "..."}` each, in pixels of the stored image). Every image size and mode is read; what is
broken is skipped, counted and reported.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, islice, repeat
from typing import Any, NamedTuple

import braceexpand
import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .config import Config, UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
Raw = dict[str, Any]


class Box(NamedTuple):
    """A part of an image, from its left and upper edge to its right and lower one, and its text."""

    edges: tuple[float, float, float, float]
    caption: str


@dataclass
class Sample:
    key: str
    image: Image.Image
    caption: str
    concept: str
    keywords: list[str] = field(default_factory=list)
    ancestors: list[str] = field(default_factory=list)  # broadest first
    label: str = ""
    split: str = ""
    boxes: list[Box] = field(default_factory=list)

    def path(self, level: int) -> str:
        """The ancestor `level` steps up with all above it: it tells apart those of one name."""
        return "/".join(self.ancestors[: len(self.ancestors) - level + 1])

    def with_keywords(self, some: Iterable[str]) -> str:
        return ", ".join([self.caption, *some])


def expand(patterns: Iterable[str]) -> list[str]:
    """The files that patterns with braces and wildcards name; an error if any is missing."""
    files: list[str] = []
    for pattern in patterns:
        for name in braceexpand.braceexpand(str(pattern)):
            found = sorted(glob.glob(name))
            if not found:
                raise UserError(
                    f"shard {name} is missing (from {pattern!r}); correct the pattern, or bring "
                    "the file back: training goes on from the last checkpoint with --resume"
                )
            files += found
    return files


def members(shards: list[str], broken: Callable[[str], None]) -> Iterator[Raw]:
    """The raw samples of shards, one after the other; what cannot be read is reported."""

    def skip(error: Exception) -> bool:
        broken(f"{type(error).__name__}: {error}")
        return True

    for shard in shards:
        pipeline = wds.DataPipeline(
            wds.SimpleShardList([shard]), wds.tarfile_to_samples(handler=skip)
        )
        yield from pipeline


def decode(raw: Raw, broken: Callable[[str], None]) -> Sample:
    """A sample from its files: transparent images come on white, broken boxes are left out."""
    key = raw["__key__"]
    kind = next((kind for kind in IMAGES if kind in raw), None)
    if kind is None:
        raise ValueError(f"{key}: no image among its files")
    about = json.loads(raw["json"]) if "json" in raw else {}
    caption = raw["txt"].decode("utf-8").strip() if "txt" in raw else about.get("caption", "")
    if not caption:
        raise ValueError(f"{key}: no caption")
    with Image.open(io.BytesIO(raw[kind])) as opened:
        image = opened.convert("RGBA" if opened.mode in ("P", "PA", "LA", "RGBA") else "RGB")
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return Sample(
        key,
        image,
        caption,
        str(about.get("concept", key)),
        about.get("keywords", []),
        about.get("ancestors", []),
        about.get("class", ""),
        about.get("split", ""),
        list(boxes(about.get("boxes", []), image.size, lambda why: broken(f"{key}: {why}"))),
    )


def boxes(found: Any, size: tuple[int, int], broken: Callable[[str], None]) -> Iterator[Box]:
    """Those boxes of a json that have a caption and lie inside an image of that size."""
    if not isinstance(found, list):
        broken(f"boxes: expected a list, got {type(found).__name__}")
        return
    for i, one in enumerate(found):
        one = one if isinstance(one, dict) else {}
        edges, caption = one.get("box"), one.get("caption")
        numbers = isinstance(edges, list) and len(edges) == 4
        if not (numbers and all(type(edge) in (int, float) for edge in edges)):
            broken(f"boxes[{i}]: expected four numbers [x0, y0, x1, y1], got {edges!r}")
        elif not (isinstance(caption, str) and caption.strip()):
            broken(f"boxes[{i}]: no caption")
        elif not all(
            0 <= low <= high - 1 and high <= length
            for low, high, length in zip(edges[:2], edges[2:], size, strict=True)
        ):
            broken(f"boxes[{i}]: expected a part of {size[0]} x {size[1]} pixels, got {edges}")
        else:
            yield Box(tuple(edges), caption.strip())


def samples(shards: list[str], broken: Callable[[str], None]) -> Iterator[Sample]:
    """All that can be decoded, in the order of the files."""
    for raw in members(shards, broken):
        try:
            yield decode(raw, broken)
        except Exception as error:  # whatever a damaged file makes its decoder raise
            broken(f"{raw['__key__']}: {type(error).__name__}: {error}")


def fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle square of an image, at `size`: how images are evaluated."""
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )


def augmented(image: Image.Image, config: Config, rng: random.Random) -> Image.Image:
    """A random crop of a slightly turned image, at the size of the tower."""
    if config.rotate:
        angle = rng.uniform(-config.rotate, config.rotate)
        image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor="white")
    width, height = image.size
    share = rng.uniform(config.crop, 1.0) * width * height
    ratio = rng.uniform(0.85, 1.18)
    w, h = min((share * ratio) ** 0.5, width), min((share / ratio) ** 0.5, height)
    left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
    size = (config.image_size, config.image_size)
    return image.resize(size, Image.Resampling.BICUBIC, (left, top, left + w, top + h))


def part(image: Image.Image, box: Box) -> Image.Image:
    left, top, right, bottom = box.edges
    return image.crop((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))


def jittered(pixels: Tensor, config: Config, rngs: list[random.Random]) -> Tensor:
    """Brightness, contrast and saturation of each image of a batch, in [0, 1], changed a little."""
    if not config.jitter:
        return pixels
    factors = [[rng.uniform(1 - config.jitter, 1 + config.jitter) for _ in "bcs"] for rng in rngs]
    brightness, contrast, saturation = torch.tensor(factors).T[:, :, None, None, None]
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + saturation * (pixels - grey)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return (brightness * (mean + contrast * (pixels - mean))).clamp(0, 1)


def as_pixels(images: list[Image.Image]) -> Tensor:
    """Images of one size as floats (N, 3, size, size) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def number(text: str) -> int:
    """The same int64 for equal texts, in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def collate(batch: list[Sample], config: Config, rngs: list[random.Random]) -> dict[str, Any]:
    """A batch: pixels, the distinct texts, and of each level the text and label of every pair.

    For hycoclip also one box of each sample that has some, drawn at random: the pixels follow those
    of the images, and `boxes` has their texts and their samples.
    """
    captions = []
    for sample, rng in zip(batch, rngs, strict=True):
        some: list[str] = []
        if sample.keywords and rng.random() < config.keywords:
            some = rng.sample(sample.keywords, rng.randint(1, len(sample.keywords)))
        captions.append(sample.with_keywords(some))
    levels = [(captions, [sample.concept for sample in batch])]
    if config.keyword_level:  # several concepts share a keyword; one without any is its own
        single = [
            rng.choice(sample.keywords or [sample.caption])
            for sample, rng in zip(batch, rngs, strict=True)
        ]
        levels.append((single, single))
    for level in range(1, config.ancestor_levels + 1):
        paths = [sample.path(level) for sample in batch]
        levels.append(([path.rsplit("/", 1)[-1] for path in paths], paths))
    place: dict[str, int] = {}
    index = [[place.setdefault(text, len(place)) for text in texts] for texts, _ in levels]
    originals = [sample.image for sample in batch]
    about_boxes = {}
    if config.objective == "hycoclip":
        some = [i for i, sample in enumerate(batch) if sample.boxes]
        drawn = [rngs[i].choice(batch[i].boxes) for i in some]
        originals += [part(batch[i].image, box) for i, box in zip(some, drawn, strict=True)]
        texts = [place.setdefault(box.caption, len(place)) for box in drawn]
        about_boxes["boxes"] = torch.tensor([texts, some], dtype=torch.int64)
        rngs = [*rngs, *(random.Random(rngs[i].random()) for i in some)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # PIL lets go of the interpreter
        images = [*threads.map(augmented, originals, repeat(config), rngs)]
    return {
        "keys": [sample.key for sample in batch],
        "pixels": jittered(as_pixels(images), config, rngs),
        "texts": list(place),
        "index": torch.tensor(index),
        "labels": torch.tensor([[number(of) for of in labels] for _, labels in levels]),
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
            self.memory = list(samples(self.shards, self.lost.append))
            _some(self.memory, self.shards, self.lost)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A loader asks its workers in turn, from the first: the one whose turn it is comes first.
        workers = max(self.config.workers, 1)
        worker = get_worker_info()
        me = ((worker.id if worker else 0) + self.step) % workers
        lost, self.lost = self.lost, []
        batch: list[Sample] = []
        rngs: list[random.Random] = []
        checked = False
        turns = self._turns(self.rank * workers + me, self.positions[me], lost.append)
        for position, rng, raw in turns:
            try:
                batch.append(raw if isinstance(raw, Sample) else decode(raw, lost.append))
                _check_levels(batch[-1], self.config)
            except UserError:
                raise
            except Exception as error:  # whatever a damaged file makes its decoder raise
                lost.append(f"{raw['__key__']}: {type(error).__name__}: {error}")
                continue
            rngs.append(rng)
            if len(batch) == self.batch:
                if self.config.objective == "hycoclip" and not checked:
                    _check_boxes(batch)
                checked = True
                about = {"worker": me, "position": position + 1, "broken": lost.copy()}
                lost.clear()
                yield collate(batch, self.config, rngs) | about
                batch, rngs = [], []

    def _turns(
        self, consumer: int, start: int, broken: Callable[[str], None]
    ) -> Iterator[tuple[int, random.Random, Any]]:
        """This consumer's samples from its position `start` on, with that and their randomness."""
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
                yield position, random.Random(f"{seed}/at {position}"), one

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
        _some([None] * found, shards, lost)
        for message in lost:
            broken(message)


def _some(found: list[Any], shards: list[str], lost: list[str]) -> None:
    if not found:
        why = f"; the first of {len(lost)} errors: {lost[0]}" if lost else ""
        raise UserError(
            f"the dataset is empty: no KEY.{{{','.join(IMAGES)}}} with KEY.txt or KEY.json in "
            f"{len(shards)} shards, {shards[0]} the first{why}"
        )


def _check_levels(sample: Sample, config: Config) -> None:
    if len(sample.ancestors) < config.ancestor_levels:
        raise UserError(
            f"{sample.key} has {len(sample.ancestors)} ancestors in its json, training asks for "
            f"{config.ancestor_levels}: set --ancestor-levels"
        )


def _check_boxes(batch: list[Sample]) -> None:
    if not any(sample.boxes for sample in batch):
        raise UserError(
            f"none of the first {len(batch)} samples has boxes in its json, and --objective "
            "hycoclip trains on them: add boxes to KEY.json, or choose another --objective"
        )
