"""The benchmarks run, their rivals compute the same, and docs/benchmarks.md is what they found."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import SIGNATURES, arguments

from lorentzkit import ops
from lorentzkit._geometry import array_functions, compilation

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))

import measure
import rivals
import run
import suites
import usual_formulas
from report import DOCS, compare, plots, tables

# Constants, views, and what the other suites time.
NOT_ELEMENTWISE = {"drop_time", "max_radius", *(n for n in ops.__all__ if "pairwise" in n)}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()  # the commands set their own
    yield
    torch.set_num_threads(before)


def test_every_op_is_timed() -> None:
    assert {*suites.KINDS["elementwise"]} == {*ops.__all__} - NOT_ELEMENTWISE


@pytest.mark.parametrize("op", usual_formulas.MERU)
def test_formulas_of_meru_are_those_of_the_ops(op: str) -> None:
    """In float64, and where nothing cancels: else they are as wrong as they are known to be."""
    args = [*arguments(op), torch.tensor(0.7).double()]
    torch.testing.assert_close(
        usual_formulas.MERU[op](*args), suites.ours(op, *args), rtol=1e-6, atol=1e-6
    )


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


def test_the_usual_midpoint_is_that_of_the_op() -> None:
    x, c = torch.randn(20, 3, dtype=torch.float64), torch.tensor(0.7).double()
    torch.testing.assert_close(
        usual_formulas.usual_midpoint(x, c), ops.einstein_midpoint(x, curv=c)
    )


def test_steps_of_adam_are_the_same_on_both_manifolds() -> None:
    x, gradient = torch.randn(2, 20, 3, dtype=torch.float64)
    gradient_before = gradient.clone()
    optimisers = rivals.adams(x, gradient)
    for adam in optimisers.values():
        for _ in range(3):
            assert adam.step()[0] > 0
    ours, theirs = optimisers["auto"].x.detach(), optimisers["geoopt"].x.detach()
    torch.testing.assert_close(theirs, ops.add_time(ours), rtol=1e-6, atol=1e-9)
    assert torch.equal(ours, optimisers["auto_later"].x)
    assert (ours - x).norm(dim=-1).min() > 1e-3
    assert torch.equal(gradient, gradient_before)
    assert not optimisers["geoopt"].x.grad[:, 0].any()


NOT_COMPILED = ["compiled", "auto_compiled", "geoopt_compiled"]


EVERY_ROW = [
    *((op, "float32") for op in suites.KINDS["elementwise"]),
    *((op, "float64") for op in suites.WITH_RIVALS),
]


@pytest.mark.skipif(measure.DEVICE != "cpu", reason="rows are compiled on CPUs")
@pytest.mark.parametrize(("op", "dtype"), EVERY_ROW)
def test_first_calls_are_never_compiled_and_later_ones_always(
    op: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where any call earns it; an op that no call compiles has no later ones."""
    compiled_calls = []

    def compiled(function: Any, *args: Any, **kwargs: Any) -> Any:
        compiled_calls.append(args)
        return function

    monkeypatch.setattr(compilation, "compiled", compiled)
    monkeypatch.setattr(compilation, "_has_compiler", lambda: True)
    monkeypatch.setattr(compilation, "_EARNS_COMPILING", 0)
    row = suites.Row("elementwise", op, 2 * array_functions.FEW_ROWS, 4, dtype)
    steps = row.steps(NOT_COMPILED)
    measure.step(*row.calls()["auto"])
    assert ("auto_later" in steps) == bool(compiled_calls)
    compiled_calls.clear()
    steps["auto"]()
    assert not compiled_calls
    if "auto_later" in steps:
        monkeypatch.setattr(compilation, "_EARNS_COMPILING", math.inf)
        steps["auto_later"]()
        assert compiled_calls
    assert {*row.names()} == {*row.steps([])}


COMPILED = ["compiled", "auto_compiled", "auto_later"]
SMALL = ["--dimensions", "4", "--seconds", "0", "--without", *COMPILED]


