"""The two towers, and the space that their features are lifted into."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from lorentzkit import ops
from lorentzkit.clip.card import write_card
from lorentzkit.clip.configuration import HyperbolicCLIPConfig
from lorentzkit.clip.objectives import logits, loss_of
from lorentzkit.clip.towers import (
    Config,
    FixedPositionsViT,
    Source,
    image_feature,
    load_tower,
    text_feature,
    text_tower,
    tower_config,
    vision_tower,
    width,
)
from lorentzkit.nn import Curvature, Lift, LogitScale, _Positive


@dataclass
class HyperbolicCLIPOutput(ModelOutput):
    r"""What a `HyperbolicCLIPModel` gives.

    Args:
        loss: with ``return_loss=True``, of the pairs ``(text[i], image[i])``.
        logits_per_image, logits_per_text: ``(M, N)`` and ``(N, M)``, times the logit scale.
        text_embeds, image_embeds: points ``(N, D)`` and ``(M, D)``; unit vectors for "clip", points
            of each factor, ``(N, factors, D / factors)``, for "phyclip".
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


_NAMES_OF_0_1 = {
    r"^curvature\.log$": "curvature.log_curv",
    r"^logit_scale\.log$": "logit_scale.log_scale",
    r"^visual_lift\.scale\.log$": "visual_lift.scale.log_scale",
    r"^text_lift\.scale\.log$": "text_lift.scale.log_scale",
}


