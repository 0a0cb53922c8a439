"""The Triton kernels' results: on a GPU where there is one, else in Triton's interpreter."""

import condition
import pytest
import strategies
import torch
from condition import gradient_errors, value_error
from contrastive_calls import OPTIONS, SIMILARITIES, compare
from hypothesis import assume, given, note
from hypothesis import strategies as st
from pairwise_calls import BOUND, PAIRWISE, SEARCHES, custom_ops, in_a_crowd, measurable, points
from strategies import CASES

from lorentzkit import ops
from lorentzkit.fused.triton import launch
from lorentzkit.fused.triton.config import CONFIGS, config
from lorentzkit.losses import contrastive_loss

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RAGGED = [(1, 1, 3), (1, 7, 40), (7, 1, 40), (70, 1023, 33), (507, 9, 130)]
every_op = pytest.mark.parametrize("op", PAIRWISE)
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


@pytest.fixture(autouse=True)
def _few_dimensions(monkeypatch):
    """The interpreter takes a second for a thousand of them; beyond 16 one path serves all."""
    monkeypatch.setattr(strategies, "DIMENSIONS", [2, 1, 3, 8, 16, 17, 64])


@pytest.fixture(autouse=True)
def _on_the_device():
    with torch.device(DEVICE):
        yield


def clouds(N, M, D, origin=True):
    """With duplicates, exact opposites and the origin among them."""
    x, y = (points(n, D, torch.float32, seed=s).to(DEVICE) for n, s in ((N, 0), (M, 1)))
    x[0], y[-1] = y[0], -2 * x[-1]
    if origin and min(N, M) > 3:
        x[1], y[1], x[2] = 0, 0, 0
    return x, y


def test_uninitialised_memory_shows():
    assert torch.empty(9, device=DEVICE).isnan().all()


# --- Matrices -------------------------------------------------------------------------------------


@pytest.fixture
def _exactly(monkeypatch):
    """The measure computes on the CPU, and what it measures on the device."""
    monkeypatch.setattr(condition, "DEVICE", DEVICE)
    with torch.device("cpu"):
        yield


@every_op
@pytest.mark.usefixtures("_exactly")
def test_values_are_exact(op):
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](torch.float32, smooth=False))
        assume(measurable(*case.args, case.curv))
        assert (
            value_error(op, case.args, case.curv, function=in_a_crowd(op, impl="triton")) <= BOUND
        )

    check()


@pytest.mark.few(op="exterior_angle")
@every_op
@pytest.mark.usefixtures("_exactly")
def test_gradients_are_exact(op):
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](torch.float32, smooth=True))
        assume(measurable(*case.args, case.curv))
        errors = gradient_errors(op, case.args, case.curv, function=in_a_crowd(op, impl="triton"))
        note(f"errors: {errors}")
        assert max(errors.values()) <= BOUND

    check()


def results(op, x, y, at, dtype, **how):
    named = {"x": x, "y": y, "curv": torch.tensor(0.7)}
    leaves = {name: t.to(dtype).clone().requires_grad_() for name, t in named.items()}
    out = PAIRWISE[op](**leaves, **how)
    grads = torch.autograd.grad(out, list(leaves.values()), at.to(dtype))
    return {"value": out.detach(), **dict(zip(leaves, grads, strict=True))}


@pytest.mark.few(op=["dist", "exterior_angle"], N=[7, 507])
@every_op
@pytest.mark.parametrize(("N", "M", "D"), RAGGED)
def test_all_pairs_and_all_gradients_by_name(op, N, M, D):
    """No farther from float64 than plain operations in float32, and 1e-6 of the terms."""
    x, y = clouds(N, M, D)
    at = torch.randn(N, M)
    got = results(op, x, y, at, torch.float32, impl="triton")
    naive = results(op, x, y, at, torch.float32, impl="reference")
    for name, exact in results(op, x, y, at, torch.float64, impl="reference").items():
        size = float(exact.abs().max())
        error, allowed = ((r[name] - exact).abs().max() for r in (got, naive))
        assert error <= allowed + 1e-6 * max(size, 1), (name, float(error), float(allowed))


@every_op
def test_a_gradient_without_strides_and_frozen_inputs(op):
    x, y = clouds(9, 5, 20)
    expected = results(op, x, y, torch.ones(9, 5), x.dtype, impl="triton")["x"]
    leaf = x.clone().requires_grad_()
    PAIRWISE[op](leaf, y, 0.7, impl="triton").sum().backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.few(precision="medium")
