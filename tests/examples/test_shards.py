"""Any shard can be read: odd samples are understood, or named and skipped; all others count."""

import json
import random
import tarfile
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluate_clip_hyperbolic
import pytest
import torch
from clip_hyperbolic import data, shards
from clip_hyperbolic.config import Config, UserError
from clip_hyperbolic.data import Batches, collate
from clip_hyperbolic.evaluate import ancestors, evaluate, hierarchy_of_ranking
from clip_hyperbolic.model import Towers
from clip_hyperbolic.schema import Sample
from clip_hyperbolic.shards import expand, samples
from clip_hyperbolic.tokenizer import CaptionTokenizer
from pictures import COLOURS, SMALL, add, png
from PIL import Image

ORDINARY = 200
PICTURE = png("red", (8, 6))
Files = dict[str, Any]  # a sample's files by their endings: bytes, text, or the content of a json


def write(file: Path, files_of_keys: dict[str, Files] | list[tuple[str, Files]]) -> str:
    with tarfile.open(file, "w") as tar:
        pairs = files_of_keys.items() if isinstance(files_of_keys, dict) else files_of_keys
        for key, files in pairs:
            for kind, content in files.items():
                if not isinstance(content, bytes):
                    content = (json.dumps(content) if kind == "json" else content).encode()
                add(tar, f"{key}.{kind}", content)
    return str(file)


def ordinary(i: int) -> Files:
    metadata = {"ancestors": ["colour", "a/b"], "keywords": ["k"], "class": i % 2, "concept": i}
    return {"png": PICTURE, "txt": COLOURS[i % len(COLOURS)], "json": metadata}


def shard_with(file: Path, odd: Files) -> str:
    """A shard of ordinary samples with an odd one among them."""
    ordinary_samples = [(f"{i:04d}", ordinary(i)) for i in range(ORDINARY)]
    return write(file, [*ordinary_samples[:50], ("odd", odd), *ordinary_samples[50:]])


