"""From images to the root: the nearest texts along the geodesic, as a picture.

python examples/traverse_clip_hyperbolic.py --checkpoint RUN --shards shard.tar --keys Twtr-1f43c
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clip_hyperbolic.checkpoint import read, write_atomically
from clip_hyperbolic.config import UserError
from clip_hyperbolic.report import View


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN_FILE_OR_MODEL")
    parser.add_argument(
        "--shards", nargs="+", required=True, help="of images, and of texts to meet"
    )
    parser.add_argument("--keys", nargs="+", help="of samples; default: some at random")
    parser.add_argument("--out", type=Path, default=Path("traversals.png"))
    args = parser.parse_args(argv)
    try:
        saved = read(args.checkpoint)
        if saved.config.objective == "clip":
            raise UserError("a clip model has no root to go to; give a run of atmg or meru")
        view = View(saved.config, saved.model(), saved.tokenizer, args.shards)
        if args.keys:
            index_of_key = {sample.key: i for i, sample in enumerate(view.samples)}
            if missing := [key for key in args.keys if key not in index_of_key]:
                known = next(iter(index_of_key))
                raise UserError(f"--keys: {missing[0]} is not in the shards; {known} is")
            view.shown = [index_of_key[key] for key in args.keys]
        figure = view.traversals(len(args.keys) if args.keys else 4)
        write_atomically(args.out, lambda path: figure.savefig(path, format="png", dpi=110))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
