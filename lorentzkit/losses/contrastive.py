"""The symmetric InfoNCE of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from lorentzkit._geometry.arguments import number
from lorentzkit._geometry.special import values_at_hand
from lorentzkit.distributed import Group, Ring, described
from lorentzkit.fused import registry
from lorentzkit.fused.problems import Batch, LossProblem
from lorentzkit.losses import sharded
from lorentzkit.losses.anchors import (
    Anchors,
    check_positives,
    equal_pairs,
    of_pairs,
    reduced,
)
from lorentzkit.losses.paired import kernel_loss, paired_loss
from lorentzkit.ops.pairwise import (
    Implementation,
    Precision,
    check_apex,
    check_similarity,
    operands,
)

Similarity = Literal["angle", "distance", "cosine"]
Apex = Literal["x", "query"]
Targets = int | Tensor | tuple[Tensor, Tensor] | None


@overload
def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: Similarity = "angle",
    apex: Apex = "x",
    targets: Targets = None,
    reduction: Literal["mean", "sum"] = "mean",
    impl: Implementation = "auto",
    precision: Precision = "highest",
    group: Group = None,
) -> Tensor: ...


@overload
def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: Similarity = "angle",
    apex: Apex = "x",
    targets: Targets = None,
    reduction: Literal["none"],
    impl: Implementation = "auto",
    precision: Precision = "highest",
    group: Group = None,
) -> tuple[Tensor, Tensor]: ...


def contrastive_loss(
    x: Tensor,
    y: Tensor,
    curv: float | Tensor = 1.0,
    logit_scale: float | Tensor = 1.0,
    *,
    similarity: Similarity = "angle",
    apex: Apex = "x",
    targets: Targets = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    impl: Implementation = "auto",
    precision: Precision = "highest",
    group: Group = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Symmetric InfoNCE of paired batches, in O((N + M) D) memory but for small ones.

    For ``targets=None`` the same as, with s the scale and ``ext`` the exterior angle,

        logits = -s * pairwise_exterior_angle(x, y)  # for "angle"
        logits = -s * pairwise_dist(x, y)            # for "distance"
        logits = s * cosine(x, y)                    # for "cosine"
        (cross_entropy(logits, arange(N)) + cross_entropy(logits.T, arange(N))) / 2

    from one product of unit vectors forward and three backward. Positives are computed by the exact
    elementwise forms, and each loss as ``log(1 + sum of the others / positive)``: it keeps its
    relative accuracy when it is small.

    For "angle", x are the general concepts (texts): ``ext`` at the apex x is to be small, so that y
    lies behind x, seen from the origin. Each y, too, looks for the x that it lies behind, by
    ``apex="x"``, the paper's definition. ``apex="query"`` is what the paper's released code
    computes: each point is the apex of its own search, and for each y ``ext`` at y is to be large:
    the second line is ``cross_entropy(s * pairwise_exterior_angle(y, x), arange(N))``. While x and
    y are about as far from the origin, ``ext`` at y is *smallest* for aligned pairs, and that term
    pushes them apart.

    Args:
        x: points, space components, ``(N, D)``.
        y: points, ``(M, D)``.
        curv: positive, one number; "cosine" does not depend on it.
        logit_scale: s > 0, a number or a tensor with one element: the inverse temperature.
        similarity: "angle" (ATMG), "distance" (MERU) or "cosine" of space components (CLIP).
        apex: of "angle": "x" or "query".
        targets: which pairs are positive. None: (i, i), for N = M. An int, the offset of a shard:
            (i, i + offset), for N + offset <= M. Integer labels ``(N,)`` of x and of y, or two such
            tensors ``(N,), (M,)``: pairs of equal labels, as many as there are; a point's loss then
            is the mean over its positives p of ``logsumexp(row) - row[p]`` (SupCon), and points
            without a positive have none.
        reduction: "mean": of the two directions' means; "sum": half of the two directions' sums;
            "none": the losses of x ``(N,)`` and of y ``(M,)``, 0 where there is no positive.
        impl, precision: see `ops.pairwise_dist`. On a CPU, "auto" computes up to 2,048 float32
            pairs (x[i], y[i]) all at once: few in NumPy, and all by one compiled function once
            such batches have been work enough to pay for compiling it.
        group: the processes a batch is spread over, such as ``torch.distributed.group.WORLD``;
            each gives its own share ``(n, D)``, of one size everywhere, and its points' labels.
            None: the batch is all here. See `lorentzkit.distributed`.

    Returns:
        A 0-dim tensor, or two tensors for "none"; float64 for float64 points, else float32. The
        gradient is analytic in x, y, curv and logit_scale; its own derivative is the reference's,
        with N x M matrices. Memory besides: a few numbers for each positive pair; on a CPU up to
        100 MB for at most 2,048 pairs, since such a batch is faster as whole matrices, and one
        number for each of at most 2^24 pairs (x[i], y[j]) in 256 dimensions or more.

        With a group, the loss of this process's anchors against all: the mean over the processes is
        the whole batch's ("sum": their sum). Gradients fit data-parallel averaging, see
        `lorentzkit.distributed`; they have no derivative of their own.

    Raises:
        TypeError, ValueError: as `ops.pairwise_dist`; for no points; for targets that do not fit,
            or without any positive pair; for a ``logit_scale`` that is not positive and finite
            (a tensor's on a CPU). With a group, on every process, for a bad argument of any, with
            its rank, and for shares of different sizes.
        RuntimeError: if a process of the group is lost; the message has its rank.

    Source: Radford et al. 2021 (CLIP), fig. 3; Desai et al. 2023 (MERU), eq. 3; Ramasinghe et al.
    2024 (ATMG), "Accept the Modality Gap", sec. 4; several positives: Khosla et al. 2020, eq. 2.

    >>> x = torch.tensor([[0.1, 0.0], [0.0, 0.1]])
    >>> contrastive_loss(x, 2 * x, logit_scale=3.0)  # each y lies right behind its x
    tensor(0.0022)
    >>> contrastive_loss(x, 2 * x, logit_scale=3.0, targets=torch.tensor([0, 0]))
    tensor(3.0657)
    >>> contrastive_loss(x, 2 * x, logit_scale=3.0, apex="query")
    tensor(0.1128)
    """
    given = (x, y, curv, logit_scale, similarity, apex, impl, precision, reduction)
    anchors: Sequence[Anchors]
    counts = None
    if group is None:
        loss = _checked(*given)
        found = _at_once(loss, targets, reduction, impl)
        if found is not None:
            return (found[0], found[1]) if reduction == "none" else found[0]
        anchors = _anchors(loss, targets)
    else:
        ring = Ring(group)
        loss, labels = ring.check("x, y", partial(_checked_share, targets, *given))
        ids = _shared_ids(labels, loss.x, loss.y, ring)
        anchors = sharded.anchors(loss.problem(*ids, *equal_pairs(*ids)), loss.impl, ring)
        # Of a mean over processes: as if the anchors that count were spread evenly.
        own = torch.stack([(side.positive_count > 0).sum() for side in anchors])
        counts = list(torch.stack(ring.all_of(own)).sum(0).to(loss.scale.dtype) / ring.size)
        check_positives(bool(counts[0] > 0))
    losses = reduced(anchors, reduction, counts)
    return (losses[0], losses[1]) if reduction == "none" else losses[0]


