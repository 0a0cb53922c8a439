"""The published checkpoints' names of parameters, and ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorentzkit.clip.configuration import Apex, HyperbolicCLIPConfig, Objective

# Not in a checkpoint, but for its width: the small ViT is MoCo-v3's, with 12 heads and not 6.
VISION_HEADS = {384: 12, 768: 12, 1024: 16}
TEXT_HEAD = 64  # channels of an attention head

TOP = {
    "visual_proj.weight": "visual_projection.weight",
    "textual_proj.weight": "text_projection.weight",
    "visual.cls_token": "vision_model.embeddings.cls_token",
    "visual.pos_embed": "vision_model.embeddings.position_embeddings",
    "textual.token_embed.weight": "text_model.embeddings.token_embedding.weight",
    "textual.posit_embed": "text_model.embeddings.position_embedding.weight",
}
# Of these there is a weight and a bias.
LAYERS = {
    "visual.patch_embed.proj": "vision_model.embeddings.patch_embeddings.projection",
    "visual.norm": "vision_model.layernorm",
    "textual.ln_final": "text_model.final_layer_norm",
}
VISION_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
TEXT_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
# Logarithms, as ours.
SCALARS = {
    "curv": "curvature.log_curv",
    "visual_alpha": "visual_lift.scale.log_scale",
    "textual_alpha": "text_lift.scale.log_scale",
}
# PHyCLIP has one of each for each factor, and those of MERU without use.
FACTORS = {
    "curvs": "curvature.log_curv",
    "visual_concept_alphas": "visual_lift.scale.log_scale",
    "textual_concept_alphas": "text_lift.scale.log_scale",
}
CONSTANT = {"pixel_mean", "pixel_std", "textual.attn_mask"}
# UNCHA has a scale for each part of its loss; that of whole images and texts is the model's.
UNCHA = "global_logit_scale"
UNCHA_OTHERS = {"logit_scale", "local_logit_scale", "global_local_logit_scale"}


def names(vision_layers: int, text_layers: int, kind: str) -> dict[str, tuple[str, ...]]:
    """Each published name with ours; theirs has queries, keys and values in one."""
    names_: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in TOP.items()}
    layers = dict(LAYERS)
    fused: dict[str, tuple[str, str]] = {}
    for n in range(vision_layers):
        theirs, ours = f"visual.blocks.{n}.", f"vision_model.layers.{n}."
        layers |= {theirs + a: ours + b for a, b in VISION_BLOCK.items()}
        fused |= {f"{theirs}attn.qkv.{part}": (f"{ours}attention", part) for part in PARTS}
    for n in range(text_layers):
        theirs, ours = f"textual.resblocks.{n}.", f"text_model.encoder.layers.{n}."
        layers |= {theirs + a: ours + b for a, b in TEXT_BLOCK.items()}
        fused |= {f"{theirs}attn.in_proj_{part}": (f"{ours}self_attn", part) for part in PARTS}
    names_ |= {f"{a}.{part}": (f"{b}.{part}",) for a, b in layers.items() for part in PARTS}
    names_ |= {a: tuple(f"{b}.{x}_proj.{part}" for x in "qkv") for a, (b, part) in fused.items()}
    names_[UNCHA if kind == "uncha" else "logit_scale"] = ("logit_scale.log_scale",)
    scalars = {"clip": {}, "phyclip": FACTORS}.get(kind, SCALARS)
    return names_ | {theirs: (ours,) for theirs, ours in scalars.items()}


PARTS = ("weight", "bias")


def kind_of(state: Mapping[str, Tensor]) -> str:
    """ "clip", "uncha", "phyclip", or "meru" for the format of MERU, HyCoCLIP and ATMG."""
    if any(name.startswith("curvs") for name in state):
        return "phyclip"
    if UNCHA in state:
        return "uncha"
    return "meru" if "curv" in state else "clip"


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PHyCLIP's numbers ``curvs.0, curvs.1, ...`` as one tensor ``curvs``, and its other two."""
    names_ = dict(state)
    for name in FACTORS:
        numbers = [f"{name}.{n}" for n in range(sum(key.startswith(f"{name}.") for key in state))]
        if numbers and all(key in names_ for key in numbers):
            names_[name] = torch.stack([names_.pop(key) for key in numbers])
    return names_


