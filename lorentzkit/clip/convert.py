"""Makes a model of this library of a published checkpoint.

    python -m lorentzkit.clip.convert meru_vit_b.pth meru-vit-b --objective meru

Reads what the code of MERU, HyCoCLIP, ATMG, UNCHA and PHyCLIP saves, and MERU's CLIP; nothing in
the file is run. Writes the weights, the configuration, the processor and a model card.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil

from lorentzkit.clip import formats
from lorentzkit.clip.card import write_card
from lorentzkit.clip.configuration import OBJECTIVES, Objective
from lorentzkit.clip.modeling import HyperbolicCLIPModel
from lorentzkit.clip.processing import HyperbolicCLIPProcessor, tokenizer_from_bpe

LICENCE = """\
The published checkpoints of MERU, HyCoCLIP and their relatives are their authors' work, licensed
CC BY-NC 4.0: not for commercial use, with credit. Converting does not change that. See
https://creativecommons.org/licenses/by-nc/4.0 and the repository that your file is from."""
BPE = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip", "clip", "meru", "hycoclip", "atmg", "phyclip", "uncha")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def read(checkpoint: Path) -> dict[str, Tensor]:
    """The parameters in a file of torch.save, by their published names."""
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise ValueError(
            f"checkpoint: expected a file of torch.save with tensors and plain values, got "
            f"{checkpoint}, which torch.load(weights_only=True) refuses; save its 'model' alone "
            f"with the code it is from ({str(error).splitlines()[0]})"
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, Mapping) else loaded
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(
            f"checkpoint: expected the parameters by name, or a 'model' that has them, got "
            f"{checkpoint}, which holds {_described(loaded)}"
        )
    return dict(state)


def model_of(
    state: Mapping[str, Tensor],
    objective: Objective | None = None,
    *,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> HyperbolicCLIPModel:
    """The model with these parameters, by their published names."""
    state = formats.gathered(state)
    kind = formats.kind_of(state)
    table = formats.names(
        formats.layers_of(state, "visual.blocks"),
        formats.layers_of(state, "textual.resblocks"),
        kind,
    )
    formats.check_names(state, set(table), kind)
    formats.check_scales(state, formats.UNCHA if kind == "uncha" else "logit_scale")
    config = formats.config_of(state, _objective(kind, objective), vision_heads, text_heads)
    model = HyperbolicCLIPModel(config)
    model.load_state_dict(formats.converted(state, table))
    model.eval()
    return model


def processor_of(
    state: Mapping[str, Tensor], model: HyperbolicCLIPModel, vocabulary: Path
) -> HyperbolicCLIPProcessor:
    """Resizing, cropping and normalising, and CLIP's tokenizer."""
    text = model.config.text_config
    size: Any = model.config.vision_config.image_size
    mean, std = (
        state[name].flatten().tolist() if name in state else list(default)
        for name, default in (("pixel_mean", MEAN), ("pixel_std", STD))
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=mean,
        image_std=std,
    )
    tokenizer = tokenizer_from_bpe(vocabulary, text.max_position_embeddings)
    if len(tokenizer) != text.vocab_size:
        raise ValueError(
            f"vocabulary: expected one of {text.vocab_size} tokens, as the checkpoint's, got "
            f"{len(tokenizer)} in {vocabulary}"
        )
    return HyperbolicCLIPProcessor(image_processor, tokenizer)


def find_vocabulary() -> Path:
    """CLIP's byte-pair file in an installed package."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (file := Path(folder) / BPE).exists():
                return file
    raise ValueError(
        f"vocabulary: none of the packages that have {BPE} is installed ({', '.join(PACKAGES)}); "
        "pass --vocabulary FILE, or pip install open_clip_torch"
    )


def _objective(kind: str, given: Objective | None) -> Objective:
    own: dict[str, Objective] = {"clip": "clip", "uncha": "meru", "phyclip": "phyclip"}
    if kind in own:
        if given not in (None, own[kind]):
            raise ValueError(f"objective: expected {own[kind]!r} for this file, got {given!r}")
        return own[kind]
    if given is None or given == "clip":
        raise ValueError(
            'objective: expected "meru", "hycoclip" or "atmg", whose files look alike, got '
            f"{given!r}; pass --objective"
        )
    return given


def _described(loaded: Any) -> str:
    return (
        f"the keys {sorted(map(str, loaded))}" if isinstance(loaded, Mapping) else f"{type(loaded)}"
    )


def main(argv: list[str] | None = None) -> None:
    about, _, example = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m lorentzkit.clip.convert",
        description=about,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="the published file, .pth")
    parser.add_argument("out", type=Path, help="folder to write; new, or empty")
    parser.add_argument(
        "--objective", choices=OBJECTIVES, help="what the checkpoint was trained by"
    )
    parser.add_argument("--vocabulary", type=Path, help=f"{BPE}; default: an installed package's")
    parser.add_argument("--vision-heads", type=int, help="attention heads; default: the published")
    parser.add_argument("--text-heads", type=int, help="attention heads; default: width / 64")
    given = parser.parse_args(argv)
    print(LICENCE)
    try:
        run(given)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    print(f"{given.out}: HyperbolicCLIPModel.from_pretrained({str(given.out)!r})")


def run(given: argparse.Namespace) -> None:
    """Reads, converts and writes."""
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise ValueError(f"out: expected a new or an empty folder, got {given.out}")
    vocabulary = given.vocabulary or find_vocabulary()
    state = read(given.checkpoint)
    model = model_of(
        state, given.objective, vision_heads=given.vision_heads, text_heads=given.text_heads
    )
    processor = processor_of(state, model, vocabulary)
    given.out.mkdir(parents=True, exist_ok=True)
    origin = f"\nConverted from `{given.checkpoint.name}`, with its authors' licence.\n"
    write_card(given.out, model.config, license="cc-by-nc-4.0", origin=origin)
    model.save_pretrained(given.out)
    processor.save_pretrained(given.out)


if __name__ == "__main__":
    main()
