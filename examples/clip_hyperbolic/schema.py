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


class Broken(Exception):
    """Why a sample is skipped."""


class Box(NamedTuple):
    """A part of an image, from its left and upper edge to its right and lower one, and its text."""

    edges: tuple[float, float, float, float]
    caption: str


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip()


def name(value: Any) -> str:
    """Of a thing: numbers are names as well, 0 among them."""
    return text(str(value) if type(value) is int else value)


def texts(value: Any) -> list[str]:
    """Those that are not empty."""
    if not isinstance(value, list):
        raise TypeError
    return [found for one in value if (found := text(one))]


def one_or_more(value: Any) -> list[str]:
    return texts(value if isinstance(value, list) else [value])


def path(value: Any) -> list[str]:
    """Texts of which each has its place."""
    found = texts(value)
    if len(found) < len(value):
        raise TypeError
    return found


def entry(called: str, read: Callable[[Any], Any], expected: str) -> Any:
    """A field of the json: its name there, what reads it, and what that takes, in words."""
    default: Any = {"default": ""} if read is name else {"default_factory": list}
    return field(**default, metadata={"called": called, "read": read, "expected": expected})


@dataclass
class Sample:
    key: str
    image: Image.Image
    captions: list[str] = entry("caption", one_or_more, "a string or a list of strings")
    concept: str = entry("concept", name, "a string or a whole number")
    keywords: list[str] = entry("keywords", texts, "a list of strings")
    ancestors: list[str] = entry("ancestors", path, "a list of strings, none of them empty")
    label: str = entry("class", name, "a string or a whole number")
    split: str = entry("split", name, "a string or a whole number")
    boxes: list[Box] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """The first, where one has to do."""
        return self.captions[0]

    def path(self, level: int) -> tuple[str, ...]:
        """The ancestor `level` steps up, after all above it: it tells apart those of one name."""
        return tuple(self.ancestors[: len(self.ancestors) - level + 1])


def with_keywords(caption: str, some: Iterable[str]) -> str:
    return ", ".join([caption, *some])


def of_json(content: bytes) -> dict[str, Any]:
    """The content of KEY.json, `{}` of an empty one."""
    try:
        about = json.loads(content) if content.strip() else {}
    except ValueError as error:
        raise Broken(f"json: {error}") from None
    if not isinstance(about, dict):
        raise Broken(f"json: expected an object, got {type(about).__name__}")
    return about


def checked(about: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `Sample` that a json gives, but for the boxes."""
    found = {}
    for one in fields(Sample):
        if one.metadata and (value := about.get(one.metadata["called"])) is not None:
            try:
                found[one.name] = one.metadata["read"](value)
            except TypeError:
                called, expected = one.metadata["called"], one.metadata["expected"]
                raise Broken(f"{called}: expected {expected}, got {short(value)}") from None
    return found


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
            broken(f"boxes[{i}]: expected four numbers [x0, y0, x1, y1], got {short(edges)}")
        elif not (isinstance(caption, str) and caption.strip()):
            broken(f"boxes[{i}]: no caption")
        elif not all(
            0 <= low <= high - 1 and high <= length
            for low, high, length in zip(edges[:2], edges[2:], size, strict=True)
        ):
            broken(f"boxes[{i}]: expected a part of {size[0]} x {size[1]} pixels, got {edges}")
        else:
            yield Box(tuple(edges), caption.strip())


def short(value: Any) -> str:
    """A value of a json in a message, cut where it is long."""
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 80 else f"{written[:77]}..."
