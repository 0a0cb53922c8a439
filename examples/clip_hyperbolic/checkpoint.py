"""Checkpoints: one safetensors file with all that a run needs to go on bit for bit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import config as configuration
from .config import Config, UserError
from .model import Towers
from .published import Published
from .tokenizer import CaptionTokenizer

BEST = "best.safetensors"
FORMAT = "lorentzkit-clip-2"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all, even when the program or the machine stops half-way."""
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} could not be written: {error}; make room or choose another --output-dir. "
            "What was saved before is untouched, --resume goes on from there"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write_text(text, "utf-8"))


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(run.glob("checkpoints/step-*.safetensors"))


def save(
    run: Path,
    config: Config,
    tokenizer: CaptionTokenizer,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    positions: Tensor,
    is_best: bool,
) -> None:
    """Writes the newest checkpoint, and removes those beyond the `config.keep` latest."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": t for name, t in moments.items()}
    tensors |= {"positions": positions, "random": torch.get_rng_state()}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(asdict(config)),
        "words": tokenizer.to_text(),
        "state": json.dumps(state),
    }
    file = run / "checkpoints" / f"step-{state['step']:08d}.safetensors"
    write_atomically(file, lambda path: save_file(tensors, path, metadata=metadata))
    if is_best:
        write_atomically(file.with_name(BEST), lambda path: os.link(file, path))
    for old in checkpoints_of(run)[: -config.keep]:
        old.unlink()


class Checkpoint:
    """A checkpoint, read and checked."""

    def __init__(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                self.tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} cannot be read as a checkpoint ({error}). If it is truncated, remove it: "
                "--resume then goes on from the one before"
            ) from None
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{file} was not written by train_clip_hyperbolic.py of this version; give one of "
                "its runs, or a file of its folder checkpoints/"
            )
        self.file = file
        self.config = configuration.from_json(metadata["config"], file)
        self.tokenizer = CaptionTokenizer.from_text(metadata["words"], self.config.max_tokens)
        self.state: dict[str, Any] = json.loads(metadata["state"])

    @classmethod
    def latest(cls, path: Path) -> Checkpoint:
        """The newest checkpoint of a run's folder, or the one of a file."""
        if path.suffix == ".safetensors":
            return cls(path)
        if not (files := checkpoints_of(path)):
            raise UserError(f"{path} has no checkpoint to go on from; train it from the start")
        return cls(files[-1])

    def tensors_of(self, owner: str) -> dict[str, Tensor]:
        """The tensors named `OWNER.NAME`, by their NAME."""
        prefix = f"{owner}."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def model(self) -> Towers:
        model = Towers.from_config(self.config, len(self.tokenizer))
        self.restore(model)
        return model

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Loads the weights, and the optimizer's moments."""
        try:
            model.load_state_dict(self.tensors_of("model"))
        except RuntimeError as error:
            raise UserError(f"{self.file} does not fit its own configuration: {error}") from None
        if optimizer is None:
            return
        moments: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for name, tensor in self.tensors_of("optimizer").items():
            number, moment = name.split(".")
            parameter = parameters[int(number)]
            if tensor.shape == parameter.shape:
                # in the parameter's order in memory, which may be channels last
                tensor = torch.empty_like(parameter).copy_(tensor)
            moments.setdefault(int(number), {})[moment] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def read(path: Path) -> Checkpoint | Published:
    """What can be evaluated: a checkpoint, the newest one of a run, a model of lorentzkit.clip."""
    return Published(path) if Published.is_at(path) else Checkpoint.latest(path)
