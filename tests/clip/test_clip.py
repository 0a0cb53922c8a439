"""The model of lorentzkit.clip within transformers: what it computes, and that its tools work."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from processes import spawn
from published_clip import positions
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
    pipeline,
)

from lorentzkit import losses, ops
from lorentzkit.clip import (
    HyperbolicCLIPConfig,
    HyperbolicCLIPModel,
    HyperbolicCLIPProcessor,
    tokenizer_from_bpe,
)
from lorentzkit.distributed import gather

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
}
TEXT = VISION | {"vocab_size": 517}
del TEXT["image_size"]
HYPERBOLIC = ["meru", "hycoclip", "atmg"]


def config_of(objective: Any = "meru", **more: Any) -> HyperbolicCLIPConfig:
    return HyperbolicCLIPConfig(VISION, TEXT, 16, objective, **more)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 515, (4, 9))
    ids[:, -1] = 516
    return {"input_ids": ids, "pixel_values": torch.randn(4, 3, 32, 32)}


@pytest.fixture
def processor(tmp_path: Path) -> HyperbolicCLIPProcessor:
    (tmp_path / "bpe.txt").write_text("version\nc a\nca t</w>\nd o\n", encoding="utf-8")
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    return HyperbolicCLIPProcessor(images, tokenizer_from_bpe(tmp_path / "bpe.txt"))


def test_logits_of_a_product(batch: Any) -> None:
    model = HyperbolicCLIPModel(config_of("phyclip", factors=4)).eval()
    with torch.no_grad():
        model.curvature.log_curv.copy_(torch.tensor([-1.0, 0.0, 0.5, 1.0]))
        model.text_lift.scale.log_scale.copy_(torch.tensor([-1.0, -2.0, 0.0, -3.0]))
    found = model(**batch)
    assert found.text_embeds.shape == (4, 4, 4)
    apart = ops.dist(found.image_embeds[:, None], found.text_embeds, model.curv()).mean(-1)
    torch.testing.assert_close(found.logits_per_image, -model.logit_scale() * apart)
    torch.testing.assert_close(found.logits_per_text, found.logits_per_image.T)


@pytest.mark.parametrize("objective", ["clip", *HYPERBOLIC])
def test_logits_are_those_of_the_loss(objective: str, batch: Any) -> None:
    model = HyperbolicCLIPModel(config_of(objective)).eval()
    found = model(**batch)
    text, image = found.text_embeds, found.image_embeds
    assert torch.equal(text, model.get_text_features(batch["input_ids"]))
    assert torch.equal(image, model.get_image_features(batch["pixel_values"]))
    pairs = torch.arange(4)
    entropy = F.cross_entropy(found.logits_per_image, pairs)
    entropy = (entropy + F.cross_entropy(found.logits_per_text, pairs)) / 2
    similarity = {"clip": "cosine", "atmg": "angle"}.get(objective, "distance")
    curv = 1.0 if objective == "clip" else model.curv()
    loss = losses.contrastive_loss(text, image, curv, model.logit_scale(), similarity=similarity)
    torch.testing.assert_close(entropy, loss)
    if objective == "clip":
        torch.testing.assert_close(text.norm(dim=1), torch.ones(4))
    else:
        assert (ops.dist0(text, curv) > 0).all()


def test_losses(batch: Any) -> None:
    """With the weights of the configuration."""
    for objective, loss in {
        "clip": losses.CLIPLoss(),
        "meru": losses.MERULoss(entailment_weight=0.7),
        "atmg": losses.ATMGLoss(text_radius=0.2, image_radius=0.4, centroid_weight=0.6),
    }.items():
        config = config_of(
            objective, entailment_weight=0.7, text_radius=0.2, image_radius=0.4, centroid_weight=0.6
        )
        model = HyperbolicCLIPModel(config)
        found = model(**batch, return_loss=True)
        curv = 1.0 if objective == "clip" else model.curv()
        points = {"text": found.text_embeds, "image": found.image_embeds}
        direct = loss(**points, curv=curv, logit_scale=model.logit_scale())[0]
        torch.testing.assert_close(found.loss, direct)
        found.loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.thorough
def test_loss_compiles(batch: Any) -> None:
    """In one graph; atmg's has ops of points, of pairs and of a single point."""
    model = HyperbolicCLIPModel(config_of("atmg"))
    loss = model(**batch, return_loss=True).loss
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = traced(**batch, return_loss=True).loss
    found.backward()
    torch.testing.assert_close(found, loss)
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    largest = max(float(grad.abs().max()) for grad in expected)
    torch.testing.assert_close(grads, expected, rtol=1e-3, atol=1e-5 * largest)


