"""The training example: its measures, and that a killed run goes on bit for bit."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import evaluate_clip_hyperbolic
import pytest
import torch
import train_clip_hyperbolic
import traverse_clip_hyperbolic
from accelerate import Accelerator
from clip_hyperbolic.checkpoint import Checkpoint, write_atomically, write_json
from clip_hyperbolic.config import Config, UserError, from_json, parse
from clip_hyperbolic.evaluate import embed_texts, hierarchy, midpoints, retrieval
from clip_hyperbolic.model import Towers
from clip_hyperbolic.objective import Objective
from clip_hyperbolic.published import Published
from clip_hyperbolic.shards import expand, samples
from clip_hyperbolic.tokenizer import CaptionTokenizer
from pictures import SMALL, small_config, take_batches
from PIL import Image
from runs import SCRIPT, assert_same_runs, flags, losses, start, train
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

# --- measures -------------------------------------------------------------------------------------


def test_retrieval_by_hand() -> None:
    ranking = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [0, 1, 2]])
    scores = retrieval(ranking, ["a", "b", "a", "nowhere"], ["a", "b", "a"])
    assert scores["queries"] == 3
    assert scores["R@1"] == pytest.approx(1 / 3)
    assert scores["R@5"] == 1
    precisions = [(1 + 2 / 3) / 2, 1 / 3, (1 / 2 + 2 / 3) / 2]
    assert scores["mAP"] == pytest.approx(sum(precisions) / 3)
    assert scores["median_rank"] == 2


def test_hierarchy_by_hand() -> None:
    true = [["animal", "mammal", "panda"]] * 4
    predicted = [
        ["animal", "mammal", "panda"],
        ["animal", "mammal", "cat"],
        ["animal", "bird", "owl"],
        ["food", "fruit", "kiwi"],
    ]
    scores = hierarchy(predicted, true)
    assert scores["TIE"] == (0 + 2 + 4 + 6) / 4
    assert scores["LCA"] == (0 + 1 + 2 + 3) / 4
    assert scores["jaccard"] == pytest.approx((1 + 2 / 4 + 1 / 5 + 0) / 4)
    assert scores["precision"] == scores["recall"] == pytest.approx((1 + 2 / 3 + 1 / 3) / 4)
    assert (scores["right_level_1"], scores["right_level_2"]) == (3 / 4, 2 / 4)
    assert scores["errors_right_level_2"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("objective", ["atmg", "clip"])
def test_texts_of_one_concept_have_a_midpoint(shards: str, objective: str) -> None:
    config = small_config(shards, objective=objective, curv_init=0.5)
    tokenizer = CaptionTokenizer.from_samples(config, samples(expand([shards]), pytest.fail))
    model = Towers.from_config(config, len(tokenizer)).eval()
    groups = [("red", "k0", "k8"), ("gold",), ("k8", "green")]
    for texts, midpoint in zip(groups, midpoints(model, tokenizer, groups), strict=True):
        x = embed_texts(model, tokenizer, [*texts]).double()
        if objective == "clip":
            direction = x.sum(0)
            expected = direction / direction.norm()
        else:  # the sum of the points with their times, scaled back to the hyperboloid
            total, total_time = x.sum(0), (2.0 + x.square().sum(1)).sqrt().sum()
            expected = total / (0.5 * (total_time**2 - total @ total)).sqrt()
        torch.testing.assert_close(midpoint.double(), expected, rtol=1e-5, atol=1e-6)


# --- model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["atmg", "meru", "hycoclip", "clip"])
def test_small_pieces_have_the_gradient_of_the_whole(shards: str, objective: str) -> None:
    config = small_config(shards, objective=objective, precision="no")
    (batch,) = take_batches(config, 1)
    tokenizer = CaptionTokenizer.from_samples(config, samples(expand([shards]), pytest.fail))
    batch["tokens"] = tokenizer(batch["texts"])
    torch.manual_seed(0)
    model, accelerator = Towers.from_config(config, len(tokenizer)), Accelerator(cpu=True)

    def gradients(micro: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        loss, _ = train_clip_hyperbolic.backward(
            batch, model, Objective(config), accelerator, micro
        )
        return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    (loss, expected), (loss_in_pieces, in_pieces) = gradients(0), gradients(3)
    torch.testing.assert_close(loss_in_pieces, loss)
    assert len(in_pieces) == len(expected)
    # The loss does not depend on some weights: their gradients are rounding errors of the others.
    largest = max(float(b.abs().max()) for b in expected)
    for a, b in zip(in_pieces, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * largest)


def test_a_picture_is_seen_alike_in_any_batch() -> None:
    torch.manual_seed(0)
    model = Towers.from_config(Config(), 300).train()
    pixels = torch.rand(4, 3, 48, 48)
    whole, alone = model.images(pixels), model.images(pixels[2:3])
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", ["vit-s", "vit-b", "vit-l"])
def test_production_presets_resolve(
    preset: str, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--preset", preset, "--shards", shards, "--dry-run"]
    argv += ["--vocab_size", "300", "--precision", "no"]
    assert train_clip_hyperbolic.main(argv) == 0
    output = capsys.readouterr().err
    millions = {"vit-s": "21,", "vit-b": "85,", "vit-l": "303,"}[preset]
    assert f"image tower: {millions}" in output
    assert '"batch_size": 2048' in output


# --- configuration --------------------------------------------------------------------------------


def test_wrong_fields_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("", ["--stepz", "3"])
    assert "--stepz" in capsys.readouterr().err
    with pytest.raises(UserError, match="--batch-size: expected at least 1, got 0"):
        parse("", ["--batch_size", "0"])
    with pytest.raises(UserError, match=r"--warp: expected a share in \[0, 1\], got 7"):
        Config(warp=7)
    with pytest.raises(UserError, match="--image-start: expected at least 0, got -1"):
        Config(image_start=-1)
    with pytest.raises(UserError, match="--stem-width: expected a multiple of 8, got 20"):
        parse("", ["--stem_width", "20"])
    with pytest.raises(UserError, match="leave other flags out"):
        parse("", ["--resume", "runs/RUN", "--steps", "7"])
    with pytest.raises(UserError, match="--preset vit-b trains on your data: --shards"):
        parse("", ["--preset", "vit-b"])
    with pytest.raises(UserError, match="unexpected keyword argument 'colour'"):
        from_json('{"colour": 3}', Path("config.json"))


def test_a_run_goes_on_with_its_own_configuration(tmp_path: Path) -> None:
    config = Config(precision="bf16", batch_size=64, seed=3)
    write_json(tmp_path / "config.json", vars(config))
    resumed, _ = parse("", ["--resume", str(tmp_path)])
    assert resumed == config
    with pytest.raises(UserError, match="is no run"):
        parse("", ["--resume", str(tmp_path / "none")])


def test_shards_to_evaluate_on_have_a_name_each() -> None:
    patterns = Config(eval_shards=["coco=a/{0..3}.tar", "b/lang=en/flickr.tar"]).eval_patterns
    assert patterns == {"coco": "a/{0..3}.tar", "flickr": "b/lang=en/flickr.tar"}
    with pytest.raises(UserError, match="--eval-shards: each needs a name of its own"):
        Config(eval_shards=["a/00000.tar", "b/00000.tar"])


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse("What it does.", ["--preset", "vit-b", "--help"])
    assert exit_.value.code == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "What it does." in output
    for field in fields(Config):
        assert f"--{field.name}" in output
        assert field.metadata["help"].replace("%%", "%") in output
    assert "pairs in a step, over all processes: contrasted all with all (default: 2048)" in output


def test_a_text_without_a_token_has_a_point(shards: str) -> None:
    """A tokenizer of a folder may have no special tokens, and find no token in a text."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "red": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    pretrained = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")
    tokenizer = CaptionTokenizer(pretrained, 77)
    torch.manual_seed(0)
    model = Towers.from_config(small_config(shards, text_layers=0), len(tokenizer))
    for texts in (["red", " "], [" ", ""]):
        assert embed_texts(model, tokenizer, texts).isfinite().all()


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_killed_run_goes_on_bit_for_bit(shards: str, tmp_path: Path, precision: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    argv = ["--shards", shards, *flags(SMALL | {"precision": precision})]
    first, second = (start(*argv, "--output_dir", str(run)) for run in (whole, killed))
    while not [*killed.glob("checkpoints/step-*")] and second.poll() is None:
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output
    assert second.wait() == -signal.SIGKILL
    step = Checkpoint.latest(killed).state["step"]
    assert 0 < step < SMALL["steps"]

    train("--resume", str(killed))
    assert_same_runs(whole, killed)

    # Its checkpoint can be evaluated, and paths to the root can be drawn.
    out = tmp_path / "out.json"
    argv = ["--checkpoint", str(killed), "--shards", shards]
    assert evaluate_clip_hyperbolic.main([*argv, "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    assert (results["n_images"], results["n_texts"]) == (64, 8)
    assert 0 <= results["retrieval"]["i2t"]["R@1"] <= results["retrieval"]["i2t"]["R@5"] <= 1
    assert 0 <= results["retrieval_midpoints"]["t2i"]["mAP"] <= 1
    assert results["radius"].keys() == {"ancestors_1", "ancestors_2", "captions", "images"}
    assert evaluate_clip_hyperbolic.main([*argv, "--split", "none such"]) == 2
    assert traverse_clip_hyperbolic.main([*argv, "--out", str(tmp_path / "traversals.png")]) == 0
    assert Image.open(tmp_path / "traversals.png").width > 1000

    # A damaged checkpoint is named; without it the one before takes its place.
    newest = Checkpoint.latest(whole).file
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"truncated, remove it"):
        Checkpoint.latest(whole)
    newest.unlink()
    assert Checkpoint.latest(whole).state["step"] < SMALL["steps"]


@pytest.mark.thorough
def test_ctrl_c_waits_for_the_step_and_for_its_checkpoint(shards: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too, and must not end them before the step has its batch."""
    changes = {**SMALL, "steps": 1000, "save_every": 1000, "in_memory": False, "workers": 2}
    argv = ["--shards", shards, *flags(changes), "--output_dir", str(tmp_path)]
    run = start(*argv, start_new_session=True)
    file = tmp_path / "metrics.jsonl"
    while not (file.exists() and file.read_text()) and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 130, output
    assert f"--resume {tmp_path}" in output
    assert 0 < Checkpoint.latest(tmp_path).state["step"] < 1000


@pytest.mark.thorough
@pytest.mark.parametrize("objective", ["atmg", "meru", "hycoclip"])
def test_two_processes_train_like_one(shards: str, tmp_path: Path, objective: str) -> None:
    # Two processes round differently, and each step of Adam makes the difference ten times larger.
    argv = ["--shards", shards, *flags(SMALL | {"steps": 3}), "--objective", objective]
    train(*argv, "--output_dir", str(tmp_path / "one"))
    train(*argv, "--output_dir", str(tmp_path / "two"), "--micro_batch", "2", processes=2)
    expected, losses_of_two = (torch.tensor(losses(tmp_path / run)) for run in ("one", "two"))
    torch.testing.assert_close(losses_of_two, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.few(objective="clip")
@pytest.mark.parametrize("objective", ["atmg", "meru", "hycoclip", "clip"])
def test_a_run_ends_with_measures_and_a_page(shards: str, tmp_path: Path, objective: str) -> None:
    """Also where points are unit vectors, and there is no curvature."""
    run = tmp_path / "run"
    changes = {**SMALL, "steps": 1, "objective": objective}
    train(*flags(changes), "--shards", shards, "--eval_shards", shards, "--output_dir", str(run))
    (measures,) = json.loads((run / "evaluation.json").read_text("utf-8")).values()
    assert measures["retrieval"]["t2i"]["queries"] > 0
    assert ("captions" in measures["radius"]) == (objective != "clip")
    page = (run / "report" / "index.html").read_text("utf-8")
    assert ("Poincare" in page) == (objective != "clip")


@pytest.mark.thorough
def test_towers_of_a_folder_in_half_precision(shards: str, tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    image = CLIPVisionModel(CLIPVisionConfig(**size, **heads, image_size=32, patch_size=16))
    text = BertModel(BertConfig(**size, **heads, vocab_size=300))
    folders = {"vision_model": str(tmp_path / "image"), "text_model": str(tmp_path / "text")}
    for tower, folder in zip((image, text), folders.values(), strict=True):
        tower.save_pretrained(folder)
    run = tmp_path / "run"
    changes = {**SMALL, "steps": 2, "precision": "bf16", "lr": 0.0, **folders}
    train(*flags(changes), "--shards", shards, "--output_dir", str(run))
    assert all(0 < loss < 10 for loss in losses(run))
    model = Checkpoint.latest(run).model()
    for tower, trained in ((image, model.model.vision_model), (text, model.model.text_model)):
        for name, weight in tower.state_dict().items():
            assert torch.equal(trained.state_dict()[name], weight), name
    assert torch.equal(Published(run / "model").model().model.curv(), model.model.curv())
    (tmp_path / "image" / "model.safetensors").rename(tmp_path / "weights")
    torch.save(image.state_dict(), tmp_path / "image" / "pytorch_model.bin")  # a pickle
    for folder in (tmp_path, tmp_path / "image"):
        with pytest.raises(UserError, match=r"--vision_model .* finds no such tower there"):
            Towers.from_config(small_config(shards, vision_model=str(folder)), 300)


@pytest.mark.thorough
def test_what_is_not_finite_stops_the_run(shards: str, tmp_path: Path) -> None:
    argv = ["--shards", shards, *flags(SMALL | {"lr": 1e30}), "--output_dir", str(tmp_path / "run")]
    process = start(*argv)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "not finite" in output
    (dump,) = (tmp_path / "run").glob("nonfinite-*.json")
    assert len(json.loads(dump.read_text())["keys"]) == 8


@pytest.mark.thorough
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    code = (
        "import resource; from pathlib import Path; from clip_hyperbolic import checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"checkpoint.write_atomically(Path({str(file)!r}), lambda p: p.write_bytes(bytes(2000)))"
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert soft == hard == resource.RLIM_INFINITY
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "could not be written" in process.stderr
    assert "make room" in process.stderr
    assert file.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [file]
    write_atomically(file, lambda path: path.write_bytes(b"new"))
    assert file.read_bytes() == b"new"


def test_a_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"not written by train_clip_hyperbolic\.py"):
        Checkpoint.latest(tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="has no checkpoint"):
        Checkpoint.latest(tmp_path)
