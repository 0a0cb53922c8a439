"""The pairwise ops: exact for every pair, in every implementation, and without the matrix."""

import itertools
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from condition import gradient_errors, value_error
from hypothesis import assume, given, note
from hypothesis import strategies as st
from pairwise_calls import BOUND, PAIRWISE, SEARCHES, Largest, in_a_crowd, measurable, points
from strategies import CASES

from lorentzkit import ops
from lorentzkit._geometry import compilation
from lorentzkit.fused import streaming
from lorentzkit.fused.folding import fold
from lorentzkit.fused.operands import directions, operands
from lorentzkit.fused.problems import PairwiseProblem, Search

DTYPES = [torch.float32, torch.float64]
RAGGED = [(1, 7), (7, 1), (20, 31), (507, 1023)]
every_op = pytest.mark.parametrize("op", PAIRWISE)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


# --- Exactness ----------------------------------------------------------------------------------


@every_op
@every_dtype
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_values_are_exact(op, dtype, impl):
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](dtype, smooth=False))
        assume(measurable(*case.args, case.curv))
        function = in_a_crowd(op, impl=impl)
        assert value_error(op, case.args, case.curv, function=function) <= BOUND

    check()


@every_op
@pytest.mark.parametrize(
    ("impl", "dtype"),
    [
        ("streaming", torch.float32),
        ("streaming", torch.float64),
        ("reference", torch.float64),  # the specification is read in float64
    ],
)
@pytest.mark.usefixtures("device")
def test_gradients_are_exact(op, impl, dtype):
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](dtype, smooth=True))
        assume(measurable(*case.args, case.curv))
        errors = gradient_errors(op, case.args, case.curv, function=in_a_crowd(op, impl=impl))
        note(f"errors: {errors}")
        assert max(errors.values()) <= BOUND

    check()


@pytest.mark.parametrize("D", [64, 1024])
@pytest.mark.parametrize("cone", [0.01, 0.3, 3.0])
def test_narrow_cones_of_many_dimensions(D, cone):
    """As embeddings of one modality are; every product here is nearly 1."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.randn(D, generator=generator)
    x, y = (axis + cone * torch.randn(40, D, generator=generator) for _ in range(2))
    exact = ops.dist(x.double()[:, None], y.double())
    error = (ops.pairwise_dist(x, y, impl="streaming").double() - exact).abs()
    # One rounding of the inputs, along and across, moves a distance by about that much.
    assert (error <= BOUND * 2.0**-24 * (exact + 2)).all()


@pytest.mark.parametrize("D", [17, 64, 512])
@pytest.mark.parametrize("opposite", [False, True])
def test_what_is_not_recomputed_need_not_be(D, opposite):
    """Just past the threshold the product's error in h is what the bound allows, of any pair."""
    generator, size = torch.Generator().manual_seed(D), 400
    axes = torch.nn.functional.normalize(torch.randn(2, size, D, generator=generator), dim=-1)
    angles = torch.linspace(0.02, 1.0, size)[:, None]
    x, y = axes[0], axes[0] * angles.cos() + axes[1] * angles.sin()
    prepared = directions(x, -y if opposite else y, "highest")
    h = torch.empty(size, size)
    fold("exterior", h, prepared.x, prepared.y, prepared.mean, prepared.threshold())
    h = h.diagonal().double()
    u, v = (z.double() / z.double().norm(dim=-1, keepdim=True) for z in (x, y))
    near, far = ((u - sign * v).square().sum(-1) / 2 for sign in (1, -1))
    exact = torch.where(h < 0, -near, far) if opposite else near  # folded, where recomputed
    allowed = BOUND * 2.0**-24 * 2 * (near * far).sqrt()  # sin(theta)^2 = h (2 - h)
    assert ((h - exact).abs() <= allowed).all()
    recomputed = h < 0 if opposite else h < prepared.threshold()
    assert 0 < recomputed.sum() < size


def test_the_product_alone_would_not_do(monkeypatch):
    """Without the differences, which the threshold calls for, close pairs are lost."""
    x = points(40, 64, torch.float32, seed=1)
    y = x + 1e-4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    exact = ops.dist(x.double(), y.double())

    def worst():
        return (ops.pairwise_dist(x, y).diagonal() / exact - 1).abs().max()

    assert worst() < 1e-4
    monkeypatch.setattr("lorentzkit.fused.operands.recompute_below", lambda D, spread=1.0: 0.0)
    assert worst() > 1e-3


