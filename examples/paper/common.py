"""What the scripts share: sizes and seeds, cases measured in parallel, figures and numbers."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import geoopt
import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")  # figures go to files: no display is needed

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import lorentzkit

sys.path.append(str(Path(__file__).parents[1]))  # clip_hyperbolic, and the script that trains it

T = TypeVar("T")
Case = dict[str, Any]
# Okabe and Ito 2008: colours that the colour-blind can tell apart; in print, markers do.
BLACK, ORANGE, GREEN = "#000000", "#E69F00", "#009E73"
BLUE, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"
# With the angle of images at the image, as the released code takes it.
ATMG_QUERY = "atmg, apex query"
OBJECTIVES = {
    "clip": (BLACK, "s"),
    "meru": (ORANGE, "^"),
    "atmg": (BLUE, "o"),
    ATMG_QUERY: (PINK, "D"),
}
console = Console(stderr=True, soft_wrap=True)


@dataclass
class Options:
    size: str
    seeds: list[int]
    out: Path

    def pick(self, smoke: T, default: T, full: T) -> T:
        return {"smoke": smoke, "default": default, "full": full}[self.size]


def options(description: str, argv: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="seconds: whether it runs at all")
    size.add_argument("--full", action="store_true", help="three seeds: what docs/paper.md shows")
    parser.add_argument("--seeds", type=int, help="how many; default 1, with --full 3")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="default %(default)s")
    parsed = parser.parse_args(argv)
    seeds = parsed.seeds if parsed.seeds is not None else 3 if parsed.full else 1
    if seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {seeds}")
    size = "smoke" if parsed.smoke else "full" if parsed.full else "default"
    return Options(size, list(range(seeds)), parsed.out)


def measured(
    name: str, function: Callable[..., Case], cases: Iterable[Case], out: Path
) -> list[Case]:
    """Each case together with the results of `function(**case)`, in order; one process a core.

    Results are kept in OUT/NAME, one file a case, and are not computed again: an interrupted script
    goes on where it stopped.
    """
    cases = list(cases)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_digest(case)}.json" for case in cases]
    missing = [(c, f) for c, f in zip(cases, files, strict=True) if not f.exists()]
    if len(missing) < len(cases):
        console.print(
            f"{len(cases) - len(missing)} of {len(cases)} cases were measured before: remove "
            f"{folder} to measure them anew"
        )
    columns = (TextColumn(name), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with (
        Progress(*columns, console=console) as bar,
        ProcessPoolExecutor(os.cpu_count(), context, torch.set_num_threads, (1,)) as pool,
    ):
        task = bar.add_task("", total=len(cases), completed=len(cases) - len(missing))
        cases_of_futures = {pool.submit(function, **case): (case, file) for case, file in missing}
        for future in as_completed(cases_of_futures):
            case, file = cases_of_futures[future]
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(case | future.result()), "utf-8")
            unfinished.rename(file)
            bar.advance(task)
    return [json.loads(file.read_text("utf-8")) for file in files]


def _digest(case: Case) -> str:
    return hashlib.blake2b(json.dumps(case, sort_keys=True).encode(), digest_size=8).hexdigest()


def over_seeds(cases: list[Case], *keys: str) -> dict[tuple[Any, ...], list[Case]]:
    """Groups of the cases with equal values of `keys`: those of all seeds together."""
    groups: dict[tuple[Any, ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(case[key] for key in keys), []).append(case)
    return groups


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and half of the range where there are several."""
    half = f" ± {half_range(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{half}"


def half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "geoopt": geoopt.__version__,
        "numpy": np.__version__,
        "lorentzkit": lorentzkit.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def publish(
    name: str,
    options: Options,
    started: float,
    heading: list[str],
    rows: list[list[str]],
    figure: Figure,
    **numbers: Any,
) -> None:
    """Prints the table, and writes OUT/NAME.json with it and the numbers, and OUT/NAME.png."""
    metadata = {"size": options.size, "seeds": options.seeds, "environment": environment()}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{name}.json"
    content = metadata | {"table": [heading, *rows]} | numbers
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    figure.savefig(file.with_suffix(".png"), dpi=110)
    table = Table(*heading)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    console.print(f"{file} and {file.with_suffix('.png')}, {time.perf_counter() - started:.0f} s")
