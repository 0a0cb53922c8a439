"""What happens to points while each objective trains: measured once for collapse.py and gap.py."""

from __future__ import annotations

from typing import Any

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic.emoji import VENDORS
from clip_hyperbolic.model import Towers
from clip_hyperbolic.tokenizer import Words
from common import OBJECTIVES, Case, Options
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from training import UNSEEN, Drawings, Points, configuration, train, trained

from lorentzkit import ops

AT = (0, 10, 20, 40, 70, 100, 150, 200, 250, 300)


def all_objectives(chosen: Options) -> list[Case]:
    cases = [{"objective": o, "seed": seed} for seed in chosen.seeds for o in OBJECTIVES]
    return trained("dynamics", follow, cases, chosen, chosen.pick(3, 200, 300))


def follow(objective: str, seed: int, steps: int, smoke: bool) -> Case:
    """One training, with what is measured on the way."""
    config = configuration(smoke, objective=objective, seed=seed, steps=steps)
    drawings, found = Drawings(config), []

    def look(step: int, model: Towers, words: Words) -> None:
        points, curv = drawings.points(model, words), model.curv().detach()
        found.append(
            {"step": step}
            | drawings.scores(points, model, objective)
            | spread(points.images.transpose(0, 1), curv, model.hyperbolic)
            | gap(points, curv, model.hyperbolic)
        )

    _, _, taken = train(config, at={at for at in AT if at <= steps} | {steps}, probe=look)
    return {"taken": taken, "found": found}


def distance(x: Tensor, y: Tensor, curv: Tensor, hyperbolic: bool) -> Tensor:
    """Of points, in the geometry that their model trains in."""
    return ops.dist(x, y, curv) if hyperbolic else (x - y).norm(dim=-1)


def flat(x: Tensor, curv: Tensor, hyperbolic: bool) -> Tensor:
    """Points as vectors: by their distance and direction from the origin."""
    return ops.logmap0(x, curv) if hyperbolic else x


def spread(images: Tensor, curv: Tensor, hyperbolic: bool) -> dict[str, float]:
    """How far the drawings (concepts, vendors, D) of one concept lie apart.

    `distance` and `angle` (at the origin) are means over the pairs of one concept, and as shares of
    those of different concepts: what shrinks with the whole cloud does not count. `rank` is the
    effective rank of the drawings around their midpoint: as many directions as they spread in.
    """
    first, second = torch.combinations(torch.arange(images.shape[1])).T
    x, y, other = images[:, first], images[:, second], images.roll(1, dims=0)[:, second]
    within, between = (distance(x, z, curv, hyperbolic).mean().item() for z in (y, other))
    unit = normalize(images, dim=-1)
    angle, apart = (
        torch.acos((unit[:, first] * z[:, second]).sum(-1).clamp(-1, 1)).mean().rad2deg().item()
        for z in (unit, unit.roll(1, dims=0))
    )
    if hyperbolic:
        midpoint = ops.einstein_midpoint(images, curv=curv)[:, None]
        around = ops.transp0back(midpoint, ops.logmap(midpoint, images, curv), curv)
    else:
        around = images - images.mean(1, keepdim=True)
    return {
        "distance": within,
        "distance, of others'": within / between,
        "angle": angle,
        "angle, of others'": angle / apart,
        "rank": effective_rank(around).mean().item(),
    }


def effective_rank(vectors: Tensor) -> Tensor:
    """exp of the entropy of the squared singular values (Roy and Vetterli 2007), (..., n, D)."""
    energy = torch.linalg.svdvals(vectors.double()).square()
    share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum(-1).exp()


def gap(points: Points, curv: Tensor, hyperbolic: bool) -> dict[str, float]:
    """How far texts and images of unseen vendors lie apart, and whether a plane parts them."""
    images = torch.stack([points.images[VENDORS.index(vendor)] for vendor in UNSEEN])
    texts = points.texts.expand_as(images)
    if hyperbolic:
        centres = [ops.einstein_midpoint(x.flatten(0, 1), curv=curv) for x in (texts, images)]
    else:
        centres = [x.flatten(0, 1).mean(0) for x in (texts, images)]
    apart = distance(*centres, curv, hyperbolic).item()
    pairs = distance(texts, images, curv, hyperbolic).mean().item()
    others = distance(texts, images.roll(1, dims=1), curv, hyperbolic).mean().item()
    vectors = [flat(x[0], curv, hyperbolic) for x in (texts, images)]
    return {
        "gap": apart,
        "gap, of pairs'": apart / pairs,
        "pairs, of others'": pairs / others,
        "separable": separability(*vectors),
        "separable by direction": separability(*(normalize(x, dim=-1) for x in vectors)),
    }


def separability(texts: Tensor, images: Tensor) -> float:
    """Accuracy of a least-squares plane between both, on concepts that it was not fitted to."""
    x = torch.stack([texts, images], dim=1).double()
    x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
    side = one_hot(torch.arange(2)).double()[:, :1].sub(0.5).expand(len(x), 2, 1)
    fitted, tested = slice(None, None, 2), slice(1, None, 2)
    plane = torch.linalg.lstsq(
        x[fitted].flatten(0, 1), side[fitted].flatten(0, 1), driver="gelsd"
    ).solution
    return ((x[tested] @ plane).sign() == side[tested].sign()).double().mean().item()


def at_end(cases: list[Case], objective: str, name: str) -> list[float]:
    return [case["found"][-1][name] for case in cases if case["objective"] == objective]


def curves(cases: list[Case], objective: str, name: str) -> list[tuple[list[int], list[float]]]:
    """Of each seed, the steps and what was found there."""
    found: list[Any] = [case["found"] for case in cases if case["objective"] == objective]
    return [([one["step"] for one in run], [one[name] for one in run]) for run in found]