@pytest.mark.few(N=[1, 7, 20])
@every_op
@pytest.mark.parametrize(("N", "M"), RAGGED)
@pytest.mark.parametrize("D", [3, 20])
def test_streaming_is_the_reference(monkeypatch, op, N, M, D):
    """All pairs and all gradients by name, in odd sizes, with degenerate points among them."""
    monkeypatch.setattr(streaming, "ROWS", max(1, 2 * N // 5))
    monkeypatch.setattr(streaming, "COLUMNS", max(1, 3 * M // 10))
    x, y = points(N, D), points(M, D, seed=1)
    x[0], y[-1] = y[0], -2 * x[-1]
    if N > 2 and M > 2:
        x[1], y[1] = 0, 0
    grad_output = torch.randn(N, M, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    results = {}
    for impl in ("streaming", "reference"):
        named = {"x": x, "y": y, "curv": torch.tensor(0.7, dtype=x.dtype)}
        leaves = {name: t.clone().requires_grad_() for name, t in named.items()}
        out = PAIRWISE[op](**leaves, impl=impl)
        grads = torch.autograd.grad(out, list(leaves.values()), grad_output)
        results[impl] = {"value": out.detach(), **dict(zip(leaves, grads, strict=True))}
    for name, expected in results["reference"].items():
        torch.testing.assert_close(
            results["streaming"][name],
            expected,
            rtol=1e-9,
            atol=1e-10,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(("precision", "bound"), [("high", 2.0**-10), ("medium", 2.0**-7)])
def test_lower_precision_is_that_of_points_moved_by_as_much(precision, bound):
    x, y = points(60, 300, torch.float32), points(50, 300, torch.float32, seed=1)
    off = ops.pairwise_dist(x, y, precision=precision) - ops.pairwise_dist(x, y)
    assert 1e-7 < off.abs().max() < bound
    same = ops.pairwise_dist(x, x, precision=precision).diagonal()
    assert torch.equal(same, torch.zeros_like(same))


# --- Top-k ----------------------------------------------------------------------------------------


@pytest.mark.few(D=40)
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("D", [3, 40])
def test_topk_is_that_of_the_matrix(search, largest, D):
    options, matrix = SEARCHES[search]
    every = [z.requires_grad_() for z in (points(37, D), points(1500, D, seed=1))]
    expected = matrix(*every, 0.5).topk(10, largest=largest)
    grad_output = torch.randn(37, 10, generator=torch.Generator().manual_seed(0)).double()
    grads = torch.autograd.grad(expected.values, every, grad_output)
    for chunk in (None, 1, 7, 5000):
        values, indices = ops.pairwise_topk(
            *every, 0.5, k=10, largest=largest, chunk=chunk, **options
        )
        torch.testing.assert_close(values, expected.values, rtol=1e-12, atol=1e-13)
        assert torch.equal(indices, expected.indices)
    found = torch.autograd.grad(values, every, grad_output)
    torch.testing.assert_close(found, grads, rtol=1e-10, atol=1e-11)


def test_topk_of_all_and_of_ties():
    x = torch.zeros(2, 3)
    values, indices = ops.pairwise_topk(x, torch.ones(4, 3), k=4)
    torch.testing.assert_close(values, ops.dist(x[0], torch.ones(3)).expand(2, 4))
    assert all(row.sort().values.tolist() == [0, 1, 2, 3] for row in indices)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("largest", [False, True])
def test_topk_with_a_curvature_for_each_query(search, largest):
    """Each row is that of its own curvature alone, gradients by equal curvatures apart."""
    x, y = points(12, 20), points(50, 20, seed=1)
    curv = torch.tensor([0.3, 1.0, 4.0], dtype=x.dtype)[torch.arange(12) % 3]
    options = SEARCHES[search][0] | {"k": 4, "largest": largest}
    every = [t.clone().requires_grad_() for t in (x, y, curv)]
    values, indices = ops.pairwise_topk(*every, **options)
    rows = [z.clone().requires_grad_() for z in (x, y, curv)]
    alone = [
        ops.pairwise_topk(rows[0][i : i + 1], rows[1], rows[2][i], **options) for i in range(12)
    ]
    expected = torch.cat([v for v, _ in alone])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-13)
    assert torch.equal(indices, torch.cat([i for _, i in alone]))
    grad_output = torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    for a, b in zip(
        torch.autograd.grad(values, every, grad_output),
        torch.autograd.grad(expected, rows, grad_output),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_topk_of_no_queries():
    x, y, curv = (torch.ones(s, requires_grad=True) for s in ((0, 3), (5, 3), ()))
    for c in (curv, torch.ones(0, requires_grad=True)):
        values, indices = ops.pairwise_topk(x, y, c, k=2)
        assert values.shape == indices.shape == (0, 2)
        assert values.dtype == x.dtype
        assert indices.dtype == torch.int64
        for leaf, by in zip((x, y, c), torch.autograd.grad(values.sum(), (x, y, c)), strict=True):
            assert torch.equal(by, torch.zeros_like(leaf))


def test_topk_values_are_differentiable():
    x, y = points(3, 20).requires_grad_(), points(9, 20, seed=1).requires_grad_()
    curv = torch.tensor(0.7, dtype=x.dtype, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: ops.pairwise_topk(*a, k=2)[0], (x, y, curv))


# --- Memory ---------------------------------------------------------------------------------------


def test_topk_makes_no_matrix(monkeypatch):
    monkeypatch.setattr(compilation, "compiles", lambda *_: False)
    x, y, c = points(1100, 20), points(2500, 20, seed=1), torch.ones(1, dtype=torch.float64)
    problem = PairwiseProblem(x, y, c, "distance", "highest")
    with Largest() as largest:
        streaming.topk(problem, Search(5, largest=False, apex="x", chunk=0))
    assert largest.numel <= streaming.ROWS * streaming.COLUMNS
    with Largest() as largest:
        streaming.matrix(replace(problem, x=x[None], y=y[None], c=c[None]))
    assert largest.numel == 1100 * 2500  # the result: the mode does see it


def test_the_centre_takes_the_cone_out_of_the_product():
    axis = torch.ones(500)
    x = axis + 0.1 * torch.randn(100, 500, generator=torch.Generator().manual_seed(0))
    near = operands(x, x, torch.ones(1), "highest").threshold
    far = operands(x - axis, x - axis, torch.ones(1), "highest").threshold
    assert near < far / 100


# --- Arguments --------------------------------------------------------------------------------


@every_op
@every_dtype
@pytest.mark.parametrize("impl", ["streaming", "reference"])
def test_no_points_and_no_clouds(op, impl, dtype):
    """As of `torch.cdist`: the shape of the empty result, and gradients of 0."""
    leading = [
        ((0,), (5,)),
        ((5,), (0,)),
        ((0,), (0,)),
        ((0, 4), (0, 3)),
        ((0, 4), (3,)),
        ((2, 0), (2, 3)),
        ((2, 1, 4), (0, 3)),
    ]
    for D, shapes in itertools.product((3, 20), leading):
        x, y = (torch.ones(*shape, D, dtype=dtype, requires_grad=True) for shape in shapes)
        curv = torch.ones((), dtype=dtype, requires_grad=True)
        out = PAIRWISE[op](x, y, curv, impl=impl)
        assert out.shape == torch.cdist(x.detach(), y.detach()).shape, (D, shapes)
        assert out.dtype == dtype
        for leaf, by in zip(
            (x, y, curv), torch.autograd.grad(out.sum(), (x, y, curv)), strict=True
        ):
            assert torch.equal(by, torch.zeros_like(leaf)), (D, shapes)


def test_no_clouds_of_their_own_curvatures():
    x, curv = torch.ones(0, 4, 3), torch.ones(0, requires_grad=True)
    out = ops.pairwise_dist(x, x, curv)
    assert out.shape == (0, 4, 4)
    assert torch.autograd.grad(out.sum(), curv)[0].shape == (0,)


def test_leading_dimensions_and_curvatures_broadcast():
    x, y = points(12, 3).view(2, 1, 6, 3), points(12, 3, seed=1).view(1, 3, 4, 3)
    curv = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype)
    for impl in ("streaming", "reference"):
        got = ops.pairwise_dist(x, y, curv, impl=impl)
        assert got.shape == (2, 3, 6, 4)
        expected = ops.dist(x[..., :, None, :], y[..., None, :, :], curv[:, None, None])
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@every_op
@pytest.mark.parametrize("impl", ["streaming", "reference"])
@pytest.mark.parametrize("leading", [((), (3,)), ((3,), ()), ((2, 1), (3,)), ((1,), (2, 3))])
def test_close_pairs_of_leading_dimensions_that_broadcast(op, impl, leading):
    """Which are computed again from differences, each from its own points."""
    x, y = (
        points(math.prod(of) * n, 20, seed=n).view(*of, n, 20)
        for n, of in zip((5, 4), leading, strict=True)
    )
    y[..., :2, :] = x.expand(2, 3, 5, 20)[1, 2, :2] + 1e-6
    got = PAIRWISE[op](x, y, 0.7, impl=impl)
    expected = getattr(ops, op)(x[..., :, None, :], y[..., None, :, :], 0.7)
    assert got.shape == (*torch.broadcast_shapes(*leading), 5, 4)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("leading", [(3, 0), (3, 1), (3, 2)])
def test_vmap_of_batches(leading):
    x, y = (points(6 * n, 20, seed=n).view(6, n, 20)[: math.prod(leading)] for n in (5, 4))
    x, y = x.view(*leading, 5, 20).requires_grad_(), y.view(*leading, 4, 20)
    op = partial(ops.pairwise_dist, impl="streaming")
    expected = op(x, y)
    for dim in (0, 1):  # which of the two is mapped; none may be empty
        if leading[dim]:
            found = torch.vmap(op, dim, dim)(x, y)
            torch.testing.assert_close(found, expected)
            grads = [torch.autograd.grad(of.square().sum(), x)[0] for of in (found, expected)]
            torch.testing.assert_close(*grads)
            expected = op(x, y)


def test_half_precision_and_autocast_are_computed_in_float32():
    x, y = points(5, 40, torch.float32), points(6, 40, torch.float32, seed=1)
    half = ops.pairwise_dist(x.half(), y.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, ops.pairwise_dist(x.half().float(), y.half().float()))
    for impl in ("streaming", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            leaf = x.clone().requires_grad_()
            cast = ops.pairwise_dist(leaf, y, impl=impl)
        cast.sum().backward()
        assert torch.equal(cast, ops.pairwise_dist(x, y, impl=impl))
        plain = x.clone().requires_grad_()
        ops.pairwise_dist(plain, y, impl=impl).sum().backward()
        assert torch.equal(leaf.grad, plain.grad)


@pytest.mark.parametrize("double", ["x", "y", "curv"])
def test_one_argument_in_float64_is_enough(double):
    """As for points side by side; a curvature without dimensions does not count."""
    rounded = {
        "x": points(5, 40, torch.float32),
        "y": points(6, 40, torch.float32, seed=1),
        "curv": torch.tensor([0.7]),
    }
    mixed = rounded | {double: rounded[double].double()}
    exact = {name: value.double() for name, value in rounded.items()}
    for impl in ("streaming", "reference"):
        got = ops.pairwise_dist(**mixed, impl=impl)
        assert torch.equal(got, ops.pairwise_dist(**exact, impl=impl))
    for got, expected in zip(
        ops.pairwise_topk(**mixed, k=2), ops.pairwise_topk(**exact, k=2), strict=True
    ):
        assert torch.equal(got, expected)


def test_the_curvature_is_1_where_none_is_given():
    x, y = points(5, 40), points(6, 40, seed=1)
    for op in PAIRWISE.values():
        assert torch.equal(op(x, y), op(x, y, 1.0))
    assert torch.equal(ops.pairwise_topk(x, y, k=2)[0], ops.pairwise_topk(x, y, 1.0, k=2)[0])


def test_nan_is_propagated_and_only_where_it_is():
    x, y = points(4, 40), points(5, 40, seed=1)
    x[2, 1] = torch.nan
    for op in PAIRWISE.values():
        missing = op(x, y).isnan()
        assert missing[2].all()


def test_points_beyond_the_largest_radius_are_those_at_it():
    x, y = points(3, 20, torch.float32), 1e30 * points(3, 20, torch.float32, seed=1)
    torch.testing.assert_close(ops.pairwise_dist(x, y), ops.dist(x[:, None], y), rtol=1e-5, atol=0)
    y.requires_grad_()
    (g,) = torch.autograd.grad(ops.pairwise_dist(x, y).sum(), y)
    assert g.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.pairwise_dist(x, x, impl="cuda"), "impl: expected one of"),
        (lambda x: ops.pairwise_dist(x, x, precision="low"), "precision: expected one of"),
        (
            lambda x: ops.pairwise_dist(x, x, impl="triton"),
            "needs CUDA tensors.*use impl='streaming'",
        ),
        (
            lambda x: ops.pairwise_dist(x, x, impl="reference", precision="high"),
            "has only 'highest'.*use impl='streaming'",
        ),
        (lambda x: ops.pairwise_dist(x[0], x), r"x: expected points \(..., N, D\)"),
        (lambda x: ops.pairwise_dist(x, x[:, :2]), "trailing size"),
        (lambda x: ops.pairwise_dist(x, x, curv=-1.0), "curv: expected a positive number"),
        (lambda x: ops.pairwise_dist(x.expand(2, 4, 3), x, curv=torch.ones(3)), "do not broadcast"),
        (lambda x: ops.pairwise_topk(x, x, k=0), r"k: expected an int in \[1, 4\]"),
        (lambda x: ops.pairwise_topk(x, x, k=5), r"k: expected an int in \[1, 4\]"),
        (
            lambda x: ops.pairwise_topk(x, x, k=1, similarity="dist"),
            "similarity: expected one of distance, angle, inner, got 'dist'",
        ),
        (
            lambda x: ops.pairwise_topk(x, x, k=1, similarity="angle", apex="query"),
            "apex: expected one of x, y, got 'query'",
        ),
        (
            lambda x: ops.pairwise_topk(x, x, k=1, similarity="inner", apex="y"),
            "apex: 'y' is for similarity='angle', got similarity='inner'; leave it out",
        ),
        (lambda x: ops.pairwise_topk(x, x, k=1, chunk=0), "chunk: expected a positive int"),
        (lambda x: ops.pairwise_topk(x, x, k=1, impl="reference"), "impl: expected 'auto'"),
        (lambda x: ops.pairwise_topk(x[None], x, k=1), r"x: expected points \(N, D\)"),
        (
            lambda x: ops.pairwise_topk(x, x[:0], k=1),
            r"y: expected a gallery.*at least one.*\(0, 3\)",
        ),
        (
            lambda x: ops.pairwise_topk(x, x, torch.ones(3), k=1),
            r"curv: expected one number, or one for each query \(4,\), got shape \(3,\)",
        ),
        (
            lambda x: ops.pairwise_topk(x, x, torch.ones(4, 1), k=1),
            r"curv: .*one for each query \(4,\), got shape \(4, 1\)",
        ),
        (
            lambda x: ops.pairwise_dist(x.expand(4, 4, 3), x, torch.ones(4, 1)),
            r"curv: .*\(4,\), got \(4, 1\).*squeeze\(-1\)",
        ),
    ],
)
def test_what_cannot_run_says_so_and_names_the_alternative(call, message):
    with pytest.raises(ValueError, match=message):
        call(points(4, 3).expand(4, 3))


def test_the_choice_of_implementation():
    small, large = torch.zeros(4, 3), torch.zeros(1, 3).expand(1024, 3)
    assert ops.pairwise_impl(small, small) == "streaming"
    assert ops.pairwise_impl(small, small, "reference") == "reference"
    assert ops.pairwise_impl(large, large) in ("streaming, compiled", "streaming")


def test_compiled_and_eager_blocks_agree(monkeypatch):
    """Whichever runs: for a training run that goes on elsewhere, they are to roundings the same."""
    x, y = points(600, 40, torch.float32), points(600, 40, torch.float32, seed=1)
    default = ops.pairwise_exterior_angle(x, y)
    monkeypatch.setattr(compilation, "compiles", lambda *_: False)
    eager = ops.pairwise_exterior_angle(x, y)
    torch.testing.assert_close(default, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.thorough
def test_a_compiled_search_finds_what_an_eager_one_does(monkeypatch):
    """Of more than one block, the last of which is smaller."""
    x, y = points(600, 40, torch.float32), points(1500, 40, torch.float32, seed=1)
    eager = ops.pairwise_topk(x, y, k=5, similarity="angle")
    monkeypatch.setattr(streaming, "_SEARCH_WORTH_COMPILING", 2**18)
    for ours, expected in zip(ops.pairwise_topk(x, y, k=5, similarity="angle"), eager, strict=True):
        assert torch.equal(ours, expected)
