"""What a model is worth on shards: retrieval both ways, zero-shot classes, hierarchy, radii."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from lorentzkit import ops

from .config import UserError
from .images import as_pixels, fitted
from .model import Towers
from .schema import Sample, with_keywords
from .tokenizer import Words

DEPTH = 1000  # how far down a ranking is looked at
# What stands for a concept, by each of its captions: one text, or several of which each counts as
# much. Captions come last: all other measures go on with them.
TEXTS: dict[str, Callable[[str, list[str]], tuple[str, ...]]] = {
    "retrieval_midpoints": lambda caption, keywords: (caption, *keywords),
    "retrieval_keywords": lambda caption, keywords: (with_keywords(caption, keywords),),
    "retrieval": lambda caption, keywords: (caption,),
}
PROMPTS = ("{}", "a drawing of {}", "an icon of {}", "a picture of {}")


@torch.no_grad()
def embed_texts(model: Towers, words: Words, texts: list[str], size: int = 512) -> Tensor:
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(texts), size):
        tokens, mask = words(texts[start : start + size])
        found.append(model.texts(tokens.to(device), mask.to(device)).cpu())
    return torch.cat(found)


@torch.no_grad()
def midpoints(model: Towers, words: Words, texts: list[tuple[str, ...]]) -> Tensor:
    """For each tuple of texts the midpoint of their points, of unit vectors that on the sphere."""
    place = {text: i for i, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
    points, curv = embed_texts(model, words, [*place]), model.curv().cpu()
    found = points.new_empty(len(texts), points.shape[1])
    of_length: dict[int, list[int]] = {}
    for i, some in enumerate(texts):
        of_length.setdefault(len(some), []).append(i)
    for length, at in of_length.items():
        index = torch.tensor([[place[text] for text in texts[i]] for i in at])
        for rows, of in zip(torch.tensor(at).split(512), index.split(512), strict=True):
            if length == 1:
                found[rows] = points[of[:, 0]]
            elif model.hyperbolic:
                found[rows] = ops.einstein_midpoint(points[of], curv=curv)
            else:
                found[rows] = torch.nn.functional.normalize(points[of].mean(1), dim=-1)
    return found


@torch.no_grad()
def embed_images(
    model: Towers, samples: Iterable[Sample], size: int, batch: int = 256
) -> tuple[Tensor, list[Sample]]:
    """Points of all images, and their samples, whose images are let go."""
    device = next(model.parameters()).device
    found, seen, stream = [], [], iter(samples)
    while some := list(islice(stream, batch)):
        pixels = as_pixels([fitted(sample.image, size) for sample in some])
        found.append(model.images(pixels.to(device)).cpu())
        for sample in some:
            sample.image.close()
        seen += some
    return (torch.cat(found) if found else torch.empty(0)), seen


@torch.no_grad()
def ranking(
    model: Towers, objective: str, queries: Tensor, gallery: Tensor, *, images_ask: bool
) -> Tensor:
    """The best of the gallery for each query, indices (N, at most DEPTH), as training ranked them.

    With angles the apex is the query: images lie ahead of a text, texts behind an image. Among
    clip's unit vectors the nearest has the largest cosine, whatever the geometry.
    """
    by_angle: dict[str, Any] = {"similarity": "angle", "largest": images_ask}
    how = by_angle if objective == "atmg" else {"similarity": "distance"}
    k = min(DEPTH, len(gallery))
    return ops.pairwise_topk(queries, gallery, model.curv().cpu(), k=k, **how)[1]


def retrieval(indices: Tensor, queries: list[str], gallery: list[str]) -> dict[str, float]:
    """Recall at 1, 5 and 10, mean average precision and median rank of the first right one."""
    code = {label: i for i, label in enumerate(dict.fromkeys([*queries, *gallery]))}
    of_query = torch.tensor([code[label] for label in queries])
    of_gallery = torch.tensor([code[label] for label in gallery])
    right = of_gallery[indices] == of_query[:, None]
    counts = torch.bincount(of_gallery, minlength=len(code))[of_query]
    asked = counts > 0
    right, counts = right[asked], counts[asked]
    if not len(right):
        return {"queries": 0}
    places = torch.arange(1, indices.shape[1] + 1)
    precision = right.cumsum(1) / places * right
    first = torch.where(right.any(1), right.int().argmax(1) + 1, len(gallery))
    return {
        **{f"R@{k}": right[:, :k].any(1).double().mean().item() for k in (1, 5, 10)},
        "mAP": (precision.sum(1) / counts.clamp_max(indices.shape[1])).double().mean().item(),
        "median_rank": first.double().quantile(0.5).item(),
        "queries": len(right),
    }


def hierarchy(predicted: list[list[str]], true: list[list[str]]) -> dict[str, float]:
    """Of each prediction and the truth, both paths from the broadest ancestor to the leaf.

    TIE: edges between the two leaves. LCA: edges from the true leaf up to the lowest common
    ancestor. Jaccard, precision and recall are of the sets of nodes on the two paths, below the
    root that all share. `right_level`: how often a prediction is right at that level, `errors_`: of
    the wrong ones, how often they stay inside the right ancestor.
    """
    sums: Counter[str] = Counter()
    wrong = sum(p != t for p, t in zip(predicted, true, strict=True))
    for p, t in zip(predicted, true, strict=True):
        shared = next((i for i, (a, b) in enumerate(zip(p, t, strict=False)) if a != b), None)
        shared = min(len(p), len(t)) if shared is None else shared
        sums["TIE"] += len(p) + len(t) - 2 * shared
        sums["LCA"] += len(t) - shared
        sums["jaccard"] += shared / (len(p) + len(t) - shared)
        sums["precision"] += shared / len(p)
        sums["recall"] += shared / len(t)
        for level in range(1, min(len(p), len(t))):
            sums[f"right_level_{level}"] += shared >= level
            sums[f"errors_right_level_{level}"] += p != t and shared >= level
    return {
        name: total / (max(wrong, 1) if name.startswith("errors_") else len(true))
        for name, total in sorted(sums.items())
    }


def ancestors(samples: list[Sample]) -> list[list[str]]:
    """For every level, broadest first, the names of the ancestors at it, each once."""
    paths = dict.fromkeys(tuple(sample.ancestors) for sample in samples)
    return [
        list(dict.fromkeys(path[: level + 1] for path in paths if len(path) > level))
        for level in range(max(map(len, paths), default=0))
    ]


@torch.no_grad()
def radii(
    model: Towers, words: Words, images: Tensor, texts: Tensor, samples: list[Sample]
) -> dict[str, float]:
    """Mean distance from the origin of the ancestors of each level, the captions and the images."""
    levels = {
        f"ancestors_{i}": embed_texts(model, words, [path[-1] for path in paths])
        for i, paths in enumerate(ancestors(samples), 1)
    }
    levels |= {"captions": texts, "images": images}
    return {name: ops.dist0(x, model.curv().cpu()).mean().item() for name, x in levels.items()}


@torch.no_grad()
def zero_shot(
    model: Towers, words: Words, objective: str, images: Tensor, samples: list[Sample]
) -> dict[str, float]:
    """Accuracy of classes by the midpoint of the points of several prompts for each."""
    classes = sorted({sample.label for sample in samples if sample.label})
    if len(classes) < 2:
        return {}
    prompts = [tuple(prompt.format(name) for prompt in PROMPTS) for name in classes]
    points = midpoints(model, words, prompts)
    some = [i for i, sample in enumerate(samples) if sample.label]
    found = ranking(model, objective, images[some], points, images_ask=True)[:, :5]
    right = [
        [classes[j] == samples[i].label for j in row]
        for i, row in zip(some, found.tolist(), strict=True)
    ]
    return {
        "classes": len(classes),
        "top1": sum(row[0] for row in right) / len(right),
        "top5": sum(map(any, right)) / len(right),
    }


def in_tree(
    found: Tensor, asked: list[str], gallery: list[str], samples: list[Sample]
) -> dict[str, float]:
    """`hierarchy` of the best of a ranking; concepts without ancestors are not asked for."""
    by_depth = sorted(samples, key=lambda sample: len(sample.ancestors))  # the deepest counts
    paths = {sample.concept: [*sample.ancestors, sample.concept] for sample in by_depth}
    best = zip(found[:, 0].tolist(), asked, strict=True)
    pairs = [(paths[gallery[i]], paths[of]) for i, of in best if len(paths[of]) > 1]
    return hierarchy([predicted for predicted, _ in pairs], [true for _, true in pairs])


@torch.no_grad()
def entailment_rate(
    model: Towers, texts: Tensor, images: Tensor, of_images: list[list[int]]
) -> float:
    """How many pairs of an image and one of its texts have the image in the cone of the text."""
    own = [(text, image) for image, some in enumerate(of_images) for text in some]
    of_text, of_image = torch.tensor(own).T
    outside = ops.entailment_residual(texts[of_text], images[of_image], model.curv().cpu())
    return (outside == 0).double().mean().item()


def evaluate(
    model: Towers,
    words: Words,
    objective: str,
    size: int,
    samples: Iterable[Sample],
    source: str,
) -> dict[str, Any]:
    """All measures on samples; retrieval also by keywords, in the two ways of `TEXTS`.

    A caption finds its image, an image any of its captions. `source`: the flags that chose samples.
    """
    model.eval()
    images, seen = embed_images(model, samples, size)
    result: dict[str, Any] = {"n_images": len(seen)}
    if not seen:
        raise UserError(f"{source}: no pair of an image and a text to evaluate on; give others")
    of_images = [sample.concept for sample in seen]
    by_keywords = any(sample.keywords for sample in seen)
    for measured, texts_of in TEXTS.items() if by_keywords else [("retrieval", TEXTS["retrieval"])]:
        of_samples = [
            [(texts_of(caption, sample.keywords), sample.concept) for caption in sample.captions]
            for sample in seen
        ]
        pairs = dict.fromkeys(chain.from_iterable(of_samples))
        texts = midpoints(model, words, [some for some, _ in pairs])
        of_texts = [concept for _, concept in pairs]
        t2i = ranking(model, objective, texts, images, images_ask=False)
        i2t = ranking(model, objective, images, texts, images_ask=True)
        result[measured] = {
            "t2i": retrieval(t2i, of_texts, of_images),
            "i2t": retrieval(i2t, of_images, of_texts),
        }
    result |= {"n_texts": len(texts), "hierarchy": {}, "radius": {}}
    result["zero_shot"] = zero_shot(model, words, objective, images, seen)
    if any(sample.ancestors for sample in seen):
        for way, found, asked, gallery in (
            ("t2i", t2i, of_texts, of_images),
            ("i2t", i2t, of_images, of_texts),
        ):
            tree = in_tree(found, asked, gallery, seen)
            result["hierarchy"] |= {f"{way}_{name}": value for name, value in tree.items()}
    if model.hyperbolic:
        result["radius"] = radii(model, words, images, texts, seen)
        place = {pair: i for i, pair in enumerate(pairs)}
        own = [[place[pair] for pair in some] for some in of_samples]
        result["entailment_rate"] = entailment_rate(model, texts, images, own)
    return result
