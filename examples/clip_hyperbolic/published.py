"""A model of lorentzkit.clip where the evaluation expects towers of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorentzkit.clip import HyperbolicCLIPModel, HyperbolicCLIPProcessor

from .config import Config, UserError


class Tokens:
    """Texts to tokens by the model's processor, as `Words` does."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.processor(text=texts, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]


class Towers(nn.Module):
    """`TwoTowers` of a model of lorentzkit.clip."""

    def __init__(self, model: HyperbolicCLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model, self.hyperbolic = model, model.hyperbolic
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))

    def curv(self) -> Tensor:
        return self.model.curv() if self.hyperbolic else torch.ones(())

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, size, size) in [0, 1] to points (N, D)."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        return self.model.get_image_features((pixels - mean) / std)

    def texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (N, L) to points (N, D)."""
        return self.model.get_text_features(tokens, mask)


class Published:
    """A folder that `save_pretrained` wrote, read as a `Checkpoint` is."""

    def __init__(self, folder: Path) -> None:
        try:
            self.towers = HyperbolicCLIPModel.from_pretrained(folder, local_files_only=True)
            self.processor = HyperbolicCLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} cannot be read as a model of lorentzkit.clip ({error}); it needs the "
                "weights and the processor, as lorentzkit.clip.convert writes them"
            ) from None
        sizes = self.towers.config
        if sizes.factors > 1:
            raise UserError(
                f"{folder}: its points are of a product of spaces, which is not evaluated here"
            )
        self.config = Config(
            objective=sizes.objective,
            image_size=sizes.vision_config.image_size,
            embed_dim=sizes.projection_dim,
        )
        self.words = Tokens(self.processor)

    @staticmethod
    def is_at(place: Path) -> bool:
        """Whether a folder holds a model of transformers, and not a run."""
        try:
            about = json.loads((place / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(about, dict) and "model_type" in about

    def model(self) -> Towers:
        image = self.processor.image_processor
        return Towers(self.towers, image.image_mean, image.image_std).eval()
