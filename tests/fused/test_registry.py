"""Fused ops as ops of PyTorch: each trap that registration has is held by a test."""

import pytest
import torch
from contrastive_calls import OPTIONS, SIMILARITIES
from pairwise_calls import custom_ops, points
from torch.func import grad, jacrev, jvp, vmap

from lorentzkit import ops
from lorentzkit._geometry import compilation
from lorentzkit.fused import streaming
from lorentzkit.losses import contrastive_loss

MATRICES = ["pairwise_inner", "pairwise_dist", "pairwise_exterior_angle"]


def leaves(N=4, M=5, D=20):
    tensors = [points(N, D), points(M, D, seed=1), torch.tensor(0.7, dtype=torch.float64)]
    return [t.requires_grad_() for t in tensors]


def loss_of(similarity):
    def function(x, y, curv, scale):
        return contrastive_loss(x, y, curv, scale, **OPTIONS[similarity])

    return function


def matrix_of(op):
    def function(x, y, curv):
        return getattr(ops, op)(x, y, curv).square().sum()

    return function


FUNCTIONS = {op: matrix_of(op) for op in MATRICES} | {s: loss_of(s) for s in SIMILARITIES}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def call(name):
    """A scalar function and its arguments."""
    inputs = leaves() if name in MATRICES else leaves(M=4)
    if name in SIMILARITIES:
        inputs.append(torch.tensor(5.0, dtype=torch.float64, requires_grad=True))
    return FUNCTIONS[name], inputs


def gradients(function, inputs):
    return torch.autograd.grad(function(*inputs), inputs, materialize_grads=True)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.few(name=["pairwise_exterior_angle", "angles"])
@every_function
def test_first_and_second_derivatives(name):
    function, inputs = call(name)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_second_derivatives_of_one_tensor_given_twice():
    x = points(4, 20).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: ops.pairwise_dist(x, 2 * x).sum(), (x,))


@every_function
def test_func_grad(name):
    function, inputs = call(name)
    got = grad(function, argnums=tuple(range(len(inputs))))(*inputs)
    close(got, gradients(function, inputs))


def test_func_grad_of_grad_is_the_double_backward():
    function, (x, y, curv) = call("pairwise_dist")
    nested = grad(lambda c: grad(function, argnums=2)(x, y, c))(curv)
    (first,) = torch.autograd.grad(function(x, y, curv), curv, create_graph=True)
    close(nested, torch.autograd.grad(first, curv)[0])


def test_vmap_and_jacrev():
    _, (x, y, curv) = call("pairwise_dist")
    stack = torch.stack([x, 2 * x, 3 * x])
    close(
        vmap(ops.pairwise_dist, (0, None, None))(stack, y, curv)[2],
        ops.pairwise_dist(3 * x, y, curv),
    )
    per_sample = vmap(grad(matrix_of("pairwise_dist")), (0, None, None))(stack, y, curv)
    close(per_sample[1], grad(matrix_of("pairwise_dist"))(2 * x, y, curv))
    assert jacrev(ops.pairwise_dist)(x, y, curv).shape == (4, 5, 4, 20)


@every_function
def test_forward_mode_is_refused_and_not_silently_zero(name):
    function, inputs = call(name)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
        jvp(function, tuple(inputs), tuple(torch.ones_like(t) for t in inputs))


def test_forward_mode_of_the_reference():
    _, (x, y, curv) = call("pairwise_dist")
    t = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    _, tangent = jvp(lambda x: ops.pairwise_dist(x, y, curv, impl="reference"), (x,), (t,))
    close(
        (tangent.sum()), (torch.autograd.grad(ops.pairwise_dist(x, y, curv).sum(), x)[0] * t).sum()
    )


@pytest.mark.thorough
@every_function
def test_compile_fullgraph(name):
    torch._dynamo.reset()
    function, inputs = call(name)
    compiled = torch.compile(function, fullgraph=True)
    close(compiled(*inputs), function(*inputs))
    with torch.no_grad():  # quicker by this backend; what is traced is the same
        traced = torch.compile(function, fullgraph=True, backend="aot_eager")
        close(traced(*inputs), function(*inputs))
    close(gradients(compiled, inputs), gradients(function, inputs))


@pytest.mark.few(name=["pairwise_dist", "exterior"])
@every_function
def test_export(name):
    function, inputs = call(name)

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    x, *rest = (t.detach() for t in inputs)
    program = torch.export.export(Module(), (x, *rest))
    close(program.module()(2 * x, *rest), function(2 * x, *rest))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_opcheck():
    for op, args in custom_ops("streaming", torch.float64):
        torch.library.opcheck(op.default, args)


def test_cotangents_without_strides():
    """What ``.sum()`` hands back is one number with strides of 0."""
    x, y, curv = leaves()
    expanded = torch.autograd.grad(ops.pairwise_dist(x, y, curv).sum(), x)[0]
    plain = torch.autograd.grad(ops.pairwise_dist(x, y, curv), x, torch.ones(4, 5).double())[0]
    assert torch.equal(expanded, plain)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_autocast_does_not_reach_the_products(similarity):
    x, y = (points(6, 40, torch.float32, seed=s).requires_grad_() for s in (0, 1))
    plain = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity])
    expected = torch.autograd.grad(plain, (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = contrastive_loss(x, y, 0.7, 5.0, **OPTIONS[similarity])
        got = torch.autograd.grad(cast, (x, y))
    assert torch.equal(cast, plain)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_uninitialised_memory_is_never_read(monkeypatch):
    """Every buffer is asked for full of NaN."""

    def poisoned(make):
        def function(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        return function

    expected = {name: gradients(*call(name)) for name in FUNCTIONS}
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    for name, expect in expected.items():
        close(gradients(*call(name)), expect)


def test_a_missing_compiler_leaves_eager_blocks(monkeypatch):
    def none():
        raise RuntimeError("no compiler")

    compilation._has_compiler.cache_clear()
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    large = torch.zeros(1, 3).expand(1024, 3)
    assert ops.pairwise_impl(large, large) == "streaming"
    monkeypatch.undo()
    compilation._has_compiler.cache_clear()


@pytest.mark.thorough
def test_all_kinds_and_shapes_of_blocks_compile(monkeypatch):
    """Of one code torch compiles 8 variants; sizes of 1 are variants, and so are types."""
    inductor = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda f, *, options, backend, **kwargs: inductor(f, backend="eager", **kwargs),
    )
    monkeypatch.setattr(streaming, "ROWS", 16)
    monkeypatch.setattr(streaming, "COLUMNS", 16)
    monkeypatch.setattr(compilation, "compiles", lambda *_: True)
    compilation.compiled.cache_clear()
    for dtype in (torch.float32, torch.float64):
        for similarity in SIMILARITIES:
            x, y = (points(33, 20, dtype, seed=s).requires_grad_() for s in (0, 1))
            for scale in (5.0, 100.0):
                contrastive_loss(x, y, 1.0, scale, **OPTIONS[similarity]).backward()
    compilation.compiled.cache_clear()
