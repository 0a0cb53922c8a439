"""The sizes of a hyperbolic CLIP, and what it minimises."""

from __future__ import annotations

from typing import Any, Literal, get_args

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

Objective = Literal["clip", "meru", "hycoclip", "atmg", "phyclip"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)

Apex = Literal["text", "query"]
APEXES: tuple[str, ...] = get_args(Apex)

Pooling = Literal["eos", "mean"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

# What the published models have besides their sizes, where transformers' defaults differ.
VIT = {"layer_norm_eps": 1e-5}
CLIP_TEXT = {"hidden_act": "gelu"}


class HyperbolicCLIPConfig(PreTrainedConfig):
    r"""The configuration of a `HyperbolicCLIPModel`.

    Args:
        vision_config: of any image model of transformers, as its configuration or as a dict with
            its ``model_type``. Without one, what a ``ViTConfig`` takes, with LayerNorm's eps of
            1e-5 unless given; by default ViT-B/16 at 224 pixels. ``norm_groups`` in it puts
            GroupNorm of so many groups in place of batch norms, with which a point would depend on
            its batch.
        text_config: of any text model, likewise. Without a ``model_type``, what a
            ``CLIPTextConfig`` takes, with the exact GELU unless given; by default 12 layers of
            width 512 and 77 tokens.
        projection_dim: D, the dimension of the common space.
        objective: "clip" (unit vectors and cosines), "meru" or "hycoclip" (distances), "atmg"
            (exterior angles) or "phyclip" (means of distances in several spaces).
        factors: for "phyclip", of how many spaces the common space is the product.
        curv_init: the curvature at the start; learned within a factor of 10.
        learn_curv: otherwise it stays as it is.
        text_pooling: a text's feature is the state at its end, "eos", or the mean of its states,
            "mean"; by default "eos" of a ``CLIPTextConfig`` and "mean" of others.
        initializer_factor: of the standard deviation that projections start with.
        entailment_weight: of `losses.MERULoss` and `losses.HyCoCLIPLoss`; None: their own.
        apex, centroid_weight: of `losses.ATMGLoss`.
        text_radius, image_radius: of `losses.ATMGLoss`, too.
        text_start, image_start: about as far from the origin texts and images start (`nn.Lift`).
            None: for "atmg" at those radii, for others at 1.

    >>> config = HyperbolicCLIPConfig({"hidden_size": 384}, objective="atmg")
    >>> config.vision_config.hidden_size, config.text_config.hidden_size
    (384, 512)
    """

    model_type = "hyperbolic_clip"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: dict[str, Any] | PreTrainedConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        projection_dim: int = 512,
        objective: Objective = "meru",
        factors: int = 1,
        curv_init: float = 1.0,
        learn_curv: bool = True,
        text_pooling: Pooling | None = None,
        initializer_factor: float = 1.0,
        entailment_weight: float | None = None,
        apex: Apex = "text",
        text_radius: float = 0.5,
        image_radius: float = 1.0,
        centroid_weight: float = 0.1,
        text_start: float | None = None,
        image_start: float | None = None,
        **kwargs: Any,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {OBJECTIVES}, got {objective!r}")
        if factors < 1 or projection_dim % factors or (factors > 1) != (objective == "phyclip"):
            raise ValueError(
                f"factors: expected a divisor of projection_dim, {projection_dim}, above 1 for "
                f'"phyclip" and 1 for the others, got {factors!r} for "{objective}"'
            )
        self.vision_config = _tower("vision_config", vision_config, "vit", VIT)
        self.text_config = _tower("text_config", text_config, "clip_text_model", CLIP_TEXT)
        clip = self.text_config.model_type == "clip_text_model"
        self.text_pooling = text_pooling or ("eos" if clip else "mean")
        if self.text_pooling not in POOLINGS:
            raise ValueError(f"text_pooling: expected one of {POOLINGS}, got {text_pooling!r}")
        self.projection_dim = projection_dim
        self.objective, self.factors = objective, factors
        self.curv_init, self.learn_curv = curv_init, learn_curv
        self.initializer_factor = initializer_factor
        self.entailment_weight = entailment_weight
        if apex not in APEXES:
            raise ValueError(f"apex: expected one of {APEXES}, got {apex!r}")
        self.apex = apex
        self.text_radius, self.image_radius = text_radius, image_radius
        self.centroid_weight = centroid_weight
        self.text_start, self.image_start = text_start, image_start
        super().__init__(**kwargs)


def _tower(
    name: str, given: dict[str, Any] | PreTrainedConfig | None, usual: str, defaults: dict[str, Any]
) -> PreTrainedConfig:
    """The configuration of a tower, of the usual type unless it names another."""
    if isinstance(given, PreTrainedConfig):
        return given
    values = dict(given or {})
    kind = values.pop("model_type", usual)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"{name}: expected a model_type that transformers knows, got {kind!r}")
    if kind == usual:
        values = defaults | values
    if kind == "clip_text_model":
        values = _with_ends(values)
    return CONFIG_MAPPING[kind](**values)


def _with_ends(text: dict[str, Any]) -> dict[str, Any]:
    """The last ids of a vocabulary start, end and pad a text unless said otherwise, as CLIP's."""
    if "vocab_size" not in text:
        return text
    last = text["vocab_size"] - 1
    return {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last} | text


__all__ = ["HyperbolicCLIPConfig"]
