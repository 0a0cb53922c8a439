"""The means of many points: O(N D), from a place and by blocks of rows.

The means of few, by their pairs, are among the ops of all other tests. Here `_FEW` and `_CHUNK` are
as if those few were many.
"""

import math

import pytest
import torch
from condition import gradient_errors, value_error
from hypothesis import assume, given, note
from hypothesis import strategies as st
from strategies import clouds, cotangents
from test_exactness import examples
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from lorentzkit import ops
from lorentzkit._geometry import means, places

MEANS = ["einstein_midpoint", "frechet_mean"]
each_mean = pytest.mark.parametrize("op", MEANS)
PLACES = ["generic", "equal", "at the origin", "aligned", "mean at the origin", "far"]


@pytest.fixture
def many(monkeypatch):
    """Few points count as many."""
    monkeypatch.setattr(means, "_FEW", 0)
    monkeypatch.setattr(means, "_FEW_OF_WIDEST", 0)


@pytest.fixture(params=["at once", "row by row"])
def rows(request, monkeypatch, many):
    if request.param == "row by row":
        monkeypatch.setattr(places, "_CHUNK", 0)


@st.composite
def clouds_within(draw, radius, dtype, smooth):
    """Two weights at least are positive: else the mean is a point, and its derivatives are zero to
    the last digit, which takes pairs.
    """
    points, weights = (case := draw(clouds(dtype, smooth))).args
    assume((weights > 0).sum() >= 2)
    longest = math.sinh(radius) / case.curv.sqrt()
    points = points * (longest / points.norm(dim=-1, keepdim=True)).clamp_max(1.0)
    return case._replace(args=[points, weights])


@pytest.mark.parametrize("near", [True, False])
@each_mean
def test_the_means_of_many_float32_points_are_exact(op, near, rows, monkeypatch):
    """Values anywhere, gradients within radius 10; near: plain sums wherever they will do."""
    if not near:
        monkeypatch.setattr(places.Sums, "near", lambda self: False)

    @examples(op)
    @given(st.data())
    def check(data):
        case = data.draw(clouds(torch.float32, smooth=False))
        assert value_error(op, *case[:2]) <= 16
        case = data.draw(clouds_within(10.0, torch.float32, smooth=True))
        errors = gradient_errors(op, *case[:2], data.draw(cotangents(case)))
        note(f"errors: {errors}")
        assert max(errors.values()) <= 16

    check()


@each_mean
def test_the_means_of_many_float64_points(op, rows):
    """Of a type that none is wider than: gradients lose digits, the more the farther out."""

    @examples(op)
    @given(st.data())
    def check(data):
        case = data.draw(clouds_within(1.0, torch.float64, smooth=True))
        assert value_error(op, *case[:2]) <= 16
        errors = gradient_errors(op, *case[:2], data.draw(cotangents(case)))
        note(f"errors: {errors}")
        assert max(errors.values()) <= 1000

    check()


def arguments(place, N=4, D=2):
    generator = torch.Generator().manual_seed(N)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    w = torch.rand(N, generator=generator, dtype=torch.float64) + 0.1
    if place == "mean at the origin":
        x, w = torch.cat([x, -x]), torch.cat([w, w])
    scales = torch.linspace(-1, 2, len(x)).double()[:, None]
    x = {
        "equal": x[:1].expand_as(x),
        "at the origin": 0 * x,
        "aligned": x[:1] * scales,
        "far": 30 * x,
    }.get(place, x)
    return x.clone(), w, torch.tensor(0.7, dtype=torch.float64)


@each_mean
@pytest.mark.parametrize("place", PLACES)
def test_derivatives(op, place, rows):
    args = [t.requires_grad_() for t in arguments(place)]
    size = max(1.0, args[0].detach().norm().item())
    assert gradcheck(getattr(ops, op), args, atol=1e-8 * size**2, rtol=1e-6, check_forward_ad=True)
    assert gradgradcheck(getattr(ops, op), args, atol=1e-7 * size**2, rtol=1e-6)


