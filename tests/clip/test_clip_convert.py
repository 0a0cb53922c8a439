"""Published checkpoints convert: towers, scalars and processor are those of the original."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_clip import MEAN, STD, PairByPair, Published

from lorentzkit.clip import HyperbolicCLIPModel, HyperbolicCLIPProcessor, tokenizer_from_bpe
from lorentzkit.clip.convert import find_vocabulary, main, model_of, read

HEADS = {"vision_heads": 4, "text_heads": 4}
# how a file looks, and what it was trained by
FORMATS = [
    ("clip", "clip"),
    ("meru", "meru"),
    ("meru", "hycoclip"),
    ("meru", "atmg"),
    ("uncha", "meru"),
]
FLAGS = ["--vision-heads", "4", "--text-heads", "4"]
TEXTS = ["A photo of a cat.", "it's  two DOGS!", "héllo, 12 worlds", "a " * 90]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like CLIP's, of 86 merges: with letters and ends, 600 tokens."""
    file = tmp_path_factory.mktemp("bpe") / "bpe.txt"
    pairs = ["t h", "th e</w>", "d o", "g s</w>", "do gs</w>", "a t</w>", "c at</w>", "p h"]
    letters = "bcefghijklmu"
    pairs += [f"{a} {b}" for a in letters for b in "nopqrst"][: 86 - len(pairs)]
    file.write_text("\n".join(["#version: 0.2", *pairs]), encoding="utf-8")
    return file


def ids_of(published: Published) -> torch.Tensor:
    """Texts of several lengths, padded with zeros as there; the end is the largest id."""
    end = published.textual.token_embed.num_embeddings - 1
    ids = torch.randint(1, end - 1, (4, 12))
    for row, length in enumerate((12, 3, 7, 5)):
        ids[row, length - 1], ids[row, length:] = end, 0
    return ids


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def both(published: Published) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """What each tower takes, and the point that the original makes of it."""
    pixels, ids = torch.rand(4, 3, 32, 32), ids_of(published)
    with torch.no_grad():
        return (
            (normalised(pixels), published.points(published.image(pixels), "visual")),
            (ids, published.points(published.text(ids), "textual")),
        )


def agree(model: HyperbolicCLIPModel, published: Published, tolerance: float) -> None:
    """In units of the largest entry: the towers' rounding errors grow with their features."""
    (pixels, image), (ids, text) = both(published)
    with torch.no_grad():
        found = (model.get_image_features(pixels), model.get_text_features(ids))
    for ours, theirs in zip(found, (image, text), strict=True):
        ours = ours.flatten(1)
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(("format", "objective"), FORMATS)
def test_towers_agree(format: str, objective: Any) -> None:
    published = Published(format).eval()
    model = model_of(published.state_dict(), objective, **HEADS)
    agree(model, published, 1e-5)
    scale = published.global_logit_scale if format == "uncha" else published.logit_scale
    torch.testing.assert_close(model.logit_scale(), scale.exp())
    assert model.config.objective == objective
    if format == "phyclip":
        torch.testing.assert_close(model.curv(), torch.stack(list(published.curvs)).exp())
    elif format != "clip":
        torch.testing.assert_close(model.curv(), published.curv.exp())


@pytest.mark.thorough
def test_towers_agree_compiled() -> None:
    published = Published(layers=1).eval()
    model = model_of(published.state_dict(), "meru", **HEADS)
    model.get_image_features = torch.compile(model.get_image_features, fullgraph=True)
    model.get_text_features = torch.compile(model.get_text_features, fullgraph=True)
    agree(model, published, 1e-5)


def test_towers_agree_in_bfloat16(tmp_path: Path) -> None:
    """Weights of the size of a trained model's: each rounding is 2**-9 of a feature."""
    published = Published().eval()
    with torch.no_grad():
        for parameter in published.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:
                parameter.mul_(0.2)
    model_of(published.state_dict(), "meru", **HEADS).save_pretrained(tmp_path)
    model = HyperbolicCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.visual_projection.weight.dtype == torch.bfloat16
    assert model.curvature.log_curv.dtype == torch.float32
    agree(model, published, 1e-2)


@pytest.mark.parametrize("name", ["visual.norm.bias", "textual.resblocks.1.attn.in_proj_bias"])
def test_agreement_can_fail(name: str) -> None:
    published = Published().eval()
    model = model_of(published.state_dict(), "meru", **HEADS)
    published.get_parameter(name).data[-1] += 0.01
    with pytest.raises(AssertionError):
        agree(model, published, 1e-5)


