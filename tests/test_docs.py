"""The documentation is whole: pages in the menu, links that lead somewhere, every public name."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = sorted(DOCS.rglob("*.md"))
WITH_LINKS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# Pages whose code is all run. (Other pages show code that needs more than one machine can have.)
RUN = [
    *(DOCS / f"{name}.md" for name in ("index", "quickstart", "mathematics", "faq")),
    *sorted((DOCS / "tutorials").glob("*.md")),
]
PUBLIC = [
    f"lorentzkit.{name}"
    for name in (
        "ops",
        "losses",
        "nn",
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
    assert {name.rpartition(".")[0] for name in names} == set(PUBLIC)


def test_every_function_has_a_formula() -> None:
    file = DOCS / ".extensions" / "formulas.yml"
    formulas = yaml.safe_load(file.read_text(encoding="utf-8"))
    without = {"lorentzkit.ops.pairwise_impl", "lorentzkit.losses.Targets"}
    modules = {f"lorentzkit.{name}" for name in ("ops", "losses", "nn")}
    names = {name for name in documented() if name.rpartition(".")[0] in modules}
    assert set(formulas) == names - without


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_code_is_run(page: Path) -> None:
    fences = re.findall(
        r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for language, code in fences:
        assert language in ("pycon", "bash")
        if language == "pycon":
            assert code.startswith(">>> ")


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
