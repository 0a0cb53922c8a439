"""What is minimised where images have boxes: HyCoCLIP's loss."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lorentzkit import losses

from .config import Config
from .model import Objective


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