def trained_on(shard: str, **changes: Any) -> tuple[set[str], list[str]]:
    """Keys and messages of an epoch's batches, as training has them."""
    config = Config(**{"shards": [shard], **SMALL, **changes})
    keys, messages = set(), []
    for batch, _ in zip(Batches(config), range(ORDINARY // config.batch_size + 2), strict=False):
        keys |= set(batch["keys"])
        messages += batch["broken"]
    return keys, messages


def model_of(shard: str) -> tuple[Towers, CaptionTokenizer]:
    config = Config(**{"shards": [shard], **SMALL})
    tokenizer = CaptionTokenizer.from_samples(config, samples([shard], [].append))
    torch.manual_seed(0)
    return Towers.from_config(config, len(tokenizer)), tokenizer


def evaluated(shard: str) -> tuple[dict[str, Any], list[str]]:
    messages: list[str] = []
    stream = samples([shard], messages.append)
    return evaluate(*model_of(shard), 32, stream, "--shards"), messages


def files_with(**changes: Any) -> Files:
    return {"png": PICTURE, "json": {"caption": "red", "ancestors": ["a", "b"], **changes}}


NAME = "expected a string or a whole number"
TEXT = "expected a string or a list of strings"
WRONG = {  # the files of a broken sample, and the message about it
    "caption: 5": (files_with(caption=5), f"caption: {TEXT}, got 5"),
    "caption: {}": (files_with(caption={"en": "red"}), f'caption: {TEXT}, got {{"en": "red"}}'),
    "caption: [5]": (files_with(caption=["red", 5]), f'caption: {TEXT}, got ["red", 5]'),
    "caption: []": (files_with(caption=[]), "no caption, neither in a txt nor in a json"),
    "caption: null": (files_with(caption=None), "no caption"),
    "caption: half a character": (
        files_with(caption="x\ud83d"),
        f'caption: {TEXT}, got "x\\ud83d"',
    ),
    "caption: true": (files_with(caption=True), f"caption: {TEXT}, got true"),
    "keywords: text": (files_with(keywords="ab"), 'keywords: expected a list of strings, got "ab"'),
    "keywords: [1]": (files_with(keywords=["a", 1]), "keywords: expected a list of strings, got ["),
    "keywords: [null]": (
        files_with(keywords=[None]),
        "keywords: expected a list of strings, got [",
    ),
    "ancestors: null": (files_with(ancestors=None), "ancestors: training asks for 2"),
    "ancestors: one": (
        files_with(ancestors=["a"]),
        "ancestors: training asks for 2 (--ancestor-levels",
    ),
    "ancestors: text": (
        files_with(ancestors="ab"),
        "ancestors: expected a list of strings, none of",
    ),
    "ancestors: ['']": (files_with(ancestors=["a", ""]), "ancestors: expected a list of strings"),
    "class: []": (files_with(**{"class": ["a"]}), f'class: {NAME}, got ["a"]'),
    "class: half": (files_with(**{"class": 0.5}), f"class: {NAME}, got 0.5"),
    "concept: {}": (files_with(concept={}), f"concept: {NAME}, got {{}}"),
    "concept: false": (files_with(concept=False), f"concept: {NAME}, got false"),
    "split: []": (files_with(split=[]), f"split: {NAME}, got []"),
    "json: a list": ({"png": PICTURE, "txt": "red", "json": ["red"]}, "json: expected an object"),
    "json: cut": ({"png": PICTURE, "txt": "red", "json": b"{"}, "json: Expecting property name"),
    "txt: no UTF-8": ({"png": PICTURE, "txt": b"\xff\xfe\xff"}, "UnicodeDecodeError"),
    "no image": ({"gif": PICTURE, "txt": "red"}, "no image among its files: gif, txt"),
    "two images": (files_with() | {"jpg": PICTURE}, "more than one image among its files: png,"),
    "dots": (
        {"0.png": PICTURE, "0.txt": "red"},
        "no image among its files: 0.png, 0.txt; a key ends at its first dot",
    ),
    "half an image": (files_with() | {"png": PICTURE[:45]}, "OSError"),
}


@pytest.mark.few(which=["caption: 5", "no image"])
@pytest.mark.parametrize("which", WRONG)
def test_what_is_wrong_is_named_and_skipped(which: str, tmp_path: Path) -> None:
    """In training, from memory and from the shard."""
    odd, message = WRONG[which]
    shard = shard_with(tmp_path / "shard.tar", odd)
    for in_memory in (True, False):
        keys, messages = trained_on(shard, in_memory=in_memory)
        assert len(keys) == ORDINARY
        assert "odd" not in keys
        assert messages
        for received in messages:  # once an epoch
            assert received.startswith(f"odd: {message}")
            assert received.endswith(f"(in {shard})")


def test_training_and_evaluation_go_on_without_all_that_is_wrong(tmp_path: Path) -> None:
    broken = [(which, files) for which, (files, _) in WRONG.items()]
    whole = [(f"{i:04d}", ordinary(i)) for i in range(ORDINARY)]
    shard = write(tmp_path / "shard.tar", [*whole[:99], *broken, *whole[99:]])
    trained, messages = trained_on(shard)
    assert trained == {key for key, _ in whole}
    for received, (which, (_, message)) in zip(messages, WRONG.items(), strict=True):
        assert received.startswith(f"{which}: {message}")
    result, messages = evaluated(shard)
    # Evaluation needs no ancestors: these two are broken for training alone.
    few_ancestors = ("ancestors: null", "ancestors: one")
    assert result["n_images"] == ORDINARY + len(few_ancestors)
    skipped = [which for which in WRONG if which not in few_ancestors]
    assert all(text.startswith(which) for text, which in zip(messages, skipped, strict=True))
    assert result["zero_shot"]["classes"] == 2  # 0 and 1, of which 0 is a class
    assert result["radius"].keys() == {"ancestors_1", "ancestors_2", "captions", "images"}
    assert result["hierarchy"]["i2t_TIE"] >= 0


RIGHT = {
    "nulls": dict.fromkeys(("keywords", "class", "split", "concept", "boxes")),
    "empty": {"keywords": [], "class": "", "split": "", "concept": "", "boxes": []},
    "zeros": {"class": 0, "split": 0, "concept": 0},
    "several captions": {"caption": ["red", " crimson\n", ""]},
    "unknown fields": {"sha256": 5, "width": None},
}


@pytest.mark.few(which=["nulls", "zeros", "several captions"])
@pytest.mark.parametrize("which", RIGHT)
def test_what_is_unusual_but_right_is_kept(which: str, tmp_path: Path) -> None:
    shard = shard_with(tmp_path / "shard.tar", files_with(**RIGHT[which]))
    keys, messages = trained_on(shard)
    assert "odd" in keys
    assert messages == []
    if which == "several captions":
        assert evaluated(shard)[0]["n_images"] == ORDINARY + 1
    (odd,) = [sample for sample in samples([shard], pytest.fail) if sample.key == "odd"]
    assert odd.keywords == odd.boxes == []
    assert odd.captions == (["red", "crimson"] if which == "several captions" else ["red"])
    if which == "zeros":
        assert (odd.concept, odd.label, odd.split) == ("0", "0", "0")
    else:
        assert odd.label == odd.split == ""
        assert "odd" in odd.concept


# --- who is whose positive ------------------------------------------------------------------------


def test_equal_keys_of_two_shards_are_two_concepts(tmp_path: Path) -> None:
    """Two datasets, both numbered from 0, must not make each other's pairs positives."""
    two_shards = []
    for folder, start in (("one", 0), ("two", 4)):
        (tmp_path / folder).mkdir()
        files = {f"{i:09d}": {"png": PICTURE, "txt": COLOURS[start + i]} for i in range(4)}
        two_shards.append(write(tmp_path / folder / "00000.tar", files))
    config = Config(**{"shards": two_shards, **SMALL, "batch_size": 8, "ancestor_levels": 0})
    for in_memory in (True, False):
        config.in_memory = in_memory
        batch = next(iter(Batches(config)))
        assert len(set(batch["labels"][0].tolist())) == 8
    result = evaluate(*model_of(two_shards[0]), 32, samples(two_shards, pytest.fail), "--shards")
    assert result["n_texts"] == 8
    # All pictures are alike: if a key were a concept, two of the eight would count as right.
    recalls = [result["retrieval"][direction]["R@1"] for direction in ("i2t", "t2i")]
    assert recalls == [1 / 8, 1 / 8]
    first, second = ([s.concept for s in samples(two_shards, pytest.fail)] for _ in range(2))
    assert first == second


def test_null_concepts_are_no_concept(tmp_path: Path) -> None:
    files = {name: files_with(concept=None, caption=name) for name in "abcd"}
    stream = samples([write(tmp_path / "shard.tar", files)], pytest.fail)
    concepts = {sample.concept for sample in stream}
    assert len(concepts) == 4
    assert "None" not in concepts


def test_separators_in_names_are_part_of_them() -> None:
    paths = [["music", "AC/DC"], ["music/AC", "DC"], ["music", "AC, DC"]]
    batch_samples = [
        Sample(f"{i}", Image.new("RGB", (9, 9)), ["x"], f"{i}", [], path)
        for i, path in enumerate(paths)
    ]
    rngs = [random.Random(i) for i in range(3)]
    batch = collate(batch_samples, Config(ancestor_levels=2), rngs)
    parents, grandparents = ([batch["texts"][i] for i in row] for row in batch["index"][1:])
    assert parents == ["AC/DC", "DC", "AC, DC"]
    assert grandparents == ["music", "music/AC", "music"]
    assert [len(set(row.tolist())) for row in batch["labels"]] == [3, 3, 2]


def test_the_text_counts_and_an_empty_one_hides_nothing(tmp_path: Path) -> None:
    captions = {"caption": ["of the json"]}
    files = {
        "both": {"png": PICTURE, "txt": "\ufeffof the text\n", "json": captions},
        "blank": {"png": PICTURE, "txt": " \n", "json": captions},
        "no json": {"png": PICTURE, "txt": "of the text", "json": b""},
    }
    stream = samples([write(tmp_path / "shard.tar", files)], pytest.fail)
    assert [sample.captions for sample in stream] == [
        ["of the text"],
        ["of the json"],
        ["of the text"],
    ]


# --- several captions -----------------------------------------------------------------------------


def test_one_of_several_captions_is_drawn_a_step(tmp_path: Path) -> None:
    files = {name: files_with(caption=[f"{name}{i}" for i in range(5)]) for name in "ab"}
    shard = write(tmp_path / "shard.tar", files)
    config = Config(**{"shards": [shard], **SMALL, "batch_size": 2, "ancestor_levels": 0})
    seen = set()
    for batch, _ in zip(Batches(config), range(30), strict=False):
        assert len(batch["texts"]) == 2
        seen |= set(batch["texts"])
    assert seen == {f"{name}{i}" for name in "ab" for i in range(5)}


def test_all_of_several_captions_count_in_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a query; an image is right with any of its own."""
    files = {f"{i:04d}": files_with(caption=[f"{i}, {j}" for j in range(5)]) for i in range(4)}
    shard = write(tmp_path / "shard.tar", files)

    def ranking(*args: Any, images_ask: bool) -> torch.Tensor:
        texts = [5 * i + (i + j) % 20 for i in range(4) for j in range(20)]
        if images_ask:
            return (torch.tensor(texts) % 20).view(4, 20)
        return (torch.arange(80) % 4).view(20, 4)

    monkeypatch.setattr("clip_hyperbolic.evaluate.ranking", ranking)
    result, _ = evaluated(shard)
    assert (result["n_images"], result["n_texts"]) == (4, 20)
    # Each image finds one of its own texts first. All texts find the first image first: 5 of 20 are
    # right.
    assert result["retrieval"]["i2t"]["R@1"] == 1.0
    assert result["retrieval"]["t2i"]["queries"] == 20
    assert result["retrieval"]["t2i"]["R@1"] == 5 / 20


def test_the_hierarchy_is_measured_on_concepts_in_it(tmp_path: Path) -> None:
    """A sample without ancestors neither ends the measure nor takes part in it."""
    files = {
        "in": files_with(caption="red", concept="red"),
        "same": files_with(caption="red", concept="red", ancestors=None),
        "out": files_with(caption="blue", concept="blue", ancestors=[]),
    }
    three = [*samples([write(tmp_path / "shard.tar", files)], pytest.fail)]
    concepts = [sample.concept for sample in three]
    scores = hierarchy_of_ranking(torch.tensor([[0], [0], [2]]), concepts, concepts, three)
    assert scores["right_level_1"] == 1.0
    assert scores["TIE"] == 0.0
    assert ancestors(three) == [[("a",)], [("a", "b")]]


# --- messages -------------------------------------------------------------------------------------


def test_members_of_a_key_that_lie_apart_are_said_to(tmp_path: Path) -> None:
    pictures, texts = {"png": PICTURE}, {"txt": "red"}
    files = [(key, content) for content in (pictures, texts) for key in "ab"]
    messages: list[str] = []
    shard = write(tmp_path / "shard.tar", files)
    assert [*samples([shard], messages.append)] == []
    assert messages[0].startswith(
        "a: no caption, neither in a txt nor in a json, among its files: png"
    )
    assert messages[2] == (
        "a: no image among its files: txt; not next to these lie png of the same key: write the "
        f"files of a key one after the other (in {shard})"
    )
    assert len(messages) == 4


def test_two_samples_of_one_key_are_two_concepts(tmp_path: Path) -> None:
    files = [("a", files_with()), ("b", files_with()), ("a", files_with(caption="other"))]
    stream = samples([write(tmp_path / "shard.tar", files)], pytest.fail)
    assert len({sample.concept for sample in stream}) == 3


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    shard_with(shard, files_with())
    shard.write_bytes(shard.read_bytes()[:100_001])
    messages: list[str] = []
    assert len([*samples([str(shard)], messages.append)]) > 20
    assert messages[-1].startswith(f"{shard}: ReadError: unexpected end of data")


def test_a_dataset_without_a_whole_sample_ends_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "MAX_BROKEN_AT_START", 500)
    files = {f"{i}": {"png": PICTURE, "txt": "red"} for i in range(20)}  # without ancestors
    shard = write(tmp_path / "shard.tar", files)
    for in_memory in (True, False):
        with pytest.raises(UserError, match=r"training asks for 2 \(--ancestor-levels\), got 0"):
            trained_on(shard, in_memory=in_memory)


def test_evaluation_names_its_own_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_with(tmp_path / "shard.tar", files_with(caption=7))
    model, tokenizer = model_of(shard)
    saved = SimpleNamespace(model=lambda: model, tokenizer=tokenizer, config=Config())
    monkeypatch.setattr(evaluate_clip_hyperbolic, "read", lambda path: saved)
    argv = ["--checkpoint", "RUN", "--shards", shard]
    assert evaluate_clip_hyperbolic.main([*argv, "--split", "none such"]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "--shards with --split none such: no pair of an image and a text" in output
    assert "--eval-shards" not in output
    assert "skipped: odd: caption: expected a string or a list of strings, got 7" in output


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.tar is missing"):
        expand([str(tmp_path / "none.tar")])
    assert shards.IMAGE_ENDINGS == ("jpg", "jpeg", "png", "webp")


def test_the_page_has_the_fields_as_they_are_declared() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    for declared in (field.metadata for field in fields(Sample) if field.metadata):
        assert f"| `{declared['json_name']}` | {declared['expected']} |" in page
