"""The sizes of a hyperbolic CLIP, and what it minimises."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import CLIPTextConfig, PreTrainedConfig, ViTConfig

Objective = Literal["clip", "meru", "hycoclip", "atmg", "phyclip"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

# What the published models have besides their sizes, where transformers' defaults differ.
VISION = {"layer_norm_eps": 1e-5}
TEXT = {"hidden_act": "gelu"}


class HyperbolicCLIPConfig(PreTrainedConfig):
    r"""The configuration of a `HyperbolicCLIPModel`.

    Args:
        vision_config: what a ``transformers.ViTConfig`` takes, by default ViT-B/16 at 224 pixels;
            LayerNorm's eps is 1e-5 unless given.
        text_config: what a ``transformers.CLIPTextConfig`` takes, by default 12 layers of width
            512 and 77 tokens; the activation is the exact GELU unless given.
        projection_dim: D, the dimension of the common space.
        objective: "clip" (unit vectors and cosines), "meru" or "hycoclip" (distances), "atmg"
            (exterior angles) or "phyclip" (means of distances in several spaces).
        factors: for "phyclip", of how many spaces the common space is the product.
        curv_init: the curvature at the start; learned within a factor of 10.
        learn_curv: otherwise it stays as it is.
        entailment_weight: of `losses.MERULoss` and `losses.HyCoCLIPLoss`; None: their own.
        text_radius, image_radius, centroid_weight: of `losses.ATMGLoss`.

    >>> config = HyperbolicCLIPConfig({"hidden_size": 384}, objective="atmg")
    >>> config.vision_config.hidden_size, config.text_config.hidden_size
    (384, 512)
    """

    model_type = "hyperbolic_clip"
    sub_configs = {"vision_config": ViTConfig, "text_config": CLIPTextConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | ViTConfig | None = None,
        text_config: dict[str, Any] | CLIPTextConfig | None = None,
        projection_dim: int = 512,
        objective: Objective = "meru",
        factors: int = 1,
        curv_init: float = 1.0,
        learn_curv: bool = True,
        entailment_weight: float | None = None,
        text_radius: float = 0.5,
        image_radius: float = 1.0,
        centroid_weight: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {OBJECTIVES}, got {objective!r}")
        if factors < 1 or projection_dim % factors or (factors > 1) != (objective == "phyclip"):
            raise ValueError(
                f"factors: expected a divisor of projection_dim, {projection_dim}, above 1 for "
                f'"phyclip" and 1 for the others, got {factors!r} for "{objective}"'
            )
        if not isinstance(vision_config, ViTConfig):
            vision_config = ViTConfig(**(VISION | (vision_config or {})))
        if not isinstance(text_config, CLIPTextConfig):
            text_config = CLIPTextConfig(**_with_ends(TEXT | (text_config or {})))
        self.vision_config, self.text_config = vision_config, text_config
        self.projection_dim = projection_dim
        self.objective, self.factors = objective, factors
        self.curv_init, self.learn_curv = curv_init, learn_curv
        self.entailment_weight = entailment_weight
        self.text_radius, self.image_radius = text_radius, image_radius
        self.centroid_weight = centroid_weight
        super().__init__(**kwargs)


def _with_ends(text: dict[str, Any]) -> dict[str, Any]:
    """The last ids of a vocabulary start, end and pad a text unless said otherwise, as CLIP's."""
    if "vocab_size" not in text:
        return text
    last = text["vocab_size"] - 1
    return {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last} | text


__all__ = ["HyperbolicCLIPConfig"]
