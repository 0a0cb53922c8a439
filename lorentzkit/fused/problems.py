"""Arguments and results of the fused functions, with names and types.

PyTorch's custom ops and autograd take flat lists: tensors first, then settings. `flat` makes such a
list of a problem, `layout` says what is in it, and `built` makes the problem again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, get_args, get_type_hints

import torch
from torch import Tensor

from lorentzkit.fused.pointwise import SIGNS

# --- Problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairwiseProblem:
    """A function of all pairs of two sets of points."""

    x: Tensor
    """``(N, D)``, in the working dtype; of a batch of matrices ``(B, N, D)``"""
    y: Tensor
    """``(M, D)``; ``(B, M, D)``"""
    c: Tensor
    """The curvature, ``(1,)``; ``(B, 1)``"""
    kind: str
    """"inner", "distance", "exterior" (the angle at x); of a loss also "angles" (at x and at y),
    "cosine" """
    precision: str
    """"highest", "high" or "medium" """


@dataclass(frozen=True)
class SelectedPairs:
    """The pairs ``(x[i], y[j])``: positives of a loss, results of a search."""

    x: Tensor
    """``(N, D)``"""
    y: Tensor
    """``(M, D)``"""
    c: Tensor
    """The curvature, ``(1,)``"""
    i: Tensor
    """``(P,)``, int64"""
    j: Tensor
    """``(P,)``, int64"""
    kind: str
    """As in `PairwiseProblem`"""


class Prepared(NamedTuple):
    """What a loss and its gradient share, if it depends on the points alone; else empty tensors."""

    x: Tensor
    """This and the next four are the fields of `operands.Directions`"""
    y: Tensor
    x_length: Tensor
    y_length: Tensor
    mean: Tensor
    folded: Tensor
    """The folded h of all pairs, if there are few"""

    @classmethod
    def nothing(cls, like: Tensor) -> Prepared:
        return cls(*(like.new_empty(0) for _ in cls._fields))


@dataclass(frozen=True)
class LossProblem:
    """What a contrastive loss needs of all pairs of two sets of points."""

    x: Tensor
    """``(N, D)``"""
    y: Tensor
    """``(M, D)``"""
    c: Tensor
    """The curvature, ``(1,)``"""
    scale: Tensor
    """The logit scale, 0-dim"""
    row_ids: Tensor
    """``(N,)``, int32"""
    column_ids: Tensor
    """``(M,)``, int32: a pair with equal ids is positive, and left out of the sums"""
    i: Tensor
    """``(P,)``, int64: the rows of the positive pairs"""
    j: Tensor
    """``(P,)``, int64: their columns"""
    similarity: str
    """"exterior", "angles", "distance" or "cosine": see `PairwiseProblem.kind` """
    precision: str
    """"highest", "high" or "medium" """
    prepared: Prepared | None = None
    """None until the registry has asked the backend"""

    @property
    def ids(self) -> tuple[Tensor, Tensor]:
        return self.row_ids, self.column_ids

    @property
    def positives(self) -> SelectedPairs:
        return SelectedPairs(self.x, self.y, self.c, self.i, self.j, self.similarity)

    def logits(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of positives with these values, in their rows and in their columns."""
        row, column = SIGNS[self.similarity]
        return row * self.scale * values[:, 0], column * self.scale * values[:, -1]


class Batch(NamedTuple):
    """A `LossProblem` of pairs (x[i], y[i])."""

    x: Tensor
    y: Tensor
    c: Tensor
    scale: Tensor
    similarity: str
    precision: str = "highest"

    def problem(self) -> LossProblem:
        i = torch.arange(len(self.x), device=self.x.device)
        ids = i.int()
        return LossProblem(*self[:4], ids, ids, i, i, self.similarity, self.precision)


class Search(NamedTuple):
    """What a top-k looks for."""

    k: int
    largest: bool
    apex: str
    """"x" or "y", of an exterior angle"""
    chunk: int
    """Columns in a block; 0 for the fastest number"""


