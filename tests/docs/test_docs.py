"""The documentation is whole: pages in the menu, links that lead somewhere, every public name.

And all its code is run: `pycon` by pytest's doctests, `python` here, as a script on two processes.
Of commands for a shell it is checked that their scripts are there and have the options.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(DOCS.rglob("*.md"))
WITH_LINKS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PUBLIC = [
    f"lorentzkit.{name}"
    for name in (
        "ops",
        "losses",
        "nn",
        "clip",
        "manifolds",
        "distributed",
        "viz",
        "testing",
        "compat.meru",
    )
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def in_nav(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_nav(value) if isinstance(value, list) else [value]


def prose(page: Path) -> str:
    """The text outside of fenced code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(text: str) -> list[str]:
    """The targets of links and pictures that are no addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """The headings' anchors, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+?)$", text, flags=re.M):
        plain = re.sub(r"[`*]|\]\([^)]*\)", "", heading)
        ascii_ = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_).strip().lower()))
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere, and those of the site that would leave it."""
    wrong = []
    for target in links(prose(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        leaves = page.is_relative_to(DOCS) and not file.is_relative_to(DOCS)
        if leaves or not file.exists() or (anchor and anchor not in anchors(prose(file))):
            wrong.append(target)
    return wrong


def documented() -> list[str]:
    """What mkdocstrings is told to describe."""
    pages = sorted((DOCS / "api").glob("*.md"))
    return [n for page in pages for n in re.findall(r"^::: (\S+)$", prose(page), flags=re.M)]


def test_every_page_is_in_the_menu_once() -> None:
    left_out = {line.strip("/ ") for line in CONFIG.get("not_in_nav", "").splitlines()}
    pages = {page.relative_to(DOCS).as_posix() for page in PAGES} - left_out
    assert sorted(in_nav(CONFIG["nav"])) == sorted(pages)


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(module: str) -> None:
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    assert {name for name in documented() if name.rpartition(".")[0] == module} == names


def test_nothing_is_documented_twice_or_elsewhere() -> None:
    names = documented()
    assert len(names) == len(set(names))
    assert {name.rpartition(".")[0] for name in names} == {*PUBLIC, "lorentzkit"}
    assert [name for name in names if name.count(".") == 1] == ["lorentzkit.Lorentz"]


def test_every_function_has_a_formula() -> None:
    file = DOCS / "tools" / "formulas.yml"
    formulas = yaml.safe_load(file.read_text(encoding="utf-8"))
    without = {"lorentzkit.ops.pairwise_impl", "lorentzkit.losses.Targets"}
    modules = {f"lorentzkit.{name}" for name in ("ops", "losses", "nn")}
    names = {name for name in documented() if name.rpartition(".")[0] in modules}
    assert set(formulas) == names - without


def fences(page: Path) -> list[tuple[str, str]]:
    """The language and the text of every fence."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\S*)\n(.*?)^```$", text, flags=re.M | re.S)


SCRIPTS = [(page, code) for page in WITH_LINKS for kind, code in fences(page) if kind == "python"]


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_code_is_run(page: Path) -> None:
    """There is no other kind, and no example that is left out."""
    for language, code in fences(page):
        assert language in ("pycon", "python", "bash")
        if language == "pycon":
            assert code.startswith(">>> ")
            assert "+SKIP" not in code


@pytest.mark.thorough
@pytest.mark.parametrize(("page", "code"), SCRIPTS, ids=[name_of(page) for page, _ in SCRIPTS])
def test_scripts_run_on_two_processes(page: Path, code: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(code, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def commands(page: Path) -> list[list[str]]:
    """What the page tells to type, as words: in fences, and within a line."""
    shell = "\n".join(code for kind, code in fences(page) if kind == "bash")
    start = r"(?:python|pytest|accelerate|torchrun|examples/\S+\.py) "
    lines = [
        *shell.replace("\\\n", " ").splitlines(),
        *re.findall(rf"`({start}[^`]*)`", prose(page)),
    ]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def options() -> dict[str, set[str]]:
    """The scripts of this repository that pages run, each with the options it is given."""
    found: dict[str, set[str]] = {}
    for words in [words for page in WITH_LINKS for words in commands(page)]:
        script = next((word for word in words if re.fullmatch(r"\w+/\S*\.py", word)), None)
        if script is not None and words[0] != "pytest":
            given = words[words.index(script) + 1 :]
            found.setdefault(script, set()).update(w for w in given if w.startswith("-"))
    return found


OPTIONS = options()


def unknown(script: Path, given: set[str]) -> set[str]:
    """Those of the options that the help of the script does not name."""
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return given - set(re.findall(r"(?<!\w)--?\w[\w-]*", done.stdout))


@pytest.mark.thorough
@pytest.mark.parametrize("script", sorted(OPTIONS))
def test_commands_have_their_script_and_options(script: str) -> None:
    assert unknown(ROOT / script, OPTIONS[script]) == set()


@pytest.mark.parametrize("page", WITH_LINKS, ids=name_of)
def test_files_of_commands_are_there(page: Path) -> None:
    words = {word for line in commands(page) for word in line}
    files = [word for word in words if re.match(r"(tests|examples|benchmarks|docs)/", word)]
    assert [word for word in files if not (ROOT / word).exists()] == []


def test_the_checks_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, with Poincaré\n", encoding="utf-8")
    page.write_text(
        "# Here\n[1](other.md) [2](other.md#a-heading-with-poincare) [3](#here) [4](https://a.b/c)\n"
        "[5](missing.md) [6](other.md#missing) [7](#missing) ![8](missing.png) `[9](missing.md)`\n"
        "```pycon\n>>> [10](missing.md)\n```\n",
        encoding="utf-8",
    )
    assert broken(page) == ["missing.md", "other.md#missing", "#missing", "missing.png"]
    assert [*in_nav([{"A": "a.md"}, {"B": ["b.md", {"C": "c.md"}]}])] == ["a.md", "b.md", "c.md"]
    page.write_text(
        "`python a/b.py --one 1` and `pytest c/d.py`\n"
        "```bash\nexport X=1 && python a/b.py \\\n    --two  # why\n```\n",
        encoding="utf-8",
    )
    assert commands(page) == [
        ["export", "X=1"],
        ["python", "a/b.py", "--two"],
        ["python", "a/b.py", "--one", "1"],
        ["pytest", "c/d.py"],
    ]
    script = tmp_path / "script.py"
    script.write_text("print('usage: [--one ONE] [--two-more]')", encoding="utf-8")
    assert unknown(script, {"--one", "--two", "--two-more", "-o"}) == {"--two", "-o"}
