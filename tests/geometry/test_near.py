"""Ops of points near the origin, which go by products in float64: at the edge of that range.

The other tests of exactness reach it too, but seldom its edge, where digits are fewest.
"""

from __future__ import annotations

import math

import pytest
import torch
from condition import OPS as SIGNATURES
from condition import gradient_errors, value_error
from torch._dynamo.testing import CompileCounterWithBackend

from lorentzkit import ops
from lorentzkit._geometry import array_functions, compilation, numpy_products, rowwise, vectors
from lorentzkit._geometry.formulas import OPS
from lorentzkit._geometry.gram import SHORT

NEARLY = 1 - 1e-5


def edge(op: str, seed: int, angle: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Arguments at the edge of an op's reach, at this angle to one another."""
    if op == "from_halfspace":
        (x,), curv = edge("to_halfspace", seed, angle)
        return [ops.to_halfspace(0.99 * x.roll(1), curv)], curv
    torch.manual_seed(seed)
    curv = torch.rand(()) + 0.5
    most = OPS[op].reach
    axis, other = torch.eye(4)[:2]
    arguments = []
    for k, name in enumerate(SIGNATURES[op].split(" -> ")[0].split()):
        if name == "t":
            arguments.append(torch.rand(()))
            continue
        far = most if k == 0 else SHORT if name in "uvg" else most / 4
        r = math.sqrt(NEARLY * far / curv.item()) * (1.0 if k == 0 else 0.3 + 0.7 * torch.rand(()))
        direction = math.cos(k * angle) * axis + math.sin(k * angle) * other
        arguments.append(r * direction + (1e-6 * r * torch.randn(4) if angle else 0))
    if OPS[op].points == 2:
        x, y = arguments[-2:] if op == "geodesic" else arguments[:2]
        shrink = min(1.0, float(2 * math.sqrt(NEARLY * most / curv) / (x - y).norm()))
        x *= shrink
        y *= shrink
    return arguments, curv


@pytest.fixture
def near_only(monkeypatch):
    """Fails where an op goes another way than by Gram numbers."""
    results = []
    near_rows = rowwise.near_rows

    def check(*args):
        results.append(near_rows(*args))
        return results[-1]

    monkeypatch.setattr("lorentzkit.fused.rows.near_rows", check)
    yield
    assert all(result is not None for result in results)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.1, 1.5, math.pi])
@pytest.mark.parametrize("op", [op for op in OPS if op in SIGNATURES])
def test_exact_at_the_edge(near_only, op, angle):
    arguments, curv = edge(op, 0, angle)
    assert value_error(op, arguments, curv) <= 4
    vector = SIGNATURES[op].endswith("vector")
    cotangent = torch.randn(4) if vector else None
    errors = gradient_errors(op, arguments, curv, cotangent)
    assert max(errors.values()) <= 4, errors


# --- Other ways to the same formulas --------------------------------------------------------------


def pair(count: int, radius: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, count, 6, generator=generator)
    inputs = [radius * x, x + 0.3 * radius * y, torch.tensor(0.7)]
    return [v.requires_grad_() for v in inputs]


def value_and_gradients(function, inputs):
    value = function(*inputs)
    cotangent = torch.linspace(-1, 1, value.numel()).reshape(value.shape)
    return [value, *torch.autograd.grad(value, inputs, cotangent)]


@pytest.mark.parametrize("op", ["dist", "inner", "logmap"])
def test_close_and_distant_points_in_one_batch(op):
    """Sums of the close ones are made of y - x, those of the others of y."""
    inputs = pair(100, 1.0)
    with torch.no_grad():
        inputs[1][::2] *= -2
    results = value_and_gradients(getattr(ops, op), inputs)
    wide = [v.detach().double().requires_grad_() for v in inputs]
    exact = value_and_gradients(getattr(ops, op), wide)
    for part, expected in zip(results, exact, strict=True):
        torch.testing.assert_close(part.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["dist", "logmap", "expmap"])
