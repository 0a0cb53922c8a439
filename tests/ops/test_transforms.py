"""Every op under torch.func, torch.compile, torch.export, autocast and broadcasting.

`frechet_mean` iterates until its values say that it is done: it cannot be traced or mapped, and
says so; leading dimensions batch it.
"""

import pytest
import torch
from calls import CURV, ONE_OF_EACH, SIGNATURES, arguments
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from lorentzkit import ops

ITERATES = "frechet_mean"
every_op = pytest.mark.parametrize("op", SIGNATURES)
every_traceable_op = pytest.mark.parametrize("op", [op for op in SIGNATURES if op != ITERATES])


def close(got, expected):
    # The same formulas in another order of operations: a few roundings.
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


def with_curv(op, **kw):
    """Arguments and curvature, all tensors, batched."""
    args = arguments(op, **kw)
    return [*args, torch.full(kw.get("batch", (4,)), CURV, dtype=args[0].dtype)]


def loss(op):
    def function(*args):
        return getattr(ops, op)(*args).square().sum()

    return function


def autograd_gradients(op, args):
    leaves = [a.clone().requires_grad_() for a in args]
    return torch.autograd.grad(loss(op)(*leaves), leaves)


# --- torch.func -------------------------------------------------------------------------------


@every_traceable_op
def test_grad(op):
    args = with_curv(op)
    close(grad(loss(op), argnums=tuple(range(len(args))))(*args), autograd_gradients(op, args))


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_vmap(op):
    args = with_curv(op)
    close(vmap(getattr(ops, op))(*args), getattr(ops, op)(*args))


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_vmap_over_an_inner_dimension_and_of_gradients(op):
    args = with_curv(op, batch=(2, 3))
    mapped = vmap(vmap(grad(loss(op))), in_dims=1, out_dims=1)(*args)
    close(mapped, autograd_gradients(op, args)[0])


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_jacobians(op):
    args = with_curv(op, batch=())
    every = tuple(range(len(args)))
    expected = torch.autograd.functional.jacobian(getattr(ops, op), tuple(args))
    close(jacrev(getattr(ops, op), every)(*args), expected)
    close(jacfwd(getattr(ops, op), every)(*args), expected)


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_jvp(op):
    args = with_curv(op, batch=())
    tangents = [*arguments(op, batch=(), seed=1), torch.tensor(0.3, dtype=torch.float64)]
    _, got = jvp(getattr(ops, op), tuple(args), tuple(tangents))
    _, expected = torch.autograd.functional.jvp(getattr(ops, op), tuple(args), tuple(tangents))
    close(got, expected)


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_hessian(op):
    args = with_curv(op, batch=(), D=2)
    got = hessian(loss(op), tuple(range(len(args))))(*args)
    close(got, torch.autograd.functional.hessian(loss(op), tuple(args)))


def test_jacobians_of_the_frechet_mean():
    args = with_curv(ITERATES, batch=(), D=2)
    expected = torch.autograd.functional.jacobian(ops.frechet_mean, tuple(args))
    close(
        torch.autograd.functional.jacobian(ops.frechet_mean, tuple(args), vectorize=True), expected
    )


def test_the_frechet_mean_is_not_mapped():
    args = with_curv(ITERATES)
    with pytest.raises(RuntimeError, match="data-dependent control flow"):
        vmap(ops.frechet_mean)(*args)


# --- torch.compile and torch.export -----------------------------------------------------------


def compiled(function, backend="aot_eager"):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend=backend)


def check_compiled(op, backend):
    args = with_curv(op)
    leaves = [a.clone().requires_grad_() for a in args]
    value = compiled(getattr(ops, op), backend)(*leaves)
    close(value, getattr(ops, op)(*args))
    close(torch.autograd.grad(value.square().sum(), leaves), autograd_gradients(op, args))


@pytest.mark.few(op="expmap")
@every_traceable_op
def test_compiled_in_one_graph_forward_and_backward(op):
    check_compiled(op, "aot_eager")


@pytest.mark.thorough
@pytest.mark.parametrize("op", ["dist", "expmap0"])
def test_compiled_by_inductor(op):
    check_compiled(op, "inductor")


