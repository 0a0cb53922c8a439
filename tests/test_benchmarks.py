"""The benchmarks run, their rivals compute the same, and docs/benchmarks.md is what they found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from calls import SIGNATURES, arguments

from lorentzkit import ops

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import compare
import plots
import rivals
import run
import suites
import tables

# Constants, views, and what the other suites time.
NOT_ELEMENTWISE = {"drop_time", "max_radius", *(n for n in ops.__all__ if "pairwise" in n)}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()  # the commands set their own
    yield
    torch.set_num_threads(before)


def test_every_op_is_timed() -> None:
    assert {*suites.KINDS["elementwise"]} == {*ops.__all__} - NOT_ELEMENTWISE


@pytest.mark.parametrize("op", rivals.MERU)
def test_formulas_of_meru_are_those_of_the_ops(op: str) -> None:
    """In float64, and where nothing cancels: else they are as wrong as they are known to be."""
    args = [*arguments(op), torch.tensor(0.7).double()]
    torch.testing.assert_close(rivals.MERU[op](*args), suites.ours(op, *args), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", rivals.GEOOPT)
def test_functions_of_geoopt_are_those_of_the_ops(op: str) -> None:
    c = torch.tensor(1.0).double()  # geoopt's ball has another radius for every curvature
    args = [*arguments(op), c if "poincare" in op else 0.7 * c]
    ours, theirs = (
        suites.ours(op, *args),
        rivals.GEOOPT[op](*rivals.in_geoopt(SIGNATURES[op], *args)),
    )
    if theirs.shape != ours.shape:
        theirs = ops.drop_time(theirs)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)  # it adds 1e-6 to a denominator


SMALL = ["--dimensions", "4", "--seconds", "0", "--without", "compiled", "auto_compiled"]


@pytest.mark.parametrize("suite", ["elementwise", "loss"])
def test_a_suite_is_measured_and_compared(suite: str, tmp_path: Path) -> None:
    kind = "dist" if "dist" in suites.KINDS[suite] else "distance"
    these = [suite, "--kinds", kind, "--sizes", "8", *SMALL, "--results", str(tmp_path)]
    assert run.main(these) == 0
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text("utf-8"))
    assert found["environment"]["torch"] == torch.__version__
    (row,) = found["rows"].values()
    assert {"auto", "usual", "floor"} <= row["ms"].keys()
    assert all(0 < parts["both"][0] <= parts["both"][2] for parts in row["ms"].values())
    if suite == "loss":
        return  # each measurement of its memory takes a process: half a minute
    assert run.main([*these, "--compare"]) in (0, 1)
    row["ms"] = {n: {p: [1e-9] * 3 for p in parts} for n, parts in row["ms"].items()}
    file.write_text(json.dumps(found), "utf-8")
    assert run.main([*these, "--compare"]) == 1
    assert json.loads(file.read_text("utf-8")) == found


def verdict(now: list[float], then: list[float], floor: float = 1.0, **options: bool) -> str:
    fresh, earlier = (
        {"auto": {"both": times}, "floor": {"both": [at] * 3}, "usual": {"both": [9.0] * 3}}
        for times, at in ((now, floor), (then, 1.0))
    )
    ((name, found),) = compare.verdicts(fresh, earlier, **{"ratios": False, **options})
    assert name == "auto"
    return str(found).split(",")[0]


def test_verdicts() -> None:
    assert verdict([12, 13, 14], [9, 10, 11]) == "slower"
    assert verdict([6, 7, 8], [9, 10, 11]) == "faster"
    assert verdict([10.5, 13, 14], [9, 10, 11]) == "no clear change"  # the ranges meet
    assert verdict([10.6, 10.7, 10.8], [9.9, 10, 10.1]) == "no clear change"  # within a tenth
    assert verdict([24, 26, 28], [9, 10, 11], floor=2.0) == "slower"
    assert verdict([20, 20, 20], [9, 10, 11], floor=2.0, ratios=True) == "no clear change"
    assert verdict([28, 30, 32], [9, 10, 11], floor=2.0, ratios=True) == "slower"


def test_differences_are_named() -> None:
    assert compare.differences({"torch": "2", "numpy": "1"}, {"torch": "2", "numpy": "1"}) == ""
    found = compare.differences({"torch": "3", "new": 1}, {"torch": "2"})
    assert found == "new None then, 1 now, torch 2 then, 3 now"


def test_imports_are_timed() -> None:
    (row,) = run.rows(run.parsed(["import"]))
    steps = row.steps([])
    assert [*steps] == row.names() == [*suites.IMPORTS]
    assert steps["python"]()[0] > 0


def test_pytest_benchmark_runs_the_steps() -> None:
    """All that are not compiled, and whose processes are not the tests' own, once each."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    chosen = [
        "-k",
        "not compiled and not import",
        "--benchmark-disable",
        "benchmarks/bench_steps.py",
    ]
    done = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 80


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the pages, and of the pictures they name."""
    for name in (tables.PAGE, *tables.ALSO.values()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tables.DOCS / name, tmp_path / name)
    shutil.copytree(tables.DOCS / "images/benchmarks", tmp_path / "images/benchmarks")
    return tmp_path


def test_the_pages_show_the_committed_results(docs: Path) -> None:
    tables.write_pages(run.RESULTS, docs)
    for name in (tables.PAGE, *tables.ALSO.values()):
        written, committed = ((at / name).read_text("utf-8") for at in (docs, tables.DOCS))
        assert written == committed, "run python benchmarks/run.py page"


def test_a_page_follows_its_results(docs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(run.RESULTS, results)
    file = results / "loss-cpu.json"
    found = json.loads(file.read_text("utf-8"))
    for row in found["rows"].values():
        row["ms"]["auto"]["both"][1] *= 3
    file.write_text(json.dumps(found), "utf-8")
    tables.write_pages(results, docs)
    assert (docs / tables.PAGE).read_text("utf-8") != (tables.DOCS / tables.PAGE).read_text("utf-8")


def test_every_file_of_results_is_shown() -> None:
    page = (tables.DOCS / tables.PAGE).read_text("utf-8")
    for file in run.RESULTS.glob("*.json"):
        suite = file.stem.rpartition("-")[0]
        assert suite in tables.SUITES, f"{file.name} has no table"
        assert tables.text(suite, run.RESULTS) in page
        if suite != "memory":
            assert f"images/benchmarks/{suite}.png" in page


def test_figures_are_drawn(docs: Path) -> None:
    shutil.rmtree(docs / "images/benchmarks")
    plots.draw(run.RESULTS, docs)
    drawn = {file.stem for file in (docs / "images/benchmarks").iterdir()}
    measured = {file.stem.rpartition("-")[0] for file in run.RESULTS.glob("*.json")}
    assert drawn == measured - {"memory"}


def test_the_reduction_to_inner_products_finds_the_nearest() -> None:
    pytest.importorskip("faiss")
    import retrieval

    queries, gallery = retrieval.Searched("dist", 6000, 16).points()
    index, exact = retrieval.index_of(gallery), retrieval.nearest(queries, gallery)
    assert retrieval._share(exact, retrieval.by_product(index, queries)) > 0.99
    assert torch.equal(retrieval.reranked(index, queries, gallery), exact)
    around = retrieval._around(queries, 1e-2)
    away = ops.dist(queries[:, None], around, retrieval.CURV) / 1e-2
    assert 0.45 < away.min() < away.max() < 1.55
    gallery[: around.shape[0] * around.shape[1]] = around.flatten(0, 1)
    exact = retrieval.nearest(queries, gallery)
    assert retrieval._share(exact, exact.flip(1)) == 1
    assert retrieval._share(exact, (exact + 1).where(torch.arange(10) < 5, exact)) < 0.8
