"""What is minimised: an objective's loss of captions, and of their ancestors."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorentzkit import losses

from .config import Config

Parts = dict[str, Tensor]
# Many pairs of a batch share an ancestor, so every second pair says enough. As a loss compares all
# with all, that is a quarter of the work.
ANCESTOR_STRIDE = 2


class AngleContrast(nn.Module):
    """atmg's loss of ancestors: without the centroids, which the captions hold at their radii."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(
        self, *, text: Tensor, image: Tensor, curv: Tensor, logit_scale: Tensor, targets: Tensor
    ) -> tuple[Tensor, Parts]:
        loss = losses.contrastive_loss(
            text, image, curv, logit_scale, similarity="angle", targets=targets, **self.options
        )
        return loss, {"contrastive": loss}


class Objective(nn.Module):
    """The loss of captions, plus the weighted mean of the losses of their ancestors.

    `caption_loss` and `ancestor_loss` are called as the losses of lorentzkit are, and return a
    total and its parts.
    """

    caption_loss: Any
    ancestor_loss: Any

    def __init__(self, config: Config) -> None:
        super().__init__()
        group = dist.group.WORLD if dist.is_initialized() else None
        self.ancestor_weight = config.ancestor_weight
        if config.objective == "atmg":
            self.caption_loss = losses.ATMGLoss(
                text_radius=config.text_radius,
                image_radius=config.image_radius,
                centroid_weight=config.centroid_weight,
                apex=config.apex,
                group=group,
            )
            self.ancestor_loss = AngleContrast(apex=self.caption_loss.apex, group=group)
        elif config.objective in ("meru", "hycoclip"):
            meru = losses.MERULoss(entailment_weight=config.entailment_weight, group=group)
            self.caption_loss = self.ancestor_loss = meru
            if config.objective == "hycoclip":  # ancestors have no boxes
                self.caption_loss = losses.HyCoCLIPLoss(
                    entailment_weight=config.loss_entailment_weight, group=group
                )
        else:
            self.caption_loss = self.ancestor_loss = losses.CLIPLoss(group=group)

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        numbers: dict[str, Tensor],
        index: Tensor,
        labels: Tensor,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Parts]:
        """The total loss and its parts.

        Row k of `index` and `labels` is a level: captions first, then their ancestors. The text of
        `images[i]` is `texts[index[k, i]]`; pairs with equal `labels[k]` are positives. `numbers`
        are the logit scale and the curvature, as losses take them.

        With `boxes`, as hycoclip has them, `images` holds their crops too, behind the images. The
        k-th crop has the text `texts[boxes[0, k]]` and was cut out of `images[boxes[1, k]]`.
        """
        box_inputs = {}
        if boxes is not None:
            images, crops = images.tensor_split([index.shape[1]])
            box_inputs = {"box_text": texts[boxes[0]], "box_image": crops, "box_of": boxes[1]}
        total, parts = self.caption_loss(
            text=texts[index[0]], image=images, targets=labels[0], **numbers, **box_inputs
        )
        level_losses = [
            self.ancestor_loss(
                text=texts[level_index[::ANCESTOR_STRIDE]],
                image=images[::ANCESTOR_STRIDE],
                targets=level_labels[::ANCESTOR_STRIDE],
                **numbers,
            )[0]
            for level_index, level_labels in zip(index[1:], labels[1:], strict=True)
        ]
        if not level_losses:
            return total, dict(parts)
        ancestors = torch.stack(level_losses).mean()
        return total + self.ancestor_weight * ancestors, {**parts, "ancestors": ancestors}
