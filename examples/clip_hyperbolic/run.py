"""The life of a training run: where it starts or goes on, what it logs, what it saves."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from . import checkpoint, report
from .checkpoint import Checkpoint, write_atomically, write_json
from .config import Config, UserError
from .data import Batches
from .model import Towers
from .objective import Objective
from .shards import expand, samples
from .tokenizer import CaptionTokenizer


@dataclass
class State:
    """How far a run is; a checkpoint holds it."""

    step: int = 0
    best: float = math.inf  # the least mean loss between two checkpoints
    skipped: int = 0  # steps that were not finite
    broken: int = 0  # samples that could not be read
    scaler: dict[str, Any] | None = None  # of fp16


class Run:
    """A model in training, and all that has to be kept to go on with it bit for bit."""

    def __init__(
        self, config: Config, folder: Path, accelerator: Accelerator, saved: Checkpoint | None
    ) -> None:
        self.config, self.folder, self.accelerator, self.saved = config, folder, accelerator, saved
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes
        if config.batch_size % self.processes:
            raise UserError(
                f"--batch-size {config.batch_size}: no multiple of {self.processes} processes"
            )
        set_seed(config.seed)
        if saved:
            self.tokenizer = saved.tokenizer
        else:
            stream = samples(expand(config.shards)[:10], lambda message: None)
            self.tokenizer = CaptionTokenizer.from_samples(config, stream)
        self.towers = Towers.from_config(config, len(self.tokenizer))
        self.model, self.optimizer = accelerator.prepare(
            self.towers, optimizer_of(self.towers, config)
        )
        self.objective = Objective(config)
        self.state = State()
        # How far each worker of each process has read, in samples.
        self.positions = torch.zeros(self.processes, max(1, config.workers), dtype=torch.int64)
        self.losses: list[float] = []  # since the last checkpoint
        if saved:
            self._restore(saved)
        self.own_positions = self.positions[self.rank].to(accelerator.device)

    def _restore(self, saved: Checkpoint) -> None:
        saved.restore(self.towers, self.optimizer.optimizer)
        self.state, positions = State(**saved.state), saved.tensors["positions"]
        if positions.shape != self.positions.shape:
            raise UserError(f"--resume: the run had {len(positions)} processes; start as many")
        self.positions = positions
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The batches from where the run is; the first one restores the random state."""
        config = self.config
        stream = Batches(
            config, self.rank, self.processes, self.state.step, self.own_positions.tolist()
        )
        loader = iter(DataLoader(stream, batch_size=None, num_workers=config.workers))
        if self.saved:  # only now: making the towers and the loader drew random numbers too
            torch.set_rng_state(self.saved.tensors["random"])
        for batch in loader:
            if "error" in batch:
                raise UserError(batch["error"])
            self.own_positions[batch["worker"]] = batch["position"]
            self.state.broken += len(batch["broken"])
            batch["tokens"] = self.tokenizer(batch["texts"])
            yield send_to_device(batch, self.accelerator.device)

    def save(self) -> None:
        """Writes a checkpoint; as the best one too, if its losses are the least so far."""
        positions = self.accelerator.gather(self.own_positions).view(self.positions.shape).cpu()
        mean_loss = sum(self.losses) / max(1, len(self.losses))
        is_best, self.state.best = mean_loss < self.state.best, min(mean_loss, self.state.best)
        self.losses.clear()
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            state, optimizer = asdict(self.state), self.optimizer.optimizer
            checkpoint.save(
                self.folder,
                self.config,
                self.tokenizer,
                self.towers,
                optimizer,
                state,
                positions,
                is_best,
            )

    def metrics(self, loss: Tensor, parts: dict[str, Tensor], norm: float) -> dict[str, float]:
        """The loss, its parts and the learned numbers, means over the processes."""
        reduced = {
            name: self.accelerator.reduce(part.detach(), "mean").item()
            for name, part in {"loss": loss, **parts}.items()
        }
        learned = {"logit_scale": self.towers.logit_scale().item()}
        if self.towers.hyperbolic:
            learned = {"curvature": self.towers.model.curv().item()} | learned
        lr = self.optimizer.param_groups[0]["lr"]
        return reduced | learned | {"gradient_norm": norm, "lr": lr, "broken": self.state.broken}

    def is_finite(self, metrics: dict[str, float]) -> bool:
        """Whether the step can be taken."""
        # fp16 answers an infinite gradient with a smaller scale, and skips the step by itself.
        norm = 0.0 if self.config.precision == "fp16" else metrics["gradient_norm"]
        return math.isfinite(metrics["loss"] + norm)

    def skip(self, step: int, keys: list[str], metrics: dict[str, float]) -> str:
        """Writes a step that is not finite to a file; too many of them end the run."""
        self.state.skipped += 1
        dump = self.folder / f"nonfinite-{step}-{self.rank}.json"
        write_json(dump, {"step": step, "keys": keys, **metrics})
        if self.state.skipped > self.config.skip_nonfinite:
            raise UserError(
                f"step {step}: the loss or its gradient is not finite; {dump} has the keys of the "
                "batch and the parts. Lower --lr, or let some such steps pass with "
                "--skip-nonfinite N; the last checkpoint is from before"
            )
        return f"step {step} skipped, not finite: {dump}"


def optimizer_of(model: Towers, config: Config) -> torch.optim.AdamW:
    """AdamW, with weight decay for matrices alone."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


class Log:
    """metrics.jsonl, TensorBoard events, and a bar in the terminal; silent but on one process."""

    HIDDEN = ("gradient_norm", "lr", "broken")  # from the terminal

    def __init__(self, run: Run, console: Console) -> None:
        self.config, self.active = run.config, run.accelerator.is_main_process
        self.last_step, self.last_time = run.state.step, time.perf_counter()  # as last written
        text = TextColumn("{task.description}", table_column=Column(no_wrap=False))
        columns = (BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(compact=True), text)
        self.bar = Progress(*columns, console=console, disable=not self.active)
        self.task = self.bar.add_task("", total=run.config.steps, completed=run.state.step)
        if self.active:
            self.file = run.folder / "metrics.jsonl"
            logged = report.metrics(run.folder)
            lines = "".join(
                json.dumps(entry) + "\n" for entry in logged if entry["step"] <= run.state.step
            )
            write_atomically(self.file, lambda path: path.write_text(lines, "utf-8"))
            events = str(run.folder / "tensorboard")
            self.events = SummaryWriter(events, purge_step=run.state.step + 1)

    def say(self, message: str) -> None:
        self.bar.console.print(message, markup=False)

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        is_due = step % self.config.log_every == 0 or step == self.config.steps
        if self.active and is_due:
            now = time.perf_counter()
            images = self.config.batch_size * (step - self.last_step)
            self._write(step, metrics | {"images_per_second": images / (now - self.last_time)})
            self.last_step, self.last_time = step, now
        self.bar.update(self.task, completed=step)

    def _write(self, step: int, metrics: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self.events.add_scalar(name, value, step)
        shown = [f"{name} {x:.3g}" for name, x in metrics.items() if name not in self.HIDDEN]
        self.bar.update(self.task, description=", ".join(shown).replace("_", " "))


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM in a list, so that a run finishes its step and its checkpoint.

    Workers inherit the handlers, and so are not ended before that.
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    yield received
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
