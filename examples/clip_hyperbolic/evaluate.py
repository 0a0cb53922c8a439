"""Measures of a model on shards: retrieval both ways, zero-shot classes, hierarchy, radii."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorentzkit import ops

from .config import UserError
from .images import as_pixels, fitted
from .model import Towers
from .schema import Sample, with_keywords
from .shards import first_of
from .tokenizer import CaptionTokenizer

DEPTH = 1000  # a ranking has so many places at most
# By the name of a retrieval measure, the texts that stand for a concept, made of one of its
# captions and its keywords. Several texts count as their midpoint. Plain captions come last: the
# measures after them use their points.
TEXTS: dict[str, Callable[[str, list[str]], tuple[str, ...]]] = {
    "retrieval_midpoints": lambda caption, keywords: (caption, *keywords),
    "retrieval_keywords": lambda caption, keywords: (with_keywords(caption, keywords),),
    "retrieval": lambda caption, keywords: (caption,),
}
PROMPTS = ("{}", "a drawing of {}", "an icon of {}", "a picture of {}")


@torch.no_grad()
def embed_texts(
    model: Towers, tokenizer: CaptionTokenizer, texts: list[str], batch_size: int = 512
) -> Tensor:
    device = next(model.parameters()).device
    points = []
    for start in range(0, len(texts), batch_size):
        tokens, mask = tokenizer(texts[start : start + batch_size])
        points.append(model.texts(tokens.to(device), mask.to(device)).cpu())
    return torch.cat(points)


@torch.no_grad()
def midpoints(
    model: Towers, tokenizer: CaptionTokenizer, groups: list[tuple[str, ...]], batch_size: int = 512
) -> Tensor:
    """The midpoint of the points of each group of texts; of unit vectors the one on the sphere."""
    text_index = {text: i for i, text in enumerate(dict.fromkeys(chain.from_iterable(groups)))}
    points = embed_texts(model, tokenizer, [*text_index])
    result = points.new_empty(len(groups), points.shape[1])
    groups_of_length: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        groups_of_length.setdefault(len(group), []).append(i)
    for length, same_length in groups_of_length.items():
        index = torch.tensor([[text_index[text] for text in groups[i]] for i in same_length])
        rows_of_batches = torch.tensor(same_length).split(batch_size)
        for rows, batch in zip(rows_of_batches, index.split(batch_size), strict=True):
            if length == 1:
                result[rows] = points[batch[:, 0]]
            elif model.hyperbolic:
                result[rows] = ops.einstein_midpoint(points[batch], curv=model.model.curv().cpu())
            else:
                result[rows] = torch.nn.functional.normalize(points[batch].mean(1), dim=-1)
    return result


@torch.no_grad()
def embed_images(
    model: Towers, samples: Iterable[Sample], image_size: int, batch_size: int = 256
) -> tuple[Tensor, list[Sample]]:
    """Points of all images, and their samples, whose images are let go."""
    device = next(model.parameters()).device
    points, embedded, stream = [], [], iter(samples)
    while batch := list(islice(stream, batch_size)):
        pixels = as_pixels([fitted(sample.image, image_size) for sample in batch])
        points.append(model.images(pixels.to(device)).cpu())
        for sample in batch:
            sample.image.close()
        embedded += batch
    return (torch.cat(points) if points else torch.empty(0)), embedded


@torch.no_grad()
def ranking(model: Towers, queries: Tensor, gallery: Tensor, *, images_ask: bool) -> Tensor:
    """The best of the gallery for each query, indices (N, at most DEPTH), as training ranked them.

    With angles, images lie ahead of a text: the angle at the text is small. Where training took the
    angle at the query, the texts of an image lie behind it. Among clip's unit vectors the nearest
    has the largest cosine, whatever the geometry.
    """
    config = model.model.config
    options: dict[str, Any] = {"similarity": "distance"}
    if config.objective == "atmg":
        options = {"similarity": "angle"}
        if images_ask:
            options |= {"apex": "y"} if config.apex == "text" else {"largest": True}
    curv = {name: number.cpu() for name, number in model.curvature().items()}
    return ops.pairwise_topk(queries, gallery, k=min(DEPTH, len(gallery)), **curv, **options)[1]


def retrieval(
    indices: Tensor, concepts_of_queries: list[str], concepts_of_gallery: list[str]
) -> dict[str, float]:
    """Recall at 1, 5 and 10, mean average precision and median rank of the first right item.

    `indices` ranks the gallery for each query. An item is right if it has the query's concept;
    queries without a right item do not count.
    """
    concepts = dict.fromkeys([*concepts_of_queries, *concepts_of_gallery])
    code = {concept: i for i, concept in enumerate(concepts)}
    query_codes = torch.tensor([code[concept] for concept in concepts_of_queries])
    gallery_codes = torch.tensor([code[concept] for concept in concepts_of_gallery])
    is_right = gallery_codes[indices] == query_codes[:, None]
    right_counts = torch.bincount(gallery_codes, minlength=len(code))[query_codes]
    has_right = right_counts > 0
    is_right, right_counts = is_right[has_right], right_counts[has_right]
    if not len(is_right):
        return {"queries": 0}
    depth = indices.shape[1]
    precision = is_right.cumsum(1) / torch.arange(1, depth + 1) * is_right
    first_right = torch.where(
        is_right.any(1), is_right.int().argmax(1) + 1, len(concepts_of_gallery)
    )
    return {
        **{f"R@{k}": is_right[:, :k].any(1).double().mean().item() for k in (1, 5, 10)},
        "mAP": (precision.sum(1) / right_counts.clamp_max(depth)).double().mean().item(),
        "median_rank": first_right.double().quantile(0.5).item(),
        "queries": len(is_right),
    }


def hierarchy(predicted: list[list[str]], true: list[list[str]]) -> dict[str, float]:
    """How near predictions are to the truth in a tree: means over the predictions.

    Each prediction and each truth is a path from the broadest ancestor to the leaf.

    - TIE: edges between the two leaves.
    - LCA: edges from the true leaf up to the lowest common ancestor.
    - jaccard, precision, recall: of the sets of nodes on the two paths, without the root.
    - right_level_K: whether the prediction is right at level K.
    - errors_right_level_K: the same, over the wrong predictions alone.
    """
    sums: Counter[str] = Counter()
    wrong = sum(p != t for p, t in zip(predicted, true, strict=True))
    for p, t in zip(predicted, true, strict=True):
        differing = (i for i, (a, b) in enumerate(zip(p, t, strict=False)) if a != b)
        shared = next(differing, min(len(p), len(t)))  # the nodes that both paths begin with
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


def ancestors(samples: list[Sample]) -> list[list[tuple[str, ...]]]:
    """For every level, broadest first, the paths down to the ancestors at it, each once."""
    paths = dict.fromkeys(tuple(sample.ancestors) for sample in samples)
    return [
        list(dict.fromkeys(path[: level + 1] for path in paths if len(path) > level))
        for level in range(max(map(len, paths), default=0))
    ]


@torch.no_grad()
def radii(
    model: Towers,
    tokenizer: CaptionTokenizer,
    images: Tensor,
    texts: Tensor,
    samples: list[Sample],
) -> dict[str, float]:
    """Mean distance from the origin of the ancestors of each level, the captions and the images."""
    levels = {
        f"ancestors_{i}": embed_texts(model, tokenizer, [path[-1] for path in paths])
        for i, paths in enumerate(ancestors(samples), 1)
    }
    levels |= {"captions": texts, "images": images}
    return {
        name: ops.dist0(x, model.model.curv().cpu()).mean().item() for name, x in levels.items()
    }


@torch.no_grad()
def zero_shot(
    model: Towers,
    tokenizer: CaptionTokenizer,
    images: Tensor,
    samples: list[Sample],
) -> dict[str, float]:
    """Accuracy of classes by the midpoint of the points of several prompts for each."""
    classes = sorted({sample.label for sample in samples if sample.label})
    if len(classes) < 2:
        return {}
    prompts = [tuple(prompt.format(name) for prompt in PROMPTS) for name in classes]
    points = midpoints(model, tokenizer, prompts)
    labelled = [i for i, sample in enumerate(samples) if sample.label]
    best = ranking(model, images[labelled], points, images_ask=True)[:, :5]
    is_right = [
        [classes[j] == samples[i].label for j in row]
        for i, row in zip(labelled, best.tolist(), strict=True)
    ]
    return {
        "classes": len(classes),
        "top1": sum(row[0] for row in is_right) / len(is_right),
        "top5": sum(map(any, is_right)) / len(is_right),
    }


def hierarchy_of_ranking(
    indices: Tensor,
    concepts_of_queries: list[str],
    concepts_of_gallery: list[str],
    samples: list[Sample],
) -> dict[str, float]:
    """`hierarchy` of the best of a ranking; queries whose concept has no ancestors do not count."""
    by_depth = sorted(samples, key=lambda sample: len(sample.ancestors))
    # Of several samples of a concept the last, with the longest path, counts.
    paths = {sample.concept: [*sample.ancestors, sample.concept] for sample in by_depth}
    predicted, true = [], []
    for best, concept in zip(indices[:, 0].tolist(), concepts_of_queries, strict=True):
        if len(paths[concept]) > 1:
            predicted.append(paths[concepts_of_gallery[best]])
            true.append(paths[concept])
    return hierarchy(predicted, true)


@torch.no_grad()
def entailment_rate(
    model: Towers, texts: Tensor, images: Tensor, texts_of_images: list[list[int]]
) -> float:
    """The share of the pairs of an image and one of its texts whose image is in the text's cone."""
    pairs = [(text, image) for image, indices in enumerate(texts_of_images) for text in indices]
    text_index, image_index = torch.tensor(pairs).T
    outside = ops.entailment_residual(
        texts[text_index], images[image_index], model.model.curv().cpu()
    )
    return (outside == 0).double().mean().item()