def check_names(state: Mapping[str, Tensor], expected: set[str], kind: str) -> None:
    """Every parameter is there, and nothing that we would leave out."""
    ignored = CONSTANT | {"uncha": UNCHA_OTHERS, "phyclip": set(SCALARS)}.get(kind, set())
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected - ignored)
    if missing or unknown:
        raise ValueError(
            "checkpoint: expected the parameters of MERU, HyCoCLIP, ATMG, UNCHA, PHyCLIP or MERU's "
            f"CLIP with a class token, got a file of the {kind} format with\n"
            f"  missing: {', '.join(missing) or 'none'}\n"
            f"  unknown: {', '.join(unknown) or 'none'}"
        )


def layers_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks there are: one more than the largest number in a name."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for name in state if (m := pattern.match(name))), default=-1)


def config_of(
    state: Mapping[str, Tensor],
    objective: Objective,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> HyperbolicCLIPConfig:
    """The configuration that the shapes and the curvature say."""
    dim, width = state["visual_proj.weight"].shape
    _, channels, patch, _ = state["visual.patch_embed.proj.weight"].shape
    vocabulary, text_width = state["textual.token_embed.weight"].shape
    places = state["visual.pos_embed"].shape[1] - 1
    side = math.isqrt(places)
    if side * side != places:
        raise ValueError(
            "checkpoint: expected visual.pos_embed of a class token and a square of patches, got "
            f"{places + 1} positions"
        )
    vision = {
        "hidden_size": width,
        "num_hidden_layers": layers_of(state, "visual.blocks"),
        "num_attention_heads": vision_heads or _heads("vision", width, VISION_HEADS.get(width)),
        "intermediate_size": state["visual.blocks.0.mlp.fc1.weight"].shape[0],
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": channels,
    }
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "num_hidden_layers": layers_of(state, "textual.resblocks"),
        "num_attention_heads": text_heads or _heads("text", text_width, text_width // TEXT_HEAD),
        "intermediate_size": state["textual.resblocks.0.mlp.c_fc.weight"].shape[0],
        "max_position_embeddings": state["textual.posit_embed"].shape[0],
    }
    factors = len(state["curvs"]) if "curvs" in state else 1
    curvature = _curvature(state.get("curvs", state.get("curv")), objective)
    # What ATMG's code minimised and ranks by.
    apex: Apex = "query" if objective == "atmg" else "text"
    return HyperbolicCLIPConfig(vision, text, dim, objective, factors, apex=apex, **curvature)


def _heads(tower: str, width: int, known: int | None) -> int:
    if not known:
        raise ValueError(
            f"{tower}_heads: the file does not say how many attention heads the {tower} tower has, "
            f"and no published model is {width} wide; pass --{tower}-heads"
        )
    return known


def _curvature(log: Tensor | None, objective: Objective) -> dict[str, Any]:
    """What the curvature started from: 1, as the authors' do, unless it is out of reach of that.

    ATMG's stays where it is.
    """
    if log is None:
        return {}
    least, most = log.min().exp().item(), log.max().exp().item()
    if objective == "atmg":
        return {"curv_init": least, "learn_curv": False}
    return (
        {} if 0.1 / SLACK <= least <= most <= 10 * SLACK else {"curv_init": (least * most) ** 0.5}
    )


SLACK = 1.001  # a step of the optimiser beyond a bound, which the next forward would undo


def check_scales(state: Mapping[str, Tensor], logit_scale: str) -> None:
    """The scales are within the bounds that both models keep them in."""
    alphas = ("visual_alpha", "textual_alpha", "visual_concept_alphas", "textual_concept_alphas")
    for name, most in {logit_scale: 100.0, **dict.fromkeys(alphas, 1.0)}.items():
        if name not in state:
            continue
        value = state[name].max().exp().item()
        if not value <= most * SLACK:
            raise ValueError(
                f"checkpoint: expected {name} to be the logarithm of at most {most:g}, as MERU "
                f"keeps it, got that of {value:g}; this model would take {most:g} instead"
            )


def converted(state: Mapping[str, Tensor], table: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """The parameters by our names, in float32."""
    names_: dict[str, Any] = {}
    for theirs, ours in table.items():
        whole = state[theirs].to(torch.float32)
        whole = whole.reshape(1) if whole.ndim == 0 else whole
        names_ |= dict(zip(ours, whole.chunk(len(ours)), strict=True))
    return {name: part.contiguous() for name, part in names_.items()}