@pytest.mark.thorough
@pytest.mark.parametrize("suite", ["elementwise", "loss"])
def test_a_suite_is_measured_and_compared(suite: str, tmp_path: Path) -> None:
    kind = "dist" if "dist" in suites.KINDS[suite] else "distance"
    command = [suite, "--kinds", kind, "--sizes", "8", *SMALL, "--results", str(tmp_path)]
    assert run.main(command) == 0
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text("utf-8"))
    assert content["environment"]["torch"] == torch.__version__
    (row,) = content["rows"].values()
    assert {"auto", "usual", "floor"} <= row["ms"].keys()
    assert all(0 < parts["both"][0] <= parts["both"][2] for parts in row["ms"].values())
    if suite == "loss":
        return  # each measurement of its memory takes a process: half a minute
    assert run.main([*command, "--compare"]) in (0, 1)
    row["ms"] = {n: {p: [1e-9] * 3 for p in parts} for n, parts in row["ms"].items()}
    file.write_text(json.dumps(content), "utf-8")
    assert run.main([*command, "--compare"]) == 1
    assert json.loads(file.read_text("utf-8")) == content


@pytest.mark.thorough
def test_float64_stands_beside_float32(tmp_path: Path) -> None:
    command = ["elementwise", "--kinds", "dist", "--sizes", "8", *SMALL, "--results", str(tmp_path)]
    for dtype in ("float64", "float32"):
        assert run.main([*command, "--dtype", dtype]) == 0
    rows = json.loads((tmp_path / f"elementwise-{measure.DEVICE}.json").read_text("utf-8"))["rows"]
    assert {key: row["dtype"] for key, row in rows.items()} == {
        "dist 8 4 float64": "float64",
        "dist 8 4": "float32",
    }


def test_ops_with_a_rival_are_measured_in_float64() -> None:
    rows = [*run.rows(run.parsed(["elementwise", "--dtype", "float64"]))]
    assert {row.kind for row in rows} == {*usual_formulas.MERU, *rivals.GEOOPT}
    for row in rows:
        assert (row.N, row.D) == (4096, 512)
        small = row._replace(N=suites.LEAST_COMPILED, D=4)
        assert {*small.names()} == {*small.calls(), "floor"}
        assert not {*small.names()} & {*NOT_COMPILED}
        assert ("auto_later" in small.names()) == (row.kind in suites.EARNED_IN_FLOAT64)
        for function, inputs in small.calls().values():
            assert function(*inputs).dtype == torch.float64
    with pytest.raises(SystemExit):
        run.parsed(["loss", "--dtype", "float64"])