class Texts(NamedTuple):
    """The distinct pairs of a text and the concept that it stands for."""

    points: Tensor  # of the texts; of several that count as one, their midpoint
    concepts: list[str]
    indices_of_samples: list[list[int]]  # for each sample the pairs that are its own


def texts_of_samples(
    model: Towers,
    tokenizer: CaptionTokenizer,
    samples: list[Sample],
    make_texts: Callable[[str, list[str]], tuple[str, ...]],
) -> Texts:
    """What `make_texts`, an entry of `TEXTS`, makes of every caption of the samples."""
    pairs_of_samples = [
        [(make_texts(caption, sample.keywords), sample.concept) for caption in sample.captions]
        for sample in samples
    ]
    pairs = dict.fromkeys(chain.from_iterable(pairs_of_samples))
    index_of_pair = {pair: i for i, pair in enumerate(pairs)}
    return Texts(
        midpoints(model, tokenizer, [texts for texts, _ in pairs]),
        [concept for _, concept in pairs],
        [[index_of_pair[pair] for pair in sample_pairs] for sample_pairs in pairs_of_samples],
    )


def no_pair(source: str, messages: Sequence[str] = ()) -> UserError:
    """The error that the flags `source` chose no sample; it says what was wrong with the first."""
    return UserError(
        f"{source}: no pair of an image and a text to evaluate on; give others{first_of(messages)}"
    )


