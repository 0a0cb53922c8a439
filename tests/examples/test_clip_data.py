"""The data of the training example: what a batch holds, and that batches go on where they were."""

import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_hyperbolic import emoji
from clip_hyperbolic.config import Config, UserError
from clip_hyperbolic.data import collate
from clip_hyperbolic.schema import Box, Sample
from clip_hyperbolic.shards import expand, samples
from pictures import add, png, shard, small_config, take_batches
from PIL import Image


def assert_same(batches: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for a, b in zip(batches, expected, strict=True):
        assert a["keys"] == b["keys"]
        assert a["texts"] == b["texts"]
        assert torch.equal(a["pixels"], b["pixels"])
        assert torch.equal(a["labels"], b["labels"])


@pytest.mark.parametrize("changes", [{}, {"in_memory": False}, {"in_memory": False, "workers": 2}])
def test_batches_go_on_where_they_were(shards: str, changes: dict[str, Any]) -> None:
    config = small_config(shards, **changes)
    whole = take_batches(config, 12)
    assert len({key for batch in whole for key in batch["keys"]}) == 64
    positions = [0] * max(config.workers, 1)
    for batch in whole[:5]:
        positions[batch["worker"]] = batch["position"]
    assert_same(take_batches(config, 7, step=5, positions=positions), whole[5:])
    (other_seed,) = take_batches(replace(config, seed=1), 1)
    assert other_seed["keys"] != whole[0]["keys"]


def test_a_keyword_is_a_text_that_concepts_share() -> None:
    keywords_of = {"none": [], "a": ["shared"], "b": ["shared"], "c": ["x", "y"]}
    image = Image.new("RGB", (9, 9))
    batch_samples = [Sample(name, image, [name], name, own) for name, own in keywords_of.items()]
    config = Config(keyword_level=True, keywords=0.0, ancestor_levels=0)
    seen = set()
    for seed in range(20):
        batch = collate(batch_samples, config, [random.Random(f"{seed}/{i}") for i in range(4)])
        captions, keywords = ([batch["texts"][i] for i in row] for row in batch["index"])
        assert captions == [*keywords_of]
        assert keywords[:3] == ["none", "shared", "shared"]
        assert (batch["labels"][1][:, None] == batch["labels"][1]).sum() == 6
        seen.add(keywords[3])
    assert seen == {"x", "y"}


def red_and_blue(key: str = "a") -> Sample:
    """A picture whose left half is red, and whose right half is blue; each half is a box."""
    image = Image.new("RGB", (40, 32), "red")
    image.paste("blue", (20, 0, 40, 32))
    boxes = [Box((0, 0, 20, 32), "left"), Box((20, 0, 40, 32), "right")]
    return Sample(key, image, [key], key, boxes=boxes)


def test_one_box_of_each_sample_is_drawn_at_random() -> None:
    without = Sample("b", Image.new("RGB", (40, 32), "lime"), ["b"], "b")
    batch_samples = [red_and_blue("a"), without, red_and_blue("c")]
    config = Config(
        objective="hycoclip", warp=0.0, restyle=0.0, tint=0.0, jitter=0.0, ancestor_levels=0
    )
    seen = set()
    for seed in range(20):
        batch = collate(batch_samples, config, [random.Random(f"{seed}/{i}") for i in range(3)])
        box_texts, samples_of_boxes = batch["boxes"]
        assert samples_of_boxes.tolist() == [0, 2]
        assert len(batch["pixels"]) == 5
        captions = [batch["texts"][i] for i in box_texts]
        colours = {"left": [1.0, 0.0, 0.0], "right": [0.0, 0.0, 1.0]}
        for caption, pixels in zip(captions, batch["pixels"][3:], strict=True):
            assert pixels.mean(dim=(1, 2)).tolist() == colours[caption]
        seen.add(tuple(captions))
    assert len(seen) == 4


def test_other_objectives_see_the_same_with_boxes_as_without() -> None:
    config = Config(ancestor_levels=0)
    with_boxes, plain = (
        collate([sample], config, [random.Random(7)])
        for sample in (red_and_blue(), replace(red_and_blue(), boxes=[]))
    )
    assert with_boxes.keys() == plain.keys()
    assert torch.equal(with_boxes["pixels"], plain["pixels"])


def test_broken_boxes_are_skipped_and_named(tmp_path: Path) -> None:
    boxes: list[Any] = [
        {"box": [0, 0, 40, 32], "caption": "all of it"},
        {"box": [0, 0, 41, 32], "caption": "outside"},
        {"box": [-1, 0, 4, 4], "caption": "outside"},
        {"box": [5, 5, 5, 9], "caption": "empty"},
        {"box": [9, 5, 5, 9], "caption": "turned around"},
        {"box": [5, 5, float("nan"), 9], "caption": "not a number"},
        {"box": [5, 5, "7", 9], "caption": "a text"},
        {"box": [5, 5, 9], "caption": "three numbers"},
        {"box": [5, 5, 9, 9]},
        {"box": [5, 5, 9, 9], "caption": " "},
        "no box",
        {"box": [39, 31, 40, 32], "caption": "one pixel"},
    ]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key, entries in (("a", boxes), ("b", {"box": 3})):
            add(tar, f"{key}.png", png("red"))
            add(tar, f"{key}.json", json.dumps({"caption": "red", "boxes": entries}).encode())
    messages: list[str] = []
    first, second = samples([str(tmp_path / "shard.tar")], messages.append)
    assert [box.caption for box in first.boxes] == ["all of it", "one pixel"]
    assert second.boxes == []
    assert [message.split(":")[1].strip() for message in messages] == [
        *(f"boxes[{i}]" for i in range(1, 11)),
        "boxes",
    ]
    assert messages[0] == (
        "a: boxes[1]: expected a part of 40 x 32 pixels, got [0, 0, 41, 32] "
        f"(in {tmp_path / 'shard.tar'})"
    )
    for in_memory in (True, False):  # a run counts them as well
        config = small_config(str(tmp_path / "shard.tar"), batch_size=2, ancestor_levels=0)
        (batch,) = take_batches(replace(config, in_memory=in_memory, objective="hycoclip"), 1)
        assert len(batch["broken"]) == 11


def test_hycoclip_asks_for_boxes(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add(tar, "a.png", png("red"))
        add(tar, "a.txt", b"red")
    config = small_config(str(tmp_path / "shard.tar"), batch_size=1, ancestor_levels=0)
    assert take_batches(config, 1)
    with pytest.raises(UserError, match="none of the first 1 samples has boxes in its json"):
        take_batches(replace(config, objective="hycoclip"), 1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_shares_of_processes_make_up_the_batch(tmp_path: Path, in_memory: bool) -> None:
    config = small_config(str(shard(tmp_path / "shard.tar")), in_memory=in_memory)
    shares = [take_batches(config, 6, rank=rank, processes=2) for rank in (0, 1)]
    for whole, *halves in zip(take_batches(config, 6), *shares, strict=True):
        assert whole["keys"] == [key for half in halves for key in half["keys"]]
        assert torch.equal(whole["pixels"], torch.cat([half["pixels"] for half in halves]))


def test_broken_members_are_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "broken.tar"
    with tarfile.open(file, "w") as tar:
        for i, content in enumerate([png("red")[:60], b"no image", png("red")]):
            add(tar, f"{i}.png", content)
            add(tar, f"{i}.txt", b"rot")
        add(tar, "3.txt", b"a caption alone")
        add(tar, "4.png", png("red"))
    messages: list[str] = []
    assert [sample.key for sample in samples([str(file)], messages.append)] == ["2"]
    assert [message.split(":")[0] for message in messages] == ["0", "1", "3", "4"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # far less than those of any picture
    assert [*samples([str(file)], messages.append)] == []
    assert "DecompressionBombError" in messages[-3]
    monkeypatch.undo()
    half = tmp_path / "half.tar"
    half.write_bytes(shard(tmp_path / "whole.tar").read_bytes()[:9000])
    messages.clear()
    assert [sample.key for sample in samples([str(half)], messages.append)]
    assert messages


def test_missing_and_empty_shards_say_what_to_do(shards: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"00004\.tar is missing .* correct the pattern"):
        expand([shards.replace("00003", "00004")])
    tarfile.open(tmp_path / "empty.tar", "w").close()
    for in_memory in (True, False):
        config = small_config(str(tmp_path / "empty.tar"), in_memory=in_memory)
        with pytest.raises(UserError, match="no sample to train on"):
            take_batches(config, 1)


@pytest.mark.thorough
def test_the_emoji(tmp_path: Path) -> None:
    folder = emoji.prepare(tmp_path / "emoji")
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    assert sum(shard["samples"] for shard in shards.values()) == 8771
    assert shards["Goog-rare.tar"]["samples"] == 188
    twemoji = list(samples(expand([f"{folder}/Twtr-*.tar"]), pytest.fail))
    assert len(twemoji) == len({sample.concept for sample in twemoji}) == 1253
    assert len({sample.path(1) for sample in twemoji}) == 94
    assert len({sample.path(2) for sample in twemoji}) == 8
    (panda,) = [sample for sample in twemoji if sample.caption == "panda"]
    assert panda.ancestors == ["animals and nature", "animal mammal"]
    assert [box.caption for box in panda.boxes] == panda.keywords
    assert [*tmp_path.iterdir()] == [folder]
    with (folder / "Joy-rare.tar").open("ab") as file:
        file.write(b"damaged")
    assert not emoji.is_complete(folder)
