"""What a shard says of a sample: every field declared with what it takes, and checked once.

`Sample` is the table. A field of KEY.json that is missing, null or empty keeps its default; one of
a wrong type makes its sample broken, and the message says which and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from PIL import Image


class BrokenSample(Exception):
    """Why a sample is skipped."""


class Box(NamedTuple):
    """A part of an image, from its left and upper edge to its right and lower one, and its text."""

    edges: tuple[float, float, float, float]
    caption: str


def printable(text: str) -> str:
    """A text, its lone surrogates written out. A json may have some, no tokenizer takes them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value == printable(value)


# A field's value in the json, checked and without surrounding spaces; TypeError if it is wrong.


def as_text(value: Any) -> str:
    if not is_text(value):
        raise TypeError
    return value.strip()


def as_name(value: Any) -> str:
    """A text or a whole number: 0 is a name too."""
    return as_text(str(value) if type(value) is int else value)


def as_texts(value: Any) -> list[str]:
    """A list of texts, without the empty ones."""
    if not isinstance(value, list):
        raise TypeError
    return [text for item in value if (text := as_text(item))]


def as_one_or_more_texts(value: Any) -> list[str]:
    return as_texts(value if isinstance(value, list) else [value])


def as_path(value: Any) -> list[str]:
    """A list of texts, none of them empty: each has its place."""
    texts = as_texts(value)
    if len(texts) < len(value):
        raise TypeError
    return texts


def entry(json_name: str, read: Callable[[Any], Any], expected: str) -> Any:
    """A field of the json: its name there, what reads its value, and what that takes, in words."""
    default: Any = {"default": ""} if read is as_name else {"default_factory": list}
    metadata = {"json_name": json_name, "read": read, "expected": expected}
    return field(**default, metadata=metadata)


@dataclass
class Sample:
    key: str
    image: Image.Image
    captions: list[str] = entry("caption", as_one_or_more_texts, "a string or a list of strings")
    concept: str = entry("concept", as_name, "a string or a whole number")
    keywords: list[str] = entry("keywords", as_texts, "a list of strings")
    ancestors: list[str] = entry("ancestors", as_path, "a list of strings, none of them empty")
    label: str = entry("class", as_name, "a string or a whole number")
    split: str = entry("split", as_name, "a string or a whole number")
    boxes: list[Box] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """The first caption, where one has to do."""
        return self.captions[0]

    def path(self, level: int) -> tuple[str, ...]:
        """The ancestors from the broadest down to the one `level` steps above the sample.

        Two ancestors of one name are told apart by those above them.
        """
        return tuple(self.ancestors[: len(self.ancestors) - level + 1])


def with_keywords(caption: str, keywords: Iterable[str]) -> str:
    return ", ".join([caption, *keywords])


def parse_json(content: bytes) -> dict[str, Any]:
    """The content of KEY.json, `{}` of an empty one."""
    try:
        metadata = json.loads(content) if content.strip() else {}
    except ValueError as error:
        raise BrokenSample(f"json: {error}") from None
    if not isinstance(metadata, dict):
        raise BrokenSample(f"json: expected an object, got {type(metadata).__name__}")
    return metadata


def sample_arguments(metadata: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `Sample` that the content of a json gives, but for the boxes."""
    arguments = {}
    for name, declared in ((f.name, f.metadata) for f in fields(Sample) if f.metadata):
        if (value := metadata.get(declared["json_name"])) is not None:
            try:
                arguments[name] = declared["read"](value)
            except TypeError:
                raise BrokenSample(
                    f"{declared['json_name']}: expected {declared['expected']}, "
                    f"got {shortened_json(value)}"
                ) from None
    return arguments


def checked_boxes(
    entries: Any, size: tuple[int, int], on_broken: Callable[[str], None]
) -> Iterator[Box]:
    """Those boxes of a json that have a caption and lie inside an image of that size."""
    if not isinstance(entries, list):
        on_broken(f"boxes: expected a list, got {type(entries).__name__}")
        return
    for i, content in enumerate(entries):
        content = content if isinstance(content, dict) else {}
        edges, caption = content.get("box"), content.get("caption")
        is_list_of_four = isinstance(edges, list) and len(edges) == 4
        if not (is_list_of_four and all(type(edge) in (int, float) for edge in edges)):
            got = shortened_json(edges)
            on_broken(f"boxes[{i}]: expected four numbers [x0, y0, x1, y1], got {got}")
        elif not (is_text(caption) and caption.strip()):
            on_broken(f"boxes[{i}]: expected a caption, got {shortened_json(caption)}")
        elif not all(
            0 <= low <= high - 1 and high <= length
            for low, high, length in zip(edges[:2], edges[2:], size, strict=True)
        ):
            got = shortened_json(edges)
            on_broken(f"boxes[{i}]: expected a part of {size[0]} x {size[1]} pixels, got {got}")
        else:
            yield Box(tuple(edges), caption.strip())


def shortened_json(value: Any) -> str:
    """A value of a json for a message, cut where it is long."""
    written = printable(json.dumps(value, ensure_ascii=False))
    return written if len(written) <= 80 else f"{written[:77]}..."
