"""How many launches a loss takes: a small batch does nothing but wait for them."""

import pytest
import torch
from contrastive_calls import OPTIONS, SIMILARITIES
from pairwise_calls import PAIRWISE, Allocated
from test_rows import count_launches, launched_by_torch

from lorentzkit import ops
from lorentzkit.fused.problems import PairwiseProblem
from lorentzkit.fused.triton import anchors, launch, positives, prepare, products, rows, shares
from lorentzkit.fused.triton.config import config
from lorentzkit.losses import contrastive_loss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts calls of the interpreter")
KERNELS = {
    launch: [
        "log_sums_kernel",
        "join_kernel",
        "log_sums_vjp_kernel",
        "matrix_kernel",
        "matrix_vjp_kernel",
    ],
    anchors: ["anchors_kernel", "anchors_vjp_kernel"],
    positives: ["ranges_kernel", "pairs_kernel"],
    shares: ["merge_kernel", "merge_vjp_kernel"],
    prepare: ["lengths_kernel", "split_kernel", "gradient_kernel"],
    products: ["product_kernel"],
    rows: ["rows_kernel", "rows_vjp_kernel"],
}
VIEWS = {
    "aten::item", "aten::mT", "aten::slice", "aten::squeeze", "aten::unbind", "aten::unsqueeze",
    "aten::resolve_conj", "aten::resolve_neg",
}  # fmt: skip
FORWARD, BACKWARD, PART = 20, 30, 8
TARGETS = ["pairs", "offset", "labels", "two labels"]
H100 = 132  # programs, for which long sums are split


@pytest.fixture
def launches(monkeypatch):
    """Names of what is launched, as on a H100; but it does not run."""
    names = count_launches(monkeypatch, KERNELS)
    for module in (launch, prepare, products):
        monkeypatch.setattr(module, "programs", lambda device: H100)
    for kernel, run in (("ranges_kernel", count_equal), ("pairs_kernel", first_pairs)):
        monkeypatch.setattr(positives, kernel, Instead(names, kernel, run))
    return names


class Instead:
    """Of a kernel: what sizes and indices are made of, by NumPy, which torch does not count."""

    def __init__(self, names, kernel, run):
        self.names, self.kernel, self.run = names, kernel, run

    def __getitem__(self, grid):
        self.names.append(self.kernel)
        return lambda *args, **sizes: self.run(*(z.numpy() for z in args if hasattr(z, "numpy")))


def count_equal(x, y, x_sorted, y_sorted, ids, first, counts):
    equal = x[:, None] == y
    counts[:] = *equal.sum(1), *equal.sum(0)


def first_pairs(x_order, y_order, first, counts, ends, i, j, by_column):
    i[:] = j[:] = by_column[:] = 0


def counted(launches, call):
    launches.clear()
    result, others = launched_by_torch(call)
    return result, len(launches) + len([name for name in others if name not in VIEWS])


