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

from lorentzkit._numerics import dot
from lorentzkit.fused import compilation, pointwise
from lorentzkit.fused.clouds import FEW_DIMENSIONS, Cloud, Clouds, clouds
from lorentzkit.fused.compilation import by_rows, row_blocks, row_chunks
from lorentzkit.fused.pointwise import Sums

ROWS, COLUMNS = 1024, 1024
_REACH = 64.0  # of logits to both sides: their exponentials, and 2^31 such, are float32 numbers
_ALIGNED = 1e-36  # under what `formulas.sines` takes for 0, but with a sign


class Gradients(NamedTuple):
    x: Tensor
    y: Tensor
    c: Tensor
    """``(1,)``"""
    scale: Tensor
    """0-dim"""


# --- Matrices -----------------------------------------------------------------------------------


def matrix(kind: str, x: Tensor, y: Tensor, c: Tensor, precision: str) -> Tensor:
    """``(N, D), (M, D) -> (N, M)`` of inner products, distances or exterior angles."""
    pairs = _Pairs(kind, clouds(x, y, c, precision))
    value = pairs.fused(pointwise.matrix)
    out = x.new_empty(len(x), len(y))
    for block in pairs:
        out[block.rows, block.columns] = value(kind, block.folded, block.x, block.y, c)
    return out


def matrix_gradients(
    kind: str, x: Tensor, y: Tensor, c: Tensor, at: Tensor, precision: str
) -> Gradients:
    """Derivatives of ``(at * matrix).sum()``."""
    pairs = _Pairs(kind, clouds(x, y, c, precision))
    change = pairs.fused(pointwise.matrix_change)
    totals = _Totals(pairs.clouds)
    for block in pairs:
        weights = at[block.rows, block.columns].contiguous()  # of a sum, strides are 0
        totals.add(block, change(kind, block.folded, block.spare, block.x, block.y, c, weights))
    return totals.gradients()


def topk(
    kind: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    k: int,
    largest: bool,
    chunk: int,
    precision: str,
) -> Tensor:
    """Indices ``(N, k)`` of the columns with the least (largest) values, in their order.

    ``chunk`` columns at a time; 0 for what fits the cache.
    """
    pairs = _Pairs(kind, clouds(x, y, c, precision), columns=chunk)
    score, sign = pairs.fused(pointwise.score), 1 if largest else -1
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


