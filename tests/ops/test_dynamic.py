"""One compilation serves all sizes of a batch, and one export."""

from __future__ import annotations

import pytest
import torch
from calls import SIGNATURES, arguments

from lorentzkit import losses, ops
from lorentzkit._geometry import compilation

# To both sides of few points, and of what is one block of pairs.
SIZES = [5, 6, 17, 1100]
MEANS = [op for op, kinds in SIGNATURES.items() if "points" in kinds]
# `frechet_mean` stops by the values, which one graph cannot.
ROWWISE = [op for op in SIGNATURES if op not in MEANS]


def rowwise(op):
    return lambda count: arguments(op, (count,), dtype=torch.float32)


def cloud(count, seed=0):
    # 12 dimensions: torch takes equal sizes for the same size.
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def set_of_points(count):
    return [cloud(count), torch.rand(count) + 0.1]


def pair(count):
    return [cloud(count), cloud(count + 3, seed=1)]


def topk(x, y):
    return ops.pairwise_topk(x, y, k=3)[0]


def loss(similarity):
    def function(x):
        return losses.contrastive_loss(x, x + 0.1, similarity=similarity)

    return function


FUNCTIONS = (
    {op: (getattr(ops, op), rowwise(op)) for op in ROWWISE}
    | {"einstein_midpoint": (ops.einstein_midpoint, set_of_points)}
    | {
        op: (getattr(ops, op), pair)
        for op in ops.__all__
        if op.startswith("pairwise") and op not in ("pairwise_impl", "pairwise_topk")
    }
    | {"pairwise_topk": (topk, pair)}
    | {f"loss, {s}": (loss(s), lambda n: [cloud(n)]) for s in ("angle", "distance", "cosine")}
)
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """For the blocks inside an op, which are compiled apart."""
    monkeypatch.setattr(compilation, "_has_compiler", lambda: False)


def leaves(inputs):
    return [v.clone().requires_grad_() for v in inputs]


def value_and_gradients(function, inputs):
    value = function(*inputs)
    return [value, *torch.autograd.grad(value.sum(), inputs, materialize_grads=True)]


@pytest.mark.few(name=["dist", "einstein_midpoint", "pairwise_dist", "loss, angle"])
@every_function
def test_one_compilation_serves_all_sizes(name):
    torch.compiler.reset()
    function, inputs_of = FUNCTIONS[name]
    compiled = torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1):  # a second compilation is an error
        for size in SIZES:
            inputs = leaves(inputs_of(size))
            got, expected = (value_and_gradients(f, inputs) for f in (compiled, function))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.few(name=["expmap", "pairwise_dist"])
@every_function
def test_one_export_serves_all_sizes(name):
    function, inputs_of = FUNCTIONS[name]

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    inputs = inputs_of(5)
    batch = torch.export.Dim("batch", min=3)
    sizes = [{0: batch + (len(v) - 5) if len(v) != 5 else batch} for v in inputs]
    program = torch.export.export(Module(), tuple(inputs), dynamic_shapes=(tuple(sizes),))
    for size in SIZES:
        inputs = inputs_of(size)
        torch.testing.assert_close(
            program.module()(*inputs), function(*inputs), rtol=1e-5, atol=1e-5
        )
