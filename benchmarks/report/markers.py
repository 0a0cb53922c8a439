"""Tables in documents are written by the commands that compute them, between two markers."""

from __future__ import annotations

import re
from pathlib import Path


def write(path: Path, text: str, markers: tuple[str, str]) -> None:
    path.write_text(filled(path.read_text("utf-8"), text, markers, path), "utf-8")


def filled(page: str, text: str, markers: tuple[str, str], path: Path) -> str:
    """The page, which lies at `path`, with the text between its markers."""
    begin, end = markers
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{path}: expected one {begin} and one {end}")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)
