"""Embeds a tree in hyperbolic and in Euclidean space, on the same budget, and compares them.

    python examples/embed_tree.py                            Unicode's taxonomy of emoji
    python examples/embed_tree.py --dataset wordnet-mammals  needs Debian's wordnet-base
    python examples/embed_tree.py --edges FILE               parent<TAB>child, or parent,child

The task is that of Nickel & Kiela, "Poincaré Embeddings" (2017): place every node so that its
ancestors are nearer to it than all other nodes. Training sees pairs of a node and an ancestor and
maximises the softmax of minus their distance against distances to randomly drawn nodes. What counts
is how well distances then rank the ancestors: their mean rank among the nodes that are no
ancestors (1 is best), and the mean average precision (MAP, also 1).

Every geometry gets the same start, pairs, negatives, steps and learning-rate schedule, and the best
of the same learning rates. Finished runs are kept in the output folder and not repeated, so an
interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tree_embedding.disk import draw
from tree_embedding.runs import perform_all, write_atomically, write_json
from tree_embedding.training import GEOMETRIES, Run
from tree_embedding.trees import TreeError, edge_list_tree, emoji_tree, wordnet_tree

# Learning rates tried for every geometry.
LEARNING_RATES = {"sgd": (0.1, 0.3, 1.0), "adam": (0.03, 0.1, 0.3)}


def best_of(results: Iterable[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """For each (geometry, dim) the result of the best learning rate."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        key = (result["run"]["geometry"], result["run"]["dim"])
        if key not in best or merit(result) > merit(best[key]):
            best[key] = result
    return best


def merit(result: dict[str, Any]) -> tuple[bool, float]:
    """A sort key of results: finished runs are better than diverged ones, then a larger MAP is."""
    return result["diverged_at"] is None, result["map"]


def table_of(best: dict[tuple[str, int], dict[str, Any]], title: str) -> Table:
    dims = sorted({dim for _, dim in best})
    table = Table("geometry", title=title, title_justify="left")
    for dim in dims:
        table.add_column(f"{dim}-d: MAP / rank", justify="right")
    for geometry in GEOMETRIES:
        cells = []
        for dim in dims:
            result = best[geometry, dim]
            mark = "" if result["diverged_at"] is None else "*"
            cells.append(f"{result['map']:.3f} / {result['mean_rank']:.2f}{mark}")
        table.add_row(geometry, *cells)
    if any(result["diverged_at"] is not None for result in best.values()):
        table.caption = "* not finite before training ended, at any learning rate"
    return table


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--dataset", choices=("emoji", "wordnet-mammals"), default="emoji")
    data.add_argument("--edges", type=Path, metavar="FILE", help="embed the tree of this edge list")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/embed_tree/TREE")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 5, 10], metavar="D")
    parser.add_argument("--optimizer", choices=tuple(LEARNING_RATES), default="sgd")
    parser.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="float32 cannot hold apart leaves more than about 16 from the origin, whatever the "
        "formulas (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=Run.steps, help="per run (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (cores)")
    parser.add_argument(
        "--quick", action="store_true", help="one short run per geometry in 2 dimensions: a try-out"
    )
    args = parser.parse_args(argv)
    if min([*args.dims, args.steps, args.jobs]) < 1:
        parser.error("--dims, --steps and --jobs take numbers of at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    console = Console()
    try:
        if args.edges is not None:
            tree = edge_list_tree(args.edges)
        else:
            tree = emoji_tree() if args.dataset == "emoji" else wordnet_tree()
    except TreeError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    folder = args.out or Path("runs", "embed_tree", tree.name)
    console.print(
        f"{tree.name}: {len(tree)} nodes, {len(tree.closure)} pairs of a node and an ancestor",
        markup=False,
    )

    learning_rates = LEARNING_RATES[args.optimizer]
    dims, steps = sorted(set(args.dims)), args.steps
    if args.quick:
        learning_rates, dims, steps = learning_rates[1:2], [2], min(steps, 200)
    runs = [
        Run(tree.digest, geometry, dim, args.dtype, lr, args.optimizer, steps, seed=args.seed)
        for dim in dims
        for geometry in GEOMETRIES
        for lr in learning_rates
    ]
    try:
        results = perform_all(runs, tree, folder, args.jobs, console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; finished runs stay in {folder}, the same command goes on there"
        )
        return 130
    best = best_of(results)
    write_json(folder / "results.json", {"tree": tree.name, "best": list(best.values())})
    console.print(table_of(best, f"reconstruction of {tree.name}"), markup=False)

    planar_result = best.get(("lorentzkit", 2))
    if planar_result is not None:
        planar_run = Run(**planar_result["run"])
        points = torch.from_numpy(np.load(folder / f"{planar_run.name}.npy"))
        picture = folder / "disk.png"
        write_atomically(picture, lambda file: draw(tree, points, file))
        console.print(f"picture of {planar_run.name}: {picture}", soft_wrap=True)
    console.print(f"embeddings and results: {folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
