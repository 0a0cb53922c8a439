"""Names that the examples in docstrings and in the README use without importing them."""

import importlib.util

import geoopt
import pytest
import torch

from lorentzkit import losses, nn, ops

# Triton's wheels are for Linux: elsewhere its modules cannot be searched for doctests.
if importlib.util.find_spec("triton") is None:
    collect_ignore = ["lorentzkit/fused/triton"]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    torch.manual_seed(0)
    doctest_namespace.update({"torch": torch, "geoopt": geoopt})
    doctest_namespace.update({name: getattr(ops, name) for name in ops.__all__})
    doctest_namespace.update({name: getattr(losses, name) for name in losses.__all__})
    doctest_namespace.update({name: getattr(nn, name) for name in nn.__all__})
