"""What a release promises: one version, one date, and no file that runs code when it is loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import lorentzkit

ROOT = Path(__file__).parents[1]
SOURCES = [p for top in ("lorentzkit", "examples") for p in sorted((ROOT / top).rglob("*.py"))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
UNSAFE = re.compile(
    r"(^|\.)((pickle|dill|cloudpickle|joblib|shelve|marshal)(\.|$)|torch\.(load|save)$|yaml\.load$"
    r"|(eval|exec)$|\w+_object(_list)?$)"  # torch.distributed pickles objects
)


def unsafe(source: str) -> Iterator[str]:
    """Names imported or called that load, or make, what can run code; and `allow_pickle`."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [node.func.id]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # A module's eval() runs nothing, and with weights_only torch.load makes tensors alone.
            harmless = node.func.attr == "eval" or _weights_only(node)
            names = [] if harmless else [ast.unparse(node.func)]
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            names = ["pickle"]
        yield from (name for name in names if UNSAFE.search(name))


def _weights_only(call: ast.Call) -> bool:
    given = {k.arg: ast.unparse(k.value) for k in call.keywords}
    return ast.unparse(call.func) == "torch.load" and given.get("weights_only") == "True"


def test_nothing_is_unpickled() -> None:
    found = {file: [*unsafe(file.read_text("utf-8"))] for file in SOURCES}
    assert {file: calls for file, calls in found.items() if calls} == {}
    assert len(found) > 90


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load",
        "np.load('x', allow_pickle=True)",
        "exec('1')",
        "dist.all_gather_object(a, b)",
        "yaml.load(text)",
    ],
)
def test_the_check_can_fail(source: str) -> None:
    assert [*unsafe(source)]
    assert not [
        *unsafe(
            "model.eval()\nnp.load('x')\nyaml.safe_load(text)\nsafetensors.torch.load_file('x')"
        )
    ]


def test_changelog_and_citation_name_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    newest = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, flags=re.M)
    assert newest, "CHANGELOG.md: no heading of the form ## [0.1.0] - 2026-01-31"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert newest[1] == citation["version"] == lorentzkit.__version__
    assert newest[2] == str(citation["date-released"])


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda p: p.name)
def test_issue_templates_are_forms(file: Path) -> None:
    form = yaml.safe_load(file.read_text("utf-8"))
    if file.name == "config.yml":
        assert isinstance(form["blank_issues_enabled"], bool)
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    for field in form["body"]:
        assert field["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


@pytest.mark.skipif(not WORKFLOWS, reason="a source archive has none")
def test_workflows_run_what_ci_runs() -> None:
    """Each command is one of `.ci/run`, or of the README, where that finds its own."""
    known = (ROOT / ".ci" / "run").read_text("utf-8") + (ROOT / "README.md").read_text("utf-8")
    known = known.replace('"$work/documentation"', "site").replace(' 2>>"$work/install.log"', "")
    jobs = [
        job
        for file in WORKFLOWS
        for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values()
    ]
    commands = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    nightly, path = ".venv/bin/python -m pytest --thorough -n auto", 'echo "$PWD/.venv/bin"'
    assert nightly in commands
    own = {c for c in commands if not c.startswith(path)} - {nightly}
    assert len(own) >= 8
    assert {command for command in own if command not in known} == set()
