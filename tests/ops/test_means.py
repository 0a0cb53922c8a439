"""The means of many points: O(N D), from a place and by blocks of rows.

The means of few, by their pairs, are among the ops of all other tests. Here `_FEW` and `_CHUNK` are
as if those few were many.
"""

import math

import pytest
import torch
from condition import gradient_errors, value_error
from exactness import examples
from hypothesis import assume, given, note
from hypothesis import strategies as st
from strategies import clouds, cotangents
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, vmap

from lorentzkit import ops
from lorentzkit._geometry import means, midpoint
from lorentzkit._geometry.special import largest_radius

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
        monkeypatch.setattr(midpoint, "_CHUNK", 0)


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


@pytest.fixture(params=["near", "from a point", "plain", "pairs"])
def route(request, monkeypatch, many):
    """How the midpoint is found: from the origin where that will do, or not, or transformed."""
    if request.param == "pairs":
        monkeypatch.setattr(means, "_few", lambda x: True)
    if request.param == "from a point":
        monkeypatch.setattr(midpoint.KleinSums, "origin_suffices", lambda self, spare: False)
    if request.param in ("plain", "pairs"):
        monkeypatch.setattr(means, "values_at_hand", lambda tensor: False)
    return request.param


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_midpoint_of_many_points_is_exact(dtype, route):
    """At any radius, if it is not transformed; by pairs, if it is."""
    exact = 10.0 if dtype == torch.float32 else 1.0
    radius = exact if route == "plain" else largest_radius(dtype)
    check_many("einstein_midpoint", dtype, radius, 1000 if (route, exact) == ("plain", 1.0) else 16)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_frechet_mean_of_many_points(dtype, rows):
    """Of float32, exact within radius 10; of a type that none is wider than, gradients lose digits,
    the more the farther out.
    """
    radius, most = (10.0, 16) if dtype == torch.float32 else (1.0, 1000)
    check_many("frechet_mean", dtype, radius, most)


def check_many(op, dtype, radius, most):
    """Values, of float32 anywhere, and gradients within a radius."""

    @examples(op)
    @given(st.data())
    def check(data):
        within = clouds_within(radius, dtype, smooth=True)
        case = data.draw(clouds(dtype, smooth=False) if dtype == torch.float32 else within)
        assert value_error(op, *case[:2]) <= 16
        case = data.draw(within)
        errors = gradient_errors(op, *case[:2], data.draw(cotangents(case)))
        note(f"errors: {errors}")
        assert max(errors.values()) <= most

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


@pytest.mark.few(place="generic", rows="row by row")
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


@pytest.mark.few(place=["generic", "far"], D=33)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("D", [3, 33])
def test_every_way_to_a_midpoint_is_the_same(place, D, rows, monkeypatch):
    """Values, first, second and batched derivatives, of float32 points near the origin."""
    results = []
    for route in ("near", "from a point", "plain"):
        if route == "from a point":
            monkeypatch.setattr(midpoint.KleinSums, "origin_suffices", lambda self, spare: False)
        if route == "plain":
            monkeypatch.setattr(means, "values_at_hand", lambda tensor: False)
        leaves = [t.float().requires_grad_() for t in arguments(place, D=D)]
        m = ops.einstein_midpoint(*leaves)
        first = torch.autograd.grad(m.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(f.cos().sum() for f in first), leaves)
        m = ops.einstein_midpoint(*leaves)
        each = torch.autograd.grad(
            m, leaves, torch.eye(D), is_grads_batched=True, retain_graph=True
        )
        plain = torch.autograd.grad(m.sin().sum(), leaves)
        results.append([m, *plain, *first, *second, *each])
    for *computed, expected in zip(*results, strict=True):
        size = expected.detach().abs().max().item()
        for got in computed:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * size + 1e-12)


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
