"""A folder of lorentzkit.clip where the evaluation expects a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lorentzkit.clip import HyperbolicCLIPModel, HyperbolicCLIPProcessor

from .config import Config, UserError
from .model import Towers


class PublishedTokenizer:
    """Texts to tokens by the model's processor; called as `CaptionTokenizer` is."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        encoding = self.processor(text=texts, return_tensors="pt")
        return encoding["input_ids"], encoding["attention_mask"]


class Published:
    """A folder that `save_pretrained` wrote, read as a `Checkpoint` is."""

    def __init__(self, folder: Path) -> None:
        try:
            self.clip = HyperbolicCLIPModel.from_pretrained(folder, local_files_only=True)
            self.processor = HyperbolicCLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} cannot be read as a model of lorentzkit.clip ({error}); it needs the "
                "weights and the processor, as lorentzkit.clip.convert writes them"
            ) from None
        sizes = self.clip.config
        if sizes.factors > 1:
            raise UserError(
                f"{folder}: its points are of a product of spaces, which is not evaluated here"
            )
        self.config = Config(
            objective=sizes.objective,
            image_size=self.processor.image_processor.crop_size["height"],
            embed_dim=sizes.projection_dim,
        )
        self.tokenizer = PublishedTokenizer(self.processor)

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether the folder holds a model of transformers, and not a run."""
        try:
            settings = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(settings, dict) and "model_type" in settings

    def model(self) -> Towers:
        images = self.processor.image_processor
        return Towers(self.clip, images.image_mean, images.image_std).eval()