@pytest.mark.thorough
@pytest.mark.parametrize("suite", ["means", "optimiser"])
def test_means_and_optimisers_are_measured(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {(row.kind, row.N, row.D) for row in run.rows(run.parsed([suite]))}
    assert sizes == {
        (kind, *size) for kind in suites.KINDS[suite] for size in suites.ALSO[suite, kind]
    }
    monkeypatch.setattr(suites.Row, "peaks", lambda row: {"auto": 7})  # each takes a process
    without = ["--without", "auto_later"]  # in whose first step we would wait for a compiler
    small = ["--sizes", "8", "--dimensions", "4", "--seconds", "0", *without]
    assert run.main([suite, *small, "--results", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    rows = json.loads(file.read_text("utf-8"))["rows"]
    assert {row["kind"] for row in rows.values()} == {*suites.KINDS[suite]}
    rivals_of = {"einstein_midpoint": "usual", "centroid_loss": "contrastive"}
    for row in rows.values():
        names = {"auto", rivals_of.get(row["kind"], "geoopt"), "floor"}
        assert {*row["ms"]} == names
        assert {*suites.Row(suite, row["kind"], 8, 4).names()} - {"auto_later"} == names
        assert f"| {row['kind']} | 8 | 4 |" in tables.text(suite, tmp_path)


def verdict(now: list[float], then: list[float], floor: float = 1.0, **options: bool) -> str:
    fresh, earlier = (
        {"auto": {"both": times}, "floor": {"both": [floor_time] * 3}, "usual": {"both": [9.0] * 3}}
        for times, floor_time in ((now, floor), (then, 1.0))
    )
    ((name, result),) = compare.verdicts(fresh, earlier, **{"ratios": False, **options})
    assert name == "auto"
    return str(result).split(",")[0]


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
    text = compare.differences({"torch": "3", "new": 1}, {"torch": "2"})
    assert text == "new None then, 1 now, torch 2 then, 3 now"


@pytest.mark.thorough
def test_imports_are_timed() -> None:
    (row,) = run.rows(run.parsed(["import"]))
    steps = row.steps([])
    assert [*steps] == row.names() == [*suites.IMPORTS]
    assert steps["python"]()[0] > 0


@pytest.mark.thorough
def test_pytest_benchmark_runs_the_steps() -> None:
    """All that are not compiled, and whose processes are not the tests' own, once each."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    selection = [
        "-k",
        "not compiled and not later and not import",
        "--benchmark-disable",
        "benchmarks/bench_steps.py",
    ]
    process = subprocess.run([*command, *selection], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    assert int(re.findall(r"(\d+) passed", process.stdout)[0]) > 80


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A copy of the pages, and of the pictures they name."""
    for name in (tables.PAGE, *tables.ALSO.values()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DOCS / name, tmp_path / name)
    shutil.copytree(DOCS / "images/benchmarks", tmp_path / "images/benchmarks")
    return tmp_path


def test_the_pages_show_the_committed_results(docs: Path) -> None:
    tables.write_pages(run.RESULTS, docs)
    for name in (tables.PAGE, *tables.ALSO.values()):
        written, committed = ((folder / name).read_text("utf-8") for folder in (docs, DOCS))
        assert written == committed, "run python benchmarks/run.py page"


def test_a_page_follows_its_results(docs: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(run.RESULTS, results)
    file = results / "loss-cpu.json"
    content = json.loads(file.read_text("utf-8"))
    for row in content["rows"].values():
        row["ms"]["auto"]["both"][1] *= 3
    file.write_text(json.dumps(content), "utf-8")
    tables.write_pages(results, docs)
    assert (docs / tables.PAGE).read_text("utf-8") != (DOCS / tables.PAGE).read_text("utf-8")


def results_of(*rows: dict[str, Any]) -> dict[str, Any]:
    """Of ops on 64 and 4,096 points, by medians of both passes."""
    environment = {"machine": "this", "threads": 2, "torch": "3"}
    defaults = {"kind": "dist", "N": 4096, "D": 512}
    full_rows = [
        defaults
        | row
        | {"ms": {n: {"both": [t] * 3, "forward": [t] * 3} for n, t in row["ms"].items()}}
        for row in rows
    ]
    return {"environment": environment, "rows": {str(i): row for i, row in enumerate(full_rows)}}


WHOLE = results_of(
    {"ms": {"auto": 4, "auto_later": 2, "auto_compiled": 8, "usual": 6, "compiled": 2, "floor": 1}},
    {
        "ms": {"auto": 1, "auto_later": 0.5, "usual": 2, "geoopt": 3, "floor": 1},
        "dtype": "float64",
    },
    {"ms": {"auto": 1, "auto_later": 0.5, "usual": 0.5, "floor": 1}, "N": 64},
    {"ms": {"auto": 1, "floor": 1}, "kind": "time", "dtype": "float32"},
)


def test_the_summary_sets_calls_against_each_rival() -> None:
    where, _, heads, _, *lines = tables.summary(WHOLE)
    assert where == "this, 2 threads, torch 3:"
    first, later, compiled = "first calls", "later calls", "both under `torch.compile`"
    expected_heads = ["op, 4,096 x 512", "against", first, later, compiled]
    further_heads = [
        f"{calls}, {column}" for column in ("float64", "64 x 512") for calls in (first, later)
    ]
    assert heads == f"| {' | '.join([*expected_heads, *further_heads])} |"
    assert lines == [
        "| dist | MERU | 1.5x | 3.0x | 0.25x | 2.0x | 4.0x | 0.5x | 1.0x |",
        "| dist | geoopt |  |  |  | 3.0x | 6.0x |  |  |",
    ]


def test_columns_are_those_that_something_fills() -> None:
    lines = [*tables.table("elementwise", WHOLE)]
    float32, float64 = (line for line in lines if line.startswith("| op"))
    assert "| later calls | compiled | MERU | MERU, compiled |" in float32
    assert "geoopt" not in float32
    assert float32.count("|") == 11
    assert float64.endswith("| x copies | later calls | MERU | geoopt |")
    assert lines.index("In float64:") < lines.index(float64)
    assert "| dist | 4,096 | 512 | 4.0 | 0 | 4.00 | 0.5x | 2.0x | 1.5x | 0.5x |" in lines
    assert lines[-1] == "| dist | 4,096 | 512 | 1.0 | 0 | 1.00 | 0.5x | 2.0x | 3.0x |"


def test_the_figure_has_a_panel_for_each_dtype() -> None:
    figure = plots.over_ops(WHOLE)
    float32, float64 = figure.axes
    assert [ax.get_title().split(",")[0] for ax in figure.axes] == ["float32", "float64"]
    ratios = [[float(line.get_xdata()[0]) for line in ax.lines[:-1]] for ax in (float32, float64)]
    assert ratios == [
        [1.5, 0.5, 0.5, 2.0],
        [2.0, 3.0, 0.5],
    ]  # in the order of STYLES, before parity
    plots.plt.close(figure)


def test_what_is_measured_has_a_place_on_the_page(docs: Path, tmp_path: Path) -> None:
    page, results = docs / tables.PAGE, tmp_path / "results"
    shutil.copytree(run.RESULTS, results)
    page.write_text(page.read_text("utf-8").replace("<!-- means:begin -->", ""), "utf-8")
    (results / "means-cpu.json").unlink(missing_ok=True)
    tables.write_pages(results, docs)
    (results / "means-cpu.json").write_text(json.dumps(results_of({"ms": {"auto": 1}})), "utf-8")
    with pytest.raises(SystemExit, match="means:begin"):
        tables.write_pages(results, docs)


def test_every_file_of_results_is_shown() -> None:
    page = (DOCS / tables.PAGE).read_text("utf-8")
    studies = {
        "approximate-cpu",
        "compiled",
        "error_map",
        "libraries",
        "roofline",
    }  # on pages of their own
    for file in run.RESULTS.glob("*.json"):
        if file.stem in studies:
            continue
        suite = file.stem.rpartition("-")[0]
        assert suite in tables.SUITES, f"{file.name} has no table"
        assert tables.text(suite, run.RESULTS) in page
        if suite in plots.FIGURES:
            assert f"images/benchmarks/{suite}.png" in page


def test_approximate_search_is_shown() -> None:
    pytest.importorskip("faiss")
    import approximate

    results = json.loads((run.RESULTS / "approximate-cpu.json").read_text("utf-8"))
    assert approximate.table(results) in approximate.PAGE.read_text("utf-8")


def test_what_training_reached_is_shown() -> None:
    import training_table

    for document, text in training_table.DOCUMENTS.items():
        assert text() in document.read_text("utf-8"), "run python benchmarks/training_table.py"


def test_the_libraries_are_shown() -> None:
    import libraries

    results = json.loads((run.RESULTS / "libraries.json").read_text("utf-8"))
    assert libraries.table(results) in (ROOT / "README.md").read_text("utf-8")


def test_figures_are_drawn(docs: Path) -> None:
    shutil.rmtree(docs / "images/benchmarks")
    plots.draw(run.RESULTS, docs)
    drawn = {file.stem for file in (docs / "images/benchmarks").iterdir()}
    measured = {file.stem.rpartition("-")[0] for file in run.RESULTS.glob("*.json")}
    assert drawn == measured & plots.FIGURES.keys()
    assert {*tables.SUITES} - plots.FIGURES.keys() == {"batches", "memory", "means", "optimiser"}


def test_the_reduction_to_inner_products_finds_the_nearest() -> None:
    pytest.importorskip("faiss")
    import retrieval

    queries, gallery = retrieval.Search("dist", 6000, 16).points()
    index, exact = retrieval.index_of(gallery), retrieval.nearest(queries, gallery)
    assert retrieval._recall(exact, retrieval.by_product(index, queries)) > 0.99
    assert torch.equal(retrieval.reranked(index, queries, gallery), exact)
    neighbours = retrieval._neighbours(queries, 1e-2)
    distances = ops.dist(queries[:, None], neighbours, retrieval.CURV) / 1e-2
    assert 0.45 < distances.min() < distances.max() < 1.55
    gallery[: neighbours.shape[0] * neighbours.shape[1]] = neighbours.flatten(0, 1)
    exact = retrieval.nearest(queries, gallery)
    assert retrieval._recall(exact, exact.flip(1)) == 1
    assert retrieval._recall(exact, (exact + 1).where(torch.arange(10) < 5, exact)) < 0.8
