"""Pairwise functions and log-sum-exps in blocks that fit the cache: O((N + M) D) memory.

Each block takes one matrix product, into a reused buffer. Pairs whose angle the product has lost to
rounding are recomputed from differences. Then one elementwise pass (`pointwise`) gives the results,
and for gradients two more products. The pass is compiled where that pays and a C++ compiler exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit._geometry import compilation
from lorentzkit._geometry.compilation import row_blocks
from lorentzkit._geometry.vectors import wide_dtype
from lorentzkit.fused import pointwise
from lorentzkit.fused.folding import fold
from lorentzkit.fused.operands import (
    Directions,
    Operand,
    Operands,
    directions,
    operands,
    with_curvature,
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
# In pairs. Compiling takes some ten seconds and saves 0.1 s of a search of this size, which is
# seldom repeated as training steps are.
_SEARCH_WORTH_COMPILING = 2**22
_MOST_KEPT = 2**24  # in pairs; one number of each is kept: 64 MB of float32
_LONG = 256  # from so many dimensions on, keeping a product costs less than taking it again
_REACH = 64.0  # logits within +-64: float32 holds their exponentials, and the sum of 2^31 of them


# --- Matrices -----------------------------------------------------------------------------------


def matrix(problem: PairwiseProblem) -> Tensor:
    """``(B, N, D), (B, M, D) -> (B, N, M)``: inner products, distances or exterior angles."""
    out = problem.x.new_empty(*problem.x.shape[:2], problem.y.shape[1])
    for single, matrix in zip(_each(problem), out, strict=True):
        pairs = _pairs(single)
        value = pairs.fused(pointwise.matrix)
        for block in pairs:
            values = value(single.kind, block.folded, block.x, block.y, single.c)
            matrix[block.rows, block.columns] = values
    return out


def matrix_gradients(problem: PairwiseProblem, grad_output: Tensor) -> Gradients:
    """Derivatives of ``(grad_output * matrix).sum()``."""
    each = zip(_each(problem), grad_output, strict=True)
    columns = zip(*(_matrix_gradients(*single) for single in each), strict=True)
    return Gradients(*(torch.stack(column) for column in columns))


def _each(batch: PairwiseProblem) -> Iterator[PairwiseProblem]:
    for x, y, c in zip(batch.x, batch.y, batch.c, strict=True):
        yield replace(batch, x=x, y=y, c=c)


def _matrix_gradients(problem: PairwiseProblem, grad_output: Tensor) -> Gradients:
    pairs, kind, c = _pairs(problem), problem.kind, problem.c
    vjp = pairs.fused(pointwise.matrix_vjp)
    totals = _Totals(pairs.operands)
    for block in pairs:
        # The gradient of a sum is an expanded tensor, with strides of 0.
        weights = grad_output[block.rows, block.columns].contiguous()
        totals.add(block, vjp(kind, block.folded, block.spare, block.x, block.y, c, weights))
    return Gradients(*totals.gradients()[:3])


def topk(problem: PairwiseProblem, search: Search) -> Tensor:
    """Indices ``(N, k)`` of the columns with the least (largest) values, in their order."""
    x, y, kind, k = problem.x, problem.y, problem.kind, search.k
    pairs = _pairs(problem, columns=search.chunk)
    compile_score = len(x) * len(y) >= _SEARCH_WORTH_COMPILING
    score = pairs.fused(pointwise.score) if compile_score else pointwise.score
    sign = 1 if search.largest else -1
    if kind == "inner":  # falls with the distance
        sign = -sign
    best = x.new_full((len(x), k), -torch.inf)
    indices = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
    for block in pairs:
        rows, first = block.rows, block.columns.start
        scores = sign * score(kind, search.apex, block.folded, block.x, block.y)
        values, columns = scores.topk(min(k, scores.shape[1]), sorted=False)
        values = torch.cat([best[rows], values], 1)
        columns = torch.cat([indices[rows], columns + first], 1)
        best[rows], order = values.topk(k)
        indices[rows] = columns.gather(1, order)
    return indices


# --- Log-sum-exps -------------------------------------------------------------------------------


def prepare(problem: PairwiseProblem) -> Prepared:
    """What `log_sums` and its gradient share: directions and, for few pairs, the folded h."""
    x, y = problem.x, problem.y
    prepared = directions(x, y, problem.precision)
    folded = x.new_empty(_kept_shape(len(x), *y.shape))
    for rows in row_blocks(len(folded), ROWS):
        fold(
            problem.kind,
            folded[rows],
            prepared.x[rows],
            prepared.y,
            prepared.mean,
            prepared.threshold(),
        )
    return Prepared(*prepared, folded)


def prepared_like(problem: PairwiseProblem) -> Prepared:
    """Empty tensors of the shapes that `prepare` returns."""
    (N, D), M = problem.x.shape, problem.y.shape[0]
    shapes = (N, D + 2), (M, D + 2), (N, 1), (M, 1), (D,), _kept_shape(N, M, D)
    return Prepared(*(problem.x.new_empty(shape) for shape in shapes))


def _kept_shape(N: int, M: int, D: int) -> tuple[int, int]:
    """The shape of the folded h that is kept for the backward pass, which saves it a product."""
    pairs = N * M
    return (N, M) if pairs <= (_MOST_KEPT if D >= _LONG else ROWS * COLUMNS) else (0, 0)


def log_sums(problem: LossProblem) -> LogSums:
    """log-sum-exp of the logits by rows ``(N,)`` and columns ``(M,)``, equal ids left out."""
    x, y, scale, similarity = problem.x, problem.y, problem.scale, problem.similarity
    pairs = _prepared_pairs(problem)
    middle, half_width = pairs.operands.value_range(similarity)
    if bool(scale * half_width <= _REACH):
        return _near_log_sums(problem, pairs, middle)
    write_values, add = pairs.fused(pointwise.write_values), pairs.fused(pointwise.log_sums)
    row_sums = x.new_full((len(x), -(-len(y) // COLUMNS)), -torch.inf)
    column_sums = x.new_full((-(-len(x) // ROWS), len(y)), -torch.inf)
    for block in pairs:
        write_values(similarity, block.values, block.x, block.y, problem.c)
        row, column = add(similarity, block.values, scale, block.select(*problem.ids))
        row_sums[block.rows, block.columns.start // COLUMNS] = row[:, 0]
        column_sums[block.rows.start // ROWS, block.columns] = column[0]
    return LogSums(row_sums.logsumexp(1), column_sums.logsumexp(0))


def _near_log_sums(problem: LossProblem, pairs: _Pairs, middle: Tensor) -> LogSums:
    """`log_sums` of logits in so small a range that no maximum has to be subtracted."""
    scale, similarity = problem.scale, problem.similarity
    write_values, add = pairs.fused(pointwise.write_values), pairs.fused(pointwise.exponential_sums)
    rows, columns = (torch.zeros_like(z.length[:, 0]) for z in pairs.operands[:2])
    for block in pairs:
        write_values(similarity, block.values, block.x, block.y, problem.c)
        rows[block.rows] += add(
            similarity, block.values, scale, middle, block.select(*problem.ids)
        )[:, 0]
        columns[block.columns] += block.folded.sum(0)
    row, column = (sign * scale * middle for sign in pointwise.SIGNS[similarity])
    return LogSums(rows.log() + row, columns.log() + column)


def log_sums_gradients(problem: LossProblem, sums: LogSums, grad_sums: LogSums) -> LossGradients:
    """Derivatives of ``grad_sums.rows . rows + grad_sums.columns . columns``; `sums` are those of
    `log_sums`.
    """
    pairs = _prepared_pairs(problem)
    vjp = pairs.fused(pointwise.log_sums_vjp)
    totals = _Totals(pairs.operands)
    for block in pairs:
        block_sums = vjp(
            problem.similarity,
            block.folded,
            block.spare,
            block.x,
            block.y,
            problem.c,
            problem.scale,
            block.select(*problem.ids),
            block.select(*sums),
            block.select(*grad_sums),
        )
        totals.add(block, block_sums)
    return totals.gradients()


# --- Blocks ---------------------------------------------------------------------------------------


class _Block(NamedTuple):
    rows: slice
    columns: slice
    folded: Tensor
    """See `triangle.unfold`"""
    spare: tuple[Tensor, Tensor]
    """Buffers like `folded` to write to, until the next block is taken"""
    x: Tensor
    y: Tensor

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        return self.folded, self.spare[0]

    def select(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        return by_row[self.rows][:, None], by_column[self.columns][None]


def _pairs(problem: PairwiseProblem, columns: int = 0) -> _Pairs:
    prepared = operands(problem.x, problem.y, problem.c, problem.precision)
    return _Pairs(problem.kind, prepared, columns=columns)


def _prepared_pairs(problem: LossProblem) -> _Pairs:
    """From what is prepared; if nothing is, from the points."""
    similarity, c, prepared = problem.similarity, problem.c, problem.prepared
    if prepared is None or prepared.x.numel() == 0:
        return _Pairs(similarity, operands(problem.x, problem.y, c, problem.precision))
    *fields, folded = prepared
    return _Pairs(similarity, with_curvature(Directions(*fields), c), folded=folded)


class _Pairs:
    """All pairs of two operands, in blocks; ``folded``, if not empty, is their folded h."""

    def __init__(
        self, kind: str, prepared: Operands, *, columns: int = 0, folded: Tensor | None = None
    ) -> None:
        self.operands = prepared
        self._folded = folded if folded is not None and folded.numel() else None
        self._kind = kind
        self._columns = columns or COLUMNS
        x, y = prepared.x.basis, prepared.y.basis
        numel = min(len(x), ROWS) * min(len(y), self._columns)
        self._buffers = [x.new_empty(numel) for _ in range(3)]

    def __iter__(self) -> Iterator[_Block]:
        x, y = self.operands.x, self.operands.y
        x_scalars, y_scalars = x.scalars, y.scalars.mT
        for rows in row_blocks(len(x.basis), ROWS):
            for columns in row_blocks(len(y.basis), self._columns):
                n, m = rows.stop - rows.start, columns.stop - columns.start
                folded, *spare = (b[: n * m].view(n, m) for b in self._buffers)
                if self._folded is None:
                    arguments = self.operands.mean, self.operands.threshold
                    fold(self._kind, folded, x.basis[rows], y.basis[columns], *arguments)
                else:
                    folded.copy_(self._folded[rows, columns])
                # Contiguous, or blocks of the same size would have different strides to a compiler.
                scalars = x_scalars[:, rows].contiguous(), y_scalars[..., columns].contiguous()
                yield _Block(rows, columns, folded, (spare[0], spare[1]), *scalars)

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled if that pays."""
        x, y = self.operands.x.basis, self.operands.y.basis
        return compilation.fused(function, self._kind, x, len(x) * len(y))


