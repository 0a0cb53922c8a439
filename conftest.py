"""Names that the examples in docstrings and in the README use without importing them."""

import importlib.util

import geoopt
import pytest
import torch

from lorentzkit import losses, nn, ops

# Tests have these on Linux only: Triton has no other wheels, and on macOS those of faiss and of
# torch bring an OpenMP each, which may end the process (faiss-wheels/faiss-wheels#73).
NEEDED = {"triton": "lorentzkit/fused/triton", "faiss": "docs/tutorials/retrieval.md"}
collect_ignore = [path for name, path in NEEDED.items() if importlib.util.find_spec(name) is None]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    torch.manual_seed(0)
    doctest_namespace.update({"torch": torch, "geoopt": geoopt})
    doctest_namespace.update({name: getattr(ops, name) for name in ops.__all__})
    doctest_namespace.update({name: getattr(losses, name) for name in losses.__all__})
    doctest_namespace.update({name: getattr(nn, name) for name in nn.__all__})
