"""Shards of a few drawn pictures, and the options of a run that trains on them in seconds."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

from clip_hyperbolic.config import Config
from clip_hyperbolic.data import Batches
from PIL import Image
from torch.utils.data import DataLoader

COLOURS = ("red", "green", "blue", "gold", "purple", "черный", "白い", "orange")
FILL = dict(zip(COLOURS, [*COLOURS[:5], "black", "white", "orange"], strict=True))


def png(colour: str, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, FILL[colour]).convert(mode).save(file, "png")
    return file.getvalue()


def speckled(colour: str, seed: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """A picture of which no two parts are alike.

    The point of a box that looked like its picture would coincide with the picture's.
    """
    noise = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    cells = noise.resize((5, 4)).resize(size)
    file = io.BytesIO()
    Image.blend(Image.new("RGB", size, FILL[colour]), cells, 0.5).save(file, "png")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shard(file: Path, start: int = 0, count: int = 16) -> Path:
    with tarfile.open(file, "w") as tar:
        for i in range(start, start + count):
            colour = COLOURS[i % len(COLOURS)]
            shade = "bright" if i % 2 else "dark"
            metadata = {"concept": colour, "ancestors": ["colour", shade], "keywords": [f"k{i}"]}
            if i % 3:  # some have no boxes, some have two
                boxes = [[0, 0, 20, 32], [10.5, 4, 40, 31.5]][: i % 3]
                metadata["boxes"] = [{"box": box, "caption": f"part of {colour}"} for box in boxes]
            add(tar, f"{i:04d}.png", speckled(colour, i))
            add(tar, f"{i:04d}.txt", colour.encode())
            add(tar, f"{i:04d}.json", json.dumps(metadata).encode())
    return file


SMALL = {
    "image_size": 32,
    "batch_size": 8,
    "embed_dim": 16,
    "text_width": 32,
    "text_layers": 1,
    "vocab_size": 300,
    "steps": 8,
    "warmup": 2,
    "save_every": 2,
    "log_every": 1,
}


def small_config(shards: str, **changes: Any) -> Config:
    return Config(**{"shards": [shards], **SMALL, **changes})


def take_batches(config: Config, count: int, **consumer: Any) -> list[dict[str, Any]]:
    stream = iter(DataLoader(Batches(config, **consumer), None, num_workers=config.workers))
    return [next(stream) for _ in range(count)]
