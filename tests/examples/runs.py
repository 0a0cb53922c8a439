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


def start(*argv: str, processes: int = 1, **popen_options: Any) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **popen_options,
    )


def train(*argv: str, timeout: int = 300, **start_options: Any) -> str:
    process = start(*argv, **start_options)
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


FORKS = multiprocessing.get_context("forkserver")  # it imports torch once for all runs
FORKS.set_forkserver_preload(["runs"])


def fork(output: Path, *argv: str) -> Any:
    """Starts a run without the time of its imports, in a process group of its own.

    What it prints goes to the file `output`.
    """
    run = FORKS.Process(target=_main, args=(output, argv))
    run.start()
    return run


def _main(output: Path, argv: tuple[str, ...]) -> None:
    os.setsid()
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(train_clip_hyperbolic.main([*argv]))


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_runs(first: Path, second: Path) -> None:
    """They learned, drew, read and logged the same, bit for bit."""
    a, b = Checkpoint.latest(first), Checkpoint.latest(second)
    assert a.state == b.state
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    assert losses(first) == losses(second)