class _Checked(NamedTuple):
    """Arguments, but for the targets."""

    x: Tensor
    y: Tensor
    c: Tensor
    scale: Tensor
    similarity: str
    precision: str
    impl: registry.Implementation

    def problem(self, row_ids: Tensor, column_ids: Tensor, i: Tensor, j: Tensor) -> LossProblem:
        settings = self.similarity, self.precision
        return LossProblem(*self[:4], row_ids, column_ids, i, j, *settings)


def _checked(
    x: object,
    y: object,
    curv: object,
    logit_scale: object,
    similarity: str,
    apex: str,
    impl: str,
    precision: str,
    reduction: str,
) -> _Checked:
    check_similarity(similarity, get_args(Similarity))
    check_apex(apex, get_args(Apex), similarity)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    x, y, c = operands(x, y, curv)
    chosen = registry.choose(impl, x, precision)
    kind = similarity
    if similarity == "angle":
        kind = "exterior" if apex == "x" else "angles"
    return _Checked(x, y, c, _scale(logit_scale, x), kind, precision, chosen)


def _checked_share(
    targets: object, *given: Any
) -> tuple[list[object], tuple[_Checked, list[Tensor] | None]]:
    """What must be the same on every process; the arguments of this one, and labels if any."""
    share = _checked(*given)
    x, y, impl = share.x, share.y, share.impl
    if not impl.with_group:
        raise ValueError(f"impl: {impl.name!r} does not run with a group; use impl='streaming'")
    labels = None
    if isinstance(targets, (Tensor, tuple)):
        labels = [ids.long() for ids in _labels(targets, x.shape[0], y.shape[0], x.device)]
    elif targets is None:
        _offset(None, x.shape[0], y.shape[0])
    else:
        raise ValueError(
            f"targets: with a group expected None or integer labels, got {targets!r}; an offset is "
            f"for one process that holds all columns"
        )
    kind = "pairs" if labels is None else "labels"
    similarity, apex = given[4:6]
    return [similarity, apex, kind, *described(x, y)], (share, labels)


