"""Two towers of transformers, lifted into hyperbolic space, and what is minimised on them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from lorentzkit import losses
from lorentzkit.nn import Curvature, Lift, LogitScale

from .config import Config, UserError
from .data import Sample

# width, layers and heads; the small one has MoCo-v3's heads, as MERU's
VIT = {"vit-s": (384, 12, 12), "vit-b": (768, 12, 12), "vit-l": (1024, 24, 16)}
MEAN, STD = 0.5, 0.25
SPECIAL = ("pad_token", "bos_token", "eos_token")


class TwoTowers(nn.Module):
    """Images and tokens to points of one space: unit vectors for `clip`, else hyperbolic ones."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.image_tower = image_tower(config)
        self.text_tower = text_tower(config, vocabulary)
        self.image_head = nn.Linear(width(self.image_tower), config.embed_dim, bias=False)
        self.text_head = nn.Linear(width(self.text_tower), config.embed_dim, bias=False)
        self.logit_scale = LogitScale()
        self.hyperbolic = config.objective != "clip"
        if self.hyperbolic:
            self.image_lift, self.text_lift = Lift(config.embed_dim), Lift(config.embed_dim)
            self.curvature = Curvature(config.curv_init, learnable=not config.freeze_curv)

    def curv(self) -> Tensor:
        return self.curvature() if self.hyperbolic else self.logit_scale.log_scale.new_ones(())

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels (N, 3, size, size) in [0, 1] to points (N, D)."""
        pixels = ((pixels - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        found = self.image_tower(pixel_values=pixels)
        if isinstance(self.image_tower, ViTModel):
            features = found.last_hidden_state[:, 0]
        else:
            features = found.pooler_output.flatten(1)
        features = self.image_head(features)
        return self.image_lift(features, self.curv()) if self.hyperbolic else _unit(features)

    def texts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (N, L), and which of them count, to points (N, D)."""
        found = self.text_tower(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(found.dtype)
        features = self.text_head((found * weight).sum(1) / weight.sum(1))
        return self.text_lift(features, self.curv()) if self.hyperbolic else _unit(features)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Points of images and of texts, the curvature and the logit scale."""
        return self.images(pixels), self.texts(tokens, mask), self.curv(), self.logit_scale()


def transformer(config: Config) -> bool:
    """Whether both towers are transformers of the run's own: the model of lorentzkit.clip."""
    own = not (config.vision_model or config.text_model or config.tokenizer)
    return own and config.vision in VIT and config.text_layers > 0


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def width(tower: Any) -> int:
    config = tower.config
    return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size


def image_tower(config: Config) -> Any:
    if config.vision_model:
        return _pretrained(AutoModel, config.vision_model)
    if config.vision == "conv":
        tower = ResNetModel(
            ResNetConfig(
                embedding_size=config.stem_width,
                hidden_sizes=[config.stem_width, 64, 128, 256],
                depths=[1, 1, 1, 1],
                layer_type="basic",
            )
        )
        _normalise_by_groups(tower)
        return tower.to(memory_format=torch.channels_last)
    hidden, layers, heads = VIT[config.vision]
    tower = ViTModel(
        ViTConfig(
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            image_size=config.image_size,
            patch_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )
    places = tower.embeddings.position_embeddings
    places.data[0, 1:] = sin_cos(config.image_size // 16, hidden)
    places.data[0, :1] = 0
    places.requires_grad_(False)
    return tower


def sin_cos(side: int, hidden: int) -> Tensor:
    """Positions on a square grid: sines and cosines of row and column, a quarter each."""
    at = torch.arange(side, dtype=torch.float64)[:, None]
    waves = at / 10_000 ** (torch.arange(hidden // 4) / (hidden // 4))
    line = torch.cat([waves.sin(), waves.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([columns, rows], dim=2).flatten(0, 1).float()


def _normalise_by_groups(module: nn.Module) -> None:
    """Each image by itself: a batch norm would make points depend on how a batch is divided."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(8, child.num_features))
        else:
            _normalise_by_groups(child)


def text_tower(config: Config, vocabulary: int) -> Any:
    if config.text_model:
        return _pretrained(AutoModel, config.text_model)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=max(1, config.text_width // 64),
            max_position_embeddings=config.max_tokens,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def _pretrained(kind: Any, folder: str) -> Any:
    try:
        # Of weights, only safetensors: other formats can run code.
        safe = {"use_safetensors": True} if kind is AutoModel else {}
        return kind.from_pretrained(folder, local_files_only=True, **safe)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: {kind.__name__} finds nothing it knows there: {error}"
        ) from None


class Words:
    """Texts to tokens: a tokenizer of transformers from a folder, or one made for the captions."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    @classmethod
    def of(cls, config: Config, samples: Iterable[Sample]) -> Words:
        """The tokenizer asked for, or one made for the texts of samples."""
        if config.tokenizer:
            return cls(_pretrained(AutoTokenizer, config.tokenizer), config.max_tokens)
        texts = ((sample.caption, *sample.keywords, *sample.ancestors) for sample in samples)
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
        ends = ["<start>", "<end>"]
        last = transformer(config)  # as CLIP's: the end of a text is the largest of its ids
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size - len(ends) * last,
            special_tokens=["<pad>"] if last else ["<pad>", *ends],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(chain.from_iterable(texts), trainer)
        if last:
            bpe.add_special_tokens(ends)
            pairs = [(end, bpe.token_to_id(end)) for end in ends]
            bpe.post_processor = processors.TemplateProcessing(
                single="<start> $A <end>", special_tokens=pairs
            )
        special = dict(zip(SPECIAL, ("<pad>", "<start>", "<end>"), strict=True))
        return cls(PreTrainedTokenizerFast(tokenizer_object=bpe, **special), config.max_tokens)

    @classmethod
    def from_text(cls, text: str, max_tokens: int) -> Words:
        """From what `text` gives: a checkpoint carries its tokenizer."""
        about = json.loads(text)
        backend = Tokenizer.from_str(about.pop("tokenizer"))
        return cls(PreTrainedTokenizerFast(tokenizer_object=backend, **about), max_tokens)

    def text(self) -> str:
        special = {name: getattr(self.tokenizer, name) for name in SPECIAL}
        return json.dumps({"tokenizer": self.tokenizer.backend_tokenizer.to_str(), **special})

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]


class Objective(nn.Module):
    """The loss of captions, and the mean of those of their ancestors with a weight."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        group = dist.group.WORLD if dist.is_initialized() else None
        self.loss: Any
        if config.objective == "clip":
            self.loss = losses.CLIPLoss(group=group)
        elif config.objective == "meru":
            self.loss = losses.MERULoss(entailment_weight=config.entailment_weight, group=group)
        else:
            self.loss = losses.ATMGLoss(
                text_radius=config.text_radius,
                image_radius=config.image_radius,
                centroid_weight=config.centroid_weight,
                group=group,
            )
        self.ancestor_weight, self.group = config.ancestor_weight, group

    def above(self, texts: Tensor, images: Tensor, *curv_and_scale: Tensor, of: Tensor) -> Tensor:
        """The loss of ancestors; for atmg without the centroids, which the captions hold."""
        if isinstance(self.loss, losses.ATMGLoss):
            loss = losses.contrastive_loss(
                texts, images, *curv_and_scale, similarity="angle", targets=of, group=self.group
            )
            return loss
        curv, scale = curv_and_scale
        total: Tensor = self.loss(
            text=texts, image=images, curv=curv, logit_scale=scale, targets=of
        )[0]
        return total

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        curv: Tensor,
        scale: Tensor,
        index: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`texts[index[k, i]]` belongs to `images[i]`, and to all of the same `labels[k]`."""
        total, parts = self.loss(
            text=texts[index[0]], image=images, curv=curv, logit_scale=scale, targets=labels[0]
        )
        return self.with_ancestors(total, parts, images, texts, curv, scale, index, labels)

    def with_ancestors(
        self,
        total: Tensor,
        parts: Mapping[str, Tensor],
        images: Tensor,
        texts: Tensor,
        curv: Tensor,
        scale: Tensor,
        index: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of captions and its parts, and those of their ancestors added."""
        parts = dict(parts)
        # So many pairs share an ancestor that every second one says enough: a quarter of the work.
        above = [
            self.above(texts[at[::2]], images[::2], curv, scale, of=of[::2])
            for at, of in zip(index[1:], labels[1:], strict=True)
        ]
        if above:
            parts["ancestors"] = torch.stack(above).mean()
            total = total + self.ancestor_weight * parts["ancestors"]
        return total, parts