def test_rows_of_numpy_and_of_torch_are_the_same(monkeypatch, op):
    inputs = pair(100, 1.0)
    expected = value_and_gradients(getattr(ops, op), inputs)
    monkeypatch.setattr(numpy_products, "_FEW_ELEMENTS", 0)
    monkeypatch.setattr(array_functions, "FEW_ROWS", 0)
    monkeypatch.setattr(vectors, "_BLOCK", 7 * 6)
    torch.testing.assert_close(value_and_gradients(getattr(ops, op), inputs), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("op", ["dist", "expmap"])
def test_compiled_rows_are_the_eager_ones(monkeypatch, op):
    inputs = pair(100, 1.0)
    expected = value_and_gradients(getattr(ops, op), inputs)
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    torch.testing.assert_close(value_and_gradients(getattr(ops, op), inputs), expected)
    far = [(50 * v).detach().requires_grad_() if v.dim() else v for v in inputs]
    compiled = value_and_gradients(getattr(ops, op), far)
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 2**60)
    torch.testing.assert_close(compiled, value_and_gradients(getattr(ops, op), far))


@pytest.mark.few(op="dist", backend="aot_eager")
@pytest.mark.parametrize("op", ["dist", "logmap"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_looks_at_values_as_eager_code_does(op, backend):
    """Near the origin and far from it, in one graph, which is compiled once."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    function = torch.compile(getattr(ops, op), fullgraph=True, backend=counter)
    for radius in (1.0, 1e8):
        inputs = pair(20, radius)
        expected = value_and_gradients(getattr(ops, op), inputs)
        torch.testing.assert_close(value_and_gradients(function, inputs), expected)
        with torch.no_grad():
            inputs[1].copy_(2 * inputs[0])  # far out, products of aligned points cancel
        value, _, _, by_curv = value_and_gradients(function, inputs)
        exact, _, _, exact_by_curv = value_and_gradients(getattr(ops, op), inputs)
        torch.testing.assert_close([value, by_curv], [exact, exact_by_curv])
    assert counter.frame_count == 1


def test_first_calls_are_not_compiled(monkeypatch):
    def no_compiler(*args, **kw):
        raise AssertionError("compiled")

    monkeypatch.setattr(compilation, "compiled", no_compiler)
    value_and_gradients(ops.dist, pair(100, 1.0))
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    with pytest.raises(AssertionError, match="compiled"):
        value_and_gradients(ops.dist, pair(100, 1.0))


def test_compiled_code_takes_curvatures_and_places_row_by_row():
    torch.compiler.reset()
    x, y, _ = pair(20, 1.0)
    t, curv = torch.rand(20, requires_grad=True), torch.rand(20, requires_grad=True)
    function = torch.compile(ops.geodesic, fullgraph=True, backend="aot_eager")
    inputs = [t, x, y, curv]
    expected = value_and_gradients(ops.geodesic, inputs)
    torch.testing.assert_close(value_and_gradients(function, inputs), expected)


@pytest.mark.parametrize("valid", [True, False])
def test_the_custom_ops_are_good_ones(valid):
    x, y, curv = pair(5, 1.0)
    call = (None, curv, None, [x.detach(), y.detach()])
    torch.library.opcheck(
        torch.ops.lorentzkit.recompute_far.default,
        (torch.zeros(5), torch.tensor(valid), "dist", *call),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("value", [-1.0, 1e9])
def test_compiled_code_refuses_curvatures_as_eager_code_does(value):
    torch.compiler.reset()
    x, y, _ = pair(5, 1.0)
    function = torch.compile(ops.dist, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="curv: expected a positive number"):
        function(x, y, torch.tensor(value))


def test_compiled_code_refuses_vectors_of_other_dimensions():
    with pytest.raises(Exception, match="y: expected"):
        torch.compile(ops.dist, backend="aot_eager")(torch.rand(5, 4), torch.rand(5, 1))


def test_coefficients_beyond_float32_are_taken_in_float64():
    """The gradient of a tiny distance is a huge number times a tiny vector."""
    torch.compiler.reset()
    x, y, curv = pair(20, 1.0)
    inputs = [(1e-40 * v).detach().requires_grad_() for v in (x, y)] + [curv]
    function = torch.compile(ops.dist, fullgraph=True, backend="aot_eager")
    results = value_and_gradients(function, inputs)
    assert results[1].abs().max() > 0.1
    torch.testing.assert_close(results, value_and_gradients(ops.dist, inputs))


def test_half_precision_is_computed_in_float32():
    x, y, curv = (v.detach().half() if v.dim() else v for v in pair(20, 1.0))
    for v in (x, y):
        v.requires_grad_()
    value, *gradients = value_and_gradients(ops.dist, [x, y, curv])
    assert value.dtype == torch.float32
    assert [g.dtype for g in gradients] == [torch.float16, torch.float16, torch.float32]
    torch.testing.assert_close(value, ops.dist(x.float(), y.float(), curv))
