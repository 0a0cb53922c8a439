"""How many launches a loss takes: a small batch does nothing but wait for them."""

import pytest
import torch
from contrastive_calls import OPTIONS, SIMILARITIES
from test_rows import count_launches, launched_by_torch

from lorentzkit import ops
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


def test_launches_of_a_batch_of_matrices(launches):
    """One set for each matrix: docs/kernels.md says why."""
    found = []
    for size in (2, 5):
        leaves = [leaf.requires_grad_() for leaf in torch.zeros(2, size, 64, 20)]
        matrices, forward = counted(launches, lambda z=leaves: ops.pairwise_dist(*z, impl="triton"))
        at = torch.ones_like(matrices)
        grad = lambda z=leaves, of=matrices, at=at: torch.autograd.grad(of, z, at)  # noqa: E731
        found.append((forward, counted(launches, grad)[1]))
    (forward, backward), (forward_of_5, backward_of_5) = found
    assert (forward_of_5 - forward) / 3 <= 4
    assert (backward_of_5 - backward) / 3 <= 14