# --- Results --------------------------------------------------------------------------------------


class LogSums(NamedTuple):
    """Log-sum-exps of the negatives' logits, by rows and by columns; or gradients by them."""

    rows: Tensor
    """``(N,)``"""
    columns: Tensor
    """``(M,)``"""


class LossTerms(NamedTuple):
    """What a loss is made of; or gradients by that."""

    rows: Tensor
    """`LogSums`"""
    columns: Tensor
    values: Tensor
    """Of the positive pairs, ``(P, K)``: K is 2 for "angles", at x and at y, and else 1"""

    @property
    def sums(self) -> LogSums:
        return LogSums(self.rows, self.columns)


class Gradients(NamedTuple):
    x: Tensor
    y: Tensor
    c: Tensor


class LossGradients(NamedTuple):
    x: Tensor
    y: Tensor
    c: Tensor
    scale: Tensor


# --- Backends -------------------------------------------------------------------------------------


class Backend(Protocol):
    """One implementation of the fused functions: the modules `reference`, `streaming`, `triton`."""

    def matrix(self, problem: PairwiseProblem) -> Tensor:
        """``(B, N, M)``, of a batch"""

    def matrix_gradients(self, problem: PairwiseProblem, grad_output: Tensor) -> Gradients:
        """Derivatives of ``(grad_output * matrix).sum()``."""

    def topk(self, problem: PairwiseProblem, search: Search) -> Tensor:
        """Indices ``(N, k)`` of the columns with the least (largest) values, in their order."""

    def log_sums(self, problem: LossProblem) -> LogSums:
        """Log-sum-exps of the logits, by rows and by columns; pairs with equal ids are left out."""

    def log_sums_gradients(
        self, problem: LossProblem, sums: LogSums, grad_sums: LogSums
    ) -> LossGradients:
        """Derivatives of ``grad_sums.rows . rows + grad_sums.columns . columns``; `sums` are those
        of `log_sums`.
        """


# --- As flat lists --------------------------------------------------------------------------------


def flat(*values: Any) -> list[Any]:
    """All tensors of these values in the order of their fields, then all settings."""
    leaves = _leaves(values)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return tensors + [leaf for leaf in leaves if not isinstance(leaf, Tensor)]


def _leaves(value: Any) -> list[Any]:
    if is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return (
        [leaf for part in value for leaf in _leaves(part)] if isinstance(value, tuple) else [value]
    )


def layout(arguments: dict[str, type]) -> list[tuple[str, type]]:
    """Names and types of the list that `flat` makes of arguments of these types."""
    leaves = [leaf for name, annotation in arguments.items() for leaf in _layout(name, annotation)]
    return sorted(leaves, key=lambda leaf: leaf[1] is not Tensor)


def _layout(name: str, annotation: type) -> list[tuple[str, type]]:
    members = _fields(annotation)
    if not members:
        return [(name, annotation)]
    return [leaf for part, kind in members.items() for leaf in _layout(f"{name}_{part}", kind)]


def built(types: Iterable[type], leaves: Sequence[Any]) -> list[Any]:
    """The arguments that `flat` made the leaves of."""
    tensors = iter([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    settings = iter([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
    return [_built(annotation, tensors, settings) for annotation in types]


def _built(annotation: type, tensors: Iterator[Tensor], settings: Iterator[Any]) -> Any:
    members = _fields(annotation)
    if not members:
        return next(tensors if annotation is Tensor else settings)
    return annotation(**{name: _built(kind, tensors, settings) for name, kind in members.items()})


@cache
def _fields(annotation: type) -> dict[str, type]:
    """The fields of a dataclass or a named tuple; one that may be None counts as never None."""
    if not (is_dataclass(annotation) or hasattr(annotation, "_fields")):
        return {}
    return {
        name: (get_args(kind) or (kind,))[0] for name, kind in get_type_hints(annotation).items()
    }
