"""The model of a run: a `HyperbolicCLIPModel` of the run's sizes, given pixels and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPTextConfig, ResNetConfig

from lorentzkit.clip import HyperbolicCLIPModel, HyperbolicCLIPProcessor

from .config import Config, UserError
from .tokenizer import CaptionTokenizer

# width, layers and heads; the small one has MoCo-v3's heads, as MERU has it
VIT = {"vit-s": (384, 12, 12), "vit-b": (768, 12, 12), "vit-l": (1024, 24, 16)}
MEAN, STD = [0.5] * 3, [0.25] * 3


class Towers(nn.Module):
    """A model and the normalisation of its images."""

    def __init__(self, model: HyperbolicCLIPModel, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model, self.hyperbolic = model, model.hyperbolic
        self.mean, self.std = (torch.tensor(channels).view(3, 1, 1) for channels in (mean, std))

    @property
    def logit_scale(self) -> nn.Module:
        return self.model.logit_scale

    @classmethod
    def from_config(cls, config: Config, vocabulary: int) -> Towers:
        """New towers, of the sizes of a run, for so many tokens."""
        pools_at_end = config.text_pooling == "eos"
        try:
            model = HyperbolicCLIPModel.from_vision_text_pretrained(
                config.vision_model or vision_sizes(config),
                config.text_model or text_sizes(config, vocabulary),
                local_files_only=True,
                text_pooling=config.text_pooling,
                # The settings of small towers were searched with the spread of nn.Linear's weights.
                initializer_factor=1.0 if pools_at_end else 3**-0.5,
                projection_dim=config.embed_dim,
                objective=config.objective,
                curv_init=config.curv_init,
                learn_curv=not config.freeze_curv,
                entailment_weight=config.loss_entailment_weight,
                text_radius=config.text_radius,
                image_radius=config.image_radius,
                centroid_weight=config.centroid_weight,
                apex=config.apex,
                text_start=config.text_start or None,
                image_start=config.image_start or None,
            )
        except (OSError, ValueError) as error:
            folders = {"--vision_model": config.vision_model, "--text_model": config.text_model}
            flags = " and ".join(f"{flag} {folder}" for flag, folder in folders.items() if folder)
            raise UserError(f"{flags}: transformers finds no such tower there: {error}") from None
        return cls(model.to(memory_format=torch.channels_last), MEAN, STD)

    def save(self, folder: Path, tokenizer: CaptionTokenizer, size: int) -> None:
        """The model and its processor, for `from_pretrained`."""
        images = CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=self.mean.flatten().tolist(),
            image_std=self.std.flatten().tolist(),
        )
        tokenizer.pretrained.model_max_length = tokenizer.max_tokens
        self.model.save_pretrained(folder)
        HyperbolicCLIPProcessor(images, tokenizer.pretrained).save_pretrained(folder)

    def forward(
        self, pixels: Tensor, tokens: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Points of images and of texts; the logit scale and, if there is one, the curvature."""
        numbers = {"logit_scale": self.logit_scale()} | self.curvature()
        return self.images(pixels), self.texts(tokens, mask), numbers

    def curvature(self) -> dict[str, Tensor]:
        """The curvature as ops and losses take it, ``curv``; nothing for unit vectors."""
        return {"curv": self.model.curv()} if self.hyperbolic else {}

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, size, size) in [0, 1] to points (N, D)."""
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        pixels = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        return self.model.get_image_features(pixels)

    def texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (N, L), and which of them count, to points (N, D)."""
        return self.model.get_text_features(tokens, mask)


def vision_sizes(config: Config) -> ResNetConfig | dict[str, Any]:
    """A small residual network, or a ViT."""
    if config.vision == "conv":
        return ResNetConfig(
            embedding_size=config.stem_width,
            hidden_sizes=[config.stem_width, 64, 128, 256],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            norm_groups=8,  # of each image by itself, however a batch is divided
        )
    hidden, layers, heads = VIT[config.vision]
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "image_size": config.image_size,
    }


def text_sizes(config: Config, vocabulary: int) -> CLIPTextConfig | dict[str, Any]:
    """A transformer; a text's feature is its last token, or the mean of its tokens."""
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": max(1, config.text_width // 64),
        "intermediate_size": 4 * config.text_width,
        "max_position_embeddings": config.max_tokens,
    }
    if config.text_pooling == "eos":
        return sizes
    return CLIPTextConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