@pytest.mark.parametrize("width", [384, 768, 1024])
def test_heads_of_the_published_sizes(width: int) -> None:
    """12, 12 and 16 heads, of the small, base and large vision towers; and 8 of 512 channels."""
    published = Published(width=width, heads=16 if width == 1024 else 12, layers=1)
    published.textual = Published(width=512, heads=8, layers=1).textual
    published.textual_proj = torch.nn.Linear(512, 16, bias=False)
    agree(model_of(published.state_dict(), "meru"), published.eval(), 1e-5)


def test_curvature_keeps_its_reach() -> None:
    """The authors start at 1; what is beyond a factor of 10 from there started elsewhere."""

    def config(curv: float, objective: Any = "meru") -> tuple[float, bool]:
        found = model_of(Published(curv=curv).state_dict(), objective, **HEADS)
        torch.testing.assert_close(found.curv().item(), curv, rtol=1e-6, atol=0)
        assert found.curvature.log_curv.requires_grad == found.config.learn_curv
        return found.config.curv_init, found.config.learn_curv

    assert config(0.1) == config(9.0) == (1.0, True)
    assert config(0.03)[0] == pytest.approx(0.03)
    assert config(0.1, "atmg") == (pytest.approx(0.1), False)


def convert(tmp_path: Path, vocabulary: Path, state: Any, *flags: str) -> Path:
    torch.save(state, tmp_path / "file.pth")
    out = tmp_path / "out"
    given = [str(tmp_path / "file.pth"), str(out), "--vocabulary", str(vocabulary)]
    main([*given, *FLAGS, *flags])
    return out


def test_command_line(tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = Published().eval()
    state = {"model": published.state_dict(), "iteration": 3, "optimizer": {"state": {}}}
    out = convert(tmp_path, vocabulary, state, "--objective", "meru")
    printed = capsys.readouterr().out
    assert "CC BY-NC" in printed.splitlines()[1]
    assert printed.splitlines()[-1].startswith(f"{out}: ")
    card = (out / "README.md").read_text("utf-8")
    assert "license: cc-by-nc-4.0" in card
    assert "file.pth" in card
    assert sorted(file.suffix for file in out.iterdir() if "safetensors" in file.name) == [
        ".safetensors"
    ]

    direct = model_of(published.state_dict(), "meru", **HEADS)
    model = HyperbolicCLIPModel.from_pretrained(out)
    assert model.state_dict().keys() == direct.state_dict().keys()
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in direct.state_dict().items())
    assert not model.training
    agree(model, published, 1e-5)


