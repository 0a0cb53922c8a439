"""One program per tile of pairs; sums over rows and columns leave it as one partial per tile."""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import (
    Point,
    change,
    load_point,
    triangle,
    values,
)
from lorentzkit.fused.triton.tiles import cosines, indices, place


@triton.jit
def _rows(p):
    return Point(
        p.sinh[:, None], p.cosh[:, None], p.grow[:, None],
        p.decay[:, None], p.rest[:, None], p.apex[:, None],
    )  # fmt: skip


@triton.jit
def _columns(p):
    return Point(
        p.sinh[None, :], p.cosh[None, :], p.grow[None, :],
        p.decay[None, :], p.rest[None, :], p.apex[None, :],
    )  # fmt: skip


@triton.jit
def pairs_of(
    X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
    KIND: tl.constexpr, PRECISION: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``1 - cos``, ``1 + cos``, the triangles and both points of the pairs ``i, j``."""
    h, g = cosines(
        X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
        KIND == "angle", PRECISION, DEPTH,
    )  # fmt: skip
    x, y = _rows(load_point(x_scalars, i, N)), _columns(load_point(y_scalars, j, M))
    return h, g, triangle(h, x, y), x, y


# --- Matrices -----------------------------------------------------------------------------------


@triton.jit
def matrix_kernel(
    X, Y, x_scalars, y_scalars, mean, constants, out, N, M, D, width,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    i, j = indices(row_tile, ROWS), indices(column_tile, COLUMNS)
    h, g, tri, x, y = pairs_of(
        X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width, KIND, PRECISION, DEPTH
    )
    c, root = tl.load(constants), tl.load(constants + 1)
    value = values(KIND, False, h, g, tri, x, y, c, root)[0]
    tl.store(out + i[:, None] * M + j[None, :], value, mask=(i < N)[:, None] & (j < M)[None, :])


@triton.jit
def matrix_change_kernel(
    X, Y, x_scalars, y_scalars, mean, constants,
    at, at_row, at_column, weights, by_rows, by_columns, by_tile, N, M, D, width,
    KIND: tl.constexpr, PRECISION: tl.constexpr, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    i, j = indices(row_tile, ROWS), indices(column_tile, COLUMNS)
    h, g, tri, x, y = pairs_of(
        X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width, KIND, PRECISION, DEPTH
    )
    within = (i < N)[:, None] & (j < M)[None, :]
    c, root = tl.load(constants), tl.load(constants + 1)
    at_x = tl.load(at + i[:, None] * at_row + j[None, :] * at_column, mask=within, other=0.0)
    of = change(KIND, False, h, g, tri, x, y, c, root, at_x, at_x)
    _store_change(
        of, tl.zeros_like(h), x_scalars, y_scalars, weights, by_rows, by_columns, by_tile,
        row_tile, column_tile, i, j, N, M, PRECISION, DIGITS,
    )  # fmt: skip


@triton.jit
def _store_change(
    of, by_scale, x_scalars, y_scalars, weights, by_rows, by_columns, by_tile,
    row_tile, column_tile, i, j, N, M, PRECISION: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Derivatives by h to ``weights (N, M)``, and the partial sums.

    ``by_rows (2, column tiles, N)`` of h and a, ``by_columns (2, row tiles, M)`` of h and b,
    ``by_tile (2, row tiles, column tiles)`` of c and the scale.
    """
    within = (i < N)[:, None] & (j < M)[None, :]
    weight = tl.where(within, of.h, 0.0)
    if PRECISION == "tf32" or PRECISION == "bf16":
        x_rho = tl.load(x_scalars + N + i, mask=i < N, other=1.0)[:, None]
        y_rho = tl.load(y_scalars + M + j, mask=j < M, other=1.0)[None, :]
        weight = weight / (x_rho * y_rho)
        # Before the sums: then the products' part along the mean goes with them exactly.
        bits = weight.to(tl.int32, bitcast=True) + (1 << (22 - DIGITS))
        weight = (bits & (-1 << (23 - DIGITS))).to(tl.float32, bitcast=True)
    tl.store(
        weights + i[:, None] * M + j[None, :], weight.to(weights.dtype.element_ty), mask=within
    )
    row_tiles, column_tiles = tl.cdiv(N, i.shape[0]), tl.cdiv(M, j.shape[0])
    row_at = by_rows + column_tile.to(tl.int64) * N + i
    tl.store(row_at, tl.sum(weight, 1), mask=i < N)
    tl.store(row_at + N * column_tiles, tl.sum(tl.where(within, of.a, 0.0), 1), mask=i < N)
    column_at = by_columns + row_tile.to(tl.int64) * M + j
    tl.store(column_at, tl.sum(weight, 0), mask=j < M)
    tl.store(column_at + M * row_tiles, tl.sum(tl.where(within, of.b, 0.0), 0), mask=j < M)
    tile_at = by_tile + row_tile * column_tiles + column_tile
    by_scale = tl.where(within, by_scale, 0.0)
    tl.store(tile_at, tl.sum(tl.sum(tl.where(within, of.c, 0.0), 1), 0))
    tl.store(tile_at + row_tiles * column_tiles, tl.sum(tl.sum(by_scale, 1), 0))


# --- Log-sum-exps -------------------------------------------------------------------------------


@triton.jit
def _log_sum(logit, DIM: tl.constexpr):
    largest = tl.max(logit, DIM)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.sum(tl.exp(logit - tl.expand_dims(shift, DIM)), DIM)
    return tl.where(largest == -float("inf"), largest, shift + tl.log(total))


@triton.jit
def _left_out(row_ids, column_ids, i, j, N, M):
    """Pairs of equal ids, or beyond the matrix."""
    row_id = tl.load(row_ids + i, mask=i < N, other=0)
    column_id = tl.load(column_ids + j, mask=j < M, other=0)
    within = (i < N)[:, None] & (j < M)[None, :]
    return (row_id[:, None] == column_id[None, :]) | (within == 0)


@triton.jit
def log_sums_kernel(
    X, Y, x_scalars, y_scalars, mean, constants, row_ids, column_ids, by_rows, by_columns,
    N, M, D, width,
    KIND: tl.constexpr, ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``by_rows (column tiles, N)``, ``by_columns (row tiles, M)``: of each tile."""
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    i, j = indices(row_tile, ROWS), indices(column_tile, COLUMNS)
    h, g, tri, x, y = pairs_of(
        X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width, KIND, PRECISION, DEPTH
    )
    c, root, scale = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    at_x, at_y = values(KIND, True, h, g, tri, x, y, c, root)
    out = _left_out(row_ids, column_ids, i, j, N, M)
    of_rows = _log_sum(tl.where(out, -float("inf"), ROW_SIGN * scale * at_x), 1)
    of_columns = _log_sum(tl.where(out, -float("inf"), COLUMN_SIGN * scale * at_y), 0)
    tl.store(by_rows + column_tile.to(tl.int64) * N + i, of_rows, mask=i < N)
    tl.store(by_columns + row_tile.to(tl.int64) * M + j, of_columns, mask=j < M)


@triton.jit
def log_sums_change_kernel(
    X, Y, x_scalars, y_scalars, mean, constants, row_ids, column_ids,
    row_sums, column_sums, at_rows, at_columns, weights, by_rows, by_columns, by_tile,
    N, M, D, width,
    KIND: tl.constexpr, ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr,
    PRECISION: tl.constexpr, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    i, j = indices(row_tile, ROWS), indices(column_tile, COLUMNS)
    h, g, tri, x, y = pairs_of(
        X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width, KIND, PRECISION, DEPTH
    )
    c, root, scale = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    value_x, value_y = values(KIND, True, h, g, tri, x, y, c, root)
    out = _left_out(row_ids, column_ids, i, j, N, M)
    row_sum = tl.load(row_sums + i, mask=i < N, other=0.0)[:, None]
    column_sum = tl.load(column_sums + j, mask=j < M, other=0.0)[None, :]
    row_at = ROW_SIGN * tl.load(at_rows + i, mask=i < N, other=0.0)[:, None]
    column_at = COLUMN_SIGN * tl.load(at_columns + j, mask=j < M, other=0.0)[None, :]
    of_row = row_at * tl.exp(ROW_SIGN * scale * value_x - row_sum)
    of_column = column_at * tl.exp(COLUMN_SIGN * scale * value_y - column_sum)
    of_row, of_column = tl.where(out, 0.0, of_row), tl.where(out, 0.0, of_column)
    by_scale = of_row * value_x + of_column * value_y
    of = change(KIND, True, h, g, tri, x, y, c, root, scale * of_row, scale * of_column)
    _store_change(
        of, by_scale, x_scalars, y_scalars, weights, by_rows, by_columns, by_tile,
        row_tile, column_tile, i, j, N, M, PRECISION, DIGITS,
    )  # fmt: skip
