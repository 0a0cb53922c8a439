"""The error map of docs/numerics.md: what it says in little, and that the page has its figures."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
from mpmath import mp

ROOT = Path(__file__).parents[2]


@pytest.fixture
def error_map(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("error_map")


def test_only_ours_is_exact_everywhere(error_map: ModuleType) -> None:
    with mp.workdps(150):
        found = error_map.maps(cells=4, pairs=1)
    figures = error_map.aggregates(found)
    for name, of in figures.items():
        if "lorentzkit" in name:
            assert of["worst"] < 1e-6
            assert of["not finite"] == 0
        elif "rounded" not in name:
            assert of["worst"] > 0.5
            assert of["lost"] > 0.5
    assert len(error_map.drawn(found).axes) == 7  # a panel each, and the colours


def test_the_page_has_the_figures_of_the_map(error_map: ModuleType) -> None:
    figures = json.loads((ROOT / "benchmarks" / "results" / "error_map.json").read_text("utf-8"))
    page = (ROOT / "docs" / "numerics.md").read_text("utf-8")
    assert error_map.table(figures["panels"]) in page
