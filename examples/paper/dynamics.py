"""What happens to points while each objective trains: measured once for collapse.py and gap.py."""

from __future__ import annotations

from typing import Any

import common  # noqa: F401  (first: it lets the example be found)
import torch
from clip_hyperbolic.emoji import VENDORS
from clip_hyperbolic.model import Towers
from clip_hyperbolic.tokenizer import CaptionTokenizer
from common import OBJECTIVES, Case, Options
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from training import UNSEEN, Drawings, Points, configuration, train, trained

from lorentzkit import ops

PROBE_STEPS = (0, 10, 20, 40, 70, 100, 150, 200, 250, 300)


def all_objectives(args: Options) -> list[Case]:
    cases = [{"objective": o, "seed": seed} for seed in args.seeds for o in OBJECTIVES]
    return trained("dynamics", train_and_measure, cases, args, args.pick(3, 200, 300))


def train_and_measure(objective: str, seed: int, steps: int, smoke: bool) -> Case:
    """Trains once, and measures the points at each of the probe steps."""
    config = configuration(smoke, objective=objective, seed=seed, steps=steps)
    drawings, records = Drawings(config), []

    def measure(step: int, model: Towers, tokenizer: CaptionTokenizer) -> None:
        points, curv = drawings.points(model, tokenizer), curvature(model)
        records.append(
            {"step": step}
            | drawings.scores(points, model)
            | spread_within_concepts(points.images.transpose(0, 1), curv)
            | gap(points, curv)
        )

    probe_steps = {step for step in PROBE_STEPS if step <= steps} | {steps}
    _, _, steps_taken = train(config, probe_steps=probe_steps, probe=measure)
    return {"taken": steps_taken, "found": records}


def curvature(model: Towers) -> Tensor | None:
    """That of the model's space; None where its points are unit vectors."""
    return model.model.curv().detach() if model.hyperbolic else None


def distance(x: Tensor, y: Tensor, curv: Tensor | None) -> Tensor:
    """The distance of points in the geometry that their model trains in."""
    return ops.dist(x, y, curv) if curv is not None else (x - y).norm(dim=-1)


def as_vectors(x: Tensor, curv: Tensor | None) -> Tensor:
    """Points as vectors that have their distance and direction from the origin."""
    return ops.logmap0(x, curv) if curv is not None else x


def spread_within_concepts(images: Tensor, curv: Tensor | None) -> dict[str, float]:
    """How far the drawings (concepts, vendors, D) of one concept lie apart.

    `distance` and `angle` (at the origin) are means over the pairs of one concept, and as shares of
    those of different concepts, which do not change when the whole cloud shrinks. `rank` is the
    effective rank of the drawings around their midpoint: the number of directions they spread in.
    """
    first, second = torch.combinations(torch.arange(images.shape[1])).T
    x, y, other_concepts = images[:, first], images[:, second], images.roll(1, dims=0)[:, second]
    distance_within, distance_between = (
        distance(x, z, curv).mean().item() for z in (y, other_concepts)
    )
    unit = normalize(images, dim=-1)
    angle_within, angle_between = (
        torch.acos((unit[:, first] * z[:, second]).sum(-1).clamp(-1, 1)).mean().rad2deg().item()
        for z in (unit, unit.roll(1, dims=0))
    )
    if curv is not None:
        midpoint = ops.einstein_midpoint(images, curv=curv)[:, None]
        deviations = ops.transp0back(midpoint, ops.logmap(midpoint, images, curv), curv)
    else:
        deviations = images - images.mean(1, keepdim=True)
    return {
        "distance": distance_within,
        "distance, of others'": distance_within / distance_between,
        "angle": angle_within,
        "angle, of others'": angle_within / angle_between,
        "rank": effective_rank(deviations).mean().item(),
    }


def effective_rank(vectors: Tensor) -> Tensor:
    """exp of the entropy of the squared singular values (Roy and Vetterli 2007), (..., n, D)."""
    energy = torch.linalg.svdvals(vectors.double()).square()
    share = energy / energy.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.special.entr(share).sum(-1).exp()


def gap(points: Points, curv: Tensor | None) -> dict[str, float]:
    """How far texts and images of unseen vendors lie apart, and whether a plane parts them."""
    images = torch.stack([points.images[VENDORS.index(vendor)] for vendor in UNSEEN])
    texts = points.texts.expand_as(images)
    if curv is not None:
        centres = [ops.einstein_midpoint(x.flatten(0, 1), curv=curv) for x in (texts, images)]
    else:
        centres = [x.flatten(0, 1).mean(0) for x in (texts, images)]
    centroid_distance = distance(*centres, curv).item()
    matching = distance(texts, images, curv).mean().item()
    not_matching = distance(texts, images.roll(1, dims=1), curv).mean().item()
    vectors = [as_vectors(x[0], curv) for x in (texts, images)]
    return {
        "gap": centroid_distance,
        "gap, of pairs'": centroid_distance / matching,
        "pairs, of others'": matching / not_matching,
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


def final_values(cases: list[Case], objective: str, name: str) -> list[float]:
    return [case["found"][-1][name] for case in cases if case["objective"] == objective]


def curves(cases: list[Case], objective: str, name: str) -> list[tuple[list[int], list[float]]]:
    """For each seed, the steps and the values measured there."""
    runs: list[Any] = [case["found"] for case in cases if case["objective"] == objective]
    return [([record["step"] for record in run], [record[name] for record in run]) for run in runs]
