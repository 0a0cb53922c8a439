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
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geoopt
import numpy as np
import torch
from disk import draw
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from trees import Tree, TreeError, edge_list_tree, emoji_tree, wordnet_tree

import lorentzkit
from lorentzkit.manifolds import Lorentz

# Learning rates tried for every geometry.
LEARNING_RATES = {"sgd": (0.1, 0.3, 1.0), "adam": (0.03, 0.1, 0.3)}

GEOMETRIES = ("Euclidean", "geoopt.Lorentz", "lorentzkit")


@dataclass(frozen=True)
class Run:
    """One training run: all that its result depends on, the tree included."""

    tree: str
    geometry: str
    dim: int
    dtype: str
    lr: float
    optimizer: str = "sgd"
    steps: int = 2000
    batch: int = 256
    negatives: int = 50
    seed: int = 0
    version: str = lorentzkit.__version__

    @property
    def name(self) -> str:
        return f"{self.geometry}-{self.dim}d-{self.dtype}-{self.optimizer}-{self.lr:g}"


def start_points(run: Run, count: int) -> geoopt.ManifoldParameter:
    """`count` points close together at the origin, the same ones in every geometry."""
    generator = torch.Generator().manual_seed(run.seed)
    start = 1e-3 * torch.randn(count, run.dim, generator=generator, dtype=torch.float64)
    start = start.to(getattr(torch, run.dtype))
    if run.geometry == "lorentzkit":
        return geoopt.ManifoldParameter(start, manifold=Lorentz(curv=1.0))
    if run.geometry == "geoopt.Lorentz":  # takes the time component too, in front
        manifold = geoopt.Lorentz(k=1.0)
        return geoopt.ManifoldParameter(manifold.projx(F.pad(start, (1, 0))), manifold=manifold)
    return geoopt.ManifoldParameter(start, manifold=geoopt.Euclidean(ndim=1))


def loss_of(
    points: geoopt.ManifoldParameter, tree: Tree, pairs: Tensor, negatives: Tensor
) -> Tensor:
    """The summed loss of `pairs`, shape (B, 2), against `negatives`, shape (B, M)."""
    node, ancestor = pairs[:, :1], pairs[:, 1:]
    # A negative drawn by chance among the ancestors, or the node itself, takes no part.
    is_ancestor = (negatives[:, :, None] == tree.ancestors[node]).any(-1)
    excluded = F.pad(is_ancestor | (negatives == node), (1, 0), value=False)
    others = torch.cat([ancestor, negatives], dim=1)

    def at(index: Tensor) -> Tensor:  # index_select has the fastest backward pass
        return points.index_select(0, index.flatten()).unflatten(0, index.shape)

    score = -points.manifold.dist(at(node), at(others)).masked_fill(excluded, math.inf)
    return F.cross_entropy(score, torch.zeros_like(node[:, 0]), reduction="sum")


@torch.no_grad()
def limit_gradient(points: geoopt.ManifoldParameter, limit: float) -> None:
    """Shortens the Riemannian gradient of every point to at most `limit`.

    The root and its children meet in so many pairs that they would leap about otherwise.
    """
    manifold = points.manifold
    gradient = manifold.egrad2rgrad(points, points.grad.clone())  # geoopt.Lorentz works in place
    length = manifold.inner(points, gradient, keepdim=True).clamp_min(0).sqrt()
    points.grad *= (limit / length).clamp(max=1.0)


