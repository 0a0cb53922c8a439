"""Points side by side: chosen pairs and the forms of every order against the oracle, and compiled.

What `lorentzkit.ops` gives of them is in test_exactness.py.
"""

import pytest
import torch
from condition import gradient_errors, value_error
from hypothesis import given, note
from hypothesis import strategies as st
from strategies import CASES
from tolerances import tolerance

from lorentzkit import ops
from lorentzkit._geometry import compilation, pairs, smooth
from lorentzkit.fused import registry
from lorentzkit.fused.problems import SelectedPairs

KINDS = {
    "dist": "distance",
    "inner": "inner",
    "exterior_angle": "exterior",
    "interior_angle": "interior",
}
DTYPES = [torch.float32, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def chosen(op):
    """As a loss takes its positives, and a search its winners."""
    kind = {"exterior_angle": "angles"}.get(op, KINDS[op])

    def function(x, y, curv):
        points, gallery = torch.stack([0 * x, x]), torch.stack([y, 0 * y, 2 * y])
        i, j = torch.tensor([1]), torch.tensor([0])
        pairs = SelectedPairs(points, gallery, curv.reshape(1), i, j, kind)
        return registry.selected(pairs)[0, 0]

    return function


def of_every_order(op):
    return lambda x, y, curv: smooth.row_values(KINDS[op], x[None], y[None], curv.reshape(1))[0, 0]


def check_exact(op, dtype, function):
    @given(st.data())
    def check(data):
        case = data.draw(CASES[op](dtype, smooth=False))
        error = value_error(op, case.args, case.curv, function=function)
        assert error <= tolerance(op, "value", dtype)
        case = data.draw(CASES[op](dtype, smooth=True))
        errors = gradient_errors(op, case.args, case.curv, function=function)
        note(f"errors: {errors}")
        assert max(errors.values()) <= tolerance(op, "gradient", dtype)

    check()


@every_dtype
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("op", ["dist", "inner", "exterior_angle"])
def test_chosen_pairs_are_exact(op, dtype):
    check_exact(op, dtype, chosen(op))


@every_dtype
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("op", KINDS)
def test_the_forms_of_every_order_are_exact(op, dtype):
    check_exact(op, dtype, of_every_order(op))


# --- Compiled, where the work has earned it -------------------------------------------------------


def pairs_of_all_kinds(D):
    """Close, equal, aligned, opposite and far points, the origin, and points beyond the range."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 40, D, generator=generator)
    y[:5], y[5:10], y[10:15], y[15:20] = x[:5], x[5:10] * (1 + 1e-6), 2 * x[10:15], -x[15:20]
    x[20:22], y[21:24], x[24:28], y[28:32] = 0, 0, 1e12 * x[24:28], 1e30 * y[28:32]
    return x, y


def results(kind, D, dtype=torch.float32):
    inputs = (*pairs_of_all_kinds(D), torch.tensor([0.7]))
    leaves = [t.to(dtype).requires_grad_() for t in inputs]
    value = pairs.row_values(kind, *leaves)
    grad_output = torch.linspace(0.5, 1.5, value.numel()).view_as(value)
    return value.detach(), *torch.autograd.grad(value, leaves, grad_output)


def check_same(ours, theirs, tolerance):
    for got, expected in zip(ours, theirs, strict=True):
        size = expected.norm(dim=-1, keepdim=True) if expected.dim() else expected.abs()
        least = 1e-30 if got.dtype == torch.float32 else 1e-290
        assert got.isfinite().all()
        error = (got - expected).norm(dim=-1, keepdim=True)
        assert (error <= tolerance * size.clamp_min(least)).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "D", "dtype", "tolerance"),
    [
        ("distance", 3, torch.float32, 1e-6),
        ("exterior", 40, torch.float32, 1e-6),
        ("distance", 40, torch.float64, 1e-14),
    ],
)
def test_compiled_rows_are_the_eager_ones(monkeypatch, kind, D, dtype, tolerance):
    if not compilation._has_compiler():
        pytest.skip("needs a C++ compiler")
    expected = results(kind, D, dtype)
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    check_same(results(kind, D, dtype), expected, tolerance)


@pytest.mark.thorough
def test_compiled_measures_are_the_eager_ones(monkeypatch):
    if not compilation._has_compiler():
        pytest.skip("needs a C++ compiler")

    def product():
        x, u, v = (t.double().requires_grad_() for t in (*pairs_of_all_kinds(6), torch.ones(40, 6)))
        value = ops.tangent_inner(x, u, v, 0.7)
        return value.detach(), *torch.autograd.grad(value.sum(), (x, u, v))

    expected = product()
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    check_same(product(), expected, 1e-14)


def test_few_calls_never_wait_for_a_compiler(monkeypatch):
    def no_compiler(*args, **kw):
        raise AssertionError("compiled too early")

    monkeypatch.setattr(compilation, "compiled", no_compiler)
    for _ in range(3):
        results("distance", 5)
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    with pytest.raises(AssertionError, match="too early"):
        results("distance", 5)
