"""One training run of a tree's nodes, and how well distances then rank ancestors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import geoopt
import torch
from torch import Tensor
from torch.nn import functional as F

import lorentzkit
from lorentzkit.manifolds import Lorentz

from .trees import Tree

GEOMETRIES = ("Euclidean", "geoopt.Lorentz", "lorentzkit")


@dataclass(frozen=True)
class Run:
    """One training run: all that its result depends on, the tree included."""

    tree: str
    geometry: str
    dim: int
    dtype: str
    lr: float
    optimizer: str = "sgd"
    steps: int = 2000
    batch: int = 256
    negatives: int = 50
    seed: int = 0
    version: str = lorentzkit.__version__

    @property
    def name(self) -> str:
        return f"{self.geometry}-{self.dim}d-{self.dtype}-{self.optimizer}-{self.lr:g}"


def start_points(run: Run, count: int) -> geoopt.ManifoldParameter:
    """`count` points close together at the origin, the same ones in every geometry."""
    generator = torch.Generator().manual_seed(run.seed)
    start = 1e-3 * torch.randn(count, run.dim, generator=generator, dtype=torch.float64)
    start = start.to(getattr(torch, run.dtype))
    if run.geometry == "lorentzkit":
        return geoopt.ManifoldParameter(start, manifold=Lorentz(curv=1.0))
    if run.geometry == "geoopt.Lorentz":  # takes the time component too, in front
        manifold = geoopt.Lorentz(k=1.0)
        return geoopt.ManifoldParameter(manifold.projx(F.pad(start, (1, 0))), manifold=manifold)
    return geoopt.ManifoldParameter(start, manifold=geoopt.Euclidean(ndim=1))


def loss_of(
    points: geoopt.ManifoldParameter, tree: Tree, pairs: Tensor, negatives: Tensor
) -> Tensor:
    """The summed loss of `pairs`, shape (B, 2), against `negatives`, shape (B, M)."""
    node, ancestor = pairs[:, :1], pairs[:, 1:]
    # Negatives that happen to be ancestors, or the node itself, are left out.
    is_ancestor = (negatives[:, :, None] == tree.ancestors[node]).any(-1)
    excluded = F.pad(is_ancestor | (negatives == node), (1, 0), value=False)
    candidates = torch.cat([ancestor, negatives], dim=1)

    def points_at(index: Tensor) -> Tensor:  # index_select has the fastest backward pass
        return points.index_select(0, index.flatten()).unflatten(0, index.shape)

    distances = points.manifold.dist(points_at(node), points_at(candidates))
    scores = -distances.masked_fill(excluded, math.inf)
    return F.cross_entropy(scores, torch.zeros_like(node[:, 0]), reduction="sum")


@torch.no_grad()
def limit_gradient(points: geoopt.ManifoldParameter, limit: float) -> None:
    """Shortens the Riemannian gradient of every point to at most `limit`.

    Otherwise the root and its children, which occur in very many pairs, would jump about.
    """
    manifold = points.manifold
    gradient = manifold.egrad2rgrad(points, points.grad.clone())  # geoopt.Lorentz works in place
    length = manifold.inner(points, gradient, keepdim=True).clamp_min(0).sqrt()
    points.grad *= (limit / length).clamp(max=1.0)


def train(
    run: Run, tree: Tree, report: Callable[[int], None] = lambda steps: None
) -> tuple[Tensor, int | None]:
    """The trained points, and the step at which they stopped being finite, if they did."""
    points = start_points(run, len(tree))
    optimizers = {"sgd": geoopt.optim.RiemannianSGD, "adam": geoopt.optim.RiemannianAdam}
    # Projecting after each step is geoopt's remedy against drift. Only its own Lorentz needs it.
    optimizer = optimizers[run.optimizer]([points], lr=run.lr, stabilize=1)

    # Burn-in: small steps, while all points are still near the origin, against negatives drawn as
    # often as they occur in pairs, so mostly upper levels. It sorts the main branches by direction
    # before the leaves move out; far out, points no longer get past each other. Then full steps
    # that decline to zero.
    burn_in = run.steps * 3 // 10
    occurrences = torch.bincount(tree.closure.flatten(), minlength=len(tree)).double()
    uniform = torch.ones_like(occurrences)
    generator = torch.Generator().manual_seed(run.seed)
    for step in range(run.steps):
        in_burn_in = step < burn_in
        lr_factor = 0.1 if in_burn_in else (run.steps - step) / (run.steps - burn_in)
        optimizer.param_groups[0]["lr"] = run.lr * lr_factor

        pair_indices = torch.randint(len(tree.closure), (run.batch,), generator=generator)
        negatives = torch.multinomial(
            occurrences if in_burn_in else uniform,
            run.batch * run.negatives,
            replacement=True,
            generator=generator,
        ).unflatten(0, (run.batch, run.negatives))
        loss = loss_of(points, tree, tree.closure[pair_indices], negatives)
        if not loss.isfinite():
            report(run.steps - step)
            return points.detach(), step
        optimizer.zero_grad()
        loss.backward()
        limit_gradient(points, 1.0)
        optimizer.step()
        report(1)
    return points.detach(), None


@torch.no_grad()
def reconstruction(
    tree: Tree, dist: Callable[[Tensor, Tensor], Tensor], points: Tensor, block: int = 256
) -> dict[str, float]:
    """Mean rank and mean average precision of every node's ancestors by distance from it.

    A rank counts only nodes that are no ancestors. A node that ties with an ancestor counts as
    nearer, and a distance that is not a number as infinite: no geometry gains by collapsing or
    overflowing.
    """
    ranks, average_precisions = [], []
    for nodes in torch.arange(len(tree)).split(block):
        distances = dist(points[nodes, None], points).nan_to_num(nan=math.inf, posinf=math.inf)
        distances[torch.arange(len(nodes)), nodes] = math.inf  # a node is not its own neighbour
        ancestors = tree.ancestors[nodes]
        valid = ancestors >= 0
        to_ancestors = distances.gather(1, ancestors.clamp_min(0)).masked_fill(~valid, math.inf)

        def count_within(values: Tensor, limits: Tensor = to_ancestors) -> Tensor:
            return torch.searchsorted(values.sort(dim=1).values, limits, right=True)

        counts = valid.sum(1, keepdim=True)
        nodes_within = count_within(distances).clamp_max(len(tree) - 1)
        ancestors_within = count_within(to_ancestors).minimum(counts)
        ranks.append((1 + nodes_within - ancestors_within)[valid])
        precision = (ancestors_within / nodes_within).masked_fill(~valid, 0.0)
        average_precision = precision.sum(1, keepdim=True) / counts
        average_precisions.append(average_precision[counts > 0])
    return {
        "mean_rank": torch.cat(ranks).double().mean().item(),
        "map": torch.cat(average_precisions).double().mean().item(),
    }
