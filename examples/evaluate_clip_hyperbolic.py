"""Evaluates a checkpoint of train_clip_hyperbolic.py on any shards of the documented layout.

    python examples/evaluate_clip_hyperbolic.py --checkpoint RUN --shards 'coco/{0000..0012}.tar'
    python examples/evaluate_clip_hyperbolic.py --checkpoint meru-vit-b --shards ...

The second is a model of lorentzkit.clip, such as lorentzkit.clip.convert writes.

Retrieval both ways, zero-shot classes where the shards carry `class`, hierarchy measures where they
carry `ancestors`, radii and the entailment rate. `clip_hyperbolic/schema.py` has the fields.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clip_hyperbolic import report
from clip_hyperbolic.checkpoint import read, write_json
from clip_hyperbolic.config import UserError
from clip_hyperbolic.evaluate import evaluate
from clip_hyperbolic.shards import expand, samples
from rich.console import Console


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_FILE_OR_MODEL")
    parser.add_argument("--shards", nargs="+", required=True, metavar="PATTERN")
    parser.add_argument("--split", help="only samples whose json has this split")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all measures there")
    chosen = parser.parse_args(argv)
    console, lost = Console(soft_wrap=True), []
    try:
        saved = read(chosen.checkpoint)
        every = samples(expand(chosen.shards), lost.append)
        some = (sample for sample in every if chosen.split in (None, sample.split))
        config = saved.config
        source = f"--shards with --split {chosen.split}" if chosen.split else "--shards"
        result = evaluate(
            saved.model(), saved.words, config.objective, config.image_size, some, source
        )
        console.print(report.table({Path(chosen.shards[0]).name: result}))
        if chosen.json:
            write_json(chosen.json, result)
        else:
            console.print_json(data=result)
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    finally:
        for message in lost:
            console.print(f"skipped: {message}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
