"""The one configuration of a run: what each field means, the presets, and the command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from transformers import HfArgumentParser


class UserError(Exception):
    """Something only the user can put right; the message says what to do."""


def option(default: Any, explanation: str) -> Any:
    kwargs = {"default_factory": lambda: list(default)} if isinstance(default, list) else {}
    return field(
        **(kwargs or {"default": default}), metadata={"help": explanation.replace("%", "%%")}
    )


@dataclass
class Config:
    objective: Literal["atmg", "meru", "hycoclip", "clip"] = option(
        "atmg", "what is minimised; hycoclip: on shards with boxes"
    )
    preset: Literal["emoji", "smoke", "vit-s", "vit-b", "vit-l"] = option(
        "emoji", "defaults of all other fields; vit-*: the paper's settings, with --shards"
    )
    output_dir: str = option("", "of this run; default runs/TIME-OBJECTIVE")
    seed: int = option(0, "of weights, order and augmentation")

    shards: list[str] = option(
        [], "webdataset shards to train on, braces and globs allowed; default: the emoji"
    )
    eval_shards: list[str] = option(
        [], "shards to evaluate on, each pattern by itself, as NAME=PATTERN; default: unseen styles"
    )
    vendors: list[str] = option(
        ["Appl", "FB", "Joy", "Sams", "Wind"], "emoji: whose drawings are trained on"
    )
    unseen_vendors: list[str] = option(["Twtr", "Goog"], "emoji: whose drawings are the test")
    unseen_concepts: bool = option(False, "emoji: keep 15 % of the concepts for the test")
    cache_dir: str = option("", "where the emoji shards are written; default in ~/.cache")
    in_memory: bool = option(True, "decode all training images once, and keep them")
    workers: int = option(0, "processes that read and decode (0 with --in-memory)")

    image_size: int = option(48, "pixels")
    crop: float = option(0.8, "least share of an image's area in a random crop")
    rotate: float = option(0.0, "degrees an image is turned at most")
    warp: float = option(0.35, "share of the images that are scaled, turned, sheared, shifted")
    restyle: float = option(0.3, "share of the images redrawn in grey, lines, black, or shaded")
    jitter: float = option(0.3, "how much brightness, contrast and saturation vary")
    tint: float = option(0.2, "how much the strength of red, green and blue varies")
    keywords: float = option(0.5, "how often a training caption is followed by some keywords")
    ancestor_levels: int = option(2, "levels of ancestor texts trained on, nearest first")
    keyword_level: bool = option(False, "one keyword as the nearest ancestor, beside those levels")
    ancestor_weight: float = option(0.15, "of the mean of their losses beside the captions' loss")

    vision: Literal["conv", "vit-s", "vit-b", "vit-l"] = option("conv", "image tower")
    stem_width: int = option(16, "channels of the conv tower before the first halving")
    vision_model: str = option("", "a pretrained image tower of transformers instead, its folder")
    text_model: str = option("", "a pretrained text tower of transformers instead, its folder")
    tokenizer: str = option("", "folder of a tokenizer; default: a byte-level BPE of the captions")
    vocab_size: int = option(4096, "of the BPE that is trained")
    max_tokens: int = option(77, "of a text; more are cut off")
    text_width: int = option(256, "of the text tower")
    text_layers: int = option(0, "of the text tower; with 0 a text is the mean of its tokens")
    embed_dim: int = option(256, "of the common space")

    curv_init: float = option(1.0, "curvature at the start; learned within a factor of 10")
    freeze_curv: bool = option(False, "keep the curvature at its start")
    entailment_weight: float = option(
        0.2, "weight of the entailment loss; hycoclip: of half of its four's sum"
    )
    apex: Literal["text", "query"] = option(
        "text", "atmg: where angles are taken; query: also at images that look for their text"
    )
    text_radius: float = option(0.5, "atmg: where the centroid of the texts belongs")
    image_radius: float = option(1.0, "atmg: where that of the images belongs")
    centroid_weight: float = option(0.01, "atmg: the paper's lambda")
    text_start: float = option(0.0, "where texts start, about (0: atmg at its radius, others at 1)")
    image_start: float = option(0.0, "where images start, likewise")

    steps: int = option(1000, "of the optimiser")
    batch_size: int = option(256, "pairs in a step, over all processes: contrasted all with all")
    micro_batch: int = option(0, "pairs encoded at a time, for want of memory (0: all)")
    lr: float = option(2e-3, "largest learning rate")
    beta2: float = option(0.98, "of AdamW")
    weight_decay: float = option(0.2, "not of gains, biases and scalars")
    warmup: int = option(100, "steps up to --lr, then down along a cosine")
    clip_norm: float = option(1.0, "largest norm of the gradient")
    precision: Literal["no", "bf16", "fp16"] = option("no", "of the towers; geometry is float32")
    skip_nonfinite: int = option(0, "steps with non-finite loss or gradient that may be skipped")

    log_every: int = option(10, "steps")
    save_every: int = option(200, "steps between checkpoints")
    keep: int = option(2, "latest checkpoints kept, besides the best")

    def __post_init__(self) -> None:
        for name, minimum in MINIMA.items():
            if (value := getattr(self, name)) < minimum:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag}: expected at least {minimum}, got {value}")
        if not 0 < self.crop <= 1:
            raise UserError(f"--crop: expected a share in (0, 1], got {self.crop}")
        for name in ("warp", "restyle"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"--{name}: expected a share in [0, 1], got {share}")
        if self.stem_width < 8 or self.stem_width % 8:  # GroupNorm has 8 groups
            raise UserError(f"--stem-width: expected a multiple of 8, got {self.stem_width}")
        if self.preset.startswith("vit-") and not self.shards:
            raise UserError(
                f"--preset {self.preset} trains on your data: "
                "--shards 'redcaps/{00000..01231}.tar' (KEY.jpg with KEY.txt or KEY.json)"
            )
        if self.in_memory and self.workers:
            raise UserError(
                "--workers: with --in-memory there is nothing for them; set one of both"
            )
        if len(self.eval_patterns) < len(self.eval_shards):
            raise UserError(
                f"--eval-shards: each needs a name of its own, as NAME=PATTERN, got "
                f"{' '.join(self.eval_shards)}"
            )

    @property
    def eval_patterns(self) -> dict[str, str]:
        """The shards to evaluate on, by name; a pattern without a name has that of its file."""
        patterns = {}
        for argument in self.eval_shards:
            name, equals, pattern = argument.partition("=")
            if not equals or "/" in name:  # a path with an equals sign in it
                name, pattern = Path(argument).stem, argument
            patterns[name] = pattern
        return patterns

    @property
    def loss_entailment_weight(self) -> float:
        """The weight as the library's losses take it.

        hycoclip's is halved: what its released code writes as 0.2 is the paper's 0.1.
        """
        return self.entailment_weight / (2 if self.objective == "hycoclip" else 1)

    @property
    def text_pooling(self) -> Literal["eos", "mean"]:
        """Where a text's feature is: at its end, if the run makes two transformers; else a mean."""
        pretrained = self.vision_model or self.text_model or self.tokenizer
        two_transformers = self.vision != "conv" and self.text_layers > 0
        return "eos" if two_transformers and not pretrained else "mean"