def test_loss_of_boxes(batch: Any) -> None:
    boxes = {
        "box_input_ids": batch["input_ids"][:3].flip(1).roll(-1, 1),
        "box_pixel_values": batch["pixel_values"][:3].flip(2),
        "box_of": torch.tensor([0, 0, 3]),
    }
    for given in (None, 0.7):
        model = HyperbolicCLIPModel(config_of("hycoclip", entailment_weight=given))
        found = model(**batch, **boxes, return_loss=True)
        loss = losses.HyCoCLIPLoss(**({} if given is None else {"entailment_weight": given}))
        direct, _ = loss(
            text=found.text_embeds,
            image=found.image_embeds,
            box_text=model.get_text_features(boxes["box_input_ids"]),
            box_image=model.get_image_features(boxes["box_pixel_values"]),
            curv=model.curv(),
            logit_scale=model.logit_scale(),
            box_of=boxes["box_of"],
        )
        torch.testing.assert_close(found.loss, direct)


def test_more_texts_than_images(batch: Any) -> None:
    found = HyperbolicCLIPModel(config_of("atmg"))(batch["input_ids"], batch["pixel_values"][:3])
    assert found.loss is None
    assert found.logits_per_image.shape == found.logits_per_text.T.shape == (3, 4)


def test_padding_is_not_seen(batch: Any) -> None:
    """Whatever follows the first end-of-text token."""
    model = HyperbolicCLIPModel(config_of()).eval()
    short = batch["input_ids"][:, 4:]
    alone = model.get_text_features(short)
    for pad in (0, 516, 7):
        padded = model.get_text_features(F.pad(short, (0, 6), value=pad))
        torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone, model.get_text_features(F.pad(short, (1, 0), value=5)))


def test_geometry_is_float32_under_autocast(batch: Any) -> None:
    for objective in ("clip", *HYPERBOLIC):
        model = HyperbolicCLIPModel(config_of(objective))
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**batch, return_loss=objective != "hycoclip")
        assert {x.dtype for x in found.to_tuple()} == {torch.float32}


@pytest.mark.parametrize("objective", ["clip", "atmg"])
def test_saved_and_loaded_is_identical(objective: str, tmp_path: Path, batch: Any) -> None:
    config = config_of(objective, curv_init=0.3, learn_curv=False, centroid_weight=0.4)
    model = HyperbolicCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    automatic = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)
    for loaded in (HyperbolicCLIPModel.from_pretrained(tmp_path), automatic):
        assert type(loaded) is HyperbolicCLIPModel
        assert all(torch.equal(x, loaded.state_dict()[n]) for n, x in model.state_dict().items())
        assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)
        fixed = {name for name, p in loaded.named_parameters() if not p.requires_grad}
        expected = {"vision_model.embeddings.position_embeddings"}
        assert fixed == expected | ({"curvature.log_curv"} if objective == "atmg" else set())
    kept = AutoConfig.from_pretrained(tmp_path)
    assert kept.to_dict() | {"_name_or_path": ""} == model.config.to_dict()
    assert (kept.vision_config.layer_norm_eps, kept.text_config.hidden_act) == (1e-5, "gelu")


