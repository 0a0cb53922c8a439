"""Evaluates a checkpoint of train_clip_hyperbolic.py on any shards of the documented layout.

    python examples/evaluate_clip_hyperbolic.py --checkpoint RUN --shards 'coco/{0000..0012}.tar'

Retrieval both ways, zero-shot classes where the shards carry `class`, hierarchy measures where they
carry `ancestors`, radii and the entailment rate. `clip_hyperbolic/data.py` has the layout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from clip_hyperbolic import report
from clip_hyperbolic.checkpoint import Checkpoint, write_atomically
from clip_hyperbolic.config import UserError
from clip_hyperbolic.data import expand, samples
from clip_hyperbolic.evaluate import evaluate
from rich.console import Console


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_OR_FILE")
    parser.add_argument("--shards", nargs="+", required=True, metavar="PATTERN")
    parser.add_argument("--split", help="only samples whose json has this split")
    parser.add_argument("--keywords", action="store_true", help="captions with all their keywords")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all measures there")
    chosen = parser.parse_args(argv)
    console = Console(soft_wrap=True)
    try:
        saved = Checkpoint.of(chosen.checkpoint)
        lost: list[str] = []
        stream = (
            sample
            for sample in samples(expand(chosen.shards), lost.append)
            if chosen.split in (None, sample.split)
        )
        result = evaluate(saved.model(), saved.words, saved.config, stream, chosen.keywords)
        if not result["n_images"]:
            raise UserError(
                f"no pair of image and text in {' '.join(chosen.shards)}"
                + (f" with split {chosen.split!r}" if chosen.split else "")
                + (f"; the first error: {lost[0]}" if lost else "")
            )
        for message in lost:
            console.print(f"skipped: {message}", markup=False)
        console.print(report.table({str(chosen.shards[0]): result}))
        text = json.dumps(result, indent=2) + "\n"
        if chosen.json:
            write_atomically(chosen.json, lambda path: path.write_text(text, "utf-8"))
        else:
            console.print_json(text)
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
