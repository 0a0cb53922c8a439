"""Pairwise functions and log-sum-exps in blocks that fit the cache: O((N + M) D) memory.

A block is one matrix product into a reused buffer, mended where the product has lost a nearly
parallel pair, then one pass over it (`pointwise`), and for gradients two more products. The pass is
compiled where that pays and a C++ compiler is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry import compilation
from lorentzkit._geometry.compilation import row_blocks
from lorentzkit._geometry.vectors import wide_dtype
from lorentzkit.fused import pointwise
from lorentzkit.fused.folding import fold
from lorentzkit.fused.operands import (
    Cloud,
    Clouds,
    Directions,
    clouds,
    directions,
    in_space,
)
from lorentzkit.fused.pointwise import Sums
from lorentzkit.fused.problems import (
    Gradients,
    LogSums,
    LossGradients,
    LossProblem,
    PairwiseProblem,
    Prepared,
    Search,
)

ROWS, COLUMNS = 1024, 1024
# Pairs. Steps of a training are repeated, a search hardly: it saves 0.1 s at this size, and some
# ten seconds are what it takes to compile.
_SEARCH_WORTH_COMPILING = 2**22
_MOST_KEPT = 2**24  # pairs, of which a number each is kept: 64 MB of float32
_LONG = 256  # so many dimensions make a product longer than to keep its results
_REACH = 64.0  # of logits to both sides: their exponentials, and 2^31 such, are float32 numbers


# --- Matrices -----------------------------------------------------------------------------------


def matrix(problem: PairwiseProblem) -> Tensor:
    """``(N, D), (M, D) -> (N, M)`` of inner products, distances or exterior angles."""
    pairs, kind = _pairs(problem), problem.kind
    value = pairs.fused(pointwise.matrix)
    out = problem.x.new_empty(len(problem.x), len(problem.y))
    for block in pairs:
        out[block.rows, block.columns] = value(kind, block.folded, block.x, block.y, problem.c)
    return out


def matrix_gradients(problem: PairwiseProblem, at: Tensor) -> Gradients:
    """Derivatives of ``(at * matrix).sum()``."""
    pairs, kind, c = _pairs(problem), problem.kind, problem.c
    change = pairs.fused(pointwise.matrix_change)
    totals = _Totals(pairs.clouds)
    for block in pairs:
        weights = at[block.rows, block.columns].contiguous()  # of a sum, strides are 0
        totals.add(block, change(kind, block.folded, block.spare, block.x, block.y, c, weights))
    return Gradients(*totals.gradients()[:3])


def topk(problem: PairwiseProblem, search: Search) -> Tensor:
    """Indices ``(N, k)`` of the columns with the least (largest) values, in their order."""
    x, y, kind, k = problem.x, problem.y, problem.kind, search.k
    pairs = _pairs(problem, columns=search.chunk)
    worth = len(x) * len(y) >= _SEARCH_WORTH_COMPILING
    score = pairs.fused(pointwise.score) if worth else pointwise.score
    sign = 1 if search.largest else -1
    if kind == "inner":  # falls with the distance
        sign = -sign
    best = x.new_full((len(x), k), -torch.inf)
    where = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    for block in pairs:
        rows, first = block.rows, block.columns.start
        scores = sign * score(kind, block.folded, block.x, block.y)
        values, columns = scores.topk(min(k, scores.shape[1]), sorted=False)
        values = torch.cat([best[rows], values], 1)
        columns = torch.cat([where[rows], columns + first], 1)
        best[rows], order = values.topk(k)
        where[rows] = columns.gather(1, order)
    return where


# --- Log-sum-exps -------------------------------------------------------------------------------


def prepare(problem: PairwiseProblem) -> Prepared:
    """What `log_sums` and its gradients share: directions and, if pairs are few, the folded h."""
    x, y = problem.x, problem.y
    of = directions(x, y, problem.precision)
    folded = x.new_empty(_kept(len(x), *y.shape))
    for rows in row_blocks(len(folded), ROWS):
        fold(problem.kind, folded[rows], of.x[rows], of.y, of.mean, of.threshold())
    return Prepared(*of, folded)


def prepared_like(problem: PairwiseProblem) -> Prepared:
    """The shapes of what is prepared."""
    (N, D), M = problem.x.shape, problem.y.shape[0]
    shapes = (N, D + 2), (M, D + 2), (N, 1), (M, 1), (D,), _kept(N, M, D)
    return Prepared(*(problem.x.new_empty(shape) for shape in shapes))


def _kept(N: int, M: int, D: int) -> tuple[int, int]:
    """The shape of what is kept of all pairs from one pass to the next, which saves a product."""
    pairs = N * M
    return (N, M) if pairs <= (_MOST_KEPT if D >= _LONG else ROWS * COLUMNS) else (0, 0)


def log_sums(problem: LossProblem) -> LogSums:
    """log-sum-exp of the logits by rows ``(N,)`` and columns ``(M,)``, equal ids left out."""
    x, y, scale, similarity = problem.x, problem.y, problem.scale, problem.similarity
    pairs = _prepared_pairs(problem)
    middle, reach = pairs.clouds.values(similarity)
    if bool(scale * reach <= _REACH):
        return _near_log_sums(problem, pairs, middle)
    find, add = pairs.fused(pointwise.found), pairs.fused(pointwise.log_sums)
    of_rows = x.new_full((len(x), -(-len(y) // COLUMNS)), -torch.inf)
    of_columns = x.new_full((-(-len(x) // ROWS), len(y)), -torch.inf)
    for block in pairs:
        find(similarity, block.values, block.x, block.y, problem.c)
        row, column = add(similarity, block.values, scale, block.of(*problem.ids))
        of_rows[block.rows, block.columns.start // COLUMNS] = row[:, 0]
        of_columns[block.rows.start // ROWS, block.columns] = column[0]
    return LogSums(of_rows.logsumexp(1), of_columns.logsumexp(0))


def _near_log_sums(problem: LossProblem, pairs: _Pairs, middle: Tensor) -> LogSums:
    """`log_sums` of logits so near each other that no maxima are needed."""
    scale, similarity = problem.scale, problem.similarity
    find, add = pairs.fused(pointwise.found), pairs.fused(pointwise.exponentials)
    rows, columns = (torch.zeros_like(z.length[:, 0]) for z in pairs.clouds[:2])
    for block in pairs:
        find(similarity, block.values, block.x, block.y, problem.c)
        rows[block.rows] += add(similarity, block.values, scale, middle, block.of(*problem.ids))[
            :, 0
        ]
        columns[block.columns] += block.folded.sum(0)
    row, column = (sign * scale * middle for sign in pointwise.SIGNS[similarity])
    return LogSums(rows.log() + row, columns.log() + column)


def log_sums_gradients(problem: LossProblem, sums: LogSums, at: LogSums) -> LossGradients:
    """Derivatives of ``at.rows . rows + at.columns . columns``; `sums` are of `log_sums`."""
    pairs = _prepared_pairs(problem)
    value = pairs.fused(pointwise.log_sums_change)
    totals = _Totals(pairs.clouds)
    for block in pairs:
        change = value(
            problem.similarity,
            block.folded,
            block.spare,
            block.x,
            block.y,
            problem.c,
            problem.scale,
            block.of(*problem.ids),
            block.of(*sums),
            block.of(*at),
        )
        totals.add(block, change)
    return totals.gradients()


# --- Blocks ---------------------------------------------------------------------------------------


class _Block(NamedTuple):
    rows: slice
    columns: slice
    folded: Tensor
    """See `triangle.unfold`"""
    spare: tuple[Tensor, Tensor]
    """Like `folded` to be written to, until the next block is asked for"""
    x: Tensor
    y: Tensor

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        return self.folded, self.spare[0]

    def of(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        return by_row[self.rows][:, None], by_column[self.columns][None]


def _pairs(problem: PairwiseProblem, columns: int = 0) -> _Pairs:
    of = clouds(problem.x, problem.y, problem.c, problem.precision)
    return _Pairs(problem.kind, of, columns=columns)


def _prepared_pairs(problem: LossProblem) -> _Pairs:
    """Anew, if nothing is prepared."""
    similarity, c, prepared = problem.similarity, problem.c, problem.prepared
    if prepared is None or prepared.x.numel() == 0:
        return _Pairs(similarity, clouds(problem.x, problem.y, c, problem.precision))
    *of, folded = prepared
    return _Pairs(similarity, in_space(Directions(*of), c), folded=folded)


class _Pairs:
    """The blocks of all pairs of two clouds; of those ``folded`` already, if that is not empty."""

    def __init__(
        self, kind: str, prepared: Clouds, *, columns: int = 0, folded: Tensor | None = None
    ) -> None:
        self.clouds = prepared
        self._folded = folded if folded is not None and folded.numel() else None
        self._kind = kind
        self._columns = columns or COLUMNS
        x, y = prepared.x.basis, prepared.y.basis
        numel = min(len(x), ROWS) * min(len(y), self._columns)
        self._buffers = [x.new_empty(numel) for _ in range(3)]

    def __iter__(self) -> Iterator[_Block]:
        x, y = self.clouds.x, self.clouds.y
        of_x, of_y = x.scalars, y.scalars.mT
        for rows in row_blocks(len(x.basis), ROWS):
            for columns in row_blocks(len(y.basis), self._columns):
                n, m = rows.stop - rows.start, columns.stop - columns.start
                folded, *spare = (b[: n * m].view(n, m) for b in self._buffers)
                if self._folded is None:
                    of = self.clouds.mean, self.clouds.threshold
                    fold(self._kind, folded, x.basis[rows], y.basis[columns], *of)
                else:
                    folded.copy_(self._folded[rows, columns])
                # Contiguous, or a compiler sees other strides in blocks of the same size.
                scalars = of_x[:, rows].contiguous(), of_y[..., columns].contiguous()
                yield _Block(rows, columns, folded, (spare[0], spare[1]), *scalars)

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled if that pays."""
        x, y = self.clouds.x.basis, self.clouds.y.basis
        return compilation.fused(function, self._kind, x, len(x) * len(y))


