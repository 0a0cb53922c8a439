"""All pairs of two sets of points: matrices, and the search for the nearest."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lorentzkit._geometry import compilation, pairs
from lorentzkit._geometry.arguments import check_broadcast, curvature, vectors, working_dtype
from lorentzkit.fused import registry
from lorentzkit.fused.problems import PairwiseProblem, Search, SelectedPairs

Implementation = Literal["auto", "reference", "streaming", "triton"]
Precision = Literal["highest", "high", "medium"]

_KINDS = {"distance": "distance", "angle": "exterior", "inner": "inner"}


def pairwise_inner(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    *,
    impl: Implementation = "auto",
    precision: Precision = "highest",
) -> Tensor:
    r"""Lorentzian inner products of all pairs: ``ops.inner(x[i], y[j])``.

    Args:
        x: points, space components, ``(..., N, D)``.
        y: points, ``(..., M, D)``.
        curv: positive, broadcasts against ``(...)``.
        impl, precision: see `pairwise_dist`.

    Returns:
        ``(..., N, M)``, at most ``-1/curv``.

    Raises:
        TypeError, ValueError: as `pairwise_dist`.

    Source: as `inner`; the pairwise form is in docs/kernels.md.

    >>> pairwise_inner(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    tensor([[ -1., -19.]])
    """
    return _matrix("inner", x, y, curv, impl, precision)


def pairwise_dist(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    *,
    impl: Implementation = "auto",
    precision: Precision = "highest",
) -> Tensor:
    r"""Geodesic distances of all pairs: ``ops.dist(x[i], y[j])``.

    One matrix product of unit vectors and one pass over it, forward; two more products, backward.
    Nothing of size N x M is held but the result.

    Args:
        x: points, space components, ``(..., N, D)``.
        y: points, ``(..., M, D)``; either may be none.
        curv: positive, broadcasts against ``(...)``.
        impl: "streaming" computes blocks that fit the cache, on any device; "triton" is for CUDA
            and float32 or less; "reference" is plain PyTorch, with all its temporaries, and the
            only one with a forward-mode derivative. "auto" takes "triton" where it runs, and else
            "streaming"; `pairwise_impl` tells.
        precision: as in `torch.set_float32_matmul_precision`, whatever that is set to. "highest"
            recomputes nearly parallel pairs from differences; "high" rounds directions to tf32 and
            "medium" to bfloat16 first: then the result is that of points so much moved.
            docs/kernels.md has the bounds.

    Returns:
        ``(..., N, M)``; the gradient of a pair that coincides is 0. Radii under 2^-66/sqrt(curv)
        (float64: 2^-330) count as the origin's.

    Raises:
        TypeError, ValueError: for integer tensors, trailing sizes that differ, ``curv <= 0``,
            leading dimensions that do not broadcast, an implementation that cannot run here.

    Source: as `dist`; the pairwise form is in docs/kernels.md.

    >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    >>> pairwise_dist(x, x)
    tensor([[0.0000, 2.3124],
            [2.3124, 0.0000]])
    """
    return _matrix("distance", x, y, curv, impl, precision)


def pairwise_exterior_angle(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    *,
    impl: Implementation = "auto",
    precision: Precision = "highest",
) -> Tensor:
    r"""Exterior angles of all pairs, the apex first: ``ops.exterior_angle(x[i], y[j])``.

    Args:
        x: apexes, space components, ``(..., N, D)``.
        y: points, ``(..., M, D)``.
        curv: positive, broadcasts against ``(...)``.
        impl, precision: see `pairwise_dist`.

    Returns:
        ``(..., N, M)``, radians in [0, pi], with the conventions of `exterior_angle`: 0 where the
        points coincide or the apex is the origin, and pi where only y is; there the gradient is 0.

    Raises:
        TypeError, ValueError: as `pairwise_dist`.

    Source: as `exterior_angle`; the pairwise form is in docs/kernels.md.

    >>> x = torch.tensor([[1.0, 0.0]])
    >>> pairwise_exterior_angle(x, torch.tensor([[2.0, 0.0], [0.5, 0.0]]))
    tensor([[0.0000, 3.1416]])
    """
    return _matrix("exterior", x, y, curv, impl, precision)


def pairwise_topk(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    *,
    k: int,
    similarity: Literal["distance", "angle", "inner"] = "distance",
    apex: Literal["x", "y"] = "x",
    largest: bool = False,
    chunk: int | None = None,
    impl: Literal["auto", "streaming", "triton"] = "auto",
    precision: Precision = "highest",
) -> tuple[Tensor, Tensor]:
    r"""For every x, the k points y of the smallest (or largest) distance or angle: retrieval.

    The same as ``pairwise_dist(x, y).topk(k, largest=False)``, without the N x M matrix. Candidates
    are compared by what grows with the distance and costs less; the values of the winners are the
    exact elementwise ones, and their order is that of those.

    Args:
        x: queries, space components, ``(N, D)``; there may be none.
        y: the gallery, ``(M, D)``.
        curv: positive, one number, or one for each query ``(N,)``, as of relations in a knowledge
            graph: then every different number is a search of its own, of its queries. Sixteen take
            little longer than one; many take a pass over the gallery each.
        k: how many, 1 <= k <= M.
        similarity: what is compared, "distance" (`dist`), "angle" (`exterior_angle`) or "inner"
            (`inner`).
        apex: of "angle": "x" compares ``exterior_angle(x, y)``, "y" ``exterior_angle(y, x)``: then
            every x finds the y that it lies behind, such as an image its texts.
        largest: whether the largest values are wanted.
        chunk: how many points of the gallery are compared at a time; by default what is fast.
        impl, precision: see `pairwise_dist`; there is no "reference" (it is the line above).

    Returns:
        values ``(N, k)``, sorted, differentiable in x, y and curv; and indices into y, int64.

    Raises:
        TypeError, ValueError: as `pairwise_dist`; for k outside [1, M].

    >>> x = torch.tensor([[0.0, 1.0]])
    >>> values, indices = pairwise_topk(x, torch.tensor([[0.0, 3.0], [1.0, 1.0], [0.0, 1.0]]), k=2)
    >>> indices
    tensor([[2, 1]])
    """
    check_similarity(similarity, _KINDS)
    check_apex(apex, ("x", "y"), similarity)
    if impl not in ("auto", "streaming", "triton"):
        raise ValueError(f"impl: expected 'auto', 'streaming' or 'triton', got {impl!r}")
    x, y, c = operands(x, y, curv, queries=True)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= y.shape[0]:
        raise ValueError(f"k: expected an int in [1, {y.shape[0]}], the size of y, got {k!r}")
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"chunk: expected a positive int or None, got {chunk!r}")
    chosen = registry.choose(impl, x, precision, k)
    kind, search = _KINDS[similarity], Search(k, largest, apex, chunk or 0)
    if x.shape[0] == 0:  # no queries, as a function of the arguments: their gradients are 0
        indices = torch.empty(0, k, dtype=torch.int64, device=x.device)
        return x.sum(1, keepdim=True).expand(0, k) + y.sum() + c.sum(), indices
    if len(c) > 1:
        return _topk_by_curvature(PairwiseProblem(x, y, c, kind, precision), search, chosen)
    problem = PairwiseProblem(x.detach(), y.detach(), c.detach(), kind, precision)
    indices = registry.topk(problem, search, chosen)
    rows = torch.arange(x.shape[0], device=x.device).repeat_interleave(k)
    winners = SelectedPairs(x, y, c, rows, indices.flatten(), kind)
    if apex == "y":
        winners = SelectedPairs(y, x, c, winners.j, winners.i, kind)
    values = registry.selected(winners)[:, 0].view(-1, k)
    values, order = values.sort(dim=1, descending=largest, stable=True)
    return values, indices.gather(1, order)


def pairwise_impl(x: Tensor, y: Tensor, impl: Implementation = "auto") -> str:
    """What runs a pairwise op of these points: the choice of ``impl="auto"``, named.

    It also runs a loss of more than 2,048 pairs; `contrastive_loss` says what runs smaller ones.

    Args:
        x: ``(..., N, D)``.
        y: ``(..., M, D)``.
        impl: see `pairwise_dist`.

    Returns:
        "triton", "reference", "streaming" (eager operations on blocks) or "streaming, compiled"
        (the pass over a block compiled by `torch.compile`: for 2^18 pairs and more, `pairwise_topk`
        for 2^22, on a CPU, where there is a C++ compiler; the first such call takes some seconds).

    >>> x = torch.zeros(3, 2)
    >>> pairwise_impl(x, x)
    'streaming'
    """
    x, y = vectors(x=x, y=y)
    chosen = registry.choose(impl, x, "highest")
    pair_count = x.shape[-2] * y.shape[-2]
    compiled = chosen.compiles and compilation.compiles(x, pair_count)
    return f"{chosen.name}, compiled" if compiled else chosen.name


def _topk_by_curvature(
    problem: PairwiseProblem, search: Search, impl: registry.Implementation
) -> tuple[Tensor, Tensor]:
    """One search for each different curvature; ``problem.c`` is ``(N,)``."""
    x, y, c = problem.x, problem.y, problem.c
    curvatures, curvature_index = torch.unique(c.detach(), return_inverse=True)
    indices = torch.empty(x.shape[0], search.k, dtype=torch.int64, device=x.device)
    for n, c_n in enumerate(curvatures):
        rows = curvature_index == n
        part = replace(problem, x=x.detach()[rows], y=y.detach(), c=c_n.view(1))
        indices[rows] = registry.topk(part, search, impl)
    points = x.unsqueeze(1), y[indices]
    if search.apex == "y":
        points = points[::-1]
    values = pairs.row_values(problem.kind, *points, c.view(-1, 1, 1))[..., 0]
    values, order = values.sort(dim=1, descending=search.largest, stable=True)
    return values, indices.gather(1, order)


def check_similarity(similarity: str, known: Collection[str]) -> None:
    """One of the names that an op or a loss knows."""
    if similarity not in known:
        raise ValueError(f"similarity: expected one of {', '.join(known)}, got {similarity!r}")


def check_apex(apex: str, known: Collection[str], similarity: str) -> None:
    """One of the names that an op or a loss knows; of angles alone another than the first."""
    first, *_ = known
    if apex not in known:
        raise ValueError(f"apex: expected one of {', '.join(known)}, got {apex!r}")
    if apex != first and similarity != "angle":
        raise ValueError(
            f"apex: {apex!r} is for similarity='angle', got similarity={similarity!r}; leave it out"
        )


def operands(
    x: object, y: object, curv: object, queries: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Checked, promoted ``(N, D)``, ``(M, D)`` and a curvature ``(1,)``.

    Args:
        queries: whether x may be none, and ``curv`` one number for each of them.
    """
    x, y = vectors(x=x, y=y)
    for name, z, least in (("x", x, 0 if queries else 1), ("y", y, 1)):
        if z.dim() != 2 or z.shape[0] < least:
            what = "points (N, D)" + " with N >= 1" * least
            if queries and name == "y":
                what = "a gallery (M, D) of at least one point"
            raise ValueError(f"{name}: expected {what}, got shape {tuple(z.shape)}")
    dtype = working_dtype(x, y, curv)
    c = curvature(curv, dtype, x.device)
    if c.numel() != 1 and not (queries and c.shape[:-1] == x.shape[:1]):
        one = f"one number, or one for each query ({len(x)},)" if queries else "one number"
        raise ValueError(f"curv: expected {one}, got shape {tuple(c.shape[:-1])}")
    return x.to(dtype).contiguous(), y.to(dtype).contiguous(), c.reshape(-1)


def _matrix(kind: str, x: object, y: object, curv: object, impl: str, precision: str) -> Tensor:
    x, y = vectors(x=x, y=y)
    for name, z in (("x", x), ("y", y)):
        if z.dim() < 2:
            raise ValueError(f"{name}: expected points (..., N, D), got shape {tuple(z.shape)}")
    dtype = working_dtype(x, y, curv)
    x, y, c = x.to(dtype), y.to(dtype), curvature(curv, dtype, x.device)
    check_broadcast(c.shape[:-1], x=x.shape[:-2], y=y.shape[:-2])
    chosen = registry.choose(impl, x, precision)
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], c.shape[:-1])  # type: ignore[no-untyped-call]
    if 0 in (*batch, x.shape[-2], y.shape[-2]):
        # No pairs, as a function of the arguments: their gradients are 0.
        return x.sum(-1).unsqueeze(-1) + y.sum(-1).unsqueeze(-2) + c.unsqueeze(-1)
    return registry.matrix(PairwiseProblem(x, y, c, kind, precision), chosen)


__all__ = [
    "pairwise_dist",
    "pairwise_exterior_angle",
    "pairwise_impl",
    "pairwise_inner",
    "pairwise_topk",
]
