"""The kernels of rows against the oracle, in units of the rounding of their inputs.

On a GPU where there is one, else in Triton's interpreter; those of all pairs: `test_kernels.py`.
"""

import condition
import pytest
import strategies
import torch
from exactness import gradients_of, value_of
from hypothesis import given, note, settings
from hypothesis import strategies as st
from tolerances import tolerance

from lorentzkit.fused.triton import rows as kernels

ON_A_GPU = torch.cuda.is_available()
every_op = pytest.mark.parametrize("op", [op for op in kernels.OPS if op in condition.OPS])


@pytest.fixture(autouse=True)
def _on_the_device(monkeypatch):
    monkeypatch.setattr(condition, "DEVICE", "cuda" if ON_A_GPU else "cpu")
    if not ON_A_GPU:  # the interpreter takes a tenth of a second for each dimension
        monkeypatch.setattr(strategies, "DIMENSIONS", [3, 2, 8])


@pytest.fixture(autouse=True)
def _by_kernels(monkeypatch):
    """Nothing is measured but kernels."""
    ran = []
    values = kernels.values
    monkeypatch.setattr(kernels, "values", lambda *args: ran.append(args[0]) or values(*args))
    yield
    assert ran


def examples():
    """The profile's on a GPU; interpreted, each takes seconds."""
    count = settings.default.max_examples
    return settings(max_examples=count if ON_A_GPU else max(2, count // 6))


@pytest.mark.few(op=["dist", "expmap"])
@every_op
def test_values_are_exact(op):
    @examples()
    @given(st.data())
    def check(data):
        assert value_of(op, data, torch.float32) <= tolerance(op, "value", torch.float32)

    check()


@pytest.mark.few(op="dist")
@every_op
def test_gradients_are_exact(op):
    @examples()
    @given(st.data())
    def check(data):
        errors = gradients_of(op, data, torch.float32)
        note(f"errors: {errors}")
        assert max(errors.values()) <= tolerance(op, "gradient", torch.float32)

    check()