class _Totals:
    """Gradients, summed block by block."""

    def __init__(self, prepared: Clouds) -> None:
        self._clouds = prepared
        self._x, self._y = _Total(prepared.x), _Total(prepared.y)
        self._c = torch.zeros_like(prepared.c, dtype=wide_dtype(prepared.c))
        self._scale = torch.zeros_like(self._c[0])

    def add(self, block: _Block, sums: Sums) -> None:
        x, y = self._clouds.x.spread[block.rows], self._clouds.y.spread[block.columns]
        by_h, by_b = block.spare
        first_of_row, first_of_column = block.columns.start == 0, block.rows.start == 0
        _add_product(self._x.directions[block.rows], by_h, y, new=first_of_row)
        _add_product(self._y.directions[block.columns], by_h.mT, x, new=first_of_column)
        self._x.weights[block.rows] += sums.h
        self._y.weights[block.columns, 0] += by_h.sum(0)
        self._x.radii[block.rows] += sums.a
        self._y.radii[block.columns, 0] += by_b.sum(0)
        self._c += sums.c.sum()
        self._scale += sums.scale.sum()

    def gradients(self) -> LossGradients:
        c, mean = self._clouds.c, self._clouds.mean
        dtype = c.dtype
        return LossGradients(
            self._x.gradient("", mean, c),
            self._y.gradient("-", mean, c),
            (self._c / (2 * c)).to(dtype),
            self._scale.to(dtype),
        )


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, new: bool) -> None:
    torch.mm(a, b, out=total) if new else total.addmm_(a, b)


class _Total:
    """The sums over the other cloud of ``W times direction``, of ``W`` and of radial changes."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.directions = torch.zeros_like(cloud.spread, memory_format=torch.contiguous_format)
        self.weights = torch.zeros_like(cloud.length)
        self.radii = torch.zeros_like(cloud.length)

    def gradient(self, sign: str, mean: Tensor, c: Tensor) -> Tensor:
        """In the place of the first sum."""
        self._cloud.gradient(sign, self.directions, self.weights, self.radii, mean, c)
        return self.directions