def log_sums(
    similarity: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    precision: str,
) -> tuple[Tensor, Tensor]:
    """log-sum-exp of the logits by rows ``(N,)`` and columns ``(M,)``, equal ids left out."""
    pairs = _Pairs(similarity, clouds(x, y, c, precision))
    middle, reach = pairs.clouds.values(similarity)
    if bool(scale * reach <= _REACH):
        return _near_log_sums(similarity, pairs, scale, middle, ids)
    find, add = pairs.fused(pointwise.found), pairs.fused(pointwise.log_sums)
    of_rows = x.new_full((len(x), -(-len(y) // COLUMNS)), -torch.inf)
    of_columns = x.new_full((-(-len(x) // ROWS), len(y)), -torch.inf)
    for block in pairs:
        find(similarity, block.values, block.x, block.y, c)
        row, column = add(similarity, block.values, scale, block.of(*ids))
        of_rows[block.rows, block.columns.start // COLUMNS] = row[:, 0]
        of_columns[block.rows.start // ROWS, block.columns] = column[0]
    return of_rows.logsumexp(1), of_columns.logsumexp(0)


def _near_log_sums(
    similarity: str, pairs: _Pairs, scale: Tensor, middle: Tensor, ids: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`log_sums` of logits so near each other that no maxima are needed."""
    c = pairs.clouds.c
    find, add = pairs.fused(pointwise.found), pairs.fused(pointwise.exponentials)
    rows, columns = (torch.zeros_like(z.length[:, 0]) for z in pairs.clouds[:2])
    for block in pairs:
        find(similarity, block.values, block.x, block.y, c)
        rows[block.rows] += add(similarity, block.values, scale, middle, block.of(*ids))[:, 0]
        columns[block.columns] += block.folded.sum(0)
    row, column = (sign * scale * middle for sign in pointwise.SIGNS[similarity])
    return rows.log() + row, columns.log() + column


def log_sums_gradients(
    similarity: str,
    x: Tensor,
    y: Tensor,
    c: Tensor,
    scale: Tensor,
    ids: tuple[Tensor, Tensor],
    sums: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
    precision: str,
) -> Gradients:
    """Derivatives of ``at[0] . rows + at[1] . columns``, with ``sums`` what `log_sums` gave."""
    pairs = _Pairs(similarity, clouds(x, y, c, precision))
    value = pairs.fused(pointwise.log_sums_change)
    totals = _Totals(pairs.clouds)
    for block in pairs:
        change = value(
            similarity,
            block.folded,
            block.spare,
            block.x,
            block.y,
            c,
            scale,
            block.of(*ids),
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
    """See `formulas.unfold`"""
    spare: tuple[Tensor, Tensor]
    """Like `folded` to be written to, until the next block is asked for"""
    x: Tensor
    y: Tensor

    @property
    def values(self) -> tuple[Tensor, Tensor]:
        return self.folded, self.spare[0]

    def of(self, by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
        return by_row[self.rows][:, None], by_column[self.columns][None]


class _Pairs:
    """The blocks of all pairs of two clouds."""

    def __init__(self, kind: str, prepared: Clouds, *, columns: int = 0) -> None:
        self.clouds = prepared
        self._kind = kind
        self._columns = columns or COLUMNS
        self._opposites = kind == "angle"
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
                self._fold(folded, x.basis[rows], y.basis[columns])
                # Contiguous, or a compiler sees other strides in blocks of the same size.
                scalars = of_x[:, rows].contiguous(), of_y[..., columns].contiguous()
                yield _Block(rows, columns, folded, (spare[0], spare[1]), *scalars)

    def fused(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, compiled if that pays."""
        x, y = self.clouds.x.basis, self.clouds.y.basis
        return compilation.fused(function, self._kind, x, len(x) * len(y))

    def _fold(self, out: Tensor, x: Tensor, y: Tensor) -> None:
        if x.shape[-1] - 2 <= FEW_DIMENSIONS:
            near = _half_square(x[:, :-2], -y[:, :-2])
            if self._opposites:
                near = torch.where(near > 1, self._opposite(x, y), near)
            out.copy_(near)
            return
        torch.mm(x, y.mT, out=out)
        threshold = self.clouds.threshold
        lowest, highest = out.aminmax()
        if lowest < threshold:
            self._mend(out, x, y, out < threshold, opposite=False)
        if self._opposites and highest > 2 - threshold:
            self._mend(out, x, y, out > 2 - threshold, opposite=True)

    def _mend(self, out: Tensor, x: Tensor, y: Tensor, which: Tensor, *, opposite: bool) -> None:
        i, j = which.nonzero(as_tuple=True)
        if 8 * len(i) > out.numel():
            exact = self._opposite(x, y) if opposite else _half_square(x[:, :-2], -y[:, :-2])
            out.copy_(torch.where(which, exact, out))
            return
        for some in row_chunks(len(i), x.shape[-1]):
            if opposite:
                d = x[i[some], :-2] + 2 * self.clouds.mean - y[j[some], :-2]
                out[i[some], j[some]] = _opposite(0.5 * dot(d, d)[:, 0])
            else:
                d = x[i[some], :-2] + y[j[some], :-2]
                out[i[some], j[some]] = 0.5 * dot(d, d)[:, 0]

    def _opposite(self, x: Tensor, y: Tensor) -> Tensor:
        return _opposite(_half_square(x[:, :-2] + 2 * self.clouds.mean, y[:, :-2]))


def _opposite(g: Tensor) -> Tensor:
    """Folded; the mean's rounding is left of exactly opposite directions, and taken for 0."""
    noise = 2 * torch.finfo(g.dtype).eps ** 2
    return -torch.where(g < noise, 0.0, g) - _ALIGNED


def _half_square(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|**2 / 2`` from differences."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().mul_(0.5)


class _Totals:
    """Gradients, summed block by block."""

    def __init__(self, prepared: Clouds) -> None:
        self._clouds = prepared
        self._x, self._y = _Total(prepared.x), _Total(prepared.y)
        self._c = torch.zeros(1, dtype=torch.float64, device=prepared.c.device)
        self._scale = torch.zeros((), dtype=torch.float64, device=prepared.c.device)

    def add(self, block: _Block, sums: Sums) -> None:
        x, y = self._clouds.x.spread[block.rows], self._clouds.y.spread[block.columns]
        by_h, by_b = block.spare
        self._x.directions[block.rows].addmm_(by_h, y)
        self._y.directions[block.columns].addmm_(by_h.mT, x)
        self._x.weights[block.rows] += sums.h
        self._y.weights[block.columns, 0] += by_h.sum(0)
        self._x.radii[block.rows] += sums.a
        self._y.radii[block.columns, 0] += by_b.sum(0)
        self._c += sums.c.sum()
        self._scale += sums.scale.sum()

    def gradients(self) -> Gradients:
        c, mean = self._clouds.c, self._clouds.mean
        dtype = c.dtype
        return Gradients(
            self._x.gradient("", mean, c),
            self._y.gradient("-", mean, c),
            (self._c / (2 * c)).to(dtype),
            self._scale.to(dtype),
        )


class _Total:
    """The sums over the other cloud of ``W times direction``, of ``W`` and of radial changes."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self.directions = torch.zeros_like(cloud.spread, memory_format=torch.contiguous_format)
        self.weights = torch.zeros_like(cloud.length)
        self.radii = torch.zeros_like(cloud.length)

    def gradient(self, sign: str, mean: Tensor, c: Tensor) -> Tensor:
        """``(sum_j W_ij (v_j - u_i cos)) / |x| + u_i da_i``, in the place of the first sum."""
        cloud = self._cloud
        along = torch.where(cloud.inside, self.radii * (c.sqrt() / cloud.radial.cosh), 0.0)
        rowwise = self.directions, cloud.spread, self.weights, along, cloud.length
        by_rows(_gradient, sign, rowwise, mean)
        return self.directions


def _gradient(
    sign: str,
    directions: Tensor,
    spread: Tensor,
    weights: Tensor,
    along: Tensor,
    length: Tensor,
    mean: Tensor,
) -> None:
    unit = mean - spread if sign else mean + spread
    change = (-directions if sign else directions) - weights * mean
    directions.copy_((change - unit * dot(unit, change)) / length + unit * along)
