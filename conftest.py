"""What runs by default and what `--thorough` adds; the names that examples need not import.

Without `--thorough`, a test marked `thorough` is left out, and one marked `few` runs for the values
that the marker names and for no other: `few(op=["dist", "expmap"], D=3)`.
"""

import importlib
import importlib.util
from collections.abc import Generator
from typing import Any

import pytest
import torch

from lorentzkit import losses, nn, ops

# Tests have these on Linux only: Triton has no other wheels, and on macOS those of faiss and of
# torch bring an OpenMP each, which may end the process (faiss-wheels/faiss-wheels#73).
NEEDED = {"triton": "lorentzkit/fused/triton", "faiss": "docs/tutorials/retrieval.md"}
collect_ignore = [path for name, path in NEEDED.items() if importlib.util.find_spec(name) is None]
collect_ignore += ["docs/tools"]  # no tests; it imports what only builders of the site have
THOROUGH_PAGES = ["multi-process.md"]  # it starts processes, as tests/distributed does


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="run all tests, with more examples")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str) -> Generator[None, Any, Any]:
    """Marks the cases of a test that its marker `few` does not name as `thorough`."""
    cases = yield
    if isinstance(cases, list) and cases and cases[0].get_closest_marker("few"):
        others = [case for case in cases if not _among_the_few(case)]
        if len(others) == len(cases):
            raise collector.CollectError(f"{name}: few() names values that it does not have")
        for case in others:
            case.add_marker("thorough")
    return cases


def _among_the_few(case: pytest.Function) -> bool:
    kept = {k: v for marker in case.iter_markers("few") for k, v in marker.kwargs.items()}
    has = case.callspec.params
    return all(has[k] in (v if isinstance(v, list) else [v]) for k, v in kept.items())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in THOROUGH_PAGES:
            item.add_marker("thorough")
    if not config.getoption("thorough"):
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


@pytest.fixture(autouse=True)
def _doctest_names(doctest_namespace: dict[str, object]) -> None:
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch
    if importlib.util.find_spec("geoopt"):  # absent on a machine that only checks kernels
        doctest_namespace["geoopt"] = importlib.import_module("geoopt")
    doctest_namespace.update({name: getattr(ops, name) for name in ops.__all__})
    doctest_namespace.update({name: getattr(losses, name) for name in losses.__all__})
    doctest_namespace.update({name: getattr(nn, name) for name in nn.__all__})