@pytest.mark.parametrize(("precision", "bound"), [("high", 2.0**-10), ("medium", 2.0**-7)])
def test_lower_precision_is_that_of_points_moved_by_as_much(precision, bound):
    x, y = points(60, 300, torch.float32), points(50, 300, torch.float32, seed=1)
    x, y = x.to(DEVICE), y.to(DEVICE)
    off = ops.pairwise_dist(x, y, precision=precision, impl="triton") - ops.pairwise_dist(x, y)
    assert 1e-7 < off.abs().max() < bound
    same = ops.pairwise_dist(x, x, precision=precision, impl="triton").diagonal()
    assert torch.equal(same, torch.zeros_like(same))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    x, y = (z.to(dtype) for z in clouds(5, 6, 40))
    got = ops.pairwise_dist(x, y, impl="triton")
    assert got.dtype == torch.float32
    assert torch.equal(got, ops.pairwise_dist(x.float(), y.float(), impl="triton"))


# --- Top-k ----------------------------------------------------------------------------------------


@pytest.mark.few(search="distance", k=1)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(("k", "largest", "N"), [(1, False, 9), (10, True, 37)])
def test_topk_is_that_of_the_matrix(search, k, largest, N, monkeypatch):
    """Of the two programs of a row of tiles, one goes through two tiles and merges them."""
    monkeypatch.setattr(launch, "programs", lambda _: 1 if config("topk").rows >= N else 2)
    x, y = (points(n, 40, torch.float32, seed=s).to(DEVICE) for n, s in ((N, 0), (150, 1)))
    y[100] = y[7]
    options, matrix = SEARCHES[search]
    expected = matrix(x.double(), y.double(), 0.5).topk(k, largest=largest)
    how = options | {"k": k, "largest": largest}
    values, indices = ops.pairwise_topk(x, y, 0.5, **how, impl="triton")
    torch.testing.assert_close(values.double(), expected.values, rtol=1e-6, atol=1e-6)
    chosen = matrix(x.double(), y.double(), 0.5).gather(1, indices)
    torch.testing.assert_close(chosen, expected.values, rtol=1e-6, atol=1e-6)
    assert all(len(set(row)) == k for row in indices.tolist())


def test_topk_of_more_than_registers_hold():
    x, y = clouds(3, 200, 20)
    with pytest.raises(ValueError, match="selects at most k = 128, got 129; use impl='streaming'"):
        ops.pairwise_topk(x, y, k=129, impl="triton")
    assert ops.pairwise_topk(x, y, k=129)[0].shape == (3, 129)  # "auto" finds the one that can


# --- Contrastive loss -----------------------------------------------------------------------------


@pytest.mark.few(M=7, scale=5.0)
@every_similarity
@pytest.mark.parametrize(
    ("N", "M", "D", "scale"),
    [(*size, scale) for size in [(1, 1, 3), (1, 7, 40), (130, 150, 70)] for scale in (5.0, 100.0)]
    + [(252, 507, 16, 100.0)],
)
def test_loss_and_gradients(similarity, N, M, D, scale):
    # Of the cosine, the naive expression has no derivative at the origin.
    x, y = clouds(N, M, D, origin=similarity != "cosine")
    positive = torch.eye(N, M, dtype=torch.bool)
    limits = {"rtol": 2e-5, "atol": 1e-6 * scale}
    compare(x, y, similarity, positive, 0, scale=scale, impl="triton", **limits)


@pytest.mark.few(similarity="angles")
@every_similarity
def test_the_mean_of_pairs(similarity):
    x, y = clouds(70, 70, 40, origin=similarity != "cosine")
    positive = torch.eye(70, dtype=torch.bool)
    how = {"impl": "triton", "rtol": 2e-5, "atol": 5e-6}
    compare(x, y, similarity, positive, None, **how)


LABELS = (torch.tensor([3, 3, -7, 5, 3, 8, 8, 99, 3]), torch.tensor([5, 3, 3, 9, 9, 8, -7, 3, 1]))


@pytest.mark.few(similarity="angles")
@every_similarity
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("targets", [None, LABELS], ids=["pairs", "labels"])
def test_reductions(similarity, reduction, targets):
    """Losses and gradients are those of the streaming implementation, of unequal weights too."""
    x, y = (points(9, 20, torch.float32, seed=s).to(DEVICE) for s in (0, 1))
    targets = tuple(z.to(DEVICE) for z in targets) if targets else None
    weights, found = torch.linspace(-1, 2, 9), []
    for dtype, impl in ((torch.float32, "triton"), (torch.float64, "streaming")):
        leaves = [z.to(dtype).requires_grad_() for z in (x, y, torch.tensor([0.7, 5.0]))]
        loss = contrastive_loss(
            *leaves[:2], *leaves[2], **OPTIONS[similarity], targets=targets,
            reduction=reduction, impl=impl,
        )  # fmt: skip
        if reduction == "none":
            found += [[z.detach().double() for z in loss]]
            loss = (weights * loss[0]).sum() + (weights.flip(0) * loss[1]).sum()
        found += [[loss.double(), *(z.double() for z in torch.autograd.grad(loss, leaves))]]
    half = len(found) // 2
    for got, expected in zip(found[:half], found[half:], strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=5e-6)


