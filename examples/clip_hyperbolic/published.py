"""A model of lorentzkit.clip where training and evaluation expect towers of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil

from lorentzkit.clip import HyperbolicCLIPConfig, HyperbolicCLIPModel, HyperbolicCLIPProcessor

from .config import Config, UserError
from .model import MEAN, STD, VIT, TwoTowers, Words, transformer


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

    @classmethod
    def of(cls, config: Config, vocabulary: int) -> Towers:
        """New towers, of the sizes of a run."""
        hidden, layers, heads = VIT[config.vision]
        vision = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * hidden,
            "image_size": config.image_size,
        }
        text = {
            "vocab_size": vocabulary,
            "hidden_size": config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": max(1, config.text_width // 64),
            "intermediate_size": 4 * config.text_width,
            "max_position_embeddings": config.max_tokens,
        }
        about = HyperbolicCLIPConfig(
            vision,
            text,
            config.embed_dim,
            config.objective,
            curv_init=config.curv_init,
            learn_curv=not config.freeze_curv,
            entailment_weight=config.loss_entailment_weight,
            text_radius=config.text_radius,
            image_radius=config.image_radius,
            centroid_weight=config.centroid_weight,
        )
        return cls(HyperbolicCLIPModel(about), [MEAN] * 3, [STD] * 3)

    @property
    def image_tower(self) -> nn.Module:
        return self.model.vision_model

    @property
    def text_tower(self) -> nn.Module:
        return self.model.text_model

    @property
    def logit_scale(self) -> nn.Module:
        return self.model.logit_scale

    def save(self, folder: Path, words: Words) -> None:
        """The model and its processor, for `from_pretrained`."""
        size = self.model.config.vision_config.image_size
        images = CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=self.mean.flatten().tolist(),
            image_std=self.std.flatten().tolist(),
        )
        words.tokenizer.model_max_length = words.max_tokens
        self.model.save_pretrained(folder)
        HyperbolicCLIPProcessor(images, words.tokenizer).save_pretrained(folder)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Points of images and of texts, the curvature and the logit scale."""
        return self.images(pixels), self.texts(tokens, mask), self.curv(), self.logit_scale()

    def curv(self) -> Tensor:
        return self.model.curv() if self.hyperbolic else self.logit_scale.log_scale.new_ones(())

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


def towers(config: Config, vocabulary: int) -> TwoTowers | Towers:
    """The model of a run: of lorentzkit.clip, where that has its towers."""
    return (Towers.of if transformer(config) else TwoTowers)(config, vocabulary)
