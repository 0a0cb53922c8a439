"""The functions of `streaming`, by kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from lorentzkit._geometry.invariants import ANGLES
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import (
    Gradients,
    LogSums,
    LossGradients,
    LossProblem,
    PairwiseProblem,
    Search,
)
from lorentzkit.fused.triton.config import CHUNK, Config, config, programs
from lorentzkit.fused.triton.devices import on_device
from lorentzkit.fused.triton.kernels import (
    join_kernel,
    log_sums_kernel,
    log_sums_vjp_kernel,
    matrix_kernel,
    matrix_vjp_kernel,
)
from lorentzkit.fused.triton.prepare import Operands, gradient, prepared_operands
from lorentzkit.fused.triton.products import product
from lorentzkit.fused.triton.selection import topk_kernel
from lorentzkit.fused.triton.tiles import ALIGNMENT


def matrix(problem: PairwiseProblem) -> Tensor:
    """``(B, N, D), (B, M, D) -> (B, N, M)``: inner products, distances or exterior angles."""
    with on_device(problem.x):
        operands = prepared_operands(problem)
        use = config("matrix", operands.parts)
        B, N, M = *problem.x.shape[:2], problem.y.shape[1]
        out = operands.scalars.new_empty(B, N, M)
        grid = _programs(operands, B * triton.cdiv(N, use.rows) * triton.cdiv(M, use.columns))
        matrix_kernel[(grid,)](
            *_operands(operands), operands.c, _scratch(operands, grid, use), out,
            B, *_sizes(operands, slice(0, N)),
            **_meta(problem.kind, operands, use),
        )  # fmt: skip
        return out


def matrix_gradients(problem: PairwiseProblem, grad_output: Tensor) -> Gradients:
    """Derivatives of ``(grad_output * matrix).sum()``."""
    if problem.kind == "cosine":
        raise ValueError("kind: expected 'inner', 'distance' or 'exterior', got 'cosine'")
    with on_device(problem.x):
        operands = prepared_operands(problem)

        def launch(rows: slice, grid: int, scratch: Tensor, outputs: Any, use: Config) -> None:
            grad_block = grad_output[:, rows]
            matrix_vjp_kernel[(grid,)](
                *_operands(operands, rows), operands.c, scratch, grad_block, *grad_block.stride(),
                *outputs,
                len(grad_output), *_sizes(operands, rows), **_meta(problem.kind, operands, use),
            )  # fmt: skip

        return Gradients(*_gradients(operands, launch)[:3])


def log_sums(problem: LossProblem) -> LogSums:
    """log-sum-exp of the logits by rows ``(N,)`` and columns ``(M,)``, equal ids left out."""
    with on_device(problem.x):
        operands = prepared_operands(problem, problem.scale)
        use = config("log_sums", operands.parts)
        N, M = operands.N, len(problem.y)
        tiles = triton.cdiv(N, use.rows), triton.cdiv(M, use.columns)
        blocks = _blocks(*tiles, programs(problem.x.device))
        shares = [triton.cdiv(tile, block) for tile, block in zip(tiles, blocks, strict=True)]
        row_blocks, column_blocks = (
            triton.cdiv(tile, share) for tile, share in zip(tiles, shares, strict=True)
        )
        by_rows = operands.scalars.new_empty(2, column_blocks, N)
        by_columns = operands.scalars.new_empty(2, row_blocks, M)
        row_sign, column_sign = SIGNS[problem.similarity]
        grid = row_blocks * column_blocks
        log_sums_kernel[(grid,)](
            *_operands(operands), operands.c, operands.scale, _scratch(operands, grid, use),
            *_dense(problem.ids),
            by_rows, by_columns, *shares, column_blocks, *_sizes(operands, slice(0, N)),
            ROW_SIGN=row_sign, COLUMN_SIGN=column_sign,
            **_meta(problem.similarity, operands, use),
        )  # fmt: skip
        sums = LogSums(operands.scalars.new_empty(N), operands.scalars.new_empty(M))
        join_kernel[(triton.cdiv(N + M, 256),)](
            by_rows, by_columns, *sums, column_blocks, row_blocks, N, M, BLOCK=256, num_warps=4
        )
        return sums


def log_sums_gradients(problem: LossProblem, sums: LogSums, grad_sums: LogSums) -> LossGradients:
    """See `problems.Backend`."""
    with on_device(problem.x):
        operands = prepared_operands(problem, problem.scale)
        # Of a sum, strides are 0.
        by_row, by_column = zip(*map(_dense, (problem.ids, sums, grad_sums)), strict=True)
        row_sign, column_sign = SIGNS[problem.similarity]

        def launch(rows: slice, grid: int, scratch: Tensor, outputs: Any, use: Config) -> None:
            both = [z for r, s in zip(by_row, by_column, strict=True) for z in (r[rows], s)]
            log_sums_vjp_kernel[(grid,)](
                *_operands(operands, rows), operands.c, operands.scale, scratch, *both, *outputs,
                *_sizes(operands, rows),
                ROW_SIGN=row_sign, COLUMN_SIGN=column_sign,
                **_meta(problem.similarity, operands, use),
            )  # fmt: skip

        by = _gradients(operands, launch)
        return by._replace(x=by.x[0], y=by.y[0])


def topk(problem: PairwiseProblem, search: Search) -> Tensor:
    """Indices ``(N, k)`` of the columns with the least (largest) values, in their order.

    Needs no more memory for more columns: ``search.chunk`` is for the other implementation.
    """
    kind, k = problem.kind, search.k
    sign = 1.0 if search.largest != (kind == "inner") else -1.0  # which falls with the distance
    with on_device(problem.x):
        operands, best = prepared_operands(problem), max(16, triton.next_power_of_2(k))
        use = config("topk" if best <= 32 else "topk, many")
        N, M = operands.N, len(problem.y)
        row_tiles, column_tiles = triton.cdiv(N, use.rows), triton.cdiv(M, use.columns)
        share = triton.cdiv(column_tiles, max(1, 2 * programs(problem.x.device) // row_tiles))
        splits = triton.cdiv(column_tiles, share)
        keys = operands.scalars.new_empty(splits, N, best, dtype=torch.int64)
        grid = _programs(operands, row_tiles * splits)
        topk_kernel[(grid,)](
            *_operands(operands), _scratch(operands, grid, use), keys, sign, share, splits,
            *_sizes(operands, slice(0, N)), APEX=search.apex, BEST=best,
            **_meta(kind, operands, use),
        )  # fmt: skip
    merged = keys.transpose(0, 1).flatten(1).topk(k).values
    return 0xFFFFFFFF - (merged & 0xFFFFFFFF)


# --- Arguments ------------------------------------------------------------------------------------


def _operands(operands: Operands, rows: slice = slice(None)) -> tuple[Tensor, ...]:
    """For some of the rows of x, and all of y."""
    sides = slice(rows.start or 0, operands.N), slice(operands.N, None)
    spreads = (z[:, side] for side in sides for z in (operands.high, operands.low))
    return (*spreads, *(operands.scalars[:, 0, side] for side in sides), operands.mean)


def _sizes(operands: Operands, rows: slice) -> tuple[int, ...]:
    count, width = operands.high.shape[1:]
    return rows.stop - rows.start, count - operands.N, operands.mean.shape[1], width, count


def _meta(kind: str, operands: Operands, use: Config) -> dict[str, Any]:
    return {
        "KIND": kind,
        "OPPOSITES": kind in ANGLES,
        "PARTS": operands.parts,
        "ROWS": use.rows,
        "COLUMNS": use.columns,
        "DEPTH": use.depth,
        "num_warps": use.warps,
        "num_stages": use.stages,
    }


def _dense(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors[0].contiguous(), tensors[1].contiguous()


def _programs(operands: Operands, tiles: int) -> int:
    return min(tiles, 2 * programs(operands.mean.device))


def _scratch(operands: Operands, grid: int, use: Config) -> Tensor:
    """For `tiles._recomputed`."""
    size = 2 * use.rows * use.columns + ALIGNMENT.value if operands.parts else 1
    return operands.mean.new_empty(grid, size, dtype=torch.int32)


def _blocks(row_tiles: int, column_tiles: int, most: int) -> tuple[int, int]:
    """Into how many blocks of rows and of columns so many programs divide the tiles."""
    rows = max(r for r in range(1, most + 1) if most % r == 0 and r * r <= most)
    rows = min(row_tiles, rows)
    columns = min(column_tiles, most // rows)
    return min(row_tiles, most // columns), columns


# --- Gradients ------------------------------------------------------------------------------------


_Launch = Callable[[slice, int, Tensor, tuple[Tensor, ...], Config], None]


def _gradients(operands: Operands, launch: _Launch) -> LossGradients:
    """``launch(rows, programs, scratch, outputs, sizes)`` for all rows of x, summed up.

    The derivatives by h of some rows are kept at a time.
    """
    use, N, (B, D) = config("vjp", operands.parts), operands.N, operands.mean.shape
    M = operands.high.shape[1] - N
    height = min(N, max(1, CHUNK // (B * M) // use.rows) * use.rows)
    row_tiles, column_tiles = triton.cdiv(height, use.rows), triton.cdiv(M, use.columns)
    grid = _programs(operands, B * row_tiles * column_tiles)
    scratch, weights = _scratch(operands, grid, use), operands.scalars.new_empty(B * height * M)
    of_x, of_y = operands.scalars.new_empty(B, N, D), operands.scalars.new_empty(B, M, D)
    sums, of_columns = operands.scalars.new_empty(B, 4, N), operands.scalars.new_empty(B, 2, M)
    for start in range(0, N, height):
        rows = slice(start, min(start + height, N))
        number, first = rows.stop - start, start == 0
        row_tiles = triton.cdiv(number, use.rows)
        by_rows = operands.scalars.new_empty(B, 4, column_tiles, number)
        by_columns = operands.scalars.new_empty(B, 2, row_tiles, M)
        weight_block = weights[: B * number * M].view(B, number, M)
        launch(rows, grid, scratch, (weight_block, by_rows, by_columns), use)
        x_spreads, y_spreads = (
            (operands.high[:, side], operands.low[:, side]) for side in (rows, slice(N, None))
        )
        product(of_x[:, rows], weight_block, *y_spreads, operands.parts)
        product(of_y, weight_block.mT, *x_spreads, operands.parts, add=not first)
        torch.sum(by_rows, 2, out=sums[:, :, rows])
        if first:
            torch.sum(by_columns, 2, out=of_columns)
        else:
            of_columns += by_columns.sum(2)
    by_x = gradient(operands, slice(0, N), of_x, sums)
    by_y = gradient(operands, slice(N, None), of_y, of_columns)
    by_c, by_scale = sums[:, 2:].sum(2, dtype=torch.float64).unbind(1)
    c, scale = operands.c, operands.scale
    by_c = torch.div(by_c.view(c.shape), c, out=torch.empty_like(c))
    return LossGradients(by_x, by_y, by_c, by_scale.float().view(scale.shape))