def test_processor_against_a_direct_computation(tmp_path: Path, vocabulary: Path) -> None:
    published = Published().eval()
    out = convert(tmp_path, vocabulary, published.state_dict(), "--objective", "meru")
    processor = HyperbolicCLIPProcessor.from_pretrained(out)
    pixels = np.random.default_rng(0).integers(0, 256, (44, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    found = processor(text=TEXTS, images=image, return_tensors="pt")

    resized = image.resize((int(32 * 60 / 44), 32), Image.Resampling.BICUBIC)  # (43, 32)
    cropped = np.asarray(resized)[:, 5 : 5 + 32].astype(np.float64) / 255
    direct = (cropped - np.array(MEAN)) / np.array(STD)
    torch.testing.assert_close(
        found["pixel_values"][0].double(),
        torch.tensor(direct.transpose(2, 0, 1)),
        atol=1e-6,
        rtol=0,
    )

    tokens = [PairByPair(vocabulary)(text) for text in TEXTS]
    tokens = [ids if len(ids) <= 77 else [*ids[:76], ids[-1]] for ids in tokens]
    longest = max(map(len, tokens))
    with_ends = [ids + [599] * (longest - len(ids)) for ids in tokens]
    assert longest == 77
    assert found["input_ids"].tolist() == with_ends

    # The original pads with zeros, and its text features are the same.
    with_zeros = torch.tensor([ids + [0] * (longest - len(ids)) for ids in tokens])
    with torch.no_grad():
        ours = HyperbolicCLIPModel.from_pretrained(out).get_text_features(found["input_ids"])
        theirs = published.points(published.text(with_zeros), "textual")
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_vocabulary_is_found_in_a_package(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorentzkit.clip.convert.PACKAGES", ("some_clip",))
    (tmp_path / "some_clip").mkdir()
    (tmp_path / "some_clip" / "__init__.py").write_text("raise RuntimeError('imported')")
    with pytest.raises(ValueError, match="--vocabulary FILE, or pip install open_clip_torch"):
        find_vocabulary()
    there = tmp_path / "some_clip" / "bpe_simple_vocab_16e6.txt.gz"
    there.write_bytes(vocabulary.read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    assert find_vocabulary() == there


def without(state: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in names}


def test_missing_and_unknown_parameters_are_listed() -> None:
    state = Published().state_dict()
    with pytest.raises(ValueError, match=r"missing: visual\.cls_token, visual_pr.*\n.*own: none"):
        model_of(without(state, "visual.cls_token", "visual_proj.weight"), "meru", **HEADS)
    with pytest.raises(ValueError, match=r"missing: none\n  unknown: head\.bias, textual\.e"):
        model_of({**state, "textual.extra": state["curv"], "head.bias": state["curv"]}, "meru")
    with pytest.raises(ValueError, match=r"missing: textual.resblocks.0.attn.in_proj_bias"):
        model_of(without(state, "textual.resblocks.0.attn.in_proj_bias"), "meru", **HEADS)


def test_a_number_of_phyclip_is_missing() -> None:
    with pytest.raises(ValueError, match=r"missing: curvs\n  unknown: curvs.0, curvs.2, curvs.3"):
        model_of(without(Published("phyclip").state_dict(), "curvs.1"), "phyclip", **HEADS)


def test_what_the_file_does_not_say_is_asked_for() -> None:
    state = Published().state_dict()
    with pytest.raises(ValueError, match=r"objective: .* look alike, got None; pass --objective"):
        model_of(state, **HEADS)
    with pytest.raises(ValueError, match="objective: expected 'clip' for this file, got 'meru'"):
        model_of(Published("clip").state_dict(), "meru", **HEADS)
    with pytest.raises(ValueError, match=r"vision_heads: .* 32 wide; pass --vision-heads"):
        model_of(state, "meru", text_heads=4)
    with pytest.raises(ValueError, match=r"text_heads: .* pass --text-heads"):
        model_of(state, "meru", vision_heads=4)


def test_scales_out_of_bounds() -> None:
    state = Published().state_dict()
    above = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"expected visual_alpha to be the logarithm of at most 1"):
        model_of({**state, "visual_alpha": above}, "meru", **HEADS)
    with pytest.raises(ValueError, match=r"textual_alpha .* got that of nan"):
        model_of({**state, "textual_alpha": above * torch.nan}, "meru", **HEADS)
    with pytest.raises(ValueError, match=r"logit_scale .* at most 100"):
        model_of({**state, "logit_scale": above * 10}, "meru", **HEADS)
    model_of({**state, "logit_scale": torch.tensor(4.6052)}, "meru", **HEADS)  # theirs, ln 100


def test_positions_are_a_square() -> None:
    state = Published().state_dict()
    state["visual.pos_embed"] = torch.zeros(1, 4, 32)
    with pytest.raises(ValueError, match="a square of patches, got 4 positions"):
        model_of(state, "meru", **HEADS)


class Harmful:
    """Unpickling would run it."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_no_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Published().state_dict(), "other": Harmful()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"weights_only=True\) refuses; save its 'model' alone"):
        read(tmp_path / "file.pth")
    assert capsys.readouterr().out == ""
    (tmp_path / "file.pth").write_bytes(b"no such file")
    with pytest.raises(ValueError, match="refuses"):
        read(tmp_path / "file.pth")
    torch.save({"epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds the keys \['epoch'\]"):
        read(tmp_path / "file.pth")
    torch.save(torch.ones(3), tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds <class 'torch\.Tensor'>"):
        read(tmp_path / "file.pth")


def test_command_line_says_what_is_wrong(tmp_path: Path, vocabulary: Path) -> None:
    state = Published().state_dict()
    with pytest.raises(SystemExit, match="pass --objective"):
        convert(tmp_path, vocabulary, state)
    assert not (tmp_path / "out").exists()
    small = tmp_path / "small.txt"
    small.write_text("version\na b\n")
    with pytest.raises(SystemExit, match=r"vocabulary: expected one of 600 tokens.* got 515"):
        convert(tmp_path, small, state, "--objective", "meru")
    small.write_text("version\na b c\n")
    with pytest.raises(SystemExit, match="file: expected a line, then two symbols a line"):
        convert(tmp_path, small, state, "--objective", "meru")
    convert(tmp_path, vocabulary, state, "--objective", "meru")
    with pytest.raises(SystemExit, match="out: expected a new or an empty folder"):
        convert(tmp_path, vocabulary, state, "--objective", "meru")
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "none.pth"), str(tmp_path / "new"), "--vocabulary", str(vocabulary)])


@pytest.mark.thorough
def test_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lorentzkit.clip.convert", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--vocabulary" in done.stdout


def test_tokenizer_reads_compressed_files(tmp_path: Path, vocabulary: Path) -> None:
    import gzip

    packed = tmp_path / "bpe.txt.gz"
    packed.write_bytes(gzip.compress(vocabulary.read_bytes()))
    reference = PairByPair(packed)
    tokenizer = tokenizer_from_bpe(packed)
    for text in (*TEXTS, "the dogs, the cats: thephone", "日本語 🐼 naïve", ""):
        assert tokenizer(text)["input_ids"] == reference(text)
