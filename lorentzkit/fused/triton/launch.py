"""The functions of `streaming`, by kernels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import (
    Gradients,
    LogSums,
    LossGradients,
    LossProblem,
    PairwiseProblem,
    Search,
)
from lorentzkit.fused.triton.config import CHUNK, CONFIGS, PROGRAMS, Config
from lorentzkit.fused.triton.kernels import (
    log_sums_change_kernel,
    log_sums_kernel,
    matrix_change_kernel,
    matrix_kernel,
)
from lorentzkit.fused.triton.prepare import Clouds, Total, clouds
from lorentzkit.fused.triton.products import add_product
from lorentzkit.fused.triton.selection import topk_kernel
from lorentzkit.fused.triton.tuning import tuned

_DIGITS = {"tf32": 10, "bf16": 7}  # of the operands of products, but for the leading one


def matrix(problem: PairwiseProblem) -> Tensor:
    """``(N, D), (M, D) -> (N, M)`` of inner products, distances or exterior angles."""
    x, kind = problem.x, problem.kind
    of = clouds(problem)
    out = torch.empty(len(x), len(problem.y), device=x.device)

    def run(use: Config) -> Tensor:
        matrix_kernel[_tiles(out, use)](
            *_operands(of), out, *_sizes(of), KIND=kind, PRECISION=of.precision, **_meta(use)
        )
        return out

    with _device(x):
        return tuned("matrix", out, (len(of.mean), kind, of.precision), run)


def matrix_gradients(problem: PairwiseProblem, at: Tensor) -> Gradients:
    """Derivatives of ``(at * matrix).sum()``."""
    of, kind = clouds(problem), problem.kind
    if kind == "cosine":
        raise ValueError("kind: expected 'inner', 'distance' or 'angle', got 'cosine'")

    def launch(part: Clouds, rows: slice, outputs: tuple[Tensor, ...], use: Config) -> None:
        some = at[rows]
        matrix_change_kernel[_tiles(outputs[0], use)](
            *_operands(part), some, *some.stride(), *outputs, *_sizes(part), KIND=kind,
            PRECISION=of.precision, DIGITS=_DIGITS.get(of.precision, 23), **_meta(use),
        )  # fmt: skip

    return Gradients(*_tuned_gradients(of, kind, launch)[:3])


def log_sums(problem: LossProblem) -> LogSums:
    """log-sum-exp of the logits by rows ``(N,)`` and columns ``(M,)``, equal ids left out."""
    x, y, similarity = problem.x, problem.y, problem.similarity
    of = clouds(problem, problem.scale)
    row_sign, column_sign = SIGNS[similarity]

    def run(use: Config) -> LogSums:
        by_rows = torch.empty(triton.cdiv(len(y), use.columns), len(x), device=x.device)
        by_columns = torch.empty(triton.cdiv(len(x), use.rows), len(y), device=x.device)
        log_sums_kernel[(len(by_rows) * len(by_columns),)](
            *_operands(of), *(i.contiguous() for i in problem.ids), by_rows, by_columns,
            *_sizes(of), KIND=similarity, ROW_SIGN=row_sign, COLUMN_SIGN=column_sign,
            PRECISION=of.precision, **_meta(use),
        )  # fmt: skip
        return LogSums(by_rows.logsumexp(0), by_columns.logsumexp(0))

    with _device(x):
        return tuned("log_sums", _pairs(of), (len(of.mean), similarity, of.precision), run)


def log_sums_gradients(problem: LossProblem, sums: LogSums, at: LogSums) -> LossGradients:
    """Derivatives of ``at.rows . rows + at.columns . columns``; `sums` are of `log_sums`."""
    of, similarity = clouds(problem, problem.scale), problem.similarity
    # Of a sum, strides are 0.
    by_row, by_column = zip(
        *((r.contiguous(), s.contiguous()) for r, s in (problem.ids, sums, at)), strict=True
    )
    row_sign, column_sign = SIGNS[similarity]

    def launch(part: Clouds, rows: slice, outputs: tuple[Tensor, ...], use: Config) -> None:
        both = [z for r, s in zip(by_row, by_column, strict=True) for z in (r[rows], s)]
        log_sums_change_kernel[_tiles(outputs[0], use)](
            *_operands(part), *both, *outputs, *_sizes(part),
            KIND=similarity, ROW_SIGN=row_sign, COLUMN_SIGN=column_sign,
            PRECISION=of.precision, DIGITS=_DIGITS.get(of.precision, 23), **_meta(use),
        )  # fmt: skip

    return _tuned_gradients(of, similarity, launch)


def topk(problem: PairwiseProblem, search: Search) -> Tensor:
    """Indices ``(N, k)`` of the columns with the least (largest) values, in their order.

    Needs no more memory for more columns: ``search.chunk`` is for the other implementation.
    """
    x, y, kind, k = problem.x, problem.y, problem.kind, search.k
    of, best = clouds(problem), max(16, triton.next_power_of_2(k))
    (use,) = CONFIGS["topk" if best <= 32 else "topk, many"]
    row_tiles, column_tiles = triton.cdiv(len(x), use.rows), triton.cdiv(len(y), use.columns)
    share = triton.cdiv(column_tiles, max(1, PROGRAMS // row_tiles))
    splits = triton.cdiv(column_tiles, share)
    keys = torch.empty(splits, len(x), best, dtype=torch.int64, device=x.device)
    sign = 1.0 if search.largest != (kind == "inner") else -1.0  # which falls with the distance
    with _device(x):
        topk_kernel[(row_tiles, splits)](
            *_operands(of), keys, *_sizes(of), sign, share,
            KIND=kind, BEST=best, PRECISION=of.precision, **_meta(use),
        )  # fmt: skip
    merged = keys.transpose(0, 1).flatten(1).topk(k).values
    return 0xFFFFFFFF - (merged & 0xFFFFFFFF)


# --- Arguments ------------------------------------------------------------------------------------


def _operands(of: Clouds) -> tuple[Tensor, ...]:
    return of.x.spread, of.y.spread, of.x.scalars, of.y.scalars, of.mean, of.constants


def _sizes(of: Clouds) -> tuple[int, ...]:
    return len(of.x.spread), len(of.y.spread), len(of.mean), of.x.spread.shape[1]


def _pairs(of: Clouds) -> Tensor:
    """A tensor of the shape of all pairs, without their memory."""
    N, M = _sizes(of)[:2]
    return of.mean[:1].expand(N, M)


def _tiles(pairs: Tensor, use: Config) -> tuple[int]:
    return (triton.cdiv(pairs.shape[0], use.rows) * triton.cdiv(pairs.shape[1], use.columns),)


def _meta(use: Config) -> dict[str, Any]:
    return {
        "ROWS": use.rows,
        "COLUMNS": use.columns,
        "DEPTH": use.depth,
        "num_warps": use.warps,
        "num_stages": use.stages,
    }


def _device(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


# --- Gradients ------------------------------------------------------------------------------------


_Launch = Callable[[Clouds, slice, tuple[Tensor, ...], Config], None]


def _tuned_gradients(of: Clouds, kind: str, launch: _Launch) -> LossGradients:
    with _device(of.mean):
        key = (len(of.mean), kind, of.precision)
        return tuned("change", _pairs(of), key, lambda use: _gradients(of, launch, use))


def _gradients(of: Clouds, launch: _Launch, use: Config) -> LossGradients:
    """``launch(some rows of both clouds, those rows, outputs, sizes)`` for all rows, summed up."""
    (N, M), device = _sizes(of)[:2], of.mean.device
    x, y = Total(of.x), Total(of.y)
    c_and_scale = torch.zeros(2, dtype=torch.float64, device=device)
    height = min(N, max(1, CHUNK // M // use.rows) * use.rows)
    buffer = torch.empty(height, M, dtype=of.x.spread.dtype, device=device)
    for start in range(0, N, height):
        rows = slice(start, min(start + height, N))
        weights = buffer[: rows.stop - start]
        outputs = (weights, *_partials(len(weights), M, use, device))
        part = of._replace(x=_part(of, rows))
        launch(part, rows, outputs, use)
        add_product(x.directions[rows], weights, of.y.spread, of.precision)
        add_product(y.directions, weights.mT, part.x.spread, of.precision)
        by_rows, by_columns, by_tile = outputs[1:]
        x.add(rows, by_rows.sum(1))
        y.add(slice(None), by_columns.sum(1))
        c_and_scale += by_tile.sum(1, dtype=torch.float64)
    c, root = of.constants[:1], of.constants[1:2]
    return LossGradients(
        x.gradient(of.mean, root),
        y.gradient(of.mean, root),
        (c_and_scale[:1] / (2 * c)).float(),
        c_and_scale[1].float(),
    )


def _part(of: Clouds, rows: slice) -> Any:
    x = of.x
    return x._replace(spread=x.spread[rows], scalars=x.scalars[:, rows].contiguous())


def _partials(N: int, M: int, use: Config, device: torch.device) -> tuple[Tensor, ...]:
    tiles = triton.cdiv(N, use.rows), triton.cdiv(M, use.columns)
    shapes = (2, tiles[1], N), (2, tiles[0], M), (2, tiles[0] * tiles[1])
    return tuple(torch.empty(*shape, device=device) for shape in shapes)
