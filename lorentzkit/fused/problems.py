"""What a fused function is asked and what it answers, with names and types.

PyTorch's custom ops and autograd take flat lists: tensors first, then settings. `flat` makes one of
a problem, `layout` says what is in it, and `built` makes the problem again.
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
    """One function of all pairs of two clouds."""

    x: Tensor
    """``(N, D)``, in the working dtype; for `registry.matrix` all have leading dimensions"""
    y: Tensor
    """``(M, D)``"""
    c: Tensor
    """The curvature, ``(1,)``"""
    kind: str
    """"inner", "distance", "angle", or of a loss "cosine" """
    precision: str
    """"highest", "high" or "medium" """


@dataclass(frozen=True)
class ChosenPairs:
    """The pairs ``(x[i], y[j])``: positives of a loss, winners of a search."""

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
    """As of `PairwiseProblem`"""


class Prepared(NamedTuple):
    """What a loss and its gradient share, of the points alone; empty tensors if nothing is kept."""

    x: Tensor
    """As `clouds.Directions`, to which but the last belong"""
    y: Tensor
    x_length: Tensor
    y_length: Tensor
    mean: Tensor
    folded: Tensor
    """The folded h of all pairs, if they are few"""

    @classmethod
    def nothing(cls, like: Tensor) -> Prepared:
        return cls(*(like.new_empty(0) for _ in cls._fields))


@dataclass(frozen=True)
class LossProblem:
    """What a contrastive loss needs of all pairs of two clouds."""

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
    """``(M,)``, int32: a pair of equal ids is positive, and left out of the sums"""
    i: Tensor
    """``(P,)``, int64: the rows of the positive pairs"""
    j: Tensor
    """``(P,)``, int64: their columns"""
    similarity: str
    """"angle", "distance" or "cosine" """
    precision: str
    """"highest", "high" or "medium" """
    prepared: Prepared | None = None
    """None until the registry has asked the backend"""

    @property
    def ids(self) -> tuple[Tensor, Tensor]:
        return self.row_ids, self.column_ids

    @property
    def positives(self) -> ChosenPairs:
        return ChosenPairs(self.x, self.y, self.c, self.i, self.j, self.similarity)

    def logits(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Of positives with these values, as their rows and as their columns see them."""
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
    """Which columns a top-k looks for."""

    k: int
    largest: bool
    chunk: int
    """Columns at a time; 0 for what is fast"""


# --- Results --------------------------------------------------------------------------------------


class LogSums(NamedTuple):
    """Of the negatives' logits, by rows and by columns; or their cotangents."""

    rows: Tensor
    """``(N,)``"""
    columns: Tensor
    """``(M,)``"""


class LossTerms(NamedTuple):
    """What a loss is made of; or their cotangents."""

    rows: Tensor
    """`LogSums`"""
    columns: Tensor
    values: Tensor
    """Of the positive pairs, ``(P, K)``: K = 2 for "angle", at x and at y, and else 1"""

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
    """The fused functions in one implementation: the modules `reference`, `streaming`, `triton`."""

    def matrix(self, problem: PairwiseProblem) -> Tensor:
        """``(N, M)``"""

    def matrix_gradients(self, problem: PairwiseProblem, at: Tensor) -> Gradients:
        """Derivatives of ``(at * matrix).sum()``."""

    def topk(self, problem: PairwiseProblem, search: Search) -> Tensor:
        """Indices ``(N, k)`` of the columns with the least (largest) values, in their order."""

    def log_sums(self, problem: LossProblem) -> LogSums:
        """log-sum-exps of the logits that rows and columns see; pairs of equal ids left out."""

    def log_sums_gradients(self, problem: LossProblem, sums: LogSums, at: LogSums) -> LossGradients:
        """Derivatives of ``at.rows . rows + at.columns . columns``; `sums` are of `log_sums`."""


# --- As flat lists --------------------------------------------------------------------------------


def flat(*values: Any) -> list[Any]:
    """All tensors in the order of the fields, then all settings."""
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
    """Names and types of what `flat` makes of such arguments."""
    leaves = [leaf for name, of in arguments.items() for leaf in _layout(name, of)]
    return sorted(leaves, key=lambda leaf: leaf[1] is not Tensor)


def _layout(name: str, of: type) -> list[tuple[str, type]]:
    parts = _parts(of)
    if not parts:
        return [(name, of)]
    return [leaf for part, kind in parts.items() for leaf in _layout(f"{name}_{part}", kind)]


def built(types: Iterable[type], leaves: Sequence[Any]) -> list[Any]:
    """The arguments of which `flat` made the leaves."""
    tensors = iter([leaf for leaf in leaves if isinstance(leaf, Tensor)])
    settings = iter([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
    return [_built(of, tensors, settings) for of in types]


def _built(of: type, tensors: Iterator[Tensor], settings: Iterator[Any]) -> Any:
    parts = _parts(of)
    if not parts:
        return next(tensors if of is Tensor else settings)
    return of(**{name: _built(kind, tensors, settings) for name, kind in parts.items()})


@cache
def _parts(of: type) -> dict[str, type]:
    """The fields of a dataclass or a named tuple, also those that may be None: never in a list."""
    if not (is_dataclass(of) or hasattr(of, "_fields")):
        return {}
    return {name: (get_args(kind) or (kind,))[0] for name, kind in get_type_hints(of).items()}
