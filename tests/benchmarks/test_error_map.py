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
        error_maps = error_map.maps(cells=4, pairs=1)
    panels = error_map.aggregates(error_maps)
    for name, panel in panels.items():
        if "lorentzkit" in name:
            assert panel["worst"] < 1e-6
            assert panel["not finite"] == 0
        elif "rounded" not in name:
            assert panel["worst"] > 0.5
            assert panel["lost"] > 0.5
    assert len(error_map.all_panels(error_maps).axes) == 7  # a panel each, and the colours


def test_the_page_has_the_figures_of_the_map(error_map: ModuleType) -> None:
    content = json.loads((ROOT / "benchmarks" / "results" / "error_map.json").read_text("utf-8"))
    page = (ROOT / "docs" / "numerics.md").read_text("utf-8")
    assert error_map.table(content["panels"]) in page
