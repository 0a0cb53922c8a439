"""What HyCoCLIP minimises: texts, images, and the boxes that are parts of them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorentzkit import ops
from lorentzkit._geometry.arguments import vectors
from lorentzkit._geometry.special import values_at_hand
from lorentzkit.distributed import Group, Ring
from lorentzkit.losses.contrastive import contrastive_loss
from lorentzkit.losses.objectives import Objective, Parts, check_weight
from lorentzkit.losses.terms import entailment_loss
from lorentzkit.ops.angles import check_cones
from lorentzkit.ops.pairwise import Implementation, Precision


class HyCoCLIPLoss(Objective):
    r"""InfoNCE of texts, images and boxes, and entailment: texts above images, boxes above wholes.

    A pair of a whole text and a whole image has boxes: parts of the image, each with a text. With
    ``ce(x, y)`` the cross-entropy of ``-s * pairwise_dist(x, y)``, whose anchors are x, and
    ``out(general, specific, scale)`` an `entailment_loss` of that aperture scale,

        contrastive = (ce(image, text) + ce(text, image)
                       + ce(box_image, text) + ce(box_text, image)) / 4
        entailment = (out(text, image, inter) + out(box_text, box_image, inter)
                      + out(box_image, image, intra) + out(box_text, text, intra))
        total = contrastive + entailment_weight * entailment

    Boxes are anchors only: no whole is contrasted with boxes.

    Args:
        entailment_weight: at least 0; the paper's gamma.
        inter_aperture_scale: positive, of the cones of texts, in which their images are to lie.
        intra_aperture_scale: positive, of the cones of boxes, in which their wholes are to lie.
        min_radius: K of the cones, see `entailment_loss`.
        group, impl, precision: see `contrastive_loss`.

    Source: Pal et al. 2025 (HyCoCLIP), "Compositional Entailment Learning for Hyperbolic
    Vision-Language Models", the losses hCC and hCE and their sum; the defaults are theirs. Their
    code has a weight of 0.2 for half of the four entailments' sum.

    >>> text, image, box_text, box_image = 0.1 * torch.randn(4, 8, 16)
    >>> objective = HyCoCLIPLoss()
    >>> wholes = {"text": text, "image": image, "curv": 1.0, "logit_scale": 10.0}
    >>> total, parts = objective(**wholes, box_text=box_text, box_image=box_image)
    >>> torch.equal(total, parts["contrastive"] + 0.1 * parts["entailment"])
    True
    >>> boxes = {"box_text": box_text[:3], "box_image": box_image[:3]}
    >>> box_of = torch.tensor([0, 0, 5])  # two boxes of the first pair, one of the sixth
    >>> total, parts = objective(**wholes, **boxes, box_of=box_of)
    """

    def __init__(
        self,
        *,
        entailment_weight: float = 0.1,
        inter_aperture_scale: float = 0.7,
        intra_aperture_scale: float = 1.2,
        min_radius: float = 0.1,
        group: Group = None,
        impl: Implementation = "auto",
        precision: Precision = "highest",
    ) -> None:
        super().__init__(group=group, impl=impl, precision=precision)
        self.entailment_weight = check_weight("entailment_weight", entailment_weight)
        check_cones(min_radius)
        for name, scale in (
            ("inter_aperture_scale", inter_aperture_scale),
            ("intra_aperture_scale", intra_aperture_scale),
        ):
            if not scale > 0:
                raise ValueError(f"{name}: expected a positive number, got {scale!r}")
        self.inter = {"min_radius": min_radius, "aperture_scale": inter_aperture_scale}
        self.intra = {"min_radius": min_radius, "aperture_scale": intra_aperture_scale}

    def forward(
        self,
        *,
        text: Tensor,
        image: Tensor,
        box_text: Tensor,
        box_image: Tensor,
        curv: float | Tensor,
        logit_scale: float | Tensor,
        box_of: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of text, image ``(N, D)`` and box_text, box_image ``(B, D)``; its parts by name.

        Box k belongs to the pair ``box_of[k]``, integers ``(B,)``; None: one for each pair, in
        order. A pair may have any number of boxes, each of which counts alike; without any, the
        terms of boxes are 0. With a group every process may have a number of its own, and
        ``box_of`` counts the process's own pairs. ``targets``: None, or integer labels ``(N,)``,
        see `contrastive_loss`; a box has the label of its pair.
        """
        boxes = _boxes(self.group, text, image, box_text, box_image, box_of, targets)
        scalars = curv, logit_scale
        contrastive = (
            self._contrastive(text, image, *scalars, similarity="distance", targets=targets) / 2
        )
        for anchors, wholes in ((box_image, text), (box_text, image)):
            contrastive = contrastive + self._contrast_boxes(anchors, wholes, *scalars, boxes) / 4
        entailment = entailment_loss(text, image, curv, **self.inter)
        for general, specific, cones in (
            (box_text, box_image, self.inter),
            (box_image, image[boxes.pair_index], self.intra),
            (box_text, text[boxes.pair_index], self.intra),
        ):
            residual = ops.entailment_residual(general, specific, curv, **cones)
            entailment = entailment + residual.sum() / boxes.mean_number
        total = contrastive + self.entailment_weight * entailment
        return total, {"contrastive": contrastive, "entailment": entailment}

    def _contrast_boxes(
        self,
        anchors: Tensor,
        wholes: Tensor,
        curv: float | Tensor,
        logit_scale: float | Tensor,
        boxes: _Boxes,
    ) -> Tensor:
        """The cross-entropy of boxes among the wholes of the other modality."""
        if boxes.largest_share == 0:
            return anchors.sum()
        padding = boxes.largest_share - len(
            anchors
        )  # a group exchanges equal shares; their losses are dropped
        losses, _ = contrastive_loss(
            F.pad(anchors, (0, 0, 0, padding)),
            wholes,
            curv,
            logit_scale,
            similarity="distance",
            targets=(F.pad(boxes.labels[boxes.pair_index], (0, padding)), boxes.labels),
            reduction="none",
            **self.options,
        )
        return losses[: len(anchors)].sum() / boxes.mean_number


