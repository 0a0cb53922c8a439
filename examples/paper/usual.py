"""The formulas that papers use, as in MERU (Desai et al. 2023), on whole matrices in float32.

curvature.py compares lorentzkit's formulas with these. They are written plainly, with their clamps,
as someone who copies them would train with them.
"""

from __future__ import annotations

import math

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic.config import Config
from clip_hyperbolic.model import Towers
from clip_hyperbolic.objective import Objective
from torch import Tensor, nn

EPS = 1e-8


def time(x: Tensor, c: Tensor) -> Tensor:
    return (1 / c + x.square().sum(-1, keepdim=True)).sqrt()


def expmap0(v: Tensor, c: Tensor) -> Tensor:
    length = c.sqrt() * v.norm(dim=-1, keepdim=True)
    return length.clamp(EPS, math.asinh(2**15)).sinh() * v / length.clamp_min(EPS)


def inner(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return x @ y.T - time(x, c) @ time(y, c).T


def dist(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return (-c * inner(x, y, c)).clamp_min(1 + EPS).acosh() / c.sqrt()


def exterior_angle(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """The angles of all pairs, with apexes x."""
    return _exterior_angle(x, time(x, c), time(y, c).T, c * inner(x, y, c))


def exterior_angle_of_pairs(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    product = (x * y).sum(-1, keepdim=True) - time(x, c) * time(y, c)
    return _exterior_angle(x, time(x, c), time(y, c), c * product)[:, 0]


def _exterior_angle(x: Tensor, time_x: Tensor, time_y: Tensor, product: Tensor) -> Tensor:
    numerator = time_y + product * time_x
    denominator = x.norm(dim=-1, keepdim=True) * (product.square() - 1).clamp_min(EPS).sqrt() + EPS
    return (numerator / denominator).clamp(-1 + EPS, 1 - EPS).acos()


def half_aperture(x: Tensor, c: Tensor, min_radius: float = 0.1) -> Tensor:
    sine = 2 * min_radius / (x.norm(dim=-1) * c.sqrt() + EPS)
    return sine.clamp(-1 + EPS, 1 - EPS).asin()


def radius_of_midpoint(x: Tensor, c: Tensor) -> Tensor:
    """The distance from the origin of the Einstein midpoint, by Klein coordinates."""
    klein = x / time(x, c)  # of length tanh(sqrt(c) distance)
    weight = (1 - klein.square().sum(-1, keepdim=True)).clamp_min(EPS).rsqrt()
    midpoint = (weight * klein).sum(0) / weight.sum()
    return midpoint.norm().clamp_max(1 - EPS).atanh() / c.sqrt()


def contrast(rows: Tensor, columns: Tensor, labels: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits; a point's loss is the mean over its positives."""
    positives = (labels[:, None] == labels).float()
    losses = [-(positives * x.log_softmax(1)).sum(1) / positives.sum(1) for x in (rows, columns)]
    return (losses[0].mean() + losses[1].mean()) / 2


class UsualLift(nn.Module):
    """A lift of lorentzkit with its learned scale, and the usual formula."""

    def __init__(self, lift: nn.Module) -> None:
        super().__init__()
        self.scale = lift.scale

    def forward(self, features: Tensor, c: Tensor) -> Tensor:
        return expmap0(features * self.scale(), c)


def usual_towers(model: Towers) -> Towers:
    clip = model.model
    clip.visual_lift, clip.text_lift = UsualLift(clip.visual_lift), UsualLift(clip.text_lift)
    return model


class UsualLoss(nn.Module):
    """What `MERULoss` and `ATMGLoss` compute."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def contrastive(
        self, texts: Tensor, images: Tensor, c: Tensor, s: Tensor, labels: Tensor
    ) -> Tensor:
        if self.config.objective == "meru":
            logits = -s * dist(texts, images, c)
            return contrast(logits, logits.T, labels)
        rows = -s * exterior_angle(texts, images, c)
        if self.config.apex == "text":
            return contrast(rows, rows.T, labels)
        return contrast(rows, s * exterior_angle(images, texts, c), labels)

    def forward(
        self, *, text: Tensor, image: Tensor, curv: Tensor, logit_scale: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        texts, images, c = text, image, curv
        contrastive = self.contrastive(texts, images, c, logit_scale, targets)
        if self.config.objective == "meru":
            outside = exterior_angle_of_pairs(texts, images, c) - half_aperture(texts, c)
            inside = outside.clamp_min(0).mean()
            return contrastive + self.config.entailment_weight * inside, {"entailment": inside}
        centroid = (radius_of_midpoint(texts, c) - self.config.text_radius).abs()
        centroid = centroid + (radius_of_midpoint(images, c) - self.config.image_radius).abs()
        return contrastive + self.config.centroid_weight * centroid, {"centroid": centroid}


class UsualContrast(UsualLoss):
    """atmg's loss of ancestors: without the centroids."""

    def forward(
        self, *, text: Tensor, image: Tensor, curv: Tensor, logit_scale: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.contrastive(text, image, curv, logit_scale, targets), {}


class UsualObjective(Objective):
    """The example's objective, its losses in the usual formulas."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.caption_loss = UsualLoss(config)
        self.ancestor_loss = (
            UsualContrast(config) if config.objective == "atmg" else self.caption_loss
        )


@torch.no_grad()
def ranking(
    config: Config, queries: Tensor, gallery: Tensor, c: Tensor, images_ask: bool
) -> Tensor:
    """As the usual formulas rank: best first, all of the gallery."""
    if config.objective == "meru":
        return dist(queries, gallery, c).argsort(dim=1)
    if images_ask and config.apex == "text":
        return exterior_angle(gallery, queries, c).T.argsort(dim=1)
    return exterior_angle(queries, gallery, c).argsort(dim=1, descending=images_ask)