def counts_of(launches, N, targets, **how):
    """Launches forward and backward."""
    labels = torch.arange(N) % (N // 2)
    columns = N + 16 if targets in ("offset", "two labels") else N
    of = {"offset": 3, "labels": labels, "two labels": (labels, torch.arange(columns) % N)}
    leaves = [torch.zeros(N, 20), torch.zeros(columns, 20), torch.tensor(1.0), torch.tensor(5.0)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss, forward = counted(
        launches,
        lambda: contrastive_loss(*leaves, targets=of.get(targets), impl="triton", **how),
    )
    losses = loss if isinstance(loss, tuple) else (loss,)
    grads = [torch.ones_like(z) for z in losses]
    _, backward = counted(launches, lambda: torch.autograd.grad(losses, leaves, grads))
    return forward, backward


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_launches_of_every_loss(launches, targets, reduction, similarity):
    how = OPTIONS[similarity] | {"reduction": reduction}
    forward, backward = counts_of(launches, 64, targets, **how)
    assert 0 < forward <= FORWARD
    assert 0 < backward <= BACKWARD
    assert launches.count("anchors_vjp_kernel") == 1


@pytest.mark.parametrize("targets", ["pairs", "labels"])
@pytest.mark.parametrize("N", [700, 3000])
def test_launches_of_larger_ones(launches, targets, N):
    """Whose sums are split; up to 2^25 pairs (x[i], y[j])."""
    forward, backward = counts_of(launches, N, targets)
    assert forward <= FORWARD
    assert backward <= BACKWARD


def test_launches_of_a_loss_that_takes_several_parts(launches, monkeypatch):
    """For each part of the rows that are kept at a time, some more backward: docs/kernels.md."""
    N, found = 1000, []
    for chunk in (N * 1024, N * 300):
        monkeypatch.setattr(launch, "CHUNK", chunk)
        at_once = chunk // N // config("vjp").rows * config("vjp").rows
        forward, backward = counts_of(launches, N, "pairs")
        parts = -(-N // at_once)
        assert launches.count("log_sums_vjp_kernel") == parts
        assert backward <= BACKWARD + PART * (parts - 1)
        found.append((parts, forward, backward))
    (one, forward, backward), (parts, forward_in_parts, backward_in_parts) = found
    assert (one, parts) == (1, 4)
    assert forward == forward_in_parts
    assert backward < backward_in_parts


def counts_of_matrices(launches, op, x, y):
    """Launches forward and backward, with one curvature."""
    leaves = [leaf.requires_grad_() for leaf in (x, y, torch.tensor(1.0))]
    matrices, forward = counted(launches, lambda: op(*leaves, impl="triton"))
    at = torch.ones_like(matrices)
    return forward, counted(launches, lambda: torch.autograd.grad(matrices, leaves, at))[1]


@pytest.mark.parametrize("op", PAIRWISE.values())
@pytest.mark.parametrize("size", [(8, 64, 70, 20), (70_000, 2, 3, 3)])
def test_launches_of_a_batch_of_matrices(launches, op, size):
    """As many as of one, but for a copy of what is expanded, forward, and a sum, backward."""
    B, N, M, D = size
    x, y, x_of_all = torch.zeros(B, N, D), torch.zeros(B, M, D), torch.zeros(N, D)
    assert counts_of_matrices(launches, op, x[:1].detach(), y[:1].detach()) == (4, 14)
    assert counts_of_matrices(launches, op, x, y) == (5, 14)
    assert counts_of_matrices(launches, op, x_of_all, y) == (6, 15)


def test_kernels_under_vmap_are_those_of_a_batch(launches):
    x, y = torch.zeros(8, 64, 20, requires_grad=True), torch.zeros(8, 70, 20)
    found = torch.vmap(lambda x, y: ops.pairwise_dist(x, y, impl="triton"))(x, y).sum()
    assert launches == ["lengths_kernel", "split_kernel", "matrix_kernel"]
    launches.clear()
    found.backward()
    assert len(launches) == 7


def test_workspace_of_a_batch(launches, monkeypatch):
    """Besides the results, of each matrix some numbers a point, and W of few rows at a time."""
    N, M, D, width = 2048, 2048, 20, 64
    monkeypatch.setattr(launch, "CHUNK", N * M)
    found = []
    for B in (1, 3):
        x, y, c = torch.zeros(B, N, D), torch.zeros(B, M, D), torch.ones(B, 1)
        problem = PairwiseProblem(x, y, c, "distance", "highest")
        with Allocated() as forward:
            launch.matrix(problem)
        with Allocated() as backward:
            launch.matrix_gradients(problem, torch.ones(()).expand(B, N, M))
        found.append((forward.bytes, backward.bytes))
    forward_of_2, backward_of_2 = (more - one for one, more in zip(*found, strict=True))
    of_points = 2 * (N + M) * 4 * width
    assert 0 < forward_of_2 - 2 * 4 * N * M <= 2 * of_points
    # A tile leaves numbers for each of its rows and columns; all parts are added up here.
    of_tiles = 4 * 4 * N * M // config("vjp").columns + 4 * 2 * N * M // config("vjp").rows
    assert 0 < backward_of_2 <= 2 * (of_tiles + 2 * of_points)
