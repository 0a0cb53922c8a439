"""Runs of the training example in processes of their own, and whether two of them are the same."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import train_clip_hyperbolic
from clip_hyperbolic.checkpoint import Checkpoint

SCRIPT = Path(train_clip_hyperbolic.__file__)


def flags(config: dict[str, Any]) -> list[str]:
    return [part for name, value in config.items() for part in (f"--{name}", str(value))]


def start(*argv: str, processes: int = 1, **how: Any) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *(launch if processes > 1 else []), str(SCRIPT), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )


def train(*argv: str, timeout: int = 300, **how: Any) -> str:
    process = start(*argv, **how)
    said, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, said
    return said


FORKS = multiprocessing.get_context("forkserver")  # which imports torch once for all of them
FORKS.set_forkserver_preload(["runs"])


def fork(said: Path, *argv: str) -> Any:
    """A run that starts at once, first of its group of processes; what it says goes to a file."""
    run = FORKS.Process(target=_main, args=(said, argv))
    run.start()
    return run


def _main(said: Path, argv: tuple[str, ...]) -> None:
    os.setsid()
    with said.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(train_clip_hyperbolic.main([*argv]))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_runs(one: Path, other: Path) -> None:
    """Every bit of what they have learned, drawn, read and logged."""
    a, b = Checkpoint.of(one), Checkpoint.of(other)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert losses(one) == losses(other)
