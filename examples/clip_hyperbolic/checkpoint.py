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
from .tokenizer import Words

BEST = "best.safetensors"
FORMAT = "lorentzkit-clip-2"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """The file is there whole or not at all, also when the program or machine stops half-way."""
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


def all_of(run: Path) -> list[Path]:
    """The checkpoints of a run, the oldest first."""
    return sorted(run.glob("checkpoints/step-*.safetensors"))


def save(
    run: Path,
    config: Config,
    words: Words,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    positions: Tensor,
    is_best: bool,
) -> None:
    """Writes the newest checkpoint and drops those that are too many."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": t for name, t in moments.items()}
    tensors |= {"positions": positions, "random": torch.get_rng_state()}
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    about = {
        "format": FORMAT,
        "config": json.dumps(asdict(config)),
        "words": words.text(),
        "state": json.dumps(state),
    }
    file = run / "checkpoints" / f"step-{state['step']:08d}.safetensors"
    write_atomically(file, lambda path: save_file(tensors, path, metadata=about))
    if is_best:
        write_atomically(file.with_name(BEST), lambda path: os.link(file, path))
    for old in all_of(run)[: -config.keep]:
        old.unlink()


class Checkpoint:
    """A checkpoint, read and checked."""

    def __init__(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata() or {}
                self.tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} cannot be read as a checkpoint ({error}). If it is truncated, remove it: "
                "--resume then goes on from the one before"
            ) from None
        if about.get("format") != FORMAT:
            raise UserError(
                f"{file} was not written by train_clip_hyperbolic.py of this version; give one of "
                "its runs, or a file of its folder checkpoints/"
            )
        self.file = file
        self.config = configuration.from_json(about["config"], file)
        self.words = Words.from_text(about["words"], self.config.max_tokens)
        self.state: dict[str, Any] = json.loads(about["state"])

    @classmethod
    def of(cls, place: Path) -> Checkpoint:
        """That of a file, or the newest of a run."""
        if place.suffix == ".safetensors":
            return cls(place)
        if not (found := all_of(place)):
            raise UserError(f"{place} has no checkpoint to go on from; train it from the start")
        return cls(found[-1])

    def part(self, name: str) -> dict[str, Tensor]:
        start = f"{name}."
        return {key[len(start) :]: t for key, t in self.tensors.items() if key.startswith(start)}

    def model(self) -> Towers:
        model = Towers.of(self.config, len(self.words))
        self.restore(model)
        return model

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        try:
            model.load_state_dict(self.part("model"))
        except RuntimeError as error:
            raise UserError(f"{self.file} does not fit its own configuration: {error}") from None
        if optimizer is not None:
            moments: dict[int, dict[str, Tensor]] = {}
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            for name, tensor in self.part("optimizer").items():
                number, key = name.split(".")
                like = trained[int(number)]
                if tensor.shape == like.shape:  # in the same order in memory: channels last or not
                    tensor = torch.empty_like(like).copy_(tensor)
                moments.setdefault(int(number), {})[key] = tensor
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def read(place: Path) -> Checkpoint | Published:
    """What can be evaluated: a checkpoint, a run's newest, or a model of lorentzkit.clip."""
    return Published(place) if Published.is_at(place) else Checkpoint.of(place)