MINIMA = dict.fromkeys(("batch_size", "log_every", "save_every", "keep", "embed_dim"), 1) | (
    dict.fromkeys(("steps", "workers", "micro_batch", "ancestor_levels", "skip_nonfinite"), 0)
    | dict.fromkeys(("text_start", "image_start"), 0)
)

_production = {
    "in_memory": False,
    "workers": 8,
    "image_size": 224,
    "crop": 0.5,
    "jitter": 0.0,
    "tint": 0.0,
    "warp": 0.0,
    "restyle": 0.0,
    "keywords": 0.0,
    "ancestor_levels": 0,
    "vocab_size": 49408,
    "text_width": 512,
    "text_layers": 12,
    "embed_dim": 512,
    "steps": 120_000,
    "batch_size": 2048,
    "lr": 5e-4,
    "warmup": 4000,
    "precision": "bf16",
    "centroid_weight": 0.1,
    "save_every": 2000,
    "log_every": 20,
}
PRESETS: dict[str, dict[str, Any]] = {
    "emoji": {},
    "smoke": {
        "image_size": 32,
        "text_width": 64,
        "embed_dim": 64,
        "steps": 60,
        "warmup": 10,
        "log_every": 5,
        "save_every": 10,
    },
    **{name: _production | {"vision": name} for name in ("vit-s", "vit-b", "vit-l")},
}


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def parse(description: str, argv: list[str] | None = None) -> tuple[Config, Any]:
    """The configuration that a command line asks for, and the parsed flags with the others.

    With --resume it is the one that the run has written.
    """
    preset_parser = argparse.ArgumentParser(add_help=False)
    preset_parser.add_argument("--preset", default="emoji")
    preset = preset_parser.parse_known_args(argv)[0].preset
    parser = HfArgumentParser(Config, description=description, formatter_class=Help)
    parser.set_defaults(**PRESETS.get(preset, {}))
    parser.add_argument("--resume", metavar="RUN", help="a run's folder: go on where it stopped")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and sizes")
    flags = parser.parse_args(argv)
    values = {f.name: getattr(flags, f.name) for f in fields(Config)}
    if not flags.resume:
        return Config(**values), flags
    if values != vars(Config()):
        raise UserError("--resume goes on with the run's own configuration: leave other flags out")
    return load(Path(flags.resume) / "config.json"), flags


def load(file: Path) -> Config:
    """The configuration that a run has written."""
    try:
        return from_json(file.read_text("utf-8"), file)
    except OSError as error:
        raise UserError(f"{file.parent} is no run: {error}") from None


def from_json(text: str, source: Path) -> Config:
    try:
        return Config(**json.loads(text))
    except (ValueError, TypeError) as error:  # no JSON, or fields of another version
        raise UserError(
            f"{source}: not a configuration of this version ({error}); correct it, or use the "
            "version that wrote it"
        ) from None
