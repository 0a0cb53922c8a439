"""Tables in documents are written by the commands that compute them, between two markers."""

from __future__ import annotations

import re
from pathlib import Path


def write(path: Path, text: str, markers: tuple[str, str]) -> None:
    begin, end = markers
    old = path.read_text()
    if old.count(begin) != 1 or old.count(end) != 1:
        raise SystemExit(f"{path}: expected one {begin} and one {end}")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    path.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", old))