def train(
    run: Run, tree: Tree, report: Callable[[int], None] = lambda steps: None
) -> tuple[Tensor, int | None]:
    """The trained points, and the step at which they stopped being finite, if they did."""
    points = start_points(run, len(tree))
    kind = {"sgd": geoopt.optim.RiemannianSGD, "adam": geoopt.optim.RiemannianAdam}[run.optimizer]
    # Projecting after each step is what geoopt offers against drift. Only its Lorentz needs it.
    optimizer = kind([points], lr=run.lr, stabilize=1)

    # Burn-in: small steps, while all points are still near the origin, against negatives drawn as
    # often as they occur in pairs, so mostly upper levels. It sorts the main branches by direction
    # before the leaves move out; far out, points no longer get past each other. Then full steps
    # that decline to zero.
    burn_in = run.steps * 3 // 10
    occurrences = torch.bincount(tree.closure.flatten(), minlength=len(tree)).double()
    uniform = torch.ones_like(occurrences)
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(run.steps):
        settling = step < burn_in
        share = 0.1 if settling else (run.steps - step) / (run.steps - burn_in)
        optimizer.param_groups[0]["lr"] = run.lr * share

        drawn = torch.randint(len(tree.closure), (run.batch,), generator=generator)
        negatives = torch.multinomial(
            occurrences if settling else uniform,
            run.batch * run.negatives,
            replacement=True,
            generator=generator,
        ).unflatten(0, (run.batch, run.negatives))
        loss = loss_of(points, tree, tree.closure[drawn], negatives)
        if not loss.isfinite():
            report(run.steps - step)
            return points.detach(), step
        optimizer.zero_grad()
        loss.backward()
        limit_gradient(points, 1.0)
        optimizer.step()
        report(1)
    return points.detach(), None


@torch.no_grad()
def reconstruction(
    tree: Tree, dist: Callable[[Tensor, Tensor], Tensor], points: Tensor, block: int = 256
) -> dict[str, float]:
    """Mean rank and mean average precision of every node's ancestors by distance from it.

    A rank counts only nodes that are no ancestors. What ties with an ancestor counts as nearer, and
    a distance that is not a number as infinite: nobody gains by collapsing or overflowing.
    """
    ranks, precisions = [], []
    for nodes in torch.arange(len(tree)).split(block):
        distances = dist(points[nodes, None], points).nan_to_num(nan=math.inf, posinf=math.inf)
        distances[torch.arange(len(nodes)), nodes] = math.inf  # a node is not its own neighbour
        ancestors = tree.ancestors[nodes]
        real = ancestors >= 0
        to_ancestors = distances.gather(1, ancestors.clamp_min(0)).masked_fill(~real, math.inf)

        def no_farther(among: Tensor, than: Tensor = to_ancestors) -> Tensor:
            return torch.searchsorted(among.sort(dim=1).values, than, right=True)

        count = real.sum(1, keepdim=True)
        all_near = no_farther(distances).clamp_max(len(tree) - 1)
        ancestors_near = no_farther(to_ancestors).minimum(count)
        ranks.append((1 + all_near - ancestors_near)[real])
        precision = (ancestors_near / all_near).masked_fill(~real, 0.0).sum(1, keepdim=True) / count
        precisions.append(precision[count > 0])
    return {
        "mean_rank": torch.cat(ranks).double().mean().item(),
        "map": torch.cat(precisions).double().mean().item(),
    }


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """A file is there whole or not at all, also when the program is stopped half-way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    write(unfinished)
    unfinished.replace(path)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def finished(run: Run, folder: Path) -> dict[str, Any] | None:
    """The result of an earlier run with exactly these settings, if there is one."""
    try:
        result = json.loads((folder / f"{run.name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    is_it = result.get("run") == asdict(run) and (folder / f"{run.name}.npy").is_file()
    return result if is_it else None


def perform(
    run: Run, tree: Tree, folder: Path, report: Callable[[int], None] = lambda steps: None
) -> dict[str, Any]:
    """Trains, evaluates, and writes `NAME.npy` (the points) and then `NAME.json`."""
    began = time.perf_counter()
    points, diverged_at = train(run, tree, report)
    seconds = time.perf_counter() - began
    manifold = start_points(run, 1).manifold
    result = {
        "run": asdict(run),
        **reconstruction(tree, manifold.dist, points),
        "diverged_at": diverged_at,
        "seconds": round(seconds, 1),
    }

    def save(file: Path) -> None:
        with file.open("wb") as out:
            np.save(out, points.numpy())

    write_atomically(folder / f"{run.name}.npy", save)
    write_json(folder / f"{run.name}.json", result)
    return result


# --- many runs ------------------------------------------------------------------------------------

_steps_done: Any = None  # in a worker: the counter it shares with the main process


def _start_worker(steps_done: Any) -> None:
    global _steps_done
    _steps_done = steps_done
    torch.set_num_threads(1)  # tensors are small: one run per core is faster than cores per run

    # Stop at once with the main process, be it interrupted or killed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def follow_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _work(run: Run, tree: Tree, folder: Path) -> dict[str, Any]:
    def report(steps: int) -> None:
        with _steps_done.get_lock():
            _steps_done.value += steps

    return perform(run, tree, folder, report)


def perform_all(
    runs: list[Run], tree: Tree, folder: Path, jobs: int, console: Console
) -> list[dict[str, Any]]:
    """The results of all runs: those found in `folder`, and the others, `jobs` at a time."""
    results = [result for run in runs if (result := finished(run, folder))]
    missing = [run for run in runs if not finished(run, folder)]
    if results:
        console.print(f"{len(results)} of {len(runs)} runs found in {folder}")
    if not missing:
        return results
    context = multiprocessing.get_context("spawn")
    steps_done = context.Value("q", 0)
    bar = Progress(
        TextColumn("training"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(compact=True),
        console=console,
    )
    with (
        ProcessPoolExecutor(min(jobs, len(missing)), context, _start_worker, (steps_done,)) as pool,
        bar,
    ):
        task = bar.add_task("", total=sum(run.steps for run in missing))
        waiting = {pool.submit(_work, run, tree, folder) for run in missing}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(task, completed=steps_done.value)
                for future in done:
                    results.append(future.result())
                    console.print(one_line(results[-1]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return results


def one_line(result: dict[str, Any]) -> str:
    run = Run(**result["run"])
    where = f"{run.geometry:<14} {run.dtype} {run.dim:>2}-d  lr {run.lr:<5g}"
    how = (
        f"MAP {result['map']:.3f}  mean rank {result['mean_rank']:7.2f}  {result['seconds']:5.1f} s"
    )
    if result["diverged_at"] is not None:
        how += f"  [red]not finite after {result['diverged_at']} steps[/red]"
    return f"{where}  {how}"


def best_of(results: Iterable[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    """For each (geometry, dim) the result of the best learning rate."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for result in results:
        key = (result["run"]["geometry"], result["run"]["dim"])
        if key not in best or merit(result) > merit(best[key]):
            best[key] = result
    return best


