"""One program per tile of pairs; sums over rows and columns leave it as one partial per tile.

The product of a tile is taken at once, what follows it in strips of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import (
    change,
    columns_of,
    load_point,
    rows_of,
    triangle,
    values,
)
from lorentzkit.fused.triton.tiles import (
    STRIPS,
    folded_cosines,
    indices,
    place,
    products,
    strips,
    unfold,
)

# --- Matrices -----------------------------------------------------------------------------------


@triton.jit
def matrix_kernel(
    X, Y, x_scalars, y_scalars, mean, constants, out, N, M, D, width,
    KIND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    product = products(
        X, Y, row_tile, column_tile, N, M, width, PRECISION, ROWS, COLUMNS, DEPTH
    )  # fmt: skip
    parts, i = strips(product), indices(row_tile, ROWS)
    c, root, x = tl.load(constants), tl.load(constants + 1), rows_of(load_point(x_scalars, i, N))
    for strip in tl.static_range(STRIPS):
        j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
        y = columns_of(load_point(y_scalars, j, M))
        folded = folded_cosines(
            parts[strip], X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
            KIND == "angle", PRECISION,
        )  # fmt: skip
        h, g = unfold(folded, KIND == "angle")
        value = values(KIND, False, h, g, triangle(h, x, y), x, y, c, root)[0]
        within = (i < N)[:, None] & (j < M)[None, :]
        tl.store(out + i[:, None] * M + j[None, :], value, mask=within)


@triton.jit
def matrix_change_kernel(
    X, Y, x_scalars, y_scalars, mean, constants,
    at, at_row, at_column, weights, by_rows, by_columns, by_tile, N, M, D, width,
    KIND: tl.constexpr, PRECISION: tl.constexpr, DIGITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    product = products(
        X, Y, row_tile, column_tile, N, M, width, PRECISION, ROWS, COLUMNS, DEPTH
    )  # fmt: skip
    parts, i = strips(product), indices(row_tile, ROWS)
    c, root, x = tl.load(constants), tl.load(constants + 1), rows_of(load_point(x_scalars, i, N))
    sums_h = tl.zeros((ROWS,), tl.float32)
    sums_a, sums_c, sums_scale = sums_h, sums_h, sums_h
    for strip in tl.static_range(STRIPS):
        j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
        y = columns_of(load_point(y_scalars, j, M))
        folded = folded_cosines(
            parts[strip], X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
            KIND == "angle", PRECISION,
        )  # fmt: skip
        h, g = unfold(folded, KIND == "angle")
        at_x = tl.load(
            at + i[:, None] * at_row + j[None, :] * at_column,
            mask=(i < N)[:, None] & (j < M)[None, :],
            other=0.0,
        )
        of = change(KIND, False, h, g, triangle(h, x, y), x, y, c, root, at_x, at_x)
        of_h, of_a, of_c = _store_strip(
            of, x_scalars, y_scalars, weights, by_columns, row_tile, i, j, N, M,
            tl.cdiv(N, ROWS), PRECISION, DIGITS,
        )  # fmt: skip
        sums_h, sums_a, sums_c = sums_h + of_h, sums_a + of_a, sums_c + of_c
    _store_sums(
        sums_h, sums_a, sums_c, sums_scale, by_rows, by_tile, row_tile, column_tile, i, N,
        tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS),
    )  # fmt: skip


@triton.jit
def _store_strip(
    of, x_scalars, y_scalars, weights, by_columns, row_tile, i, j, N, M, row_tiles,
    PRECISION: tl.constexpr, DIGITS: tl.constexpr,
):  # fmt: skip
    """Derivatives by h to ``weights (N, M)``; sums of h and b to ``by_columns (2, row tiles, M)``.

    Returns the row sums of h, a and c.
    """
    within = (i < N)[:, None] & (j < M)[None, :]
    weight = tl.where(within, of.h, 0.0)
    if PRECISION == "tf32" or PRECISION == "bf16":
        x_rho = tl.load(x_scalars + N + i, mask=i < N, other=1.0)[:, None]
        y_rho = tl.load(y_scalars + M + j, mask=j < M, other=1.0)[None, :]
        # Before the sums: then the products' part along the mean goes with them exactly.
        weight = _rounded(weight / (x_rho * y_rho), DIGITS)
    at = weights + i[:, None] * M + j[None, :]
    tl.store(at, weight.to(weights.dtype.element_ty), mask=within)
    column_at = by_columns + row_tile.to(tl.int64) * M + j
    tl.store(column_at, tl.sum(weight, 0), mask=j < M)
    column_at += row_tiles.to(tl.int64) * M
    tl.store(column_at, tl.sum(tl.where(within, of.b, 0.0), 0), mask=j < M)
    a, c = tl.where(within, of.a, 0.0), tl.where(within, of.c, 0.0)
    return tl.sum(weight, 1), tl.sum(a, 1), tl.sum(c, 1)


@triton.jit
def _rounded(value, DIGITS: tl.constexpr):
    """To nearest, with so many digits after the leading one."""
    bits = value.to(tl.int32, bitcast=True) + (1 << (22 - DIGITS))
    return (bits & (-1 << (23 - DIGITS))).to(tl.float32, bitcast=True)


@triton.jit
def _store_sums(
    sums_h, sums_a, sums_c, sums_scale, by_rows, by_tile,
    row_tile, column_tile, i, N, row_tiles, column_tiles,
):  # fmt: skip
    """``by_rows (2, column tiles, N)`` of h and a, ``by_tile (2, tiles)`` of c and the scale."""
    row_at = by_rows + column_tile.to(tl.int64) * N + i
    tl.store(row_at, sums_h, mask=i < N)
    tl.store(row_at + column_tiles.to(tl.int64) * N, sums_a, mask=i < N)
    tile_at = by_tile + row_tile * column_tiles + column_tile
    tl.store(tile_at, tl.sum(sums_c, 0))
    tl.store(tile_at + row_tiles * column_tiles, tl.sum(sums_scale, 0))


# --- Log-sum-exps -------------------------------------------------------------------------------


@triton.jit
def _log_sum(logit, DIM: tl.constexpr):
    largest = tl.max(logit, DIM)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.sum(tl.exp(logit - tl.expand_dims(shift, DIM)), DIM)
    return tl.where(largest == -float("inf"), largest, shift + tl.log(total))


@triton.jit
def _log_add(a, b):
    largest = tl.maximum(a, b)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.exp(a - shift) + tl.exp(b - shift)
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
    KIND: tl.constexpr, ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """``by_rows (column tiles, N)``, ``by_columns (row tiles, M)``: of each tile."""
    row_tile, column_tile = place(tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS))
    product = products(
        X, Y, row_tile, column_tile, N, M, width, PRECISION, ROWS, COLUMNS, DEPTH
    )  # fmt: skip
    parts, i = strips(product), indices(row_tile, ROWS)
    c, root, scale = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    x = rows_of(load_point(x_scalars, i, N))
    of_rows = tl.full((ROWS,), -float("inf"), tl.float32)
    for strip in tl.static_range(STRIPS):
        j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
        y = columns_of(load_point(y_scalars, j, M))
        folded = folded_cosines(
            parts[strip], X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
            KIND == "angle", PRECISION,
        )  # fmt: skip
        h, g = unfold(folded, KIND == "angle")
        at_x, at_y = values(KIND, True, h, g, triangle(h, x, y), x, y, c, root)
        out = _left_out(row_ids, column_ids, i, j, N, M)
        logit = tl.where(out, -float("inf"), ROW_SIGN * scale * at_x)
        of_rows = _log_add(of_rows, _log_sum(logit, 1))
        logit = tl.where(out, -float("inf"), COLUMN_SIGN * scale * at_y)
        tl.store(by_columns + row_tile.to(tl.int64) * M + j, _log_sum(logit, 0), mask=j < M)
    tl.store(by_rows + column_tile.to(tl.int64) * N + i, of_rows, mask=i < N)


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
    product = products(
        X, Y, row_tile, column_tile, N, M, width, PRECISION, ROWS, COLUMNS, DEPTH
    )  # fmt: skip
    parts, i = strips(product), indices(row_tile, ROWS)
    c, root, scale = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    x = rows_of(load_point(x_scalars, i, N))
    row_sum = tl.load(row_sums + i, mask=i < N, other=0.0)[:, None]
    row_at = tl.load(at_rows + i, mask=i < N, other=0.0)[:, None]
    sums_h = tl.zeros((ROWS,), tl.float32)
    sums_a, sums_c, sums_scale = sums_h, sums_h, sums_h
    for strip in tl.static_range(STRIPS):
        j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
        y = columns_of(load_point(y_scalars, j, M))
        folded = folded_cosines(
            parts[strip], X, Y, x_scalars, y_scalars, mean, constants, i, j, N, M, D, width,
            KIND == "angle", PRECISION,
        )  # fmt: skip
        h, g = unfold(folded, KIND == "angle")
        tri = triangle(h, x, y)
        value_x, value_y = values(KIND, True, h, g, tri, x, y, c, root)
        column_sum = tl.load(column_sums + j, mask=j < M, other=0.0)[None, :]
        column_at = tl.load(at_columns + j, mask=j < M, other=0.0)[None, :]
        of_row = ROW_SIGN * row_at * tl.exp(ROW_SIGN * scale * value_x - row_sum)
        of_column = COLUMN_SIGN * column_at * tl.exp(COLUMN_SIGN * scale * value_y - column_sum)
        out = _left_out(row_ids, column_ids, i, j, N, M)
        of_row, of_column = tl.where(out, 0.0, of_row), tl.where(out, 0.0, of_column)
        by_scale = tl.where(out, 0.0, of_row * value_x + of_column * value_y)
        of = change(KIND, True, h, g, tri, x, y, c, root, scale * of_row, scale * of_column)
        of_h, of_a, of_c = _store_strip(
            of, x_scalars, y_scalars, weights, by_columns, row_tile, i, j, N, M,
            tl.cdiv(N, ROWS), PRECISION, DIGITS,
        )  # fmt: skip
        sums_h, sums_a, sums_c = sums_h + of_h, sums_a + of_a, sums_c + of_c
        sums_scale += tl.sum(by_scale, 1)
    _store_sums(
        sums_h, sums_a, sums_c, sums_scale, by_rows, by_tile, row_tile, column_tile, i, N,
        tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS),
    )  # fmt: skip
