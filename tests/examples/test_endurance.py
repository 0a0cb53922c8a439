"""Runs survive kills at any moment, and the production presets run as they are, but smaller."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from clip_hyperbolic.checkpoint import checkpoints_of
from pictures import SMALL, shard
from runs import assert_same_runs, flags, fork, losses, start, train

pytestmark = pytest.mark.thorough


def kill(run: subprocess.Popen[str]) -> None:
    """Ends a run and all its processes at once; its launcher's are sessions of their own."""
    launcher = psutil.Process(run.pid)
    for process in (launcher, *launcher.children(recursive=True)):
        process.kill()
    run.communicate()


def newest_step(run: Path) -> int:
    """The step that a run would go on from."""
    files = checkpoints_of(run)
    return int(files[-1].stem.removeprefix("step-")) if files else 0


def test_ten_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    """While it trains, and while it saves, which it does every three steps."""
    shards = str(shard(tmp_path / "shard.tar", count=40))
    changes = {"steps": 100, "save_every": 3, "in_memory": False, "workers": 1}
    argv = ["--shards", shards, *flags(SMALL | changes)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    output, log = tmp_path / "output", killed / "metrics.jsonl"
    undisturbed = fork(output, *argv, "--output_dir", str(whole))
    undisturbed.join()
    assert undisturbed.exitcode == 0, output.read_text("utf-8")

    rng, steps = random.Random(0), []
    argv += ["--output_dir", str(killed)]
    for _ in range(10):
        started, step = time.time(), newest_step(killed)
        run = fork(output, *argv)
        # A run first takes back what was logged after its checkpoint. Wait until it has logged a
        # step of its own.
        while not (
            log.exists()
            and log.stat().st_mtime > started
            and log.read_text("utf-8").count("\n") > step
        ):
            assert run.is_alive(), output.read_text("utf-8")
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        os.killpg(run.pid, signal.SIGKILL)
        run.join()
        argv = ["--resume", str(killed)]
        steps.append(newest_step(killed))
    last = fork(output, *argv)
    last.join()
    assert last.exitcode == 0, output.read_text("utf-8")
    assert steps == sorted(steps)
    assert 0 < steps[-1] < changes["steps"]
    assert_same_runs(whole, killed)


def test_a_run_killed_before_its_first_checkpoint_goes_on_from_the_start(tmp_path: Path) -> None:
    argv = ["--shards", str(shard(tmp_path / "shard.tar")), *flags(SMALL)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*argv, "--output_dir", str(whole))
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints")
    train("--resume", str(killed))
    assert_same_runs(whole, killed)


def test_a_production_preset_runs_on_several_processes_and_goes_on(tmp_path: Path) -> None:
    for i in range(4):
        shard(tmp_path / f"{i:05d}.tar", 16 * i)
    changes = {
        "workers": 2,
        "batch_size": 4,
        "micro_batch": 1,
        "steps": 30,
        "warmup": 2,
        "save_every": 1,
        "log_every": 1,
        "keep": 1,
        "vocab_size": 600,
    }
    argv = ["--preset", "vit-s", "--shards", f"{tmp_path}/{{00000..00003}}.tar", *flags(changes)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*argv, "--output_dir", str(whole), processes=2, timeout=900)

    run = start(*argv, "--output_dir", str(killed), processes=2)
    while not checkpoints_of(killed):
        assert run.poll() is None, run.communicate()[0]
        time.sleep(0.1)
    kill(run)
    assert len(losses(killed)) < changes["steps"]
    train("--resume", str(killed), processes=2, timeout=900)
    assert_same_runs(whole, killed)