def merit(result: dict[str, Any]) -> tuple[bool, float]:
    """Orders results: those that came to their end first, then by MAP."""
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
    chosen = parser.parse_args(argv)
    if min([*chosen.dims, chosen.steps, chosen.jobs]) < 1:
        parser.error("--dims, --steps and --jobs take numbers of at least 1")
    return chosen


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(argv)
    console = Console()
    try:
        if chosen.edges is not None:
            tree = edge_list_tree(chosen.edges)
        else:
            tree = emoji_tree() if chosen.dataset == "emoji" else wordnet_tree()
    except TreeError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 2
    folder = chosen.out or Path("runs", "embed_tree", tree.name)
    console.print(
        f"{tree.name}: {len(tree)} nodes, {len(tree.closure)} pairs of a node and an ancestor",
        markup=False,
    )

    grid = LEARNING_RATES[chosen.optimizer]
    dims, steps = sorted(set(chosen.dims)), chosen.steps
    if chosen.quick:
        grid, dims, steps = grid[1:2], [2], min(steps, 200)
    runs = [
        Run(tree.digest, geometry, dim, chosen.dtype, lr, chosen.optimizer, steps, seed=chosen.seed)
        for dim in dims
        for geometry in GEOMETRIES
        for lr in grid
    ]
    try:
        results = perform_all(runs, tree, folder, chosen.jobs, console)
    except KeyboardInterrupt:
        console.print(
            f"interrupted; finished runs stay in {folder}, the same command goes on there"
        )
        return 130
    best = best_of(results)
    write_json(folder / "results.json", {"tree": tree.name, "best": list(best.values())})
    console.print(table_of(best, f"reconstruction of {tree.name}"), markup=False)

    planar = best.get(("lorentzkit", 2))
    if planar is not None:
        shown = Run(**planar["run"])
        points = torch.from_numpy(np.load(folder / f"{shown.name}.npy"))
        picture = folder / "disk.png"
        write_atomically(picture, lambda file: draw(tree, points, file))
        console.print(f"picture of {shown.name}: {picture}", soft_wrap=True)
    console.print(f"embeddings and results: {folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
