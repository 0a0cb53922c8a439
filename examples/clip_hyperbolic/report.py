"""A run's figures on one page that needs no other file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table


def metrics(run: Path) -> list[dict[str, Any]]:
    """What a run logged; a line that was cut off by a kill is left out."""
    lines = []
    try:
        text = (run / "metrics.jsonl").read_text("utf-8")
    except FileNotFoundError:
        return []
    for line in text.splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def table(results: dict[str, Any]) -> Table:
    """Retrieval both ways, one row for each set of shards."""
    made = Table("test", title="retrieval", title_justify="left")
    for name in ("t2i R@1", "R@5", "R@10", "i2t R@1", "R@5", "R@10", "TIE"):
        made.add_column(name, justify="right")
    for name, result in results.items():
        cells = [
            f"{result['retrieval'][way][f'R@{k}']:.3f}"
            for way in ("t2i", "i2t")
            for k in (1, 5, 10)
        ]
        tie = result["hierarchy"].get("i2t_TIE")
        made.add_row(name, *cells, "" if tie is None else f"{tie:.2f}")
    return made


def write(folder: Path, config: Any, model: Any, words: Any, results: Any) -> Path:
    return folder
