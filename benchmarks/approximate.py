"""Approximate search by hyperbolic scores: faiss's indexes, their candidates rescored exactly.

    python benchmarks/approximate.py                      # 1,000,000 points: two hours of building
    python benchmarks/approximate.py --indexes /tmp/faiss # keeps the indexes there for the next run
    python benchmarks/approximate.py --size 20000 --results /tmp/results

Points nearest by `dist` are searched as the largest inner products with `(y, y_0)`, and as the
nearest Euclidean neighbours of `logmap0(y)`. The smallest exterior angles are searched as the
largest cosines. Recall@10, against `pairwise_topk`, is that of the first ten of the index, and of
the best ten of its first 100 after rescoring. Queries a second include search and rescoring, with
1,000 queries at once.
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
from retrieval import CHUNK
from suites import OP_OF
from torch import Tensor

from lorentzkit import ops

K, QUERIES, CANDIDATES, ROUNDS = 10, 1000, 100, 3
CONCEPTS, LATENT = 10_000, 32
CURV = torch.tensor(1.0)
PAGE = DOCS / "tutorials" / "retrieval.md"
MARKERS = ("<!-- approximate:begin -->", "<!-- approximate:end -->")


# --- Points ---------------------------------------------------------------------------------------


class Dataset(NamedTuple):
    kind: str
    """"images" at the radii of a trained CLIP, or a "tree" with radii from 1 to 6"""
    M: int
    D: int

    def points(self) -> tuple[Tensor, Tensor]:
        """Queries and gallery: `CONCEPTS` clusters in `LATENT` dimensions, and noise in all."""
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(CONCEPTS, LATENT, generator=generator)
        basis = torch.linalg.qr(torch.randn(self.D, LATENT, generator=generator))[0]

        def draw_points(N: int, radius: Callable[[Tensor], Tensor]) -> Tensor:
            x = torch.empty(N, self.D)
            for chunk in x.split(CHUNK):
                latent = centres[torch.randint(CONCEPTS, (len(chunk),), generator=generator)]
                latent = latent + 0.6 * torch.randn(latent.shape, generator=generator)
                noise = torch.randn(chunk.shape, generator=generator) / self.D**0.5
                chunk[:] = torch.nn.functional.normalize(latent @ basis.T + 0.5 * noise, dim=1)
                # Radii are distances from the origin.
                chunk *= radius(torch.rand(len(chunk), 1, generator=generator)).sinh()
            return x

        if self.kind == "tree":
            query_radius, gallery_radius = (lambda u: 1 + 5 * u,) * 2
        else:  # trained by the example: captions at 0.81, images at 1.02
            query_radius, gallery_radius = (lambda u: 0.71 + 0.2 * u), (lambda u: 0.82 + 0.4 * u)
        gallery = draw_points(self.M, gallery_radius)
        return draw_points(QUERIES, query_radius), gallery


# --- Indexes --------------------------------------------------------------------------------------


class Vectors(NamedTuple):
    """How points and queries become the vectors of an index, and how it compares them."""

    encode_point: Callable[[Tensor], Tensor]
    encode_query: Callable[[Tensor], Tensor]
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
SIMILARITIES = {  # by similarity: the vectors that can search by it
    "distance": ["(y, y_0), inner product", "logmap0(y), L2"],
    "angle": ["y / norm(y), inner product"],
}


def empty_index(name: str, D: int, M: int, metric: int) -> Any:
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


def built_index(
    name: str, gallery: Tensor, vectors: Vectors, path: Path | None
) -> tuple[Any, float | None]:
    """The index and the seconds that building it took; read from the file if that exists."""
    if path is not None and path.exists():
        build_s = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return faiss.read_index(str(path)), build_s
    started = time.perf_counter()
    index = empty_index(
        name, vectors.encode_point(gallery[:1]).shape[1], len(gallery), vectors.metric
    )
    if not index.is_trained:
        index.train(vectors.encode_point(gallery[:: max(1, len(gallery) // 200_000)]).numpy())
    for chunk in gallery.split(CHUNK):
        index.add(vectors.encode_point(chunk).numpy())
    build_s = time.perf_counter() - started
    if path is not None:
        faiss.write_index(index, str(path))
        path.with_suffix(".json").write_text(json.dumps(build_s), "utf-8")
    return index, build_s


# --- Search ---------------------------------------------------------------------------------------


def rescore(similarity: str, queries: Tensor, gallery: Tensor, candidates: Tensor) -> Tensor:
    """The first K of each query's candidates, by the similarity itself."""
    values = getattr(ops, OP_OF[similarity])(queries[:, None], gallery[candidates], CURV)
    return candidates.gather(1, values.topk(K, largest=False).indices)