def _at_once(
    loss: _Checked, targets: object, reduction: str, impl: str
) -> tuple[Tensor, ...] | None:
    """As one operation, if it is that: on a GPU, or of a small batch of pairs."""
    N, M = loss.x.shape[0], loss.y.shape[0]
    if loss.impl.name == "triton":
        labelled = isinstance(targets, (Tensor, tuple))
        which = _labels(targets, N, M, loss.x.device) if labelled else _offset(targets, N, M)
        return kernel_loss(Batch(*loss[:6]), which, reduction)
    if targets is not None or reduction == "none" or N != M:
        return None
    if (impl, loss.precision) != ("auto", "highest"):
        return None
    mean = paired_loss(Batch(*loss[:5]))
    return None if mean is None else (mean if reduction == "mean" else mean * N,)


def _anchors(loss: _Checked, targets: object) -> list[Anchors]:
    """Of x and of y, when all are here."""
    x, y = loss.x, loss.y
    rows, columns, pairs = _targets(targets, x.shape[0], y.shape[0], x.device)
    problem = loss.problem(rows, columns, *pairs)
    terms = registry.loss_terms(problem, loss.impl)
    if targets is None:  # one positive for each point, in order
        return Anchors.paired(problem, terms)
    return of_pairs(problem, terms)


def _scale(logit_scale: object, x: Tensor) -> Tensor:
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1 or not logit_scale.is_floating_point():
            raise ValueError(
                f"logit_scale: expected a number or a floating tensor with one element, "
                f"got {logit_scale.dtype} of shape {tuple(logit_scale.shape)}"
            )
        scale = logit_scale.reshape(()).to(x.device, x.dtype)
        if values_at_hand(scale):
            _check_scale(float(scale.detach()), x.dtype)
        return scale
    value = number("logit_scale", logit_scale, "a number or a floating tensor")
    _check_scale(value, x.dtype)
    return torch.full((), value, dtype=x.dtype, device=x.device)


def _check_scale(value: float, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    if not info.tiny <= value <= info.max:
        raise ValueError(
            f"logit_scale: expected a positive number in [{info.tiny:g}, {info.max:g}], the range "
            f"of {dtype}, got {value:g}; nn.LogitScale keeps a learned one within bounds"
        )


def _targets(
    targets: object, N: int, M: int, device: torch.device
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Ids of rows and of columns, int32, equal where a pair is positive; and the positive pairs."""
    if isinstance(targets, (Tensor, tuple)):
        x_labels, y_labels = _labels(targets, N, M, device)
        rows, columns = _ids(x_labels, y_labels)
        pairs = equal_pairs(rows, columns)
        check_positives(len(pairs[0]) > 0)
        return rows, columns, pairs
    offset = _offset(targets, N, M)
    i = torch.arange(N, device=device)
    columns = torch.arange(M, device=device, dtype=torch.int32)
    return columns[offset : offset + N].clone(), columns, (i, i + offset)


def _offset(targets: object, N: int, M: int) -> int:
    if targets is None and N != M:
        raise ValueError(
            f"targets: None pairs x[i] with y[i] and needs as many of each, got {N} and {M}; "
            f"give an offset or labels"
        )
    offset = 0 if targets is None else targets
    if isinstance(offset, bool) or not isinstance(offset, int):
        raise TypeError(
            f"targets: expected None, an int, or integer tensors, got {type(targets).__name__}"
        )
    if not 0 <= offset <= M - N:
        raise ValueError(
            f"targets: an offset pairs x[i] with y[i + offset] and must lie in [0, M - N], "
            f"got {offset} for N = {N}, M = {M}"
        )
    return offset


def _shared_ids(
    labels: list[Tensor] | None, x: Tensor, y: Tensor, ring: Ring
) -> tuple[Tensor, Tensor]:
    """Ids of this process's rows and columns, equal where a pair of the whole batch is positive."""
    N, M = x.shape[0], y.shape[0]
    if labels is not None:
        rows, columns = _ids(*(torch.cat(ring.all_of(own)) for own in labels))
        return rows[ring.rank * N :][:N], columns[ring.rank * M :][:M]
    rows, columns, _ = _targets(None, N, M, x.device)
    return rows + ring.rank * N, columns + ring.rank * N


def _labels(targets: object, N: int, M: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Checked labels of x and of y."""
    labels = targets if isinstance(targets, tuple) else (targets, targets)
    shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in labels]
    if shapes != [(N,), (M,)]:
        raise ValueError(f"targets: expected labels of shapes ({N},) and ({M},), got {shapes}")
    x_labels, y_labels = (t.to(device) for t in labels if isinstance(t, Tensor))
    if x_labels.is_floating_point() or y_labels.is_floating_point():
        raise TypeError(
            f"targets: expected integer labels, got {x_labels.dtype} and {y_labels.dtype}"
        )
    return x_labels, y_labels


def _ids(x_labels: Tensor, y_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels as int32, whatever their numbers."""
    _, ids = torch.unique(torch.cat([x_labels, y_labels]), return_inverse=True)
    ids = ids.int()
    return ids[: x_labels.shape[0]], ids[x_labels.shape[0] :]


__all__ = ["Apex", "Similarity", "Targets", "contrastive_loss"]