def test_a_single_pair_has_no_loss():
    x, y = (z.requires_grad_() for z in clouds(1, 1, 40))
    loss = contrastive_loss(x, y, impl="triton")
    assert loss == 0
    assert not any(by.any() for by in torch.autograd.grad(loss, (x, y)))


@pytest.mark.parametrize("targets", [None, torch.tensor([1, 1, 2, 3, 2])], ids=["pairs", "labels"])
def test_second_derivatives(targets):
    x, y = (z.double() for z in clouds(5, 5, 40, origin=False))
    targets, found = targets if targets is None else targets.to(DEVICE), []
    for dtype, impl in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaf = x.to(dtype).clone().requires_grad_()
        (first,) = torch.autograd.grad(
            contrastive_loss(leaf, y.to(dtype), targets=targets, impl=impl),
            leaf,
            create_graph=True,
        )
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0].double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_results_do_not_follow_the_default_dtype():
    x, y = clouds(9, 9, 40)
    torch.set_default_dtype(torch.float64)
    try:
        leaves = [z.clone().requires_grad_() for z in (x, y)]
        loss = contrastive_loss(*leaves, impl="triton")
        found = [loss, ops.pairwise_dist(x, y, impl="triton"), *torch.autograd.grad(loss, leaves)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {z.dtype for z in found} == {torch.float32}


@pytest.mark.parametrize("kind", ["dist", "exterior_angle"])
def test_nan_is_seen_in_its_pairs_alone(kind):
    x, y = (points(n, 40, torch.float32, seed=s).to(DEVICE) for n, s in ((9, 0), (8, 1)))
    x[3, 5] = torch.nan
    found = PAIRWISE[kind](x, y, impl="triton")
    assert found[3].isnan().all()
    assert found.isnan().sum() == 8


@pytest.mark.thorough
@pytest.mark.parametrize("capability", CONFIGS)
def test_sizes_of_other_devices(monkeypatch, capability):
    monkeypatch.setitem(CONFIGS, max(CONFIGS), CONFIGS[capability])
    x, y = clouds(130, 150, 70)
    limits = {"rtol": 2e-5, "atol": 5e-6}
    compare(x, y, "angles", torch.eye(130, 150, dtype=torch.bool), 0, impl="triton", **limits)
    found = ops.pairwise_dist(x, y, impl="triton")
    exact = ops.pairwise_dist(x.double(), y.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@every_similarity
def test_labels_with_several_positives_and_with_none(similarity):
    x, y = (points(n, 20, torch.float32, seed=s).to(DEVICE) for n, s in ((9, 0), (11, 1)))
    of_x = torch.tensor([3, 3, -7, 5, 10**12, 3, 8, 8, 5])
    of_y = torch.tensor([5, 3, 3, 9, 9, 8, -7, 3, 5, 5, 1])
    positive = of_x[:, None] == of_y
    compare(x, y, similarity, positive, (of_x, of_y), impl="triton", rtol=2e-5, atol=1e-6)


@pytest.mark.few(radius=39.0)
@every_similarity
@pytest.mark.parametrize("radius", [1e-6, 1.0, 39.0])
def test_gradients_at_every_radius(similarity, radius):
    x, y = clouds(30, 30, 20)
    for z in (x, y):
        z.mul_(torch.sinh(torch.tensor(radius)) / z.norm(dim=1, keepdim=True).clamp_min(1e-9))
    inputs = [t.requires_grad_() for t in (x, y, torch.tensor(1.0), torch.tensor(5.0))]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    got, expected = (
        torch.autograd.grad(
            contrastive_loss(*z, **OPTIONS[similarity], impl=impl), z, materialize_grads=True
        )
        for z, impl in ((inputs, "triton"), (wide, "streaming"))
    )
    for name, a, b in zip(["x", "y", "curv", "logit_scale"], got, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6, name


@pytest.mark.thorough
@every_similarity
@pytest.mark.parametrize(("precision", "bound"), [("high", 2e-3), ("medium", 2e-2)])
def test_losses_of_lower_precision(similarity, precision, bound):
    x, y = (points(60, 200, torch.float32, seed=s).to(DEVICE) for s in (0, 1))
    compare(x, y, similarity, torch.eye(60, dtype=torch.bool), None, precision=precision,
            impl="triton", rtol=bound, atol=bound)  # fmt: skip


@pytest.mark.thorough
def test_workspace_in_parts(monkeypatch):
    """As for batches of which one matrix of weights would be too large."""
    x, y = clouds(200, 130, 70)
    monkeypatch.setattr(launch, "CHUNK", 70 * 130)
    labels = torch.arange(200), torch.arange(130)
    positive = labels[0][:, None] == labels[1]
    compare(x, y, "angles", positive, labels, impl="triton", rtol=2e-5, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_opcheck():
    for op, args in custom_ops("triton", torch.float32):
        torch.library.opcheck(op.default, args)
