"""The example's evaluation and traversal take models of lorentzkit.clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate_clip_hyperbolic
import pytest
import torch
import train_clip_hyperbolic
import traverse_clip_hyperbolic
from clip_hyperbolic.checkpoint import Checkpoint
from clip_hyperbolic.config import Config
from clip_hyperbolic.images import as_pixels, fitted
from clip_hyperbolic.model import VIT, Towers
from clip_hyperbolic.objective import Objective
from clip_hyperbolic.shards import samples
from pictures import COLOURS, SMALL, shard
from PIL import Image
from published_clip import MEAN, STD
from transformers import CLIPImageProcessorPil

from lorentzkit import ops
from lorentzkit.clip import (
    HyperbolicCLIPConfig,
    HyperbolicCLIPModel,
    HyperbolicCLIPProcessor,
    tokenizer_from_bpe,
)
from lorentzkit.clip.objectives import loss_of

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def saved(folder: Path, objective: Any, **settings: Any) -> HyperbolicCLIPModel:
    """A random model whose points lie apart, and the processor beside it."""
    torch.manual_seed(0)
    config = HyperbolicCLIPConfig(
        SIZES | {"image_size": 32}, SIZES | {"vocab_size": 515}, 16, objective, **settings
    )
    model = HyperbolicCLIPModel(config).eval()
    model.save_pretrained(folder)
    (folder / "bpe.txt").write_text("version\nr e\n", encoding="utf-8")
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=MEAN,
        image_std=STD,
    )
    tokenizer = tokenizer_from_bpe(folder / "bpe.txt")
    HyperbolicCLIPProcessor(images, tokenizer).save_pretrained(folder)
    return model


@pytest.mark.parametrize("objective", ["clip", "hycoclip", "atmg"])
def test_retrieval_is_that_of_the_logits(
    objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = saved(tmp_path / "model", objective), shard(tmp_path / "shard.tar")
    argv = ["--checkpoint", str(tmp_path / "model"), "--shards", str(file)]
    out = tmp_path / "out.json"
    assert evaluate_clip_hyperbolic.main([*argv, "--json", str(out)]) == 0
    results = json.loads(out.read_text("utf-8"))

    evaluated = list(samples([str(file)], [].append))
    processor = HyperbolicCLIPProcessor.from_pretrained(tmp_path / "model")
    texts = list(dict.fromkeys(sample.caption for sample in evaluated))
    pixels = as_pixels([fitted(sample.image, 32) for sample in evaluated])
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        output = model(processor(text=texts, return_tensors="pt")["input_ids"], pixels)
    for direction, logits, queries, gallery in (
        ("t2i", output.logits_per_text, texts, [sample.caption for sample in evaluated]),
        ("i2t", output.logits_per_image, [sample.caption for sample in evaluated], texts),
    ):
        best = logits.topk(5).indices.tolist()
        is_right = [
            query in [gallery[i] for i in row] for query, row in zip(queries, best, strict=True)
        ]
        expected = sum(is_right) / len(is_right)
        assert results["retrieval"][direction]["R@5"] == pytest.approx(expected)
    if objective != "clip":
        radius = ops.dist0(output.image_embeds, model.curv()).mean().item()
        assert results["radius"]["images"] == pytest.approx(radius, rel=1e-5)

    picture = tmp_path / "traversals.png"
    assert traverse_clip_hyperbolic.main([*argv, "--out", str(picture)]) == (
        2 if objective == "clip" else 0
    )
    if objective != "clip":
        assert Image.open(picture).width > 100
    assert set(COLOURS) == set(texts)
    capsys.readouterr()


def test_what_cannot_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shard(tmp_path / "shard.tar")
    saved(tmp_path / "product", "phyclip", factors=4)
    saved(tmp_path / "incomplete", "meru")
    (tmp_path / "incomplete" / "processor_config.json").unlink()
    (tmp_path / "incomplete" / "tokenizer.json").unlink()
    for name, message in (("product", "product of spaces"), ("incomplete", "and the processor")):
        argv = ["--checkpoint", str(tmp_path / name), "--shards", str(file)]
        assert evaluate_clip_hyperbolic.main(argv) == 2
        assert message in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("objective", ["meru", "hycoclip"])
def test_the_saved_model_has_the_objective_of_its_run(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VIT, "vit-s", (32, 1, 2))
    config = Config(
        objective=objective, vision="vit-s", shards=["a.tar"], entailment_weight=0.3, text_layers=1
    )
    loss = Objective(config).caption_loss
    model_loss = loss_of(Towers.from_config(config, vocabulary=50).model.config, None)
    assert type(model_loss) is type(loss)
    assert model_loss.entailment_weight == loss.entailment_weight


@pytest.mark.few(preset=["vit-s", "smoke"], objective="atmg")
@pytest.mark.parametrize("preset", ["vit-s", "smoke"])
@pytest.mark.parametrize("objective", ["atmg", "clip"])
def test_training_saves_the_model(
    objective: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run, and one that goes on; what transformers loads evaluates as they do."""
    monkeypatch.setitem(VIT, "vit-s", (32, 1, 2))
    shards, run = str(shard(tmp_path / "shard.tar")), tmp_path / "run"
    argv = ["--preset", preset, "--shards", shards, "--output_dir", str(run)]
    argv += ["--objective", objective, "--eval_shards", f"unseen={shards}"]
    for name, value in (SMALL | {"steps": 3, "workers": 0, "precision": "no"}).items():
        argv += [f"--{name}", str(value)]
    assert train_clip_hyperbolic.main(argv) == 0
    assert train_clip_hyperbolic.main(["--resume", str(run)]) == 0
    trained_results = json.loads((run / "evaluation.json").read_text("utf-8"))["unseen"]

    model = HyperbolicCLIPModel.from_pretrained(run / "model").eval()
    checkpoint = Checkpoint.latest(run)
    trained = checkpoint.model().model.state_dict()
    assert all(torch.equal(x, trained[name]) for name, x in model.state_dict().items())
    processor = HyperbolicCLIPProcessor.from_pretrained(run / "model")
    ids = processor(text=["red", "the purple one"], return_tensors="pt")["input_ids"]
    assert torch.equal(ids, checkpoint.tokenizer(["red", "the purple one"])[0])
    if preset == "vit-s":
        last = model.config.text_config.vocab_size - 1
        assert ids.max(1).values.tolist() == [last, last]
        assert ids[:, 0].tolist() == [last - 1, last - 1]

    out = tmp_path / "out.json"
    argv = ["--checkpoint", str(run / "model"), "--shards", shards, "--json", str(out)]
    assert evaluate_clip_hyperbolic.main(argv) == 0
    saved_results = json.loads(out.read_text("utf-8"))
    assert saved_results.pop("radius") == pytest.approx(trained_results.pop("radius"), rel=1e-5)
    assert saved_results == trained_results
