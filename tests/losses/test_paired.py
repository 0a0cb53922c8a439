"""The loss of a batch of pairs in one operation: in NumPy if it is small, compiled once it pays."""

import pytest
import torch
from contrastive_calls import NAMES, OPTIONS, SIMILARITIES, compare, leaves, logits, naive
from pairwise_calls import points

from lorentzkit._geometry import compilation
from lorentzkit.fused import streaming
from lorentzkit.losses import contrastive_loss

every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


def close(way, scale=5.0):
    """How close: NumPy's float64 but for a rounding; float32 as `test_contrastive` has it."""
    if way == "numpy":
        return {"rtol": 3e-6, "atol": 1e-30}
    return {"rtol": 2e-5, "atol": 1e-6 * max(scale, 1)}


@pytest.fixture(params=["numpy", pytest.param("compiled", marks=pytest.mark.thorough)])
def way(request, monkeypatch):
    """Nothing but the way that is tested serves."""

    def fail(*_):
        raise AssertionError("the loss went by blocks")

    monkeypatch.setattr(streaming, "log_sums", fail)
    if request.param == "compiled":
        monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    return request.param


def batch(N=40, D=20, dtype=torch.float32):
    return points(N, D, dtype), points(N, D, dtype, seed=1)


def special(N=40, D=20):
    """Duplicates, opposite and aligned points, close pairs, and the origin."""
    x, y = batch(N, D)
    x[3] = x[5]
    y[3], y[4] = y[5], x[4] * (1 + 1e-6)
    y[6] = x[6] + 1e-4 * y[6]
    y[7], y[8] = -x[9], 2 * x[7]
    x[10], x[11], y[11], y[12] = 0, 0, 0, 0
    return x, y


@every_similarity
@pytest.mark.parametrize("scale", [0.01, 7.0, 100.0])
def test_value_and_gradients(way, similarity, scale):
    x, y = batch()
    positive = torch.eye(len(x), dtype=torch.bool)
    compare(x, y, similarity, positive, None, scale=scale, **close(way, scale))


@every_similarity
def test_special_points(way, similarity):
    """The truth is float64's own loss: the naive expression loses pairs that nearly coincide."""
    inputs = leaves(*special(), torch.float32)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    loss = contrastive_loss(*inputs, **OPTIONS[similarity])
    got = torch.autograd.grad(loss, inputs, materialize_grads=True)
    truth = contrastive_loss(*exact, **OPTIONS[similarity], impl="reference")
    expected = torch.autograd.grad(truth, exact, materialize_grads=True)
    torch.testing.assert_close(loss.double(), truth, rtol=3e-7, atol=0)
    for name, a, b in zip(NAMES, got, expected, strict=True):
        # Row by row: the gradients of close pairs are far larger than others.
        size = b.abs().amax(-1, keepdim=True) if b.dim() == 2 else b.abs()
        assert ((a - b).abs() <= 1e-5 * size + 1e-30).all(), name


@every_similarity
def test_few_pairs(way, similarity):
    for N in (2, 3):
        x, y = batch(N)
        compare(x, y, similarity, torch.eye(N, dtype=torch.bool), None, **close(way))


@every_similarity
def test_reductions_and_second_use(way, similarity):
    inputs = leaves(*batch(), torch.float32)
    mean = contrastive_loss(*inputs, **OPTIONS[similarity])
    total = contrastive_loss(*inputs, **OPTIONS[similarity], reduction="sum")
    torch.testing.assert_close(total, 40 * mean)
    first, again = (torch.autograd.grad(2 * mean, inputs[:2], retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, again))
    whole = torch.autograd.grad(total, inputs[:2])
    torch.testing.assert_close(whole, tuple(20 * g for g in first))


