"""Approximate search by hyperbolic scores: faiss's indexes, their candidates rescored exactly.

    python benchmarks/approximate.py                      # 1,000,000 points: two hours of building
    python benchmarks/approximate.py --indexes /tmp/faiss # keeps the indexes there for the next run
    python benchmarks/approximate.py --size 20000 --results /tmp/results

The nearest points by `dist` are searched as the largest inner products with `(y, y_0)`, and as the
nearest Euclidean neighbours of `logmap0(y)`; the smallest exterior angles as the largest cosines.
Recall@10 is that of the index's own first ten, and of its first 100 rescored, against
`pairwise_topk`. Queries a second count search and rescoring, 1,000 queries at once.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import torch
from measure import DEVICE, THREADS, environment
from report import DOCS, RESULTS
from report.markers import write
from retrieval import ADDED
from suites import OP_OF
from torch import Tensor

from lorentzkit import ops

K, QUERIES, CANDIDATES, ROUNDS = 10, 1000, 100, 3
CONCEPTS, LATENT = 10_000, 32
CURV = torch.tensor(1.0)
PAGE = DOCS / "tutorials" / "retrieval.md"
MARKERS = ("<!-- approximate:begin -->", "<!-- approximate:end -->")


# --- Points ---------------------------------------------------------------------------------------


class Gallery(NamedTuple):
    kind: str
    """"images" at the radii of a trained CLIP, or a "tree" with radii from 1 to 6"""
    M: int
    D: int

    def points(self) -> tuple[Tensor, Tensor]:
        """Queries and gallery: `CONCEPTS` clusters, of `LATENT` dimensions but for some noise."""
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(CONCEPTS, LATENT, generator=generator)
        basis = torch.linalg.qr(torch.randn(self.D, LATENT, generator=generator))[0]

        def drawn(N: int, radius: Callable[[Tensor], Tensor]) -> Tensor:
            x = torch.empty(N, self.D)
            for some in x.split(ADDED):
                latent = centres[torch.randint(CONCEPTS, (len(some),), generator=generator)]
                latent = latent + 0.6 * torch.randn(latent.shape, generator=generator)
                noise = torch.randn(some.shape, generator=generator) / self.D**0.5
                some[:] = torch.nn.functional.normalize(latent @ basis.T + 0.5 * noise, dim=1)
                # Radii are distances from the origin.
                some *= radius(torch.rand(len(some), 1, generator=generator)).sinh()
            return x

        if self.kind == "tree":
            queries, gallery = (lambda u: 1 + 5 * u,) * 2
        else:  # trained by the example: captions at 0.81, images at 1.02
            queries, gallery = (lambda u: 0.71 + 0.2 * u), (lambda u: 0.82 + 0.4 * u)
        stored = drawn(self.M, gallery)
        return drawn(QUERIES, queries), stored


# --- Indexes --------------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """What an index holds of a point, and is asked with of a query."""

    stored: Callable[[Tensor], Tensor]
    asked: Callable[[Tensor], Tensor]
    metric: int


VECTORS = {
    "(y, y_0), inner product": Vectors(
        lambda y: torch.cat([y, ops.time(y, CURV)[:, None]], 1),
        lambda x: torch.cat([x, -ops.time(x, CURV)[:, None]], 1),
        faiss.METRIC_INNER_PRODUCT,
    ),
    "logmap0(y), L2": Vectors(
        lambda y: ops.logmap0(y, CURV), lambda x: ops.logmap0(x, CURV), faiss.METRIC_L2
    ),
    "y / norm(y), inner product": Vectors(
        lambda y: torch.nn.functional.normalize(y, dim=1),
        lambda x: torch.nn.functional.normalize(x, dim=1),
        faiss.METRIC_INNER_PRODUCT,
    ),
}
SIMILARITIES = {  # the vectors by which each is searched
    "distance": ["(y, y_0), inner product", "logmap0(y), L2"],
    "angle": ["y / norm(y), inner product"],
}


def empty(name: str, D: int, M: int, metric: int) -> Any:
    if name == "flat":
        return faiss.IndexFlat(D, metric)
    if name == "IVF":
        cells = faiss.IndexFlat(D, metric)
        index = faiss.IndexIVFFlat(cells, D, max(1, 4 * math.isqrt(M)), metric)
        index.own_fields, index.nprobe = True, 128
        cells.this.disown()
        return index
    index = faiss.IndexHNSWFlat(D, 32, metric)
    index.hnsw.efConstruction, index.hnsw.efSearch = 40, 128
    return index


def filled(name: str, gallery: Tensor, of: Vectors, file: Path | None) -> tuple[Any, float | None]:
    """The index, and the seconds of building it; one kept in the file is read."""
    if file is not None and file.exists():
        seconds = json.loads(file.with_suffix(".json").read_text("utf-8"))
        return faiss.read_index(str(file)), seconds
    started = time.perf_counter()
    index = empty(name, of.stored(gallery[:1]).shape[1], len(gallery), of.metric)
    if not index.is_trained:
        index.train(of.stored(gallery[:: max(1, len(gallery) // 200_000)]).numpy())
    for some in gallery.split(ADDED):
        index.add(of.stored(some).numpy())
    seconds = time.perf_counter() - started
    if file is not None:
        faiss.write_index(index, str(file))
        file.with_suffix(".json").write_text(json.dumps(seconds), "utf-8")
    return index, seconds


# --- Search ---------------------------------------------------------------------------------------


def rescored(similarity: str, queries: Tensor, gallery: Tensor, candidates: Tensor) -> Tensor:
    """The first K of each query's candidates, by the similarity itself."""
    values = getattr(ops, OP_OF[similarity])(queries[:, None], gallery[candidates], CURV)
    return candidates.gather(1, values.topk(K, largest=False).indices)


