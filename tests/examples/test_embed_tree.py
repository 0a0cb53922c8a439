"""The example's pieces, and that both Riemannian optimisers embed a tree on our manifold."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import embed_tree
import numpy as np
import pytest
import torch
from tree_embedding import runs, training
from tree_embedding.training import Run
from tree_embedding.trees import Tree, TreeError, edge_list_tree, emoji_tree, wordnet_tree

SMALL = Tree.from_edges("small", [("r", "a"), ("a", "b"), ("r", "c")])


def binary_tree(depth: int) -> Tree:
    inner = range(1, 2**depth)
    return Tree.from_edges(
        "binary", [(str(node), str(child)) for node in inner for child in (2 * node, 2 * node + 1)]
    )


def closure(tree: Tree) -> set[tuple[str, str]]:
    return {(tree.labels[node], tree.labels[ancestor]) for node, ancestor in tree.closure.tolist()}


# --- trees ----------------------------------------------------------------------------------------


def test_closure_of_a_tree() -> None:
    assert closure(SMALL) == {("a", "r"), ("b", "a"), ("b", "r"), ("c", "r")}


def test_closure_with_two_parents_and_in_any_order_of_edges() -> None:
    tree = Tree.from_edges("dag", [("x", "z"), ("y", "z"), ("r", "y"), ("r", "x"), ("r", "x")])
    assert closure(tree) == {(n, "r") for n in "xyz"} | {("z", "x"), ("z", "y")}


def test_branches_split_the_largest_until_there_are_enough() -> None:
    tree = binary_tree(5)
    tops = tree.branches(at_least=8)
    assert sorted(tree.labels[top] for top in tops) == sorted(map(str, range(8, 16)))
    branches = tree.branch_of(tops)
    branch_of = {label: top for label, top in zip(tree.labels, branches, strict=True)}
    assert branch_of["1"] is branch_of["7"] is None
    assert tree.labels[branch_of["19"] or 0] == "9"


def test_edge_list_with_tabs_commas_comments_and_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "kin.tsv"
    file.write_text("# a comment\nr\ta\n\na, b\nr\tc\n", encoding="utf-8")
    tree = edge_list_tree(file)
    assert tree.name == "kin"
    assert closure(tree) == closure(SMALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r\ta\nlonely\n", "line 2: expected a parent and a child"),
        ("a,b,c\n", "line 1: expected .* use a tab"),
        ("r\t\n", "line 1: expected"),
        ("a,a\n", "'a' is given as its own parent"),
        ("r,a\na,b\nb,a\n", "cycle through or above 'a'"),
        ("# nothing\n", "no edges"),
    ],
)
def test_bad_edge_lists_say_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "edges.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(TreeError, match=message) as raised:
        edge_list_tree(file)
    assert str(file) in str(raised.value)


def test_unreadable_edge_lists(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="cannot be read"):
        edge_list_tree(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TreeError, match="cannot be read as UTF-8"):
        edge_list_tree(tmp_path / "binary")


def test_emoji_tree_has_four_levels_and_no_variations() -> None:
    tree = emoji_tree()
    depth = (tree.ancestors >= 0).sum(1)
    assert depth.bincount().tolist()[:2] == [1, 8]
    assert set(depth.tolist()) == {0, 1, 2, 3}
    leaves = [label for label, below in zip(tree.labels, tree.children, strict=True) if not below]
    assert 1300 < len(leaves) < 1900
    assert not [label for label in leaves if "skin tone" in label or label.startswith("flag:")]


def test_wordnet_reader_follows_hyponyms_only(tmp_path: Path) -> None:
    file = tmp_path / "data.noun"
    file.write_text(
        "  1 This line is part of the licence.\n"
        "00000001 05 n 02 mammal 0 mammalian 0 003 @ 00000009 n 0000 "
        "~ 00000002 n 0000 %p 00000008 n 0000 | warm-blooded | hairy\n"
        "00000002 05 n 01 sea_cow 0 002 @ 00000001 n 0000 ~i 00000003 n 0000 | of the sea\n"
        "00000003 05 n 01 Rosie 0 000 | a certain sea cow\n"
        "00000008 05 n 01 coat 0 000 | no mammal\n",
        encoding="latin-1",
    )
    tree = wordnet_tree("mammal", file)
    assert closure(tree) == {("sea cow", "mammal")}
    with pytest.raises(TreeError, match="no noun 'unicorn'"):
        wordnet_tree("unicorn", file)
    with pytest.raises(TreeError, match="apt-get install wordnet-base"):
        wordnet_tree("mammal", tmp_path / "missing")


# --- evaluation -----------------------------------------------------------------------------------


def on_a_line(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().sum(-1)


def positions(tree: Tree, **coordinates: float) -> torch.Tensor:
    return torch.tensor([[coordinates[label]] for label in tree.labels], dtype=torch.float64)


def test_reconstruction_by_hand() -> None:
    # Nearest first, ancestors in capitals: from a: c R b; from b: A c R; from c: a R b.
    points = positions(SMALL, r=0.0, a=1.0, b=3.0, c=0.6)
    for block in (1, 3, 100):
        scores = training.reconstruction(SMALL, on_a_line, points, block=block)
        assert scores["mean_rank"] == pytest.approx((2 + (1 + 2) + 2) / 4)
        assert scores["map"] == pytest.approx((1 / 2 + (1 / 1 + 2 / 3) / 2 + 1 / 2) / 3)


def test_perfect_reconstruction() -> None:
    points = positions(SMALL, r=0.0, a=1.0, b=2.1, c=-3.0)
    scores = training.reconstruction(SMALL, on_a_line, points)
    assert scores == {"mean_rank": 1.0, "map": 1.0}


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_points_that_collapse_or_are_not_numbers_rank_last(value: float) -> None:
    points = torch.full((len(SMALL), 1), value, dtype=torch.float64)
    scores = training.reconstruction(SMALL, on_a_line, points)
    assert scores["mean_rank"] == pytest.approx((3 + (2 + 2) + 3) / 4)
    assert scores["map"] == pytest.approx((1 / 3 + 2 / 3 + 1 / 3) / 3)


def test_reconstruction_agrees_with_sorting_one_node_at_a_time() -> None:
    tree = binary_tree(4)
    points = torch.randn(len(tree), 3, generator=torch.Generator().manual_seed(0))
    ranks, precisions = [], []
    for node, row in enumerate(torch.cdist(points, points).tolist()):
        ancestors = {ancestor for ancestor in tree.ancestors[node].tolist() if ancestor >= 0}
        neighbours = [i for i in range(len(tree)) if i != node]
        order = sorted(neighbours, key=row.__getitem__)
        places = [place for place, i in enumerate(order, start=1) if i in ancestors]
        ranks += [place - before for before, place in enumerate(places)]
        if places:
            precisions.append(np.mean([k / place for k, place in enumerate(places, start=1)]))
    scores = training.reconstruction(tree, lambda x, y: (x - y).norm(dim=-1), points, block=7)
    assert scores["mean_rank"] == pytest.approx(np.mean(ranks))
    assert scores["map"] == pytest.approx(np.mean(precisions))


# --- training and resuming ------------------------------------------------------------------------


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """For tensors this small more threads only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.few(optimizer="adam", dtype="float32")
@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_riemannian_optimisers_embed_a_tree(optimizer: str, dtype: str) -> None:
    tree = binary_tree(3)
    run = Run(
        tree.digest, "lorentzkit", 2, dtype, 0.1, optimizer, steps=300, batch=32, negatives=10
    )
    points, diverged_at = training.train(run, tree)
    assert diverged_at is None
    assert points.dtype == getattr(torch, dtype)
    manifold = training.start_points(run, 1).manifold
    assert training.reconstruction(tree, manifold.dist, points)["map"] > 0.95