@every_similarity
def test_one_operand_only(way, similarity):
    x, y, c, s = leaves(*batch(), torch.float32)
    loss = contrastive_loss(x, y.detach(), c.detach(), s.detach(), **OPTIONS[similarity])
    both = contrastive_loss(x, y, c, s, **OPTIONS[similarity])
    assert torch.equal(*(torch.autograd.grad(z, x)[0] for z in (loss, both)))


@every_similarity
def test_autocast_and_the_global_precision_change_nothing(way, similarity):
    inputs = leaves(*batch(64, 48), torch.float32)

    def results():
        loss = contrastive_loss(*inputs, **OPTIONS[similarity])
        return [loss, *torch.autograd.grad(loss, inputs, materialize_grads=True)]

    expected = results()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert all(map(torch.equal, results(), expected))
    finally:
        torch.set_float32_matmul_precision(before)


# --- Derivatives of other kinds, and what goes another way ----------------------------------------


@every_similarity
def test_second_derivatives(similarity):
    """Of the reference: float64's own, to float32's digits."""
    inputs = leaves(*batch(5, 4), torch.float32)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    found = []
    for given in (inputs, exact):
        loss = contrastive_loss(*given, **OPTIONS[similarity])
        first = torch.autograd.grad(loss, given[:2], create_graph=True)
        square = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(square, given[:2]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_gradients_in_a_batch():
    x, y, c, s = leaves(*batch(), torch.float32)
    loss = contrastive_loss(x, y, c, s)
    (one,) = torch.autograd.grad(loss, x, retain_graph=True)
    (each,) = torch.autograd.grad(loss, x, torch.tensor([1.0, -2.0]), is_grads_batched=True)
    torch.testing.assert_close(each, torch.stack([one, -2 * one]))


@every_similarity
def test_points_far_out_are_left_to_the_blocks(similarity):
    x, y = batch()
    x, y = 1e4 * x, 1e4 * y
    inputs = leaves(x, y, torch.float32)
    for impl in ("auto", "streaming"):
        loss = contrastive_loss(*inputs, **OPTIONS[similarity], impl=impl)
        assert torch.isfinite(loss)
        gradients = torch.autograd.grad(loss, inputs, materialize_grads=True)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_what_is_not_finite_is_not_hidden():
    x, y = batch()
    x[2, 3] = torch.nan
    assert contrastive_loss(x, y).isnan()


@every_similarity
@pytest.mark.parametrize("impl", ["auto", "streaming", "reference"])
@pytest.mark.parametrize("labels", [False, True])
def test_the_gradient_of_a_tiny_loss(similarity, impl, labels):
    """Its own 1 and -1 do not swallow a derivative of 1e-20 by the positives' logits."""
    x = 2 * torch.eye(4, 20, dtype=torch.float32)
    y = 1.1 * x
    y[:, 7] = 0.01
    scale = {"distance": 10.0, "exterior": 15.0}.get(similarity, 60.0)  # float32 holds the loss
    inputs = leaves(x, y, torch.float32, scale=scale)
    targets = torch.arange(4) if labels else None
    loss = contrastive_loss(*inputs, **OPTIONS[similarity], impl=impl, targets=targets)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    others = ~torch.eye(4, dtype=torch.bool)
    rows, columns = logits(*exact, similarity)
    truth = sum(
        torch.log1p((line - line.diagonal()[:, None])[others].view(4, 3).exp().sum(1)).sum() / 8
        for line in (rows, columns.T)
    )
    assert 0 < truth < 1e-8
    torch.testing.assert_close(loss.double(), truth, rtol=1e-4, atol=0)
    got = torch.autograd.grad(loss, inputs[:2])
    expected = torch.autograd.grad(truth, exact[:2])
    for a, b in zip(got, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


@every_similarity
def test_without_a_gradient(similarity):
    x, y = batch()
    truth = naive(x.double(), y.double(), 1.0, 1.0, similarity, torch.eye(len(x), dtype=torch.bool))
    loss = contrastive_loss(x, y, **OPTIONS[similarity])
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
