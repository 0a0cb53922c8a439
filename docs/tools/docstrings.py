"""Docstrings as Markdown: formulas typeset, examples in fences (else quotations), links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
import yaml

FORMULAS = yaml.safe_load(Path(__file__).with_name("formulas.yml").read_text("utf-8"))


def with_formula(text: str, name: str) -> str:
    """The text with the function's formula after the sentence that says what it is."""
    if name not in FORMULAS:
        return text
    meaning, _, rest = text.partition("\n\n")
    return f"{meaning}\n\n\\[\n{FORMULAS[name]}\n\\]\n\n{rest}"


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
            text = linked(fenced(obj.docstring.value))
            obj.docstring.value = with_formula(text, _public(obj.path))


def _public(path: str) -> str:
    """``lorentzkit.ops.dist`` of ``lorentzkit.ops.distances.dist``."""
    parts = path.split(".")
    return ".".join([*parts[:2], parts[-1]])