def recall(exact: Tensor, neighbours: Tensor) -> float:
    return (exact[:, :, None] == neighbours[:, None, :K]).any(2).float().mean().item()


def rate(search: Callable[[], Tensor]) -> float:
    """Queries a second."""
    search()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        search()
        times.append(time.perf_counter() - started)
    return QUERIES / sorted(times)[ROUNDS // 2]


def rows(dataset: Dataset, index_folder: Path | None) -> Iterator[dict[str, Any]]:
    queries, gallery = dataset.points()
    for similarity, vector_names in SIMILARITIES.items():

        def scan(similarity: str = similarity) -> Tensor:
            return ops.pairwise_topk(queries, gallery, CURV, k=K, similarity=similarity)[1]

        exact = scan()
        row = dataset._asdict() | {"similarity": similarity}
        yield row | {"index": "pairwise_topk", "recall": 1.0, "rescored": 1.0, "rate": rate(scan)}
        for vectors_name in vector_names:
            vectors = VECTORS[vectors_name]
            for name in ("flat", "IVF", "HNSW"):
                path = _index_path(index_folder, dataset, vectors_name, name)
                index, build_s = built_index(name, gallery, vectors, path)

                def candidates(index: Any = index, vectors: Vectors = vectors) -> Tensor:
                    query_vectors = vectors.encode_query(queries).contiguous().numpy()
                    return torch.from_numpy(index.search(query_vectors, CANDIDATES)[1]).clamp_min(0)

                def search(similarity: str = similarity) -> Tensor:
                    return rescore(similarity, queries, gallery, candidates())

                yield row | {
                    "vectors": vectors_name,
                    "index": name,
                    "seconds": build_s,
                    "recall": recall(exact, candidates()),
                    "rescored": recall(exact, search()),
                    "rate": rate(search),
                }


def _index_path(folder: Path | None, dataset: Dataset, vectors_name: str, name: str) -> Path | None:
    if folder is None or name == "flat":
        return None
    folder.mkdir(parents=True, exist_ok=True)
    number = list(VECTORS).index(vectors_name)
    return folder / f"{dataset.kind}-{dataset.M}-{dataset.D}-{number}-{name}.faiss"


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
    metadata = content["environment"]
    lines = [
        f"{metadata['machine']}, {metadata['threads']} threads, faiss {metadata['faiss-cpu']}:",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "| --- " * 4 + "| ---: " * 4 + "|",
    ]
    for row in content["rows"]:
        build_s = row.get("seconds")
        cells = [
            f"{row['M']:,} x {row['D']}, {row['kind']}",
            f"`{row['similarity']}`",
            f"`{row['index']}`" if "vectors" not in row else row["index"],
            "`{}`, {}".format(*row["vectors"].rsplit(", ", 1)) if "vectors" in row else "",
            f"{row['recall']:.3f}",
            f"{row['rescored']:.3f}",
            f"{row['rate']:,.0f}" if row["rate"] >= 10 else f"{row['rate']:.1f}",
            "" if build_s is None else f"{build_s:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def row_key(row: dict[str, Any]) -> list[Any]:
    return [row.get(key) for key in ("kind", "M", "D", "similarity", "vectors", "index")]


def previous_results(path: Path) -> dict[str, Any]:
    """The file's results if they are of this machine and these versions, else no rows."""
    current = environment("faiss-cpu")
    if path.exists() and (content := json.loads(path.read_text("utf-8")))["environment"] == current:
        return content  # type: ignore[no-any-return]
    return {"environment": current, "rows": []}


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
    content = previous_results(out)
    for kind, D in [("images", 64), ("images", 512), ("tree", 64)]:
        for row in rows(Dataset(kind, args.size, D), args.indexes):
            print(json.dumps(row), flush=True)
            other_rows = [old for old in content["rows"] if row_key(old) != row_key(row)]
            content["rows"] = sorted([*other_rows, row], key=lambda row: row["M"])
            out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(table(content))
    if args.page:
        write(args.page, table(content), MARKERS)


if __name__ == "__main__":
    main()