class HyperbolicCLIPModel(PreTrainedModel):
    r"""An image tower and a text tower of transformers with points of one space as features.

    By default these are a ViT and CLIP's text transformer. The image's feature is then that of the
    class token, the text's that of the end-of-text token, which is the largest id. Attention is
    causal: what follows that token, such as padding, is not seen, and no mask is needed. A ViT's
    positions are sines and cosines, and fixed. Other image towers give what they pool, and with
    ``text_pooling="mean"`` a text's feature is the mean of the states that its mask leaves.

    Each feature is projected to D dimensions and lifted onto the hyperboloid by `nn.Lift`; for
    ``objective="clip"`` it is normalised instead.

    Args:
        config: a `HyperbolicCLIPConfig`.

    Points, logits and losses are float32, whatever dtype the towers have.
    ``from_pretrained(..., dtype=torch.bfloat16)`` keeps curvature and scales in float32.
    Exclude parameters of fewer than two dimensions from weight decay
    (docs/use-a-published-model.md).

    Source: Desai et al. 2023 (MERU), sec. 3.

    >>> config = HyperbolicCLIPConfig(
    ...     {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    ...      "num_attention_heads": 2, "image_size": 32},
    ...     {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1,
    ...      "num_attention_heads": 2},
    ...     projection_dim=8,
    ... )
    >>> model = HyperbolicCLIPModel(config).eval()
    >>> with torch.no_grad():
    ...     image = model.get_image_features(torch.zeros(2, 3, 32, 32))
    ...     text = model.get_text_features(torch.tensor([[97, 5, 98], [97, 98, 0]]))
    >>> dist(image, text, model.curv()).shape
    torch.Size([2])
    """

    config_class = HyperbolicCLIPConfig
    config: HyperbolicCLIPConfig
    base_model_prefix = "hyperbolic_clip"
    input_modalities = ["image", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTEmbeddings", "ViTLayer", "CLIPTextEmbeddings", "CLIPEncoderLayer"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = {"curvature", "visual_lift", "text_lift", "logit_scale"}  # noqa: RUF012
    _keys_to_ignore_on_load_missing = {r"\._extra_state$"}  # noqa: RUF012  (bounds, in no file of 0.1)
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: HyperbolicCLIPConfig) -> None:
        super().__init__(config)
        vision, text, dim = config.vision_config, config.text_config, config.projection_dim
        self.vision_model, self.text_model = vision_tower(vision), text_tower(text)
        self.visual_projection = nn.Linear(width(vision), dim, bias=False)
        self.text_projection = nn.Linear(width(text), dim, bias=False)
        self.logit_scale = LogitScale()
        if config.objective != "clip":
            dim //= config.factors
            self.visual_lift = Lift(dim, _start(config, config.image_start, config.image_radius))
            self.text_lift = Lift(dim, _start(config, config.text_start, config.text_radius))
            self.curvature = Curvature(config.curv_init, learnable=config.learn_curv)
            for number in (self.curvature, self.visual_lift.scale, self.text_lift.scale):
                log = number.get_parameter(number.log_name).detach()
                number.register_parameter(number.log_name, nn.Parameter(log.repeat(config.factors)))
        self.post_init()
        self._freeze()

    @property
    def hyperbolic(self) -> bool:
        """Whether features are points of hyperbolic space, and not unit vectors."""
        return self.config.objective != "clip"

    def curv(self) -> Tensor:
        """The curvature, ``curv`` for all ops: a 0-dim tensor, or one for each factor."""
        if not self.hyperbolic:
            raise ValueError('objective: "clip" has no curvature, its features are unit vectors')
        curv: Tensor = self.curvature()
        return curv

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Pixels ``(M, 3, size, size)``, normalised by the processor, to points ``(M, D)``."""
        feature = image_feature(self.vision_model, pixel_values)
        return self._embeds(self.visual_projection(feature), "visual_lift")

    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Any = None
    ) -> Tensor:
        """Token ids ``(N, L)`` to points ``(N, D)``.

        ``attention_mask`` ``(N, L)`` is needed for ``text_pooling="mean"``; "eos" does not use it.
        ``token_type_ids``, which some tokenizers give, are not used.
        """
        if self.config.text_pooling == "eos":
            attention_mask = None
        elif attention_mask is None:
            raise ValueError(
                'attention_mask: expected one for text_pooling="mean", got None; pass on all that '
                "the processor gives, for padding must not count"
            )
        feature = text_feature(self.text_model, input_ids, attention_mask)
        return self._embeds(self.text_projection(feature), "text_lift")

    def _embeds(self, features: Tensor, lift: str) -> Tensor:
        if not self.hyperbolic:
            return F.normalize(features.float(), dim=-1)
        lifted, curv = getattr(self, lift), self.curv()
        if self.config.factors > 1:
            spaces = features.float().unflatten(-1, (self.config.factors, -1))
            return ops.expmap0(lifted.scale().unsqueeze(-1) * spaces, curv)
        points: Tensor = lifted(features, curv)
        return points

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Any = None,
        return_loss: bool | None = None,
        box_input_ids: Tensor | None = None,
        box_pixel_values: Tensor | None = None,
        box_attention_mask: Tensor | None = None,
        box_of: Tensor | None = None,
    ) -> HyperbolicCLIPOutput:
        """Points of texts ``(N, L)`` and of images ``(M, 3, size, size)``, and all their logits.

        With ``return_loss=True`` the objective's loss, of as many texts as images. In training, a
        batch that is spread over processes is contrasted all with all (docs/distributed.md). The
        loss of "hycoclip" takes boxes as well: texts and images of parts, and ``box_of``, which
        pair each is part of (`losses.HyCoCLIPLoss`).
        """
        if input_ids is None or pixel_values is None:
            raise ValueError(
                "input_ids, pixel_values: expected both, got None; for one of them there are "
                "get_text_features and get_image_features"
            )
        text = self.get_text_features(input_ids, attention_mask)
        image = self.get_image_features(pixel_values)
        curv = self.curv() if self.hyperbolic else None
        scale = self.logit_scale()
        output = HyperbolicCLIPOutput(text_embeds=text, image_embeds=image)
        output.logits_per_image, output.logits_per_text = logits(
            self.config, text, image, curv, scale
        )
        if return_loss:
            boxes = self._boxes(box_input_ids, box_pixel_values, box_attention_mask, box_of)
            group = dist.group.WORLD if self.training and dist.is_initialized() else None
            loss = loss_of(self.config, group)
            output.loss = loss(text=text, image=image, curv=curv, logit_scale=scale, **boxes)[0]
        return output

    def _boxes(
        self,
        input_ids: Tensor | None,
        pixel_values: Tensor | None,
        mask: Tensor | None,
        box_of: Tensor | None,
    ) -> dict[str, Tensor | None]:
        """Points of the boxes' texts and images, and their pairs, which one objective takes."""
        if self.config.objective != "hycoclip":
            return {}
        if input_ids is None or pixel_values is None:
            raise ValueError(
                'box_input_ids, box_pixel_values: the loss of "hycoclip" expects both, got None; '
                'without boxes, set config.objective = "meru"'
            )
        return {
            "box_text": self.get_text_features(input_ids, mask),
            "box_image": self.get_image_features(pixel_values),
            "box_of": box_of,
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, _Positive):
            init.constant_(module.get_parameter(module.log_name), math.log(module.init))
        elif isinstance(module, nn.Linear):  # a projection: the towers have their own method
            std = module.in_features**-0.5 * self.config.initializer_factor
            init.normal_(module.weight, std=std)

    @classmethod
    def is_custom_code(cls) -> bool:
        # Weights are drawn by transformers.initialization, which leaves loaded ones alone. Of
        # custom code transformers skips modules without parameters of their own, such as the text
        # tower's attention, whose method draws those of its projections.
        return False

    def _freeze(self) -> None:
        """What is not learned; loading a parameter forgets it."""
        if isinstance(self.vision_model, FixedPositionsViT):
            self.vision_model.embeddings.position_embeddings.requires_grad_(False)
        if self.hyperbolic:
            self.curvature.log_curv.requires_grad_(self.config.learn_curv)

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: Source | Config,
        text: Source | Config,
        *,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> HyperbolicCLIPModel:
        """A model of two pretrained towers, or of one and a new one; all else starts anew.

        Args:
            vision, text: a folder or a name on the Hub, whose tower of that kind is taken where it
                has two, as CLIP; or, for a new tower, what `HyperbolicCLIPConfig` takes.
            local_files_only: whether nothing is fetched.
            kwargs: for `HyperbolicCLIPConfig`, such as ``objective="atmg"``.

        Of weights only safetensors are read. A pretrained ViT keeps its positions, which are fixed.
        """
        config = HyperbolicCLIPConfig(
            tower_config(vision, "vision", local_files_only),
            tower_config(text, "text", local_files_only),
            **kwargs,
        )
        model = cls(config)
        for tower, source in ((model.vision_model, vision), (model.text_model, text)):
            if not isinstance(source, (dict, PreTrainedConfig)):
                load_tower(tower, source, local_files_only)
        return model

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """See ``transformers.PreTrainedModel.from_pretrained``."""
        kwargs["key_mapping"] = _NAMES_OF_0_1 | (kwargs.get("key_mapping") or {})
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._weight_conversions = None  # it is saved by the names that it has now
        model._freeze()
        return loaded

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """See ``transformers.PreTrainedModel.save_pretrained``; adds a model card."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_card(save_directory, self.config)


def _start(config: HyperbolicCLIPConfig, start: float | None, radius: float) -> float:
    """How far from the origin images or texts start."""
    if start is not None:
        return start
    return radius if config.objective == "atmg" else 1.0


__all__ = ["HyperbolicCLIPModel", "HyperbolicCLIPOutput"]