def test_the_frechet_mean_does_not_compile_to_one_graph():
    args, refusals = with_curv(ITERATES), torch._dynamo.exc
    with pytest.raises((refusals.Unsupported, refusals.UserError), match=r"(?i)data-dependent"):
        compiled(ops.frechet_mean)(*args)


@pytest.mark.thorough
@pytest.mark.parametrize("op", ["half_aperture", "expmap0", "einstein_midpoint"])
def test_compiled_with_a_number_for_the_curvature(op):
    """Also when the number changes: then it becomes an input of the graph."""
    args, function = arguments(op), compiled(getattr(ops, op))
    for curv in (0.7, 0.5, 0.3):
        close(function(*args, curv), getattr(ops, op)(*args, curv))


@pytest.mark.thorough
def test_compiled_for_a_batch_size_that_changes():
    function = compiled(ops.dist)
    for n in (4, 7, 9):
        x, y = arguments("dist", batch=(n,))
        close(function(x, y), ops.dist(x, y))


@pytest.mark.thorough
@pytest.mark.parametrize("op", ["exterior_angle", "expmap0", "einstein_midpoint"])
def test_exported(op):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.log_curv = torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

        def forward(self, *args):
            return getattr(ops, op)(*args, self.log_curv.exp())

    args = tuple(arguments(op))
    close(torch.export.export(Module(), args).module()(*args), Module()(*args))


# --- Without derivatives ----------------------------------------------------------------------
# What only carries derivatives is left out where nobody can ask for them.


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_is_the_same_without_its_derivatives(op, dtype):
    args = with_curv(op, batch=(50,), dtype=dtype, radius=3.0)
    with_graph = getattr(ops, op)(*(a.clone().requires_grad_() for a in args))
    assert torch.equal(getattr(ops, op)(*args), with_graph.detach())


@pytest.mark.few(op=ONE_OF_EACH)
@every_traceable_op
def test_forward_mode_without_a_graph(op):
    args = with_curv(op)
    tangents = [*arguments(op, seed=1), torch.full((4,), 0.3, dtype=torch.float64)]
    for only in range(len(args)):
        with torch.no_grad(), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(a, t) if i == only else a
                for i, (a, t) in enumerate(zip(args, tangents, strict=True))
            ]
            got = forward_ad.unpack_dual(getattr(ops, op)(*duals)).tangent

        def of_one(a, only=only):
            return getattr(ops, op)(*(a if i == only else b for i, b in enumerate(args)))

        close(got, torch.autograd.functional.jvp(of_one, args[only], tangents[only])[1])


def check_traced(op, tracer):
    args = with_curv(op)
    traced = tracer(lambda *a: getattr(ops, op)(*a), tuple(args))
    leaves = [a.clone().requires_grad_() for a in args]
    got = torch.autograd.grad(traced(*leaves).square().sum(), leaves)
    close(got, autograd_gradients(op, args))


@pytest.mark.few(op="expmap")
@every_traceable_op
def test_what_was_traced_without_gradients_still_has_them(op):
    check_traced(op, lambda function, args: make_fx(function)(*args))