def evaluate(
    model: Towers,
    tokenizer: CaptionTokenizer,
    image_size: int,
    samples: Iterable[Sample],
    source: str,
) -> dict[str, Any]:
    """All measures on samples; where they have keywords, retrieval by each entry of `TEXTS`.

    A caption finds its image, an image any of its captions. `source`: the flags that chose samples.
    """
    model.eval()
    images, embedded = embed_images(model, samples, image_size)
    result: dict[str, Any] = {"n_images": len(embedded)}
    if not embedded:
        raise no_pair(source)
    image_concepts = [sample.concept for sample in embedded]
    has_keywords = any(sample.keywords for sample in embedded)
    for measure in TEXTS if has_keywords else ["retrieval"]:
        texts = texts_of_samples(model, tokenizer, embedded, TEXTS[measure])
        t2i = ranking(model, texts.points, images, images_ask=False)
        i2t = ranking(model, images, texts.points, images_ask=True)
        rankings = {
            "t2i": (t2i, texts.concepts, image_concepts),
            "i2t": (i2t, image_concepts, texts.concepts),
        }
        result[measure] = {name: retrieval(*arguments) for name, arguments in rankings.items()}
    # `texts` and `rankings` are now those of the plain captions.
    result |= {"n_texts": len(texts.points), "hierarchy": {}, "radius": {}}
    result["zero_shot"] = zero_shot(model, tokenizer, images, embedded)
    if any(sample.ancestors for sample in embedded):
        for direction, arguments in rankings.items():
            scores = hierarchy_of_ranking(*arguments, embedded)
            result["hierarchy"] |= {f"{direction}_{name}": x for name, x in scores.items()}
    if model.hyperbolic:
        result["radius"] = radii(model, tokenizer, images, texts.points, embedded)
        result["entailment_rate"] = entailment_rate(
            model, texts.points, images, texts.indices_of_samples
        )
    return result
