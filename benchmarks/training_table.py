"""Results of training runs as a table in the documents: `benchmarks/training_table.py RUN...`

Keeps what each RUN measured in results/training/, and writes the means over the seeds of all
that is there, with the half-range where there are several, between the marks in the documents.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from report import DOCS, RESULTS
from report.markers import write

TRAINING = RESULTS / "training"
DOCUMENTS = (DOCS.parent / "README.md", DOCS / "training.md")
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


def keep(run: Path) -> None:
    config = json.loads((run / "config.json").read_text("utf-8"))
    for name in ("shards", "eval_shards", "cache_dir", "output_dir"):  # folders of one machine
        config.pop(name)
    last = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    evaluation = json.loads((run / "evaluation.json").read_text("utf-8"))
    test = "concepts" if config["unseen_concepts"] else "style"
    file = TRAINING / f"{test}-{config['objective']}-{config['seed']}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"config": config, "last": last, "evaluation": evaluation}
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def table() -> str:
    groups: dict[tuple[str, str, int, str], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted(TRAINING.glob("*.json")):
        found = json.loads(file.read_text("utf-8"))
        config = found["config"]
        test = "unseen concepts" if config["unseen_concepts"] else "unseen style"
        for vendor, result in sorted(found["evaluation"].items()):
            groups[test, vendor, config["steps"], config["objective"]].append(result)
    lines = [
        f"| test | objective | steps | seeds | {' | '.join(COLUMNS)} |",
        "| --- " * 4 + "| ---: " * len(COLUMNS) + "|",
    ]
    for (test, vendor, steps, objective), results in sorted(groups.items()):
        cells = []
        for path in COLUMNS.values():
            values = []
            for result in results:
                for key in path:
                    result = result[key]
                values.append(result)
            cell = f"{mean(values):.3f}"
            if len(values) > 1:  # with a space that does not break between the sign and its number
                cell += f" ±\N{NO-BREAK SPACE}{(max(values) - min(values)) / 2:.3f}"
            cells.append(cell)
        lines.append(
            f"| {test}, {vendor} | {objective} | {steps} | {len(results)} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="*", type=Path, help="the folder of a run with its evaluation")
    for run in parser.parse_args().run:
        keep(run)
    for document in DOCUMENTS:
        write(document, table(), MARKERS)


if __name__ == "__main__":
    main()