@pytest.mark.parametrize("op", ["dist0", "half_aperture"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traced_by_jit(op):
    """Of two points its tracer cannot compare the shapes, and the ops raise."""
    check_traced(op, torch.jit.trace)


# --- Autocast ---------------------------------------------------------------------------------


@every_op
def test_under_autocast_the_ops_run_in_float32(op):
    args = arguments(op, dtype=torch.float32)
    expected = getattr(ops, op)(*args, CURV)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = getattr(ops, op)(*args, CURV)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


# --- Dtypes -----------------------------------------------------------------------------------


@every_op
def test_one_argument_in_float64_is_enough(op):
    """As torch promotes: no argument loses digits, be it a parameter, weights or a curvature."""
    double = with_curv(op)
    rounded = [a.float() for a in double]
    for i in range(len(double)):
        args = [d if i == j else a for j, (d, a) in enumerate(zip(double, rounded, strict=True))]
        got = getattr(ops, op)(*args)
        assert got.dtype == torch.float64
        close(got, getattr(ops, op)(*(a.double() for a in args)))


# --- Shapes, strides, what needs gradients ----------------------------------------------------


@pytest.mark.few(op=ONE_OF_EACH)
@pytest.mark.parametrize("op", [op for op in SIGNATURES if "points" not in SIGNATURES[op]])
@pytest.mark.parametrize("curv", [torch.tensor(CURV), torch.tensor([[0.5], [0.6], [0.7]])])
def test_arguments_broadcast(op, curv):
    """One argument (3, 1, D), the others (4, D)."""
    function, curv = getattr(ops, op), curv.double()
    for i in range(len(SIGNATURES[op])):
        args = arguments(op, batch=(4,))
        args[i] = arguments(op, batch=(3, 1), seed=1)[i]
        shape = torch.broadcast_shapes((3, 1), (4,) if len(args) > 1 else (), curv.shape)
        full = [
            a.expand(*shape, *a.shape[len(a.shape) - (name != "t") :])
            for a, name in zip(args, SIGNATURES[op], strict=True)
        ]
        expected = function(*full, curv.expand(shape))
        assert expected.shape[: len(shape)] == shape
        got = function(*args, curv)
        close(got, expected.broadcast_to(got.shape))
        assert got.shape == expected.shape


@pytest.mark.parametrize("op", ["einstein_midpoint", ITERATES])
def test_means_broadcast(op):
    points, weights = arguments(op, batch=(5, 2))
    curv = torch.rand(5, 1, dtype=torch.float64) + 0.5
    got = getattr(ops, op)(points, weights[0, 0], curv)
    for i in range(5):
        for j in range(2):
            expected = getattr(ops, op)(points[i, j], weights[0, 0], curv[i, 0])
            torch.testing.assert_close(got[i, j], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("op", ["dist", "dist0"])
def test_keepdim(op):
    args = arguments(op)
    kept = getattr(ops, op)(*args, CURV, keepdim=True)
    assert kept.shape == (4, 1)
    assert torch.equal(kept.squeeze(-1), getattr(ops, op)(*args, CURV))


@every_op
def test_strides_do_not_matter(op):
    args = arguments(op)
    strided = [torch.stack([a, a + 1], -1)[..., 0] for a in args]
    backwards = [a.flip(-1).contiguous().flip(-1) for a in args]
    assert not any(a.is_contiguous() for a in strided)
    close(getattr(ops, op)(*strided, CURV), getattr(ops, op)(*args, CURV))
    close(getattr(ops, op)(*backwards, CURV), getattr(ops, op)(*args, CURV))


@every_op
def test_gradients_of_one_argument_alone(op):
    """The others need none: what they would carry is left out, nothing else."""
    args = with_curv(op)
    expected = autograd_gradients(op, args)
    for i in range(len(args)):
        leaves = [a.clone().requires_grad_(i == j) for j, a in enumerate(args)]
        close(torch.autograd.grad(loss(op)(*leaves), leaves[i])[0], expected[i])


@every_op
def test_empty_batches(op):
    args = [a.requires_grad_() for a in arguments(op, batch=(0,))]
    out = getattr(ops, op)(*args, CURV)
    assert out.shape == getattr(ops, op)(*arguments(op, batch=(2,)), CURV)[:0].shape
    out.sum().backward()
    assert all(a.grad.shape == a.shape for a in args)


@every_op
def test_a_learnable_curvature(op):
    """One parameter for all rows, float32 beside float64 points: it sums the gradients of all."""
    args = with_curv(op)
    parameter = torch.nn.Parameter(torch.tensor(CURV))
    out = getattr(ops, op)(*args[:-1], parameter)
    assert out.dtype == torch.float64
    out.square().sum().backward()
    torch.testing.assert_close(
        parameter.grad, autograd_gradients(op, args)[-1].sum().float(), rtol=1e-5, atol=1e-6
    )


@every_op
def test_inputs_are_left_as_they_are(op):
    args = with_curv(op)
    before = [a.clone() for a in args]
    getattr(ops, op)(*args)
    assert all(torch.equal(a, b) for a, b in zip(args, before, strict=True))
