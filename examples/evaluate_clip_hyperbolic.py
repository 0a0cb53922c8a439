"""Evaluates a checkpoint of train_clip_hyperbolic.py on any shards of the documented layout.

    python examples/evaluate_clip_hyperbolic.py --checkpoint RUN --shards 'coco/{0000..0012}.tar'
    python examples/evaluate_clip_hyperbolic.py --checkpoint meru-vit-b --shards ...

The checkpoint of the second line is a model of lorentzkit.clip, as lorentzkit.clip.convert writes.

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
    args = parser.parse_args(argv)
    console, messages = Console(soft_wrap=True), []
    try:
        saved = read(args.checkpoint)
        stream = samples(expand(args.shards), messages.append)
        chosen = (sample for sample in stream if args.split in (None, sample.split))
        source = f"--shards with --split {args.split}" if args.split else "--shards"
        result = evaluate(saved.model(), saved.tokenizer, saved.config.image_size, chosen, source)
        console.print(report.table({Path(args.shards[0]).name: result}))
        if args.json:
            write_json(args.json, result)
        else:
            console.print_json(data=result)
    except UserError as error:
        console.print(f"error: {error}", markup=False, style="red")
        return 2
    finally:
        for message in messages:
            console.print(f"skipped: {message}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
