"""Search in a large gallery: `pairwise_topk`, the usual formula, and faiss by inner products.

    python benchmarks/retrieval.py                          # 1,000,000 x 512: 2 GB, and 4 more
    python benchmarks/retrieval.py --size 100000 --results /tmp/results

Times are taken in turns in one process. Memory is what one search adds to a fresh process that
holds the gallery (for faiss: what the filled index adds). Recall, against `pairwise_topk`, is that
of the 10 nearest by faiss, and of its first 100 ordered by `ops.dist`. For this, every query
has 50 close neighbours in the gallery, at 0.5 to 1.5 times a distance that is varied.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import torch
from measure import DEVICE, THREADS, added_by, environment, in_fresh_process, in_turns, step
from report import RESULTS, tables
from suites import usual_topk
from torch import Tensor

from lorentzkit import ops

K, QUERIES, NEIGHBOURS, CANDIDATES = 10, 100, 50, 100
SPREADS = [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
SIMILARITIES = ["distance", "angle"]
SMALL = 4096  # gallery of the first run, which loads and compiles
CHUNK = 2**16  # points added to faiss at a time: it copies them
CURV = torch.tensor(1.0)


class Search(NamedTuple):
    similarity: str
    M: int
    D: int

    def points(self) -> tuple[Tensor, Tensor]:
        """Queries and gallery, at radii up to 2 as in the other suites."""
        torch.manual_seed(0)
        return _points(QUERIES, self.D), _points(self.M, self.D)

    def searches(self, queries: Tensor, gallery: Tensor) -> dict[str, Callable[[], Tensor]]:
        return {
            "auto": partial(nearest, queries, gallery, self.similarity),
            "usual": partial(usual_topk, queries, gallery, CURV, kind=self.similarity),
        }


def nearest(queries: Tensor, gallery: Tensor, similarity: str = "distance") -> Tensor:
    with torch.no_grad():
        return ops.pairwise_topk(queries, gallery, CURV, k=K, similarity=similarity)[1]


def _points(N: int, D: int) -> Tensor:
    x = torch.randn(N, D)
    for chunk in x.split(CHUNK):
        chunk *= 2 * torch.rand(len(chunk), 1) / chunk.norm(dim=1, keepdim=True)
    return x


# --- The same search, by inner products -----------------------------------------------------------


def index_of(gallery: Tensor) -> Any:
    """Holds `(y, y_0)` of every y, of which faiss finds the largest products with `(x, -x_0)`."""
    index = faiss.IndexFlatIP(gallery.shape[1] + 1)
    for chunk in gallery.split(CHUNK):
        index.add(torch.cat([chunk, ops.time(chunk, CURV)[:, None]], 1).numpy())
    return index


def by_product(index: Any, queries: Tensor, k: int = K) -> Tensor:
    query_vectors = torch.cat([queries, -ops.time(queries, CURV)[:, None]], 1)
    return torch.from_numpy(index.search(query_vectors.numpy(), k)[1])


def reranked(index: Any, queries: Tensor, gallery: Tensor) -> Tensor:
    candidates = by_product(index, queries, CANDIDATES)
    order = ops.dist(queries[:, None], gallery[candidates], CURV).argsort(dim=1)
    return candidates.gather(1, order[:, :K])


# --- Measurements ---------------------------------------------------------------------------------


def peak(row: Search, name: str) -> int:
    torch.set_num_threads(THREADS)
    queries, gallery = row.points()
    if name == "faiss":
        index_of(gallery[:SMALL])
        return added_by(lambda: by_product(index_of(gallery), queries))
    row.searches(queries, gallery[:SMALL])[name]()
    return added_by(row.searches(queries, gallery)[name])


def measured(row: Search, budget_s: float) -> dict[str, Any]:
    queries, gallery = row.points()
    searches = row.searches(queries, gallery)
    if row.similarity == "distance":
        searches["faiss"] = partial(by_product, index_of(gallery), queries)
    steps = {name: partial(step, search, []) for name, search in searches.items()}
    result = {"kind": row.similarity, "N": row.M, "D": row.D, "ms": in_turns(steps, budget_s)}
    del searches, steps, gallery  # the processes that measure memory make their own
    return result | {"peak_mb": {n: in_fresh_process(peak, row, n) for n in result["ms"]}}


def recalls(M: int, D: int) -> Iterator[dict[str, float]]:
    queries, gallery = Search("distance", M, D).points()
    for spread in SPREADS:
        gallery[: QUERIES * NEIGHBOURS] = _neighbours(queries, spread).flatten(0, 1)
        exact, index = nearest(queries, gallery), index_of(gallery)
        results = {
            "faiss": by_product(index, queries),
            "reranked": reranked(index, queries, gallery),
        }
        yield {"spread": spread} | {
            name: _recall(exact, neighbours) for name, neighbours in results.items()
        }


def _neighbours(queries: Tensor, spread: float) -> Tensor:
    """Neighbours ``(QUERIES, NEIGHBOURS, D)``, by geodesics in all directions."""
    base = queries[:, None].expand(-1, NEIGHBOURS, -1)
    direction = torch.randn_like(base)
    distance = spread * (0.5 + torch.rand(QUERIES, NEIGHBOURS, 1))
    return ops.expmap(base, direction * (distance / ops.tangent_norm(base, direction)[..., None]))


def _recall(exact: Tensor, neighbours: Tensor) -> float:
    return (exact[:, :, None] == neighbours[:, None]).any(2).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60, help="for the turns of one row")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    faiss.omp_set_num_threads(THREADS)
    rows = {}
    for similarity in SIMILARITIES:
        row = measured(Search(similarity, args.size, args.dimensions), args.seconds)
        rows[f"{similarity} {args.size} {args.dimensions}"] = row
        print(tables.line("retrieval", row), flush=True)
    # A tenth of the gallery: a query's neighbours are as close in any.
    content = {
        "environment": environment("faiss-cpu"),
        "rows": rows,
        "recall": list(recalls(max(args.size // 10, 2 * QUERIES * NEIGHBOURS), args.dimensions)),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    out = args.results / f"retrieval-{DEVICE}.json"
    out.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print("\n".join(tables.table("retrieval", content)))


if __name__ == "__main__":
    main()
