"""What is minimised: an objective's loss of captions, and of their ancestors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorentzkit import losses

from .config import Config


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


def objective_of(config: Config) -> Objective:
    return Compositional(config) if config.objective == "hycoclip" else Objective(config)


class Compositional(Objective):
    """HyCoCLIP's loss of captions, and the mean of MERU's of their ancestors with a weight."""

    def __init__(self, config: Config) -> None:
        super().__init__(replace(config, objective="meru"))
        weight = config.loss_entailment_weight
        self.of_captions = losses.HyCoCLIPLoss(entailment_weight=weight, group=self.group)

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        curv: Tensor,
        scale: Tensor,
        index: Tensor,
        labels: Tensor,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """After images come boxes: the k-th has `texts[boxes[0, k]]`, in `images[boxes[1, k]]`."""
        assert boxes is not None  # as the data of this objective have them
        images, crops = images.tensor_split([index.shape[1]])
        total, parts = self.of_captions(
            text=texts[index[0]],
            image=images,
            box_text=texts[boxes[0]],
            box_image=crops,
            curv=curv,
            logit_scale=scale,
            box_of=boxes[1],
            targets=labels[0],
        )
        return self.with_ancestors(total, parts, images, texts, curv, scale, index, labels)