def recall(exact: Tensor, found: Tensor) -> float:
    return (exact[:, :, None] == found[:, None, :K]).any(2).float().mean().item()


def rate(search: Callable[[], Tensor]) -> float:
    """Queries a second."""
    search()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        search()
        times.append(time.perf_counter() - started)
    return QUERIES / sorted(times)[ROUNDS // 2]


def rows(gallery_of: Gallery, kept: Path | None) -> Iterator[dict[str, Any]]:
    queries, gallery = gallery_of.points()
    for similarity, searched_by in SIMILARITIES.items():

        def scan(similarity: str = similarity) -> Tensor:
            return ops.pairwise_topk(queries, gallery, CURV, k=K, similarity=similarity)[1]

        exact = scan()
        place = gallery_of._asdict() | {"similarity": similarity}
        yield place | {"index": "pairwise_topk", "recall": 1.0, "rescored": 1.0, "rate": rate(scan)}
        for vectors in searched_by:
            of = VECTORS[vectors]
            for name in ("flat", "IVF", "HNSW"):
                file = _file(kept, gallery_of, vectors, name)
                index, seconds = filled(name, gallery, of, file)

                def candidates(index: Any = index, of: Vectors = of) -> Tensor:
                    asked = of.asked(queries).contiguous().numpy()
                    return torch.from_numpy(index.search(asked, CANDIDATES)[1]).clamp_min(0)

                def search(similarity: str = similarity) -> Tensor:
                    return rescored(similarity, queries, gallery, candidates())

                yield place | {
                    "vectors": vectors,
                    "index": name,
                    "seconds": seconds,
                    "recall": recall(exact, candidates()),
                    "rescored": recall(exact, search()),
                    "rate": rate(search),
                }


def _file(kept: Path | None, of: Gallery, vectors: str, name: str) -> Path | None:
    if kept is None or name == "flat":
        return None
    kept.mkdir(parents=True, exist_ok=True)
    number = list(VECTORS).index(vectors)
    return kept / f"{of.kind}-{of.M}-{of.D}-{number}-{name}.faiss"


# --- Table ----------------------------------------------------------------------------------------

COLUMNS = [
    "points",
    "similarity",
    "index",
    "vectors",
    "recall@10",
    "rescored",
    "queries/s",
    "build, s",
]


def table(content: dict[str, Any]) -> str:
    about = content["environment"]
    lines = [
        f"{about['machine']}, {about['threads']} threads, faiss {about['faiss-cpu']}:",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * 4 + "| ---: " * 4 + "|",
    ]
    for row in content["rows"]:
        seconds = row.get("seconds")
        cells = [
            f"{row['M']:,} x {row['D']}, {row['kind']}",
            f"`{row['similarity']}`",
            f"`{row['index']}`" if "vectors" not in row else row["index"],
            "`{}`, {}".format(*row["vectors"].rsplit(", ", 1)) if "vectors" in row else "",
            f"{row['recall']:.3f}",
            f"{row['rescored']:.3f}",
            f"{row['rate']:,.0f}" if row["rate"] >= 10 else f"{row['rate']:.1f}",
            "" if seconds is None else f"{seconds:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def place_of(row: dict[str, Any]) -> list[Any]:
    return [row.get(key) for key in ("kind", "M", "D", "similarity", "vectors", "index")]


def earlier(file: Path) -> dict[str, Any]:
    """Results of this machine and these versions; beside others they do not belong."""
    here = environment("faiss-cpu")
    if file.exists() and (old := json.loads(file.read_text("utf-8")))["environment"] == here:
        return old  # type: ignore[no-any-return]
    return {"environment": here, "rows": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--indexes", type=Path, help="folder of indexes that are kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help=f"gets the table, such as {PAGE.name}")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    out = args.results / f"approximate-{DEVICE}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    content = earlier(out)
    for kind, D in [("images", 64), ("images", 512), ("tree", 64)]:
        for row in rows(Gallery(kind, args.size, D), args.indexes):
            print(json.dumps(row), flush=True)
            others = [old for old in content["rows"] if place_of(old) != place_of(row)]
            content["rows"] = sorted([*others, row], key=lambda row: row["M"])
            out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(table(content))
    if args.page:
        write(args.page, table(content), MARKERS)


if __name__ == "__main__":
    main()
