"""Many runs: performed in parallel, kept in files, and not repeated."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .training import Run, reconstruction, start_points, train
from .trees import Tree


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file so that it exists whole or not at all, even if the program is stopped."""
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
    is_same_run = result.get("run") == asdict(run) and (folder / f"{run.name}.npy").is_file()
    return result if is_same_run else None


def perform(
    run: Run, tree: Tree, folder: Path, report: Callable[[int], None] = lambda steps: None
) -> dict[str, Any]:
    """Trains, evaluates, and writes `NAME.npy` (the points) and then `NAME.json`."""
    started = time.perf_counter()
    points, diverged_at = train(run, tree, report)
    duration_s = time.perf_counter() - started
    manifold = start_points(run, 1).manifold
    result = {
        "run": asdict(run),
        **reconstruction(tree, manifold.dist, points),
        "diverged_at": diverged_at,
        "seconds": round(duration_s, 1),
    }

    def save(file: Path) -> None:
        with file.open("wb") as out:
            np.save(out, points.numpy())

    write_atomically(folder / f"{run.name}.npy", save)
    write_json(folder / f"{run.name}.json", result)
    return result


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
    """The results of all runs: read from `folder`, or performed, `jobs` at a time."""
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
                    console.print(summary_line(results[-1]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return results


def summary_line(result: dict[str, Any]) -> str:
    run = Run(**result["run"])
    settings = f"{run.geometry:<14} {run.dtype} {run.dim:>2}-d  lr {run.lr:<5g}"
    scores = (
        f"MAP {result['map']:.3f}  mean rank {result['mean_rank']:7.2f}  {result['seconds']:5.1f} s"
    )
    if result["diverged_at"] is not None:
        scores += f"  [red]not finite after {result['diverged_at']} steps[/red]"
    return f"{settings}  {scores}"
