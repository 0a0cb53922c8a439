"""What a model's objective computes: logits of all pairs, and the loss of a batch of pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorentzkit import losses, ops
from lorentzkit.clip.configuration import HyperbolicCLIPConfig
from lorentzkit.distributed import Group


def logits(
    config: HyperbolicCLIPConfig, text: Tensor, image: Tensor, curv: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of images ``(M, N)`` over texts and of texts ``(N, M)`` over images.

    Those of `losses.contrastive_loss`: for "atmg" by the angle at the text; with ``apex="query"``
    those of images by the angle at the image.
    """
    if curv is None:
        with torch.autocast(text.device.type, enabled=False):
            per_image = scale * image @ text.T
        return per_image, per_image.T
    if config.objective == "atmg":
        per_text = -scale * ops.pairwise_exterior_angle(text, image, curv)
        if config.apex == "text":
            return per_text.T, per_text
        return scale * ops.pairwise_exterior_angle(image, text, curv), per_text
    if config.objective == "phyclip":
        spaces = zip(image.unbind(1), text.unbind(1), curv, strict=True)
        dist = torch.stack([ops.pairwise_dist(*space) for space in spaces]).mean(0)
    else:
        dist = ops.pairwise_dist(image, text, curv)
    return -scale * dist, -scale * dist.T


def loss_of(config: HyperbolicCLIPConfig, group: Group) -> Any:
    """What the model minimises: called with named points, curv and logit_scale."""
    weight = config.entailment_weight
    entailment: dict[str, Any] = {} if weight is None else {"entailment_weight": weight}
    if config.objective == "clip":
        return losses.CLIPLoss(group=group)
    if config.objective == "meru":
        return losses.MERULoss(group=group, **entailment)
    if config.objective == "hycoclip":
        return losses.HyCoCLIPLoss(group=group, **entailment)
    if config.objective == "atmg":
        return losses.ATMGLoss(
            text_radius=config.text_radius,
            image_radius=config.image_radius,
            centroid_weight=config.centroid_weight,
            apex=config.apex,
            group=group,
        )
    raise NotImplementedError(
        f"objective: lorentzkit has no loss for {config.objective!r}; leave return_loss out, and "
        "compute one from logits_per_image, text_embeds and image_embeds"
    )
