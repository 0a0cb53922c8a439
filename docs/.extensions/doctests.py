"""Docstrings as Markdown: examples in fences, or they would be quotations, and pages as links."""

from __future__ import annotations

import re
from typing import Any

import griffe


def fenced(text: str) -> str:
    """The text with every run of lines from ``>>>`` to a blank line in a fence of its own."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not inside and line.startswith(">>> "):
            inside = True
            lines += ["", "```pycon"]
        elif inside and not line.strip():
            inside = False
            lines.append("```")
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


def linked(text: str) -> str:
    """The text with links for pages named as in ``docs/numerics.md`` or ``docs/migration/meru.md``.

    Seen from ``docs/api/``, where all docstrings are shown.
    """
    return re.sub(r"\bdocs/([\w-]+(?:/[\w-]+)*)\.md", r"[\1](../\1.md)", text)


class Doctests(griffe.Extension):
    """Applied to every docstring when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = linked(fenced(obj.docstring.value))