class _Totals:
    """Gradients, summed block by block."""

    def __init__(self, prepared: Operands) -> None:
        self._operands = prepared
        self._x, self._y = _Total(prepared.x), _Total(prepared.y)
        self._c = torch.zeros_like(prepared.c, dtype=wide_dtype(prepared.c))
        self._scale = torch.zeros_like(self._c[0])

    def add(self, block: _Block, sums: Sums) -> None:
        x, y = self._operands.x.spread[block.rows], self._operands.y.spread[block.columns]
        grad_h, grad_b = block.spare
        first_in_row, first_in_column = block.columns.start == 0, block.rows.start == 0
        _add_product(self._x.directions[block.rows], grad_h, y, new=first_in_row)
        _add_product(self._y.directions[block.columns], grad_h.mT, x, new=first_in_column)
        self._x.weights[block.rows] += sums.h
        self._y.weights[block.columns, 0] += grad_h.sum(0)
        self._x.radii[block.rows] += sums.a
        self._y.radii[block.columns, 0] += grad_b.sum(0)
        self._c += sums.c.sum()
        self._scale += sums.scale.sum()

    def gradients(self) -> LossGradients:
        c, mean = self._operands.c, self._operands.mean
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
    """For each point sums over the other operand: of W times its directions, of W, and of the
    derivatives by the radius.
    """

    def __init__(self, operand: Operand) -> None:
        self._operand = operand
        self.directions = torch.zeros_like(operand.spread, memory_format=torch.contiguous_format)
        self.weights = torch.zeros_like(operand.length)
        self.radii = torch.zeros_like(operand.length)

    def gradient(self, sign: str, mean: Tensor, c: Tensor) -> Tensor:
        """The gradient by the points, written over the first sum."""
        self._operand.gradient(sign, self.directions, self.weights, self.radii, mean, c)
        return self.directions
