"""Programs go over tiles of pairs, and what each leaves by rows and columns is summed up later.

The product of a tile is taken at once, what follows it in strips of columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lorentzkit.fused.triton.points import (
    columns_of,
    load_radial,
    rows_of,
    triangle,
    values,
    vjp,
)
from lorentzkit.fused.triton.tiles import (
    STRIPS,
    folded_cosines,
    indices,
    operands_of,
    place,
    strips,
    unfold,
)

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)

# --- Matrices -----------------------------------------------------------------------------------


@triton.jit
def matrix_kernel(
    XH, XL, YH, YL, x_scalars, y_scalars, means, C, scratch, out, batch, N, M, D, width, count,
    KIND: tl.constexpr, OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS)
    tiles = row_tiles * column_tiles
    for tile in range(tl.program_id(0), batch * tiles, tl.num_programs(0)):
        b = (tile // tiles).to(tl.int64)
        xh, xl, yh, yl, x_of, y_of, mean, c = operands_of(
            b, XH, XL, YH, YL, x_scalars, y_scalars, means, C, D, width, count
        )
        root = tl.sqrt(c)
        row_tile, column_tile = place(tile % tiles, row_tiles, column_tiles)
        parts = strips(
            folded_cosines(
                xh, xl, yh, yl, x_of, y_of, mean, scratch, row_tile, column_tile,
                N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS, DEPTH,
            )
        )  # fmt: skip
        i = indices(row_tile, ROWS)
        x = rows_of(load_radial(x_of, i, N, count))
        for strip in tl.static_range(STRIPS):
            j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
            y = columns_of(load_radial(y_of, j, M, count))
            h, g = unfold(parts[strip], OPPOSITES)
            value = values(KIND, h, g, triangle(h, x, y), x, y, c, root)[0]
            within = (i < N)[:, None] & (j < M)[None, :]
            tl.store(out + b * N * M + i[:, None] * M + j[None, :], value, mask=within)


@triton.jit
def matrix_vjp_kernel(
    XH, XL, YH, YL, x_scalars, y_scalars, means, C, scratch,
    grad_output, grad_matrix, grad_row, grad_column, weights, by_rows, by_columns,
    batch, N, M, D, width, count,
    KIND: tl.constexpr, OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS)
    tiles = row_tiles * column_tiles
    for tile in range(tl.program_id(0), batch * tiles, tl.num_programs(0)):
        b = (tile // tiles).to(tl.int64)
        xh, xl, yh, yl, x_of, y_of, mean, c = operands_of(
            b, XH, XL, YH, YL, x_scalars, y_scalars, means, C, D, width, count
        )
        root = tl.sqrt(c)
        row_tile, column_tile = place(tile % tiles, row_tiles, column_tiles)
        parts = strips(
            folded_cosines(
                xh, xl, yh, yl, x_of, y_of, mean, scratch, row_tile, column_tile,
                N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS, DEPTH,
            )
        )  # fmt: skip
        i = indices(row_tile, ROWS)
        x = rows_of(load_radial(x_of, i, N, count))
        sums_h = tl.zeros((ROWS,), tl.float32)
        sums_a, sums_c = sums_h, sums_h
        for strip in tl.static_range(STRIPS):
            j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
            y = columns_of(load_radial(y_of, j, M, count))
            h, g = unfold(parts[strip], OPPOSITES)
            of_pair = tl.load(
                grad_output + b * grad_matrix + i[:, None] * grad_row + j[None, :] * grad_column,
                mask=(i < N)[:, None] & (j < M)[None, :],
                other=0.0,
            )
            partials = vjp(KIND, h, g, triangle(h, x, y), x, y, c, root, of_pair, of_pair)
            of_h, of_a, of_c = _store_strip(
                partials, x_of, y_of, weights, by_columns + b * 2 * row_tiles * M,
                row_tile, row_tiles, b * N, i, j, N, M, count, PARTS,
            )  # fmt: skip
            sums_h, sums_a, sums_c = sums_h + of_h, sums_a + of_a, sums_c + of_c
        of_b = by_rows + b * 4 * column_tiles * N
        _store_sums(of_b, column_tile, column_tiles, i, N, sums_h, sums_a, sums_c, 0 * sums_h)


@triton.jit
def _store_strip(
    partials, x_scalars, y_scalars, weights, by_columns, row_tile, row_tiles, first, i, j,
    N, M, count, PARTS: tl.constexpr,
):  # fmt: skip
    """Derivatives by h to ``weights (N, M)``; sums of h and b to ``by_columns (2, row tiles, M)``.

    In ``weights`` the matrix has the rows from `first` on: a pointer to them would spill registers.
    Returns the row sums of h, a and c.
    """
    within = (i < N)[:, None] & (j < M)[None, :]
    weight = tl.where(within, partials.h, 0.0)
    if PARTS == 1:
        x_rho = tl.load(x_scalars + count + i, mask=i < N, other=1.0)[:, None]
        y_rho = tl.load(y_scalars + count + j, mask=j < M, other=1.0)[None, :]
        # Before the sums: then the products' part along the mean goes with them exactly.
        weight = _rounded(weight / (x_rho * y_rho))
    tl.store(weights + (first + i)[:, None] * M + j[None, :], weight, mask=within)
    column_at = by_columns + tl.cast(row_tile, tl.int64) * M + j
    tl.store(column_at, tl.sum(weight, 0), mask=j < M)
    column_at += tl.cast(row_tiles, tl.int64) * M
    tl.store(column_at, tl.sum(tl.where(within, partials.b, 0.0), 0), mask=j < M)
    a, c = tl.where(within, partials.a, 0.0), tl.where(within, partials.c, 0.0)
    return tl.sum(weight, 1), tl.sum(a, 1), tl.sum(c, 1)


@triton.jit
def _rounded(value):
    """To nearest, with the 11 digits of float16 but the exponents of float32."""
    bits = value.to(tl.int32, bitcast=True) + (1 << 12)
    return (bits & (-1 << 13)).to(tl.float32, bitcast=True)


@triton.jit
def _store_sums(by_rows, column_tile, column_tiles, i, N, h, a, c, scale):
    """``by_rows (4, column tiles, N)``: that of c is times c, see `triangle.Partials`."""
    address, step = (
        by_rows + tl.cast(column_tile, tl.int64) * N + i,
        tl.cast(column_tiles, tl.int64) * N,
    )
    tl.store(address, h, mask=i < N)
    tl.store(address + step, a, mask=i < N)
    tl.store(address + 2 * step, 0.5 * c, mask=i < N)
    tl.store(address + 3 * step, scale, mask=i < N)


# --- Log-sum-exps -------------------------------------------------------------------------------


@triton.jit
def _joined(largest, total, logit, DIM: tl.constexpr):
    """Of logits to base 2 the largest so far, and the sum of the powers by that one less."""
    new = tl.maximum(largest, tl.max(logit, DIM))
    shift = tl.where(new == -float("inf"), 0.0, new)
    powers = tl.exp2(logit - tl.expand_dims(shift, DIM))
    return new, total * tl.exp2(largest - shift) + tl.sum(powers, DIM)


@triton.jit
def _left_out(row_id, column_ids, i, j, N, M):
    """Pairs of equal ids, or beyond the matrix."""
    column_id = tl.load(column_ids + j, mask=j < M, other=0)
    within = (i < N)[:, None] & (j < M)[None, :]
    return (row_id[:, None] == column_id[None, :]) | (within == 0)


@triton.jit
def log_sums_kernel(
    XH, XL, YH, YL, x_scalars, y_scalars, mean, C, scale, scratch, row_ids, column_ids,
    by_rows, by_columns, row_share, column_share, column_blocks, N, M, D, width, count,
    KIND: tl.constexpr, ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr,
    OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A program has a block of tiles: so many rows of so many each.

    ``by_rows (2, column blocks, N)``, ``by_columns (2, row blocks, M)``: largest and sum, see
    `_joined`. Those of its columns a program adds to with every row of tiles.
    """
    row_block = tl.program_id(0) // column_blocks
    column_block = tl.program_id(0) % column_blocks
    row_blocks = tl.num_programs(0) // column_blocks
    c, by_value = tl.load(C), tl.load(scale) * _LOG2_E
    root = tl.sqrt(c)
    first, first_column = row_block * row_share, column_block * column_share
    last = tl.minimum(first + row_share, tl.cdiv(N, ROWS))
    last_column = tl.minimum(first_column + column_share, tl.cdiv(M, COLUMNS))
    for row_tile in range(first, last):
        i = indices(row_tile, ROWS)
        x = rows_of(load_radial(x_scalars, i, N, count))
        row_id = tl.load(row_ids + i, mask=i < N, other=0)
        largest = tl.full((ROWS,), -float("inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for column_tile in range(first_column, last_column):
            parts = strips(
                folded_cosines(
                    XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, column_tile,
                    N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS, DEPTH,
                )
            )  # fmt: skip
            for strip in tl.static_range(STRIPS):
                j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
                y = columns_of(load_radial(y_scalars, j, M, count))
                h, g = unfold(parts[strip], OPPOSITES)
                value_x, value_y = values(KIND, h, g, triangle(h, x, y), x, y, c, root)
                out = _left_out(row_id, column_ids, i, j, N, M)
                logit = tl.where(out, -float("inf"), (ROW_SIGN * by_value) * value_x)
                largest, total = _joined(largest, total, logit, 1)
                logit = tl.where(out, -float("inf"), (COLUMN_SIGN * by_value) * value_y)
                address = by_columns + tl.cast(row_block, tl.int64) * M + j
                step = tl.cast(row_blocks, tl.int64) * M
                known = (j < M) & (row_tile > first)
                most = tl.load(address, mask=known, other=-float("inf"))
                most, sums = _joined(most, tl.load(address + step, mask=known, other=0.0), logit, 0)
                tl.store(address, most, mask=j < M)
                tl.store(address + step, sums, mask=j < M)
            tl.debug_barrier()  # other threads may read what these have written
        address = by_rows + tl.cast(column_block, tl.int64) * N + i
        tl.store(address, largest, mask=i < N)
        tl.store(address + tl.cast(column_blocks, tl.int64) * N, total, mask=i < N)


@triton.jit
def join_kernel(
    by_rows, by_columns, of_rows, of_columns, column_blocks, row_blocks, N, M, BLOCK: tl.constexpr
):
    """log-sum-exps ``(N,)`` and ``(M,)`` of what `log_sums_kernel` leaves."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    of_row = k < N
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for block in range(0, column_blocks):
        largest, total = _joined_sums(largest, total, by_rows, block, column_blocks, k, N, of_row)
    within = (k >= N) & (k < N + M)
    for block in range(0, row_blocks):
        largest, total = _joined_sums(
            largest, total, by_columns, block, row_blocks, k - N, M, within
        )
    out = tl.where(total == 0, largest, (largest + tl.log2(total)) * _LN_2)
    tl.store(of_rows + k, out, mask=of_row)
    tl.store(of_columns + k - N, out, mask=within)


@triton.jit
def _joined_sums(largest, total, sums, block, blocks, k, number, within):
    address = sums + tl.cast(block, tl.int64) * number + k
    most = tl.load(address, mask=within, other=-float("inf"))
    other = tl.load(address + tl.cast(blocks, tl.int64) * number, mask=within, other=0.0)
    new = tl.maximum(largest, most)
    shift = tl.where(new == -float("inf"), 0.0, new)
    return new, total * tl.exp2(largest - shift) + other * tl.exp2(most - shift)


@triton.jit
def log_sums_vjp_kernel(
    XH, XL, YH, YL, x_scalars, y_scalars, mean, C, scale, scratch, row_ids, column_ids,
    row_sums, column_sums, grad_rows, grad_columns, weights, by_rows, by_columns,
    N, M, D, width, count,
    KIND: tl.constexpr, ROW_SIGN: tl.constexpr, COLUMN_SIGN: tl.constexpr,
    OPPOSITES: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row_tiles, column_tiles = tl.cdiv(N, ROWS), tl.cdiv(M, COLUMNS)
    c, by_scale = tl.load(C), tl.load(scale)
    root, by_value = tl.sqrt(c), by_scale * _LOG2_E
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row_tile, column_tile = place(tile, row_tiles, column_tiles)
        parts = strips(
            folded_cosines(
                XH, XL, YH, YL, x_scalars, y_scalars, mean, scratch, row_tile, column_tile,
                N, M, D, width, count, OPPOSITES, PARTS, ROWS, COLUMNS, DEPTH,
            )
        )  # fmt: skip
        i = indices(row_tile, ROWS)
        x = rows_of(load_radial(x_scalars, i, N, count))
        row_id = tl.load(row_ids + i, mask=i < N, other=0)
        row_sum = tl.load(row_sums + i, mask=i < N, other=0.0)[:, None] * _LOG2_E
        row_grad = ROW_SIGN * tl.load(grad_rows + i, mask=i < N, other=0.0)[:, None]
        sums_h = tl.zeros((ROWS,), tl.float32)
        sums_a, sums_c, sums_scale = sums_h, sums_h, sums_h
        for strip in tl.static_range(STRIPS):
            j = indices(column_tile * STRIPS + strip, COLUMNS // STRIPS)
            y = columns_of(load_radial(y_scalars, j, M, count))
            h, g = unfold(parts[strip], OPPOSITES)
            tri = triangle(h, x, y)
            value_x, value_y = values(KIND, h, g, tri, x, y, c, root)
            column_sum = tl.load(column_sums + j, mask=j < M, other=0.0)[None, :] * _LOG2_E
            column_grad = COLUMN_SIGN * tl.load(grad_columns + j, mask=j < M, other=0.0)[None, :]
            of_row = row_grad * tl.exp2((ROW_SIGN * by_value) * value_x - row_sum)
            of_column = column_grad * tl.exp2((COLUMN_SIGN * by_value) * value_y - column_sum)
            out = _left_out(row_id, column_ids, i, j, N, M)
            of_row, of_column = tl.where(out, 0.0, of_row), tl.where(out, 0.0, of_column)
            sums_scale += tl.sum(tl.where(out, 0.0, of_row * value_x + of_column * value_y), 1)
            grad_alpha, grad_beta = by_scale * of_row, by_scale * of_column
            if KIND != "angles":  # one value is in both logits
                grad_alpha += grad_beta
            partials = vjp(KIND, h, g, tri, x, y, c, root, grad_alpha, grad_beta)
            of_h, of_a, of_c = _store_strip(
                partials, x_scalars, y_scalars, weights, by_columns, row_tile, row_tiles, 0, i, j,
                N, M, count, PARTS,
            )  # fmt: skip
            sums_h, sums_a, sums_c = sums_h + of_h, sums_a + of_a, sums_c + of_c
        _store_sums(by_rows, column_tile, column_tiles, i, N, sums_h, sums_a, sums_c, sums_scale)
