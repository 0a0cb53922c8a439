"""What is added to a contrastive loss: entailment, and the radii of the two modalities."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from lorentzkit import ops
from lorentzkit._geometry.arguments import vectors
from lorentzkit.distributed import Group, Ring, described


def entailment_loss(
    general: Tensor,
    specific: Tensor,
    curv: float | Tensor = 1.0,
    *,
    min_radius: float = 0.1,
    aperture_scale: float = 1.0,
) -> Tensor:
    r"""How far specific concepts lie outside the cones of general ones, on average.

    The mean of ``ops.entailment_residual(general, specific)``, that is of
    ``max(0, exterior_angle(general, specific) - aperture_scale * half_aperture(general))``.

    Args:
        general: apexes of the cones, space components, ``(..., D)``.
        specific: the points to be entailed, ``(..., D)``; the two broadcast.
        curv: positive, broadcasts against ``(...)``.
        min_radius: K of the cones, see `ops.half_aperture`.
        aperture_scale: positive; HyCoCLIP takes 0.7 between modalities and 1.2 within one.

    Returns:
        A 0-dim tensor, radians in [0, pi]. Inside its cone a pair adds 0, with gradient 0.

    Raises:
        TypeError, ValueError: as `ops.entailment_residual`; for no pairs at all.

    Source: Desai et al. 2023 (MERU), eq. 7; the scale: Pal et al. 2025 (HyCoCLIP), eq. 8.

    >>> text = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> image = torch.tensor([[3.0, 0.1], [4.0, 0.0]])  # the second is off by more than 90 degrees
    >>> entailment_loss(text, image)
    tensor(1.2949)
    """
    residual = ops.entailment_residual(
        general, specific, curv, min_radius=min_radius, aperture_scale=aperture_scale
    )
    if residual.numel() == 0:
        raise ValueError(
            f"general, specific: expected at least one pair, got shapes {tuple(general.shape)} and "
            f"{tuple(specific.shape)}"
        )
    return residual.mean()


def centroid_loss(
    *,
    text: Tensor,
    image: Tensor,
    curv: float | Tensor = 1.0,
    text_radius: float,
    image_radius: float,
    group: Group = None,
) -> Tensor:
    r"""Holds the centroids of the two modalities at their radii, images farther out.

    ``|dist0(m(text)) - text_radius| + |dist0(m(image)) - image_radius|``, with m the Einstein
    midpoint of a batch. It fixes where the modalities lie and leaves the distances of pairs free.

    Args:
        text: points, space components, ``(N, D)``.
        image: points, ``(M, D)``.
        curv: positive, one number.
        text_radius: geodesic distance from the origin, positive, in the metric of ``curv``; the
            paper's q.
        image_radius: greater than ``text_radius``; the paper's p.
        group: the processes the batch is spread over, see `contrastive_loss`; the midpoints are
            those of the whole batch. Only D + 1 numbers of each process are exchanged.

    Returns:
        A 0-dim tensor. At exactly its radius a centroid has gradient 0, and so has one at the
        origin.

    Raises:
        TypeError, ValueError: as `ops.einstein_midpoint`; unless 0 < text_radius < image_radius.

    Source: Ramasinghe et al. 2024 (ATMG), sec. 4.2.

    >>> x = ops.expmap0(torch.tensor([[0.5, 0.0], [0.5, 0.0]]))
    >>> centroid_loss(text=x, image=x, text_radius=0.5, image_radius=0.75)
    tensor(0.2500)
    """
    check_radii(text_radius, image_radius)
    if group is None:
        midpoints, curv = _midpoints(text, image, curv)
    else:
        ring = Ring(group)
        shares, curv = ring.check("text, image", partial(_shares, text, image, curv))
        midpoints = [_joined(ring.gather(share), curv) for share in shares]
    distances = [ops.dist0(midpoint, curv) for midpoint in midpoints]
    return (distances[0] - text_radius).abs() + (distances[1] - image_radius).abs()


def check_radii(text_radius: float, image_radius: float) -> None:
    if not 0 < text_radius < image_radius < math.inf:
        raise ValueError(
            f"text_radius, image_radius: expected 0 < text_radius < image_radius, for images are "
            f"to lie farther out, got {text_radius!r} and {image_radius!r}"
        )


def _midpoints(
    text: Tensor, image: Tensor, curv: float | Tensor
) -> tuple[list[Tensor], float | Tensor]:
    """Of checked points; and the curvature, without dimensions."""
    if isinstance(curv, Tensor):
        if curv.numel() != 1:
            raise ValueError(f"curv: expected one number, got shape {tuple(curv.shape)}")
        curv = curv.reshape(())
    for name, points in zip(("text", "image"), vectors(text=text, image=image), strict=True):
        if points.dim() < 2 or points.shape[-2] == 0:
            raise ValueError(
                f"{name}: expected points (N, D) with N >= 1, got shape {tuple(points.shape)}"
            )
    return [ops.einstein_midpoint(points, curv=curv) for points in (text, image)], curv


def _shares(
    text: Tensor, image: Tensor, curv: float | Tensor
) -> tuple[list[object], tuple[list[Tensor], float | Tensor]]:
    """What must be the same on every process; of this one's points the midpoints and masses."""
    midpoints, curv = _midpoints(text, image, curv)
    shares = []
    for points, midpoint in zip((text, image), midpoints, strict=True):
        mass = -(curv * ops.inner(points, midpoint, curv)).sum()
        shares.append(torch.cat([midpoint, mass[None].to(midpoint.dtype)])[None])
    return described(*shares), (shares, curv)


def _joined(shares: Tensor, curv: float | Tensor) -> Tensor:
    """The midpoint of midpoints, each with its points' mass, is that of all points."""
    return ops.einstein_midpoint(shares[:, :-1], shares[:, -1], curv)


__all__ = ["centroid_loss", "check_radii", "entailment_loss"]