class _Boxes(NamedTuple):
    pair_index: Tensor  # the pair of each box of this process
    labels: Tensor  # of this process's pairs, among those of all processes
    largest_share: int  # boxes of one process
    mean_number: float  # of boxes of a process, by which sums become means; 1 for none at all


def _boxes(group: Group, *given: Any) -> _Boxes:
    if group is None:
        _, (pair_index, labels) = _checked_boxes(0, *given)
        return _Boxes(pair_index, labels, len(pair_index), max(len(pair_index), 1))
    ring = Ring(group)
    pair_index, labels = ring.check(
        "box_text, box_image", partial(_checked_boxes, ring.rank, *given)
    )
    counts = torch.cat(
        ring.all_of(torch.tensor([len(pair_index)], device=pair_index.device))
    ).tolist()
    return _Boxes(pair_index, labels, max(counts), max(sum(counts), 1) / ring.size)


def _checked_boxes(
    rank: int,
    text: object,
    image: object,
    box_text: object,
    box_image: object,
    box_of: object,
    targets: object,
) -> tuple[list[object], tuple[Tensor, Tensor]]:
    """What must be the same on every process; the pairs of this one's boxes, and its labels."""
    points = vectors(text=text, image=image, box_text=box_text, box_image=box_image)
    (N, *_), (M, *_), (B, *_), (C, *_) = shapes = [tuple(x.shape) for x in points]
    if N != M or B != C or {len(shape) for shape in shapes} != {2}:
        raise ValueError(
            "text, image, box_text, box_image: expected points (N, D) twice and (B, D) twice, for "
            f"text[i] belongs to image[i] and box_text[k] to box_image[k], got shapes {shapes}"
        )
    device = points[0].device
    labels = torch.arange(rank * N, (rank + 1) * N, device=device)
    if targets is not None:
        labels = _integers("targets", targets, N, "labels").to(device)
    if box_of is None and B != N:
        raise ValueError(
            f"box_of: None gives each of {N} pairs one box, in order, but there are {B} boxes; "
            f"give the pair of each box, integers of shape ({B},)"
        )
    pair_index = torch.arange(N, device=device)
    if box_of is not None:
        pair_index = _integers("box_of", box_of, B, "the pair of each box").to(device)
        if B and values_at_hand(pair_index) and not 0 <= pair_index.min() <= pair_index.max() < N:
            raise ValueError(
                f"box_of: expected pairs from 0 to {N - 1}, got {pair_index.min().item()} to "
                f"{pair_index.max().item()}"
            )
    kind = "pairs" if targets is None else "labels"
    return [N, shapes[0][1], kind, str(points[0].dtype), device.type], (pair_index, labels)


def _integers(name: str, given: object, count: int, what: str) -> Tensor:
    if not isinstance(given, Tensor) or given.is_floating_point() or given.shape != (count,):
        got = type(given).__name__
        if isinstance(given, Tensor):
            got = f"{given.dtype} of shape {tuple(given.shape)}"
        raise ValueError(f"{name}: expected {what}, integers of shape ({count},), got {got}")
    return given.long()


__all__ = ["HyCoCLIPLoss"]
