"""The one way in: samples out of webdataset shards, checked; what is broken is named and skipped.

Layout of a shard: `KEY.jpg`, `.jpeg`, `.png` or `.webp`, and after or before it `KEY.txt` with a
caption, or `KEY.json` with the fields of `schema.Sample`; the text counts where both have captions.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import braceexpand

from . import archive, images
from .archive import OnBroken
from .config import UserError
from .schema import BrokenSample, Sample, checked_boxes, parse_json, sample_arguments

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
RawSample = dict[str, Any]  # the contents of its files by their endings, and __key__, __url__


def expand(patterns: Iterable[str]) -> list[str]:
    """The files that patterns with braces and wildcards name; an error if any is missing."""
    files: list[str] = []
    for pattern in patterns:
        try:
            names = [*braceexpand.braceexpand(str(pattern))]
        except braceexpand.UnbalancedBracesError:
            raise UserError(
                f"shards {pattern!r}: a brace opens or closes without the other; write "
                "{00000..00099}, or \\{ for a brace in a name"
            ) from None
        for name in names:
            matches = [name] if Path(name).exists() else sorted(glob.glob(name))
            if not matches:
                raise UserError(
                    f"shard {name} is missing (from {pattern!r}); correct the pattern, or bring "
                    "the file back: training goes on from the last checkpoint with --resume"
                )
            files += matches
    return files


def raw_samples(shards: list[str], on_broken: OnBroken) -> Iterator[RawSample]:
    """The raw samples of shards, one after the other; what cannot be read is reported.

    `__before__` has the files of the same key that came earlier in the shard, not next to these.
    """
    for shard in shards:
        endings_of_key: dict[str, list[str]] = {}
        for raw in archive.files_of_keys(shard, on_broken):
            before = endings_of_key.setdefault(raw["__key__"], [])
            yield raw | {"__before__": before.copy()}
            before += file_endings(raw)


def first_of(messages: Sequence[str]) -> str:
    """What an error about shards adds: the first of the messages about what is broken in them."""
    return f"; the first of {len(messages)} errors: {messages[0]}" if messages else ""


def file_endings(raw: RawSample) -> list[str]:
    return [name for name in raw if not name.startswith("__")]


def read(raw: RawSample, on_broken: OnBroken, levels: int = 0) -> Sample | None:
    """A sample from its files, which needs `levels` of ancestors; nothing where they are broken."""

    def report(reason: str) -> None:
        on_broken(f"{raw['__key__']}: {reason} (in {raw['__url__']})")

    try:
        return decode(raw, report, levels)
    except BrokenSample as error:
        report(str(error))
    except Exception as error:  # whatever a damaged file makes its decoder raise
        report(f"{type(error).__name__}: {error}")
    return None


def decode(raw: RawSample, on_broken: OnBroken, levels: int) -> Sample:
    """A sample from its files; `BrokenSample` says what it lacks."""
    metadata = parse_json(raw.get("json", b""))
    arguments = {name: value for name, value in sample_arguments(metadata).items() if value}
    # Pairs of one concept are all positives. A sample that names none gets one that no other sample
    # of any shard has.
    own_concept = "\n".join([raw["__url__"], raw["__key__"], *raw["__before__"]])
    arguments.setdefault("concept", own_concept)
    if caption := raw.get("txt", b"").decode("utf-8-sig").strip():
        arguments["captions"] = [caption]
    image_endings = [ending for ending in IMAGE_ENDINGS if ending in raw]
    if not image_endings:
        raise BrokenSample(f"no image among its files: {described_files(raw)}")
    if len(image_endings) > 1:
        raise BrokenSample(f"more than one image among its files: {described_files(raw)}")
    if "captions" not in arguments:
        raise BrokenSample(
            f"no caption, neither in a txt nor in a json, among its files: {described_files(raw)}"
        )
    ancestor_count = len(arguments.get("ancestors", []))
    if ancestor_count < levels:
        raise BrokenSample(
            f"ancestors: training asks for {levels} (--ancestor-levels), got {ancestor_count}"
        )
    picture = images.read(raw[image_endings[0]])
    entries = [] if metadata.get("boxes") is None else metadata["boxes"]
    boxes = map(picture.upright_box, checked_boxes(entries, picture.stored_size, on_broken))
    return Sample(raw["__key__"], picture.image, boxes=[*boxes], **arguments)


def described_files(raw: RawSample) -> str:
    """The files of a raw sample, for a message, and those that do not lie next to them."""
    endings = ", ".join(file_endings(raw))
    if "." in endings:
        endings += "; a key ends at its first dot"
    if not raw["__before__"]:
        return endings
    return (
        f"{endings}; not next to these lie {', '.join(raw['__before__'])} of the same key: write "
        "the files of a key one after the other"
    )


def samples(shards: list[str], on_broken: OnBroken, levels: int = 0) -> Iterator[Sample]:
    """All samples that can be decoded, in the order of the files."""
    for raw in raw_samples(shards, on_broken):
        if (sample := read(raw, on_broken, levels)) is not None:
            yield sample
