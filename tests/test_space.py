"""`lorentzkit.Lorentz`: every op as a method, at the curvature that the object holds."""

import copy
import inspect
import pickle

import pytest
import torch
from calls import CURV, SIGNATURES, arguments

from lorentzkit import Lorentz, ops
from lorentzkit.nn import Curvature

F64 = torch.float64
X, Y = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
PAIRS = {op: [X, Y] for op in ops.__all__ if op.startswith("pairwise")}
CALLS = PAIRS | {op: arguments(op) for op in SIGNATURES if op in ops.__all__}
WITHOUT_CURV = {"drop_time": [X], "max_radius": [F64], "pairwise_impl": [X, Y]}
HOW = {"pairwise_topk": {"k": 2}}


def parameter():
    return torch.tensor(CURV, dtype=F64, requires_grad=True)


def tensors(out):
    return out if isinstance(out, tuple) else (out,)


def test_every_op_is_called_here():
    assert set(CALLS) | set(WITHOUT_CURV) == set(ops.__all__)


@pytest.mark.parametrize("op", sorted(set(CALLS) - set(WITHOUT_CURV)))
def test_a_method_is_its_op_at_the_curvature(op):
    """In values, and in gradients of the points and of the curvature."""
    args, how = [a.clone().requires_grad_() for a in CALLS[op]], HOW.get(op, {})
    curvature, curv = Curvature(CURV).double(), parameter()
    curvature.log_curv.data = curv.detach().log().view(1)
    found = tensors(getattr(Lorentz(curvature), op)(*args, **how))
    expected = tensors(getattr(ops, op)(*args, curv=curv, **how))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0], tensors(getattr(ops, op)(*args, **how))[0])
    assert torch.equal(tensors(getattr(Lorentz(curv), op)(*args, **how))[0], expected[0])
    ours = torch.autograd.grad(found[0].sum(), [*args, curvature.log_curv])
    theirs = torch.autograd.grad(expected[0].sum(), [*args, curv])
    torch.testing.assert_close(ours[:-1], theirs[:-1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours[-1].squeeze(), theirs[-1] * CURV, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("op", WITHOUT_CURV)
def test_those_without_a_curvature_are_the_ops_themselves(op):
    args = WITHOUT_CURV[op]
    found, expected = getattr(Lorentz(2.0), op)(*args), getattr(ops, op)(*args)
    assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected


@pytest.mark.parametrize("op", ops.__all__)
def test_signatures_and_docstrings_are_those_of_the_ops(op):
    """But for `curv`."""
    function, method = getattr(ops, op), getattr(Lorentz(1.0), op)
    theirs = [p for p in inspect.signature(function).parameters.values() if p.name != "curv"]
    assert list(inspect.signature(method).parameters.values()) == theirs
    assert inspect.signature(method).return_annotation == (
        inspect.signature(function).return_annotation
    )
    text = inspect.getdoc(method)
    assert text.startswith(inspect.getdoc(function).splitlines()[0])
    assert "curv:" not in text
    assert ">>>" not in text
    assert ("Returns:" in text) == ("Returns:" in inspect.getdoc(function))


@pytest.mark.parametrize(
    ("curv", "keys", "learned"),
    [
        (2.0, [], 0),
        (torch.tensor(2.0), ["curvature"], 0),
        (torch.nn.Parameter(torch.tensor(2.0)), ["curvature"], 1),
        (Curvature(2.0), ["curvature.log_curv", "curvature._extra_state"], 1),
        (Curvature(2.0, learnable=False), ["curvature.log_curv", "curvature._extra_state"], 0),
        (lambda: torch.tensor(2.0), [], 0),
    ],
    ids=["number", "buffer", "parameter", "Curvature", "frozen Curvature", "function"],
)
def test_a_module_like_any_other(curv, keys, learned):
    space = Lorentz(curv)
    assert list(space.state_dict()) == keys
    assert sum(p.requires_grad for p in space.parameters()) == learned
    assert float(torch.as_tensor(space.curv).detach()) == pytest.approx(2.0)
    model = torch.nn.ModuleDict({"space": copy.deepcopy(space)})
    torch.testing.assert_close(model["space"].dist0(X), ops.dist0(X, 2.0))
    assert "2" in repr(space) or callable(curv)
    if not inspect.isfunction(curv):
        assert torch.equal(pickle.loads(pickle.dumps(space)).dist(X, Y), space.dist(X, Y))


def test_what_is_learned_is_used_at_once():
    space = Lorentz(Curvature(1.0))
    before = space.dist0(X)
    torch.nn.init.constant_(space.curvature.log_curv, 1.0)
    torch.testing.assert_close(space.dist0(X), ops.dist0(X, torch.tensor(1.0).exp()))
    assert not torch.allclose(space.dist0(X), before)


def test_a_curvature_for_each_point_broadcasts():
    curv = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=F64)
    assert torch.equal(Lorentz(curv).dist(X, Y), ops.dist(X, Y, curv))


@pytest.mark.parametrize("curv", [0.0, -1.0, torch.tensor(-1.0), lambda: torch.tensor(-1.0)])
def test_a_bad_curvature_is_refused_at_once(curv):
    with pytest.raises(ValueError, match="curv: expected a positive number"):
        Lorentz(curv)


def test_the_curvature_is_not_optional():
    with pytest.raises(TypeError, match="curv"):
        Lorentz()


def test_compiled_in_one_graph():
    space = Lorentz(Curvature(0.5))
    compiled = torch.compile(lambda x, y: space.dist(x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X, Y), space.dist(X, Y))