@pytest.mark.parametrize("geometry", training.GEOMETRIES)
def test_all_geometries_start_at_the_same_distances(geometry: str) -> None:
    run = Run("", geometry, 3, "float64", 0.1)
    start = training.start_points(run, 5)
    flat = training.start_points(Run("", "Euclidean", 3, "float64", 0.1), 5)
    distances = start.manifold.dist(start[:1], start[1:])
    expected = (flat[:1] - flat[1:]).norm(dim=-1)
    # geoopt's distance is good for half of the digits here.
    assert torch.allclose(distances, expected, rtol=1e-4 if geometry == "geoopt.Lorentz" else 1e-6)


def test_a_finished_run_is_found_again_and_only_that(tmp_path: Path) -> None:
    run = Run(SMALL.digest, "Euclidean", 2, "float64", 0.1, steps=3, batch=4, negatives=2)
    assert runs.finished(run, tmp_path) is None
    result = runs.perform(run, SMALL, tmp_path)
    assert runs.finished(run, tmp_path) == result
    assert {file.name for file in tmp_path.iterdir()} == {f"{run.name}.json", f"{run.name}.npy"}

    other_settings = Run(**{**result["run"], "steps": 4})
    assert other_settings.name == run.name
    assert runs.finished(other_settings, tmp_path) is None

    file = tmp_path / f"{run.name}.json"
    file.write_text(file.read_text()[:20])
    assert runs.finished(run, tmp_path) is None


def test_interrupted_writing_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    runs.write_json(file, [1])

    def stop_half_way(unfinished: Path) -> None:
        unfinished.write_text("[2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.write_atomically(file, stop_half_way)
    assert json.loads(file.read_text()) == [1]


@pytest.mark.thorough
def test_the_program_from_edges_to_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edges = tmp_path / "kin[1].txt"
    edges.write_text("r\ta\na\tb\nr\tc\n", encoding="utf-8")
    command = ["--edges", str(edges), "--out", str(tmp_path / "out"), "--quick", "--steps", "5"]
    assert embed_tree.main(command) == 0
    assert "4 nodes" in capsys.readouterr().out
    assert (tmp_path / "out" / "disk.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["best"]
    assert {row["run"]["geometry"] for row in rows} == set(training.GEOMETRIES)

    assert embed_tree.main(command) == 0  # now all runs are found
    assert "3 of 3 runs found" in capsys.readouterr().out


def test_the_program_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed_tree.main(["--edges", str(tmp_path / "missing")]) == 2
    assert "cannot be read" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        embed_tree.main(["--dims", "0"])
    assert "at least 1" in capsys.readouterr().err
