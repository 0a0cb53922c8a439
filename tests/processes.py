"""Runs a function on several processes that know each other."""

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed as dist


def spawn(function, size, *args, timeout=20):
    """Runs ``function(rank, *args)`` on `size` processes; returns the error of each that failed."""
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.get_context("spawn")
        processes = [
            context.Process(target=_process, args=(function, rank, size, folder, timeout, args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        ends = time.monotonic() + 120
        for process in processes:
            process.join(max(0, ends - time.monotonic()))
        hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        assert not hanging, f"ranks {hanging} hang"
        return {int(f.suffix[1:]): f.read_text() for f in Path(folder).glob("error.*")}


def _process(function, rank, size, folder, timeout, args):
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        function(rank, *args)
        dist.destroy_process_group()
    except BaseException as error:
        Path(folder, f"error.{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)  # as a process ends that an error stops: without a farewell to the others
