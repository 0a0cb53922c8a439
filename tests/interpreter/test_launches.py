"""How many launches a loss takes: a small batch does nothing but wait for them."""

import pytest
import torch
from contrastive_calls import OPTIONS, SIMILARITIES
from test_rows import count_launches, launched_by_torch

from lorentzkit.fused.triton import launch, paired, prepare, products, rows
from lorentzkit.losses import contrastive_loss

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts calls of the interpreter")
KERNELS = {
    launch: ["log_sums_kernel", "join_kernel", "log_sums_vjp_kernel"],
    paired: ["paired_kernel"],
    prepare: ["lengths_kernel", "split_kernel", "gradient_kernel"],
    products: ["product_kernel"],
    rows: ["rows_kernel", "rows_vjp_kernel"],
}
VIEWS = {f"aten::{name}" for name in ("item", "mT", "slice", "squeeze", "unbind", "unsqueeze")}
FORWARD, BACKWARD, PART = 20, 30, 8


@pytest.fixture
def launches(monkeypatch):
    return count_launches(monkeypatch, KERNELS)


def counted(launches, call):
    launches.clear()
    result, others = launched_by_torch(call)
    return result, len(launches) + len([name for name in others if name not in VIEWS])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("N", [64, 3000])
def test_launches_of_a_step(launches, N, similarity):
    leaves = [*torch.zeros(2, N, 20), torch.tensor(1.0), torch.tensor(5.0)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    loss, forward = counted(
        launches, lambda: contrastive_loss(*leaves, **OPTIONS[similarity], impl="triton")
    )
    _, backward = counted(launches, lambda: torch.autograd.grad(loss, leaves))
    assert 0 < forward <= FORWARD
    assert 0 < backward <= BACKWARD


def test_launches_of_a_loss_that_takes_several_parts(launches, monkeypatch):
    """For each part of the rows that are kept at a time, some launches more; forward, none."""
    leaves = [leaf.requires_grad_() for leaf in torch.zeros(2, 1000, 20)]
    found = []
    for chunk in (1000 * 1024, 1000 * 300):
        monkeypatch.setattr(launch, "CHUNK", chunk)
        loss, forward = counted(launches, lambda: contrastive_loss(*leaves, impl="triton"))
        _, backward = counted(launches, lambda loss=loss: torch.autograd.grad(loss, leaves))
        found.append((forward, backward, launches.count("log_sums_vjp_kernel")))
    (forward, backward, one), (forward_in_parts, backward_in_parts, parts) = found
    assert (one, parts) == (1, 4)
    assert forward == forward_in_parts
    assert backward < backward_in_parts <= backward + PART * (parts - 1)
