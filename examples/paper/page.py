"""Brings the results of the scripts into docs/paper.md: `python examples/paper/page.py runs/paper`

Copies each NAME.json and NAME.png beside the document, and writes the table of NAME between its
marks there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import report
from report.markers import filled

PAGE, IMAGES = report.DOCS / "paper.md", report.DOCS / "images" / "paper"
RESULTS = report.RESULTS / "paper"
NBSP = "\N{NO-BREAK SPACE}"


def table(file: Path) -> str:
    """The table of a result as markdown, with its script, seeds and machine."""
    content = json.loads(file.read_text("utf-8"))
    heading, *rows = content["table"]
    seeds, environment = len(content["seeds"]), content["environment"]
    source = (
        f"{seeds} seed{'s' * (seeds > 1)}, ± half of their range; `{file.stem}.py --full`, torch "
        f"{environment['torch']}, {environment['machine']}"
    )
    cells = [heading, ["---"] * len(heading), *rows]
    # A number does not part from its range.
    escaped = [[c.replace("|", "\\|").replace("± ", f"±{NBSP}") for c in line] for line in cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped) + f"\n{source}."


def written(page: str) -> str:
    """The page with the tables of all results."""
    for file in sorted(RESULTS.glob("*.json")):
        markers = f"<!-- {file.stem}:begin -->", f"<!-- {file.stem}:end -->"
        page = filled(page, table(file), markers, PAGE)
    return page


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for file in sorted(Path(sys.argv[1]).glob("*.json")):
        shutil.copy(file, RESULTS)
        shutil.copy(file.with_suffix(".png"), IMAGES)
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