@pytest.mark.parametrize("objective", ["clip", "meru"])
def test_models_saved_by_0_1_are_loaded(objective: str, tmp_path: Path) -> None:
    """Their parameters had other names, and no bounds; what is saved again has both."""
    model = HyperbolicCLIPModel(config_of(objective, curv_init=0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.01)
    old, new = tmp_path / "old", tmp_path / "new"
    model.save_pretrained(old)
    state = load_file(old / "model.safetensors")
    renamed = {
        name.replace("log_curv", "log").replace("log_scale", "log"): value
        for name, value in state.items()
        if not name.endswith("_extra_state")
    }
    assert len(renamed) < len(state)
    save_file(renamed, old / "model.safetensors", {"format": "pt"})
    loaded, report = HyperbolicCLIPModel.from_pretrained(old, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded.save_pretrained(new)
    assert load_file(new / "model.safetensors").keys() == state.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    fresh = HyperbolicCLIPModel(loaded.config)
    fresh.load_state_dict(renamed)
    assert torch.equal(fresh.logit_scale(), model.logit_scale())


def test_one_missing_parameter_is_initialised(tmp_path: Path) -> None:
    """As in a fresh model, and the others stay as they were saved."""
    model = HyperbolicCLIPModel(config_of(curv_init=0.3))
    state = {n: x + 0.5 for n, x in model.state_dict().items()}
    left_out = ("curvature.log_curv", "vision_model.embeddings.position_embeddings")
    model.save_pretrained(
        tmp_path, state_dict={n: x for n, x in state.items() if n not in left_out}
    )
    loaded = HyperbolicCLIPModel.from_pretrained(tmp_path).state_dict()
    for name, value in loaded.items():
        expected = model.state_dict()[name] if name in left_out else state[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_a_new_model_starts_as_published() -> None:
    """Positions are computed one number at a time there, and in float64."""
    wide = VISION | {"image_size": 48}
    model = HyperbolicCLIPModel(HyperbolicCLIPConfig(wide, TEXT, 16))
    found = model.vision_model.embeddings.position_embeddings
    torch.testing.assert_close(found, positions(3, 32), rtol=0, atol=1e-6)
    for projection in (model.visual_projection, model.text_projection):
        assert 0.8 < projection.weight.std().item() * 32**0.5 < 1.2
    assert model.logit_scale().item() == pytest.approx(1 / 0.07)
    assert model.visual_lift.scale().item() == pytest.approx(16**-0.5)


def same_step(rank: int) -> None:
    """Of a batch on two processes, each with half of it, and of the whole batch on one."""
    torch.manual_seed(0)
    alone = HyperbolicCLIPModel(config_of("atmg")).eval()  # evaluation is each process's own
    model = copy.deepcopy(alone).train()
    whole = {"input_ids": torch.randint(1, 516, (6, 5)), "pixel_values": torch.randn(6, 3, 32, 32)}
    loss = alone(**whole, return_loss=True).loss
    loss.backward()
    own = {name: x.tensor_split(2)[rank] for name, x in whole.items()}
    spread = DistributedDataParallel(model)  # which averages gradients as long as it is there
    part = spread(**own, return_loss=True).loss
    part.backward()
    torch.testing.assert_close(gather(part.detach().view(1)).mean(), loss)
    learned = [p for p in alone.parameters() if p.requires_grad]
    largest = max(float(p.grad.abs().max()) for p in learned)  # some are 0 but for rounding
    for a, b in zip([p for p in model.parameters() if p.requires_grad], learned, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.thorough
def test_batch_over_processes() -> None:
    assert spawn(same_step, 2) == {}


def test_model_card(tmp_path: Path) -> None:
    model = HyperbolicCLIPModel(config_of("atmg"))
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert "atmg" in card.data.tags
    assert "dimension 16" in card.text
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "mine"


def test_meta_device(batch: Any) -> None:
    with torch.device("meta"):
        model = HyperbolicCLIPModel(config_of(curv_init=0.3))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.initialize_weights()
    fresh = HyperbolicCLIPModel(config_of(curv_init=0.3)).state_dict()
    for name, value in model.state_dict().items():
        if fresh[name].numel() > 1 and fresh[name].std() > 0:
            assert 0.7 < value.std() / fresh[name].std() < 1.4, name
        else:
            assert torch.equal(value, fresh[name]), name
    assert model(**batch).logits_per_text.isfinite().all()


def other_towers(**more: Any) -> HyperbolicCLIPConfig:
    """Neither a ViT nor CLIP's text transformer."""
    residual = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    vision = {"model_type": "resnet", "layer_type": "basic", "norm_groups": 4, **residual}
    return HyperbolicCLIPConfig(vision, TEXT | {"model_type": "bert"}, 16, **more)


def test_other_towers(tmp_path: Path) -> None:
    """Their features by hand, at any padding and in any batch; saved, loaded, trained."""
    model = HyperbolicCLIPModel(other_towers(objective="atmg")).eval()
    assert model.config.text_pooling == "mean"
    assert 0.8 < model.visual_projection.weight.std().item() * 16**0.5 < 1.2
    pixels, ids = torch.randn(3, 3, 32, 32), torch.randint(1, 515, (3, 6))
    mask = torch.ones_like(ids)
    mask[1, 4:] = mask[2, 1:] = 0
    found = model(ids, pixels, mask, return_loss=True)
    states = model.text_model(ids, mask).last_hidden_state
    means = torch.stack([states[0].mean(0), states[1, :4].mean(0), states[2, 0]])
    curv = model.curv()
    text = model.text_lift(model.text_projection(means), curv)
    torch.testing.assert_close(found.text_embeds, text)
    short = model.get_text_features(ids[2:, :1], mask[2:, :1])
    torch.testing.assert_close(found.text_embeds[2:], short)
    pooled = model.vision_model(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(
        found.image_embeds, model.visual_lift(model.visual_projection(pooled), curv)
    )
    alone = model.train().get_image_features(pixels[:1])
    torch.testing.assert_close(alone, found.image_embeds[:1])
    found.loss.backward()
    unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == {"text_model.pooler.dense.weight", "text_model.pooler.dense.bias"}

    model.eval().save_pretrained(tmp_path)
    loaded = HyperbolicCLIPModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.norm_groups == 4
    assert torch.equal(loaded(ids, pixels, mask).logits_per_text, found.logits_per_text)
    with pytest.raises(ValueError, match="attention_mask: expected one for text_pooling="):
        loaded(ids, pixels)
    # A text without a token has the point of no feature.
    nothing = loaded.get_text_features(ids, mask * torch.tensor([[1], [0], [1]]))
    assert torch.equal(nothing[1], loaded.text_lift(torch.zeros(16), curv))
    torch.testing.assert_close(nothing[[0, 2]], found.text_embeds[[0, 2]])


def test_pretrained_towers(tmp_path: Path, batch: Any) -> None:
    """Of a model with two towers, and of one with one; or a new tower."""
    whole = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION | {"patch_size": 16}))
    bert, vit = BertModel(BertConfig(**TEXT)), ViTModel(ViTConfig(**VISION))
    names = {"clip": whole, "bert": bert, "vit": vit}
    for name, tower in names.items():
        tower.save_pretrained(tmp_path / name)
    load = HyperbolicCLIPModel.from_vision_text_pretrained

    model = load(tmp_path / "clip", tmp_path / "clip", objective="meru", projection_dim=16).eval()
    assert model.config.text_pooling == "eos"
    for ours, theirs in (
        (model.vision_model, whole.vision_model),
        (model.text_model, whole.text_model),
    ):
        assert all(torch.equal(x, theirs.state_dict()[n]) for n, x in ours.state_dict().items())
    pooled = whole.eval().get_image_features(batch["pixel_values"])
    direct = whole.vision_model(batch["pixel_values"]).pooler_output
    assert pooled is not None
    torch.testing.assert_close(
        model.get_image_features(batch["pixel_values"]),
        model.visual_lift(model.visual_projection(direct), model.curv()),
    )
    assert model(**batch, return_loss=True).loss.isfinite()

    model = load(tmp_path / "vit", tmp_path / "bert", objective="clip").eval()
    for ours, theirs in ((model.vision_model, vit), (model.text_model, bert)):
        assert all(torch.equal(x, theirs.state_dict()[n]) for n, x in ours.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    again = HyperbolicCLIPModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(
        again.get_image_features(batch["pixel_values"]),
        model.get_image_features(batch["pixel_values"]),
    )
    assert load(VISION, tmp_path / "bert").vision_model.config.layer_norm_eps == 1e-5
    with pytest.raises(OSError, match="nowhere"):
        load(str(tmp_path / "nowhere"), TEXT, local_files_only=True)
    lacking = {n: x for n, x in vit.state_dict().items() if "layers.1" not in n}
    vit.save_pretrained(tmp_path / "vit", state_dict=lacking)
    with pytest.raises(ValueError, match=r"vit: .* a ViTModel, which lacks \['layers.1"):
        load(tmp_path / "vit", TEXT)
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(vit.state_dict(), tmp_path / "vit" / "pytorch_model.bin")  # a pickle
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path / "vit", TEXT)


def test_gradient_checkpointing(batch: Any) -> None:
    model = HyperbolicCLIPModel(config_of())
    grads = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*grads)


@pytest.mark.thorough
def test_trainer(tmp_path: Path, processor: HyperbolicCLIPProcessor) -> None:
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 32, 3), np.uint8)) for _ in range(8)]
    data = [{"text": f"a cat {n}", "image": x} for n, x in enumerate(pictures)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = processor(
            text=[row["text"] for row in rows],
            images=[row["image"] for row in rows],
            return_tensors="pt",
        )
        return {**inputs, "return_loss": True}

    model = HyperbolicCLIPModel(config_of())
    before = {n: x.clone() for n, x in model.state_dict().items()}
    arguments = TrainingArguments(
        tmp_path / "run",
        max_steps=3,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-3,
        remove_unused_columns=False,
        prediction_loss_only=True,
        logging_steps=1,
        save_steps=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data, data_collator=collate
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    unchanged = {n for n, x in model.state_dict().items() if torch.equal(x, before[n])}
    bounds = {n for n in unchanged if n.endswith("_extra_state")}  # of the curvature and the scales
    assert unchanged - bounds == {"vision_model.embeddings.position_embeddings"}
    saved = HyperbolicCLIPModel.from_pretrained(tmp_path / "run" / "checkpoint-3")
    assert all(torch.equal(x, saved.state_dict()[n]) for n, x in model.state_dict().items())


def test_zero_shot_pipeline(tmp_path: Path, processor: HyperbolicCLIPProcessor) -> None:
    model = HyperbolicCLIPModel(config_of("atmg")).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    labels = ["cat", "dog", "a cow"]
    found = pipeline("zero-shot-image-classification", str(tmp_path / "model"))(
        image, candidate_labels=labels, hypothesis_template="a {}"
    )
    texts = [f"a {label}" for label in labels]
    with torch.no_grad():
        direct = model(**processor(text=texts, images=image, return_tensors="pt"))
    scores = direct.logits_per_image.softmax(-1)[0]
    assert {x["label"]: x["score"] for x in found} == pytest.approx(
        dict(zip(labels, scores.tolist(), strict=True)), rel=1e-5
    )


def test_processor_saves_and_loads(tmp_path: Path, processor: HyperbolicCLIPProcessor) -> None:
    processor.save_pretrained(tmp_path)
    config_of().save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    texts = ["a cat", "the dog " * 60]
    direct = processor(text=texts, images=image, return_tensors="pt")
    assert direct["input_ids"].shape == (2, 77)
    for loaded in (
        HyperbolicCLIPProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is HyperbolicCLIPProcessor
        again = loaded(text=texts, images=image, return_tensors="pt")
        assert torch.equal(again["input_ids"], direct["input_ids"])
        assert torch.equal(again["pixel_values"], direct["pixel_values"])


def test_errors(batch: Any) -> None:
    with pytest.raises(ValueError, match=r"objective: expected one of .*, got 'merru'"):
        config_of("merru")
    model = HyperbolicCLIPModel(config_of("hycoclip"))
    with pytest.raises(ValueError, match=r"input_ids, pixel_values: .* get_image_features"):
        model(batch["input_ids"])
    with pytest.raises(ValueError, match=r'box_input_ids, .* set config.objective = "meru"'):
        model(**batch, return_loss=True)
    with pytest.raises(ValueError, match=r"factors: expected a divisor of pro.* 16, .* got 3 "):
        config_of("phyclip", factors=3)
    with pytest.raises(ValueError, match=r'factors: .* got 2 for "meru"'):
        config_of("meru", factors=2)
    with pytest.raises(ValueError, match=r"text_pooling: expected one of .*, got 'last'"):
        config_of(text_pooling="last")
    with pytest.raises(ValueError, match=r"vision_config: expected a model_type .*, got 'resent'"):
        HyperbolicCLIPConfig({"model_type": "resent"})
    product = HyperbolicCLIPModel(config_of("phyclip", factors=2))
    with pytest.raises(NotImplementedError, match="no loss for 'phyclip'; leave return_loss out"):
        product(**batch, return_loss=True)
    with pytest.raises(ValueError, match='objective: "clip" has no curvature'):
        HyperbolicCLIPModel(config_of("clip")).curv()


def test_without_transformers_the_extra_is_named() -> None:
    script = "import sys; sys.modules['transformers'] = None; import lorentzkit.clip"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ImportError: lorentzkit.clip needs transformers: pip install 'lorentzkit[clip]'" in (
        done.stderr
    )
