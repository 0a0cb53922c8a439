"""What CLIP, MERU and ATMG minimise, called alike: one line changes the objective.

Their arguments are named, for the order of texts and images differs between code bases, and where
one of them is the more general side a swap would train the wrong way round without an error.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

from torch import Tensor, nn

from lorentzkit.distributed import Group
from lorentzkit.fused import registry
from lorentzkit.losses.contrastive import Apex, Similarity, Targets, contrastive_loss
from lorentzkit.losses.terms import centroid_loss, check_radii, entailment_loss
from lorentzkit.ops.angles import check_cones
from lorentzkit.ops.pairwise import Implementation, Precision

Parts = dict[str, Tensor]


class Objective(nn.Module):
    def __init__(
        self,
        *,
        group: Group = None,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> None:
        super().__init__()
        registry.check_options(impl, precision)
        self.group = group
        self.options: dict[str, Any] = {"impl": impl, "precision": precision, "group": group}

    def __deepcopy__(self, memo: dict[int, Any]) -> Objective:
        memo[id(self.group)] = self.group  # the processes are not copied
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _contrastive(
        self, *points: Any, similarity: Similarity, targets: Targets, **options: Any
    ) -> Tensor:
        loss: Tensor = contrastive_loss(
            *points, similarity=similarity, targets=targets, **(self.options | options)
        )
        return loss


class CLIPLoss(Objective):
    r"""The symmetric InfoNCE of cosine similarities.

    Args:
        group, impl, precision: see `contrastive_loss`.

    Source: Radford et al. 2021, "Learning Transferable Visual Models", fig. 3.

    >>> text, image = torch.randn(2, 8, 16)
    >>> total, parts = CLIPLoss()(text=text, image=image, curv=1.0, logit_scale=10.0)
    >>> list(parts)
    ['contrastive']
    """

    def forward(
        self,
        *,
        text: Tensor,
        image: Tensor,
        curv: float | Tensor | None = None,
        logit_scale: float | Tensor,
        targets: Targets = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of text ``(N, D)`` and image ``(N, D)``, of any length; and its parts by name.

        ``curv`` is not used: it stands here so that objectives are called alike.
        """
        loss = self._contrastive(
            text, image, 1.0, logit_scale, similarity="cosine", targets=targets
        )
        return loss, {"contrastive": loss}


class MERULoss(Objective):
    r"""InfoNCE of negative geodesic distances, and images inside the cones of their texts.

    ``contrastive_loss(similarity="distance") + entailment_weight * entailment_loss(text, image)``.
    The entailment is that of the pairs ``(text[i], image[i])``, whatever the targets.

    Args:
        entailment_weight: at least 0.
        min_radius, aperture_scale: see `entailment_loss`.
        group, impl, precision: see `contrastive_loss`.

    Source: Desai et al. 2023, "Hyperbolic Image-Text Representations", sec. 3; 0.2 is theirs.

    >>> text, image = 0.1 * torch.randn(2, 8, 16)
    >>> total, parts = MERULoss()(text=text, image=image, curv=1.0, logit_scale=10.0)
    >>> torch.equal(total, parts["contrastive"] + 0.2 * parts["entailment"])
    True
    """

    def __init__(
        self,
        *,
        entailment_weight: float = 0.2,
        min_radius: float = 0.1,
        aperture_scale: float = 1.0,
        group: Group = None,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> None:
        super().__init__(group=group, impl=impl, precision=precision)
        self.entailment_weight = check_weight("entailment_weight", entailment_weight)
        check_cones(min_radius, aperture_scale)
        self.cones = {"min_radius": min_radius, "aperture_scale": aperture_scale}

    def forward(
        self,
        *,
        text: Tensor,
        image: Tensor,
        curv: float | Tensor,
        logit_scale: float | Tensor,
        targets: Targets = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of points text ``(N, D)`` and image ``(N, D)``; and its parts by name."""
        contrastive = self._contrastive(
            text, image, curv, logit_scale, similarity="distance", targets=targets
        )
        if text.shape[0] != image.shape[0]:
            raise ValueError(
                f"text, image: expected as many of each, for text[i] is to entail image[i], got "
                f"shapes {tuple(text.shape)} and {tuple(image.shape)}"
            )
        entailment = entailment_loss(text, image, curv, **self.cones)
        total = contrastive + self.entailment_weight * entailment
        return total, {"contrastive": contrastive, "entailment": entailment}


class ATMGLoss(Objective):
    r"""InfoNCE of exterior angles, and the centroids of the modalities at their radii.

    ``contrastive_loss(similarity="angle") + centroid_weight * centroid_loss(text, image)``: pairs
    lie on one ray from the origin, images farther out, at a distance that is left free.

    Args:
        text_radius, image_radius: see `centroid_loss`.
        centroid_weight: at least 0; the paper's lambda.
        apex: where the angles are taken. "text": at the text for both directions, as the paper
            defines them. "query": at the text that looks for its image, and at the image that looks
            for its text, as in the paper's released code. See `contrastive_loss`.
        group, impl, precision: see `contrastive_loss`.

    Source: Ramasinghe et al. 2024, "Accept the Modality Gap", sec. 4.

    >>> text, image = 0.1 * torch.randn(2, 8, 16)
    >>> objective = ATMGLoss(text_radius=0.5, image_radius=1.0, centroid_weight=0.1)
    >>> total, parts = objective(text=text, image=image, curv=1.0, logit_scale=10.0)
    >>> list(parts)
    ['contrastive', 'centroid']
    """

    def __init__(
        self,
        *,
        text_radius: float,
        image_radius: float,
        centroid_weight: float,
        apex: Literal["text", "query"] = "text",
        group: Group = None,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> None:
        super().__init__(group=group, impl=impl, precision=precision)
        if apex not in ("text", "query"):
            raise ValueError(f"apex: expected 'text' or 'query', got {apex!r}")
        self.apex: Apex = "x" if apex == "text" else "query"
        self.centroid_weight = check_weight("centroid_weight", centroid_weight)
        check_radii(text_radius, image_radius)
        self.radii = {"text_radius": text_radius, "image_radius": image_radius}

    def forward(
        self,
        *,
        text: Tensor,
        image: Tensor,
        curv: float | Tensor,
        logit_scale: float | Tensor,
        targets: Targets = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of points text ``(N, D)`` and image ``(N, D)``; and its parts by name."""
        contrastive = self._contrastive(
            text, image, curv, logit_scale, similarity="angle", apex=self.apex, targets=targets
        )
        centroid = centroid_loss(text=text, image=image, curv=curv, group=self.group, **self.radii)
        return contrastive + self.centroid_weight * centroid, {
            "contrastive": contrastive,
            "centroid": centroid,
        }


def check_weight(name: str, value: float) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")
    return value


__all__ = ["ATMGLoss", "CLIPLoss", "MERULoss"]
