"""The specification: every fused op in plain PyTorch, with whole N x M matrices.

It takes the formulas of `smooth` at the products and measures of all pairs, and is differentiable
to any order. It serves where other backends cannot (`impl="reference"`, second derivatives), and
tests compare them with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lorentzkit._geometry import smooth
from lorentzkit._geometry.arguments import clamp_norm, norm_limit
from lorentzkit._geometry.invariants import ANGLES, Measures, Products
from lorentzkit._geometry.precision import product
from lorentzkit._geometry.single_points import length
from lorentzkit._geometry.special import dot, values_known
from lorentzkit._geometry.vectors import wide_dtype
from lorentzkit.fused.operands import FEW_DIMENSIONS, recompute_below
from lorentzkit.fused.pointwise import SIGNS
from lorentzkit.fused.problems import (
    Gradients,
    LogSums,
    LossGradients,
    LossProblem,
    LossTerms,
    PairwiseProblem,
    Search,
    SelectedPairs,
)


def matrix(problem: PairwiseProblem) -> Tensor:
    """``(..., N, D), (..., M, D) -> (..., N, M)``; c is ``(..., 1)``."""
    return _values(problem.kind, problem.x, problem.y, problem.c.unsqueeze(-1))[0]


def matrix_gradients(problem: PairwiseProblem, grad_output: Tensor) -> Gradients:
    def values(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return (matrix(replace(problem, x=x, y=y, c=c)),)

    return Gradients(*vjp(values, (problem.x, problem.y, problem.c), (grad_output,)))


def topk(problem: PairwiseProblem, search: Search) -> Tensor:
    values = matrix(problem)
    if search.apex == "y":
        values = matrix(replace(problem, x=problem.y, y=problem.x)).mT
    return values.topk(search.k, largest=search.largest).indices


def log_sums(problem: LossProblem) -> LogSums:
    """Log-sum-exps of the logits, by rows and by columns; pairs with equal ids are left out."""
    value = _values(problem.similarity, problem.x, problem.y, problem.c)
    same = problem.row_ids[:, None] == problem.column_ids
    row, column = (
        sign * problem.scale * v
        for sign, v in zip(SIGNS[problem.similarity], value[:1] + value[-1:], strict=True)
    )
    return LogSums(
        row.masked_fill(same, -torch.inf).logsumexp(1),
        column.masked_fill(same, -torch.inf).logsumexp(0),
    )


def log_sums_gradients(problem: LossProblem, sums: LogSums, grad_sums: LogSums) -> LossGradients:
    def values(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return log_sums(replace(problem, x=x, y=y, c=c, scale=scale))

    inputs = problem.x, problem.y, problem.c, problem.scale
    return LossGradients(*vjp(values, inputs, grad_sums))


def loss_terms_gradients(problem: LossProblem, grad_terms: LossTerms) -> LossGradients:
    def values(x: Tensor, y: Tensor, c: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        moved = replace(problem, x=x, y=y, c=c, scale=scale)
        return LossTerms(*log_sums(moved), selected(moved.positives))

    inputs = problem.x, problem.y, problem.c, problem.scale
    return LossGradients(*vjp(values, inputs, grad_terms))


def selected(problem: SelectedPairs) -> Tensor:
    """The values of the pairs (i, j): ``(P, K)``."""
    return smooth.row_values(problem.kind, problem.x[problem.i], problem.y[problem.j], problem.c)


def selected_gradients(problem: SelectedPairs, grad_output: Tensor) -> Gradients:
    def values(x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return (selected(replace(problem, x=x, y=y, c=c)),)

    return Gradients(*vjp(values, (problem.x, problem.y, problem.c), (grad_output,)))


def vjp(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    grad_outputs: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """The vector-Jacobian product of the function with ``grad_outputs``; itself differentiable."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return tuple(torch.func.vjp(function, *inputs)[1](grad_outputs))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that a tensor given twice is two variables.
        inputs = tuple(
            t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in inputs
        )
        return torch.autograd.grad(
            function(*inputs),
            inputs,
            grad_outputs,
            create_graph=create_graph,
            materialize_grads=True,
        )


def _values(kind: str, x: Tensor, y: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    x, y = (clamp_norm(z, norm_limit(c.detach())) for z in (x, y))
    scale: Tensor | float = 1.0
    m = _measures(x.detach(), y.detach())  # not by no_grad, which forward mode ignores
    if kind in ANGLES and m.rx.dtype == x.dtype:
        scale = smooth.middle(*(r.amax((-2, -1), keepdim=True) for r in (m.rx, m.ry)))
    p = _products(x / scale, y / scale, m)
    return tuple(v.to(x.dtype) for v in smooth.values(kind, p, m, c.to(p.xx.dtype), scale))


def _measures(x: Tensor, y: Tensor) -> Measures:
    """The measures of all pairs, ``(..., N, M)`` or what broadcasts to it."""
    (u, rx), (v, ry) = (unit(z.to(wide_dtype(z))) for z in (x, y))
    rx, ry = rx, ry.mT
    h, g = half_chords(u, v)
    nonzero = (rx > 0) & (ry > 0)
    cosine = torch.where(nonzero, torch.where(h < 1, 1 - h, g - 1), 0.0)
    return Measures(rx, ry, rx - ry, cosine, torch.where(nonzero, h * g, 1.0))


def _products(x: Tensor, y: Tensor, m: Measures) -> Products:
    x, y = x.to(m.rx.dtype), y.to(m.rx.dtype)
    xx, yy, xy_rise = dot(x, x), dot(y, y).mT, smooth.rise(x @ y.mT)
    half_rise = 0.5 * (smooth.rise(xx) + smooth.rise(yy))
    return Products(xx, yy, torch.where(m.close(), xy_rise - half_rise, xy_rise))


def root(square: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    r = length(x).to(x.dtype)
    return torch.where(r > 0, x / torch.where(r > 0, r, 1.0), 0.0), r


def half_chords(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``1 - cos`` and ``1 + cos`` of all pairs; from differences where the product loses them."""
    D = u.shape[-1]
    # Inside torch.func or a compiler those pairs are not known, so it takes all differences.
    if D <= FEW_DIMENSIONS or not values_known(u):
        u, v = u.unsqueeze(-2), v.unsqueeze(-3)
        return dot(u - v, u - v)[..., 0] / 2, dot(u + v, u + v)[..., 0] / 2
    cosine = product(u, v)
    return _recomputed(1 - cosine, u, v), _recomputed(1 + cosine, u, -v)


def _recomputed(h: Tensor, u: Tensor, v: Tensor) -> Tensor:
    u, v = (z.expand(*h.shape[:-2], *z.shape[-2:]) for z in (u, v))
    *batch, i, j = (h < recompute_below(u.shape[-1])).nonzero(as_tuple=True)
    d = u[(*batch, i)] - v[(*batch, j)]
    return h.index_put((*batch, i, j), dot(d, d)[..., 0] / 2)
