"""Results of training runs as a table in the documents: `benchmarks/training_table.py RUN...`

Copies the measurements of each RUN into results/training/. Then writes the means over the seeds of
all results there into docs/training.md, with the half-range where there are several seeds, and a
row for each objective into README.md.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

from report import DOCS, RESULTS
from report.markers import write

TRAINING = RESULTS / "training"
MARKERS = ("<!-- training:begin -->", "<!-- training:end -->")
COLUMNS = {
    "t2i R@1": ("retrieval", "t2i", "R@1"),
    "t2i R@10": ("retrieval", "t2i", "R@10"),
    "i2t R@1": ("retrieval", "i2t", "R@1"),
    "i2t R@10": ("retrieval", "i2t", "R@10"),
    "t2i R@10, with keywords": ("retrieval_keywords", "t2i", "R@10"),
    "t2i R@10, midpoint": ("retrieval_midpoints", "t2i", "R@10"),
    "i2t TIE": ("hierarchy", "i2t_TIE"),
}
OVERVIEW = [  # columns of the README's table
    ("unseen style", "t2i R@1"),
    ("unseen style", "i2t R@1"),
    ("unseen concepts", "t2i R@10"),
    ("unseen concepts", "i2t R@10"),
]


def keep(run: Path) -> None:
    config = json.loads((run / "config.json").read_text("utf-8"))
    for name in ("shards", "eval_shards", "cache_dir", "output_dir"):  # folders of one machine
        config.pop(name)
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
    words = [test_of(config), *config["unseen_vendors"], objective_of(config), str(config["seed"])]
    file = TRAINING / f"{re.sub('[ ,]+', '-', ' '.join(words))}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": config, "last": last, "evaluation": evaluation}
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def test_of(config: dict[str, Any]) -> str:
    if config["unseen_concepts"]:
        return "unseen concepts"
    if config["unseen_vendors"] != ["Twtr", "Goog"]:
        return "left out"
    return "unseen style" if config.get("warp") else "unseen style, no warps"


def objective_of(config: dict[str, Any]) -> str:
    """What was minimised; of the angle loss also which of its two readings."""
    reads_code = config["objective"] == "atmg" and config["apex"] == "query"
    return config["objective"] + ", apex query" * reads_code


def results() -> dict[tuple[str, str, int, str], list[dict[str, Any]]]:
    """The evaluations of every seed, by test, vendor, steps and objective."""
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(TRAINING.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        config = content["config"]
        for vendor, result in sorted(content["evaluation"].items()):
            row = test_of(config), vendor, config["steps"], objective_of(config)
            groups[row].append(result)
    return dict(sorted(groups.items()))


def values(group: list[dict[str, Any]], column: str) -> list[float]:
    """One measure of every seed."""
    return [reduce(lambda part, key: part[key], COLUMNS[column], result) for result in group]


def table() -> str:
    """Every test, vendor and objective."""
    lines = [
        f"| test | objective | steps | seeds | {' | '.join(COLUMNS)} |",
        "| --- " * 4 + "| ---: " * len(COLUMNS) + "|",
    ]
    for (test, vendor, steps, objective), group in results().items():
        cells = []
        for column in COLUMNS:
            scores = values(group, column)
            cell = f"{mean(scores):.3f}"
            if len(scores) > 1:  # with a space that does not break between the sign and its number
                cell += f" ±\N{NO-BREAK SPACE}{(max(scores) - min(scores)) / 2:.3f}"
            cells.append(cell)
        lines.append(
            f"| {test}, {vendor} | {objective} | {steps} | {len(group)} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def overview() -> str:
    """A row for each objective: means over seeds and both vendors."""
    lines = [
        f"| objective | {' | '.join(f'{test}: {column}' for test, column in OVERVIEW)} |",
        f"| --- |{' ---: |' * len(OVERVIEW)}",
    ]
    groups = results()
    for objective in sorted({objective for *_, objective in groups}):
        cells = []
        for test, column in OVERVIEW:
            means = [
                mean(values(group, column))
                for (row_test, _, _, row_objective), group in groups.items()
                if (row_test, row_objective) == (test, objective)
            ]
            cells.append(f"{mean(means):.2f}" if means else "")
        lines.append(f"| `{objective}` | {' | '.join(cells)} |")
    return "\n".join(lines)


DOCUMENTS = {DOCS.parent / "README.md": overview, DOCS / "training.md": table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="*", type=Path, help="the folder of a run with its evaluation")
    for run in parser.parse_args().run:
        keep(run)
    for document, text in DOCUMENTS.items():
        write(document, text(), MARKERS)


if __name__ == "__main__":
    main()
