"""Batches of matrices take one set of launches: each matrix is what it is alone."""

import math

import pytest
import torch
from pairwise_calls import PAIRWISE, points

from lorentzkit import ops
from lorentzkit.fused.triton import launch, products

pytestmark = pytest.mark.usefixtures("uninitialised_memory_is_nan")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CURVATURES = torch.tensor([0.3, 1.0, 2.5])
every_op = pytest.mark.parametrize("op", PAIRWISE)


def clouds(B, N, M, D):
    """Each in a cone of its own, with close pairs, equal and opposite ones, and the origin."""
    x, y = (points(B * n, D, torch.float32, seed=s).view(B, n, D) for n, s in ((N, 0), (M, 1)))
    axes = points(B, D, torch.float32, seed=2)[:, None]
    x, y = x + axes, y + axes
    if min(N, M) > 4:
        x[:, 0], x[:, 1] = y[:, 0], y[:, 1] * 1.003 + 1e-3
        x[:, 2], x[:, 3] = -2 * y[:, 2], -y[:, 3] + 1e-3
        x[:, 4] = 0
    return x.to(DEVICE), y.to(DEVICE)


def weights(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(DEVICE)


def results(op, tensors, at, **how):
    """The value and the gradients by x, y and curv."""
    leaves = [z.clone().requires_grad_() for z in tensors]
    out = PAIRWISE[op](*leaves, **how)
    return [out.detach(), *torch.autograd.grad(out, leaves, at.to(out.dtype))]


def one_by_one(op, tensors, at, **how):
    found = [results(op, of, of_at, **how) for *of, of_at in zip(*tensors, at, strict=True)]
    return [torch.stack(column) for column in zip(*found, strict=True)]


def assert_near(got, expected, bound=1e-6):
    """Of the terms' size; to rounding, for sums may be taken in another order."""
    for name, a, b in zip(["value", "x", "y", "curv"], got, expected, strict=True):
        assert a.shape == b.shape, name
        error, size = (a.double() - b.double()).abs().max(), b.abs().max().clamp_min(1)
        assert error <= bound * size, (name, float(error), float(size))


def assert_like_single_ones(op, B, N, M, D, precision="highest", curv=CURVATURES):
    tensors = *clouds(B, N, M, D), curv[:B].to(DEVICE)
    how = {"impl": "triton", "precision": precision}
    # Strides of another order than those of the result
    at = weights(B, M, N).mT
    got = results(op, tensors, at, **how)
    assert_near(got, one_by_one(op, tensors, at, **how))
    return tensors, at, got


@pytest.mark.few(op="exterior_angle", D=20)
@every_op
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("D", [3, 20, 70])
def test_batches_are_what_their_matrices_are(op, D, precision):
    """Of several tiles each; a program goes through those of more than one."""
    tensors, at, got = assert_like_single_ones(op, 2, 70, 40, D, precision)
    if precision == "highest":
        exact = results(op, [z.double() for z in tensors], at, impl="reference")
        assert_near(got, exact, 1e-3)  # some angles turn by 700 a unit


@pytest.mark.few(N=530)
@pytest.mark.parametrize(("N", "M"), [(530, 3), (3, 530)])
def test_products_that_are_split(monkeypatch, N, M):
    """And the rows of a matrix that several programs prepare."""
    monkeypatch.setattr(products, "programs", lambda _: 132)
    assert_like_single_ones("dist", 2, N, M, 20)


@pytest.mark.thorough
def test_parts_of_the_rows(monkeypatch):
    monkeypatch.setattr(launch, "CHUNK", 2 * 40 * 64)
    assert_like_single_ones("exterior_angle", 2, 150, 40, 20)


@pytest.mark.few(size=[(3, 1, 1, 20)])
@pytest.mark.parametrize("size", [(1, 5, 6, 20), (1, 1, 1, 3), (3, 1, 1, 20), (3, 1, 7, 3)])
def test_small_batches_and_single_points(size):
    assert_like_single_ones("dist", *size)


SHAPES = [
    ((3,), (), ()),
    ((), (3,), ()),
    ((2, 1), (3,), (3,)),
    ((1, 3), (2, 1), (2, 1)),
    ((1,), (1, 1), (2, 3)),
]


@pytest.mark.few(shapes=SHAPES[2:3])
@pytest.mark.parametrize("shapes", SHAPES)
def test_what_broadcasts(shapes):
    """Gradients are summed over the dimensions that an operand is expanded in."""
    tensors = *clouds(6, 9, 8, 20), torch.linspace(0.3, 2.5, 6).to(DEVICE)
    x, y, curv = (
        z[: math.prod(of)].view(of + z.shape[1:]) for z, of in zip(tensors, shapes, strict=True)
    )
    batch = torch.broadcast_shapes(*shapes)
    at = weights(*batch, 9, 8)
    got = results("exterior_angle", (x, y, curv), at, impl="triton")
    wide = x.double(), y.double(), curv.double()
    assert_near(got, results("exterior_angle", wide, at, impl="reference"), 1e-4)
    if len(batch) == 1:  # expanded by the caller, with strides of 0
        expanded = *(z.expand(*batch, *z.shape[-2:]) for z in (x, y)), curv.expand(batch)
        grads = results("exterior_angle", expanded, at, impl="triton")
        summed = [g.sum_to_size(z.shape) for g, z in zip(grads[1:], (x, y, curv), strict=True)]
        assert_near(got, [grads[0], *summed])


def test_gradients_of_a_sum():
    """Which have strides of 0."""
    x, y = clouds(3, 9, 8, 20)
    curv, at = torch.tensor(1.0, device=DEVICE), torch.ones(3, 9, 8, device=DEVICE)
    expected = results("dist", (x, y, curv), at, impl="triton")[1]
    ops.pairwise_dist(x.requires_grad_(), y, impl="triton").sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize(("of_x", "of_y"), [((0,), (0,)), ((0,), (1,)), ((2, 0), ())])
def test_empty_batches(of_x, of_y):
    x, y = torch.ones(*of_x, 4, 20, device=DEVICE), torch.ones(*of_y, 5, 20, device=DEVICE)
    tensors, at = (x, y, torch.tensor(0.7, device=DEVICE)), torch.ones(*of_x, 4, 5, device=DEVICE)
    out, *grads = results("dist", tensors, at, impl="triton")
    assert out.shape == at.shape
    for leaf, by in zip(tensors, grads, strict=True):
        assert torch.equal(by, torch.zeros_like(leaf))


def test_second_derivatives():
    x, y = (z.double() for z in clouds(2, 5, 6, 20))
    x, y, found = x + 0.1, y, []
    for dtype, impl in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaf = x.to(dtype).requires_grad_()
        out = ops.pairwise_dist(leaf, y.to(dtype), impl=impl)
        (first,) = torch.autograd.grad(out.square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), leaf)[0].double())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_vmap_is_a_batch():
    x, y = clouds(3, 5, 6, 20)
    found = torch.vmap(lambda x: ops.pairwise_dist(x, y[0], impl="triton"))(x)
    assert torch.equal(found, ops.pairwise_dist(x, y[0], impl="triton"))
