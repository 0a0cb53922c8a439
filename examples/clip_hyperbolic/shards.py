"""The one way in: samples out of webdataset shards, checked; what is broken is named and skipped.

Layout of a shard: `KEY.jpg`, `.jpeg`, `.png` or `.webp`, and after or before it `KEY.txt` with a
caption, or `KEY.json` with the fields of `schema.Sample`; the text counts where both have captions.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import braceexpand
import webdataset as wds

from . import images
from .config import UserError
from .schema import Broken, Sample, boxes, checked, of_json

IMAGES = ("jpg", "jpeg", "png", "webp")
Raw = dict[str, Any]


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
    """The raw samples of shards, one after the other; what cannot be read is reported.

    `__before__` has the files of the same key that came earlier in the shard, not next to these.
    """
    for shard in shards:

        def skip(error: Exception, shard: str = shard) -> bool:
            broken(f"{shard}: {type(error).__name__}: {error.args[0] if error.args else error}")
            return True

        seen: dict[str, list[str]] = {}
        for raw in wds.DataPipeline(
            wds.SimpleShardList([shard]), wds.tarfile_to_samples(handler=skip)
        ):
            before = seen.setdefault(raw["__key__"], [])
            yield raw | {"__before__": before.copy()}
            before += files(raw)


def files(raw: Raw) -> list[str]:
    return [kind for kind in raw if not kind.startswith("__")]


def read(raw: Raw, broken: Callable[[str], None], levels: int = 0) -> Sample | None:
    """A sample from its files, or nothing where they are broken; `levels` of ancestors it needs."""

    def name(why: str) -> None:
        broken(f"{raw['__key__']}: {why} (in {raw['__url__']})")

    try:
        return decode(raw, name, levels)
    except Broken as error:
        name(str(error))
    except Exception as error:  # whatever a damaged file makes its decoder raise
        name(f"{type(error).__name__}: {error}")
    return None


def decode(raw: Raw, broken: Callable[[str], None], levels: int) -> Sample:
    about = of_json(raw.get("json", b""))
    # Pairs of one concept are all positives. One that names none has its own, in all the shards.
    own = "\n".join([raw["__url__"], raw["__key__"], *raw["__before__"]])
    found = {name: value for name, value in checked(about).items() if value}
    found = {"concept": own} | found
    if caption := raw.get("txt", b"").decode("utf-8-sig").strip():
        found["captions"] = [caption]
    kind = next((kind for kind in IMAGES if kind in raw), None)
    if kind is None:
        raise Broken(f"no image among its files: {around(raw)}")
    if "captions" not in found:
        raise Broken(f"no caption, neither in a txt nor in a json, among its files: {around(raw)}")
    if len(found.get("ancestors", [])) < levels:
        raise Broken(
            f"ancestors: training asks for {levels} (--ancestor-levels), "
            f"got {len(found.get('ancestors', []))}"
        )
    picture = images.read(raw[kind])
    some = boxes([] if about.get("boxes") is None else about["boxes"], picture.stored, broken)
    return Sample(raw["__key__"], picture.image, boxes=[*map(picture.turned, some)], **found)


def around(raw: Raw) -> str:
    """The files of a raw sample, for a message, and those that do not lie next to them."""
    if not raw["__before__"]:
        return ", ".join(files(raw))
    return (
        f"{', '.join(files(raw))}; not next to these lie {', '.join(raw['__before__'])} of the "
        "same key: write the files of a key one after the other"
    )


def samples(shards: list[str], broken: Callable[[str], None], levels: int = 0) -> Iterator[Sample]:
    """All that can be decoded, in the order of the files."""
    for raw in members(shards, broken):
        if (found := read(raw, broken, levels)) is not None:
            yield found