@each_mean
def test_many_points_are_as_few(op, monkeypatch):
    """From a place or from pairs."""
    leaves = [t.requires_grad_() for t in arguments("generic", N=40, D=5)]
    few = getattr(ops, op)(*leaves)
    monkeypatch.setattr(means, "_FEW_OF_WIDEST", 0)
    many = getattr(ops, op)(*leaves)
    torch.testing.assert_close(many, few, rtol=1e-12, atol=1e-14)
    for a, b in zip(
        *(torch.autograd.grad(m.sin().sum(), leaves) for m in (many, few)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@each_mean
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_point_a_thousand_times(op, dtype):
    """Blocks of rows, as they come."""
    x, w, c = (t.to(dtype) for t in arguments("generic", D=33))
    results = []
    for times in (1, 1000):
        leaves = [t.repeat_interleave(times, 0).requires_grad_() for t in (x, w / times)]
        m = getattr(ops, op)(*leaves, c)
        of_x, of_w = torch.autograd.grad(m.sin().sum(), leaves)
        results.append([m, of_x.unflatten(0, (-1, times)).sum(1), of_w[::times]])
    eps = torch.finfo(dtype).eps
    for few, many in zip(*results, strict=True):
        torch.testing.assert_close(many, few, rtol=1e3 * eps, atol=1e2 * eps)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("D", [3, 33])
def test_plain_sums_are_as_exact(place, D, rows, monkeypatch):
    """Of float32 points near the origin: the midpoint, its first and its second derivatives."""
    results = []
    for near in (True, False):
        if not near:
            monkeypatch.setattr(places.Sums, "near", lambda self: False)
        leaves = [t.float().requires_grad_() for t in arguments(place, D=D)]
        m = ops.einstein_midpoint(leaves[0], leaves[1], leaves[2])
        first = torch.autograd.grad(m.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(f.cos().sum() for f in first), leaves)
        each = torch.eye(D)
        m = ops.einstein_midpoint(*leaves)
        rows_of = torch.autograd.grad(m, leaves, each, is_grads_batched=True)
        results.append([m, *first, *second, *rows_of])
    for plain, expected in zip(*results, strict=True):
        size = expected.detach().abs().max().item()
        torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5 * size + 1e-12)


@each_mean
def test_sets_of_many_points_in_a_batch(op, rows):
    x, w, _ = arguments("generic", N=24, D=3)
    x, w = x.reshape(2, 3, 4, 3), w.reshape(2, 3, 4)
    c = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    x[1, 1, 0, 0] = torch.nan
    got = getattr(ops, op)(x, w, c)
    got_other_dim = getattr(ops, op)(x.movedim(-2, 0), w.movedim(-1, 0), c, dim=0)
    torch.testing.assert_close(got, got_other_dim, equal_nan=True)
    assert got[1, 1].isnan().any()
    for i, j in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
        alone = getattr(ops, op)(x[i, j], w[i, j], c[i, 0])
        torch.testing.assert_close(got[i, j], alone, rtol=1e-12, atol=1e-14)


def test_transforms_of_the_midpoint_of_many_points():
    args = arguments("generic", N=70, D=3)

    def loss(x, w, c):
        return ops.einstein_midpoint(x, w, c).sin().sum()

    def close(got, expected):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-13)

    leaves = [t.clone().requires_grad_() for t in args]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    close(grad(loss, argnums=(0, 1, 2))(*args), expected)
    close(jacrev(loss, (0, 1, 2))(*args), expected)
    close(jacfwd(loss, (1, 2))(*args), expected[1:])
    close(vmap(ops.einstein_midpoint)(*(t[None] for t in args))[0], ops.einstein_midpoint(*args))
    close(hessian(loss, 1)(*args), torch.autograd.functional.hessian(loss, args)[1][1])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    close(torch.autograd.grad(compiled(*leaves), leaves), expected)


@each_mean
def test_a_hundred_thousand_points(op):
    """Their pairs would not fit into memory."""
    x = 0.1 * torch.randn(100_000, 4, generator=torch.Generator().manual_seed(0))
    m = getattr(ops, op)(x.requires_grad_())
    of_x = torch.autograd.grad(m.sum(), x)[0]
    assert m.norm() < 1e-2
    torch.testing.assert_close(of_x.sum(0), torch.ones(4), rtol=0.1, atol=0)


def test_a_frechet_mean_that_needs_damping(many):
    """Newton's method alone leaps from side to side of far points that pull the same way."""
    x = torch.tensor([[0.0, 1.0], [1e6, 1.0], [-1e6, 2.0], [1e3, -1e6]], dtype=torch.float64)
    w = torch.tensor([1e-4, 1.0, 1.0, 1e-3], dtype=torch.float64)
    m = ops.frechet_mean(x, w).requires_grad_()
    pull = torch.autograd.grad((w * ops.dist(m, x) ** 2).sum(), m)[0]
    assert (ops.egrad2rgrad(m.detach(), pull).norm()) < 1e-6
