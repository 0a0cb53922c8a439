"""Search in a large gallery: `pairwise_topk`, the usual formula, and faiss by inner products.

    python benchmarks/retrieval.py                          # 1,000,000 x 512: 2 GB, and 4 more
    python benchmarks/retrieval.py --size 100000 --results /tmp/results

Times are taken in turns in one process; memory is what one search adds to a fresh process that
holds the gallery (for faiss: what the filled index does). Recall is that of the 10 nearest of
faiss, and of its first 100 ordered by `ops.dist`, against `pairwise_topk`: every query has 50 close
neighbours in the gallery, at distances of half to one and a half times a given one.
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
SMALL = 4096  # of what is run first, to load and to compile
ADDED = 2**16  # points that faiss is given at a time: it copies them
CURV = torch.tensor(1.0)


class Searched(NamedTuple):
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
    for some in x.split(ADDED):
        some *= 2 * torch.rand(len(some), 1) / some.norm(dim=1, keepdim=True)
    return x


# --- The same search, by inner products -----------------------------------------------------------


def index_of(gallery: Tensor) -> Any:
    """`(y, y_0)` of every y: of these, faiss finds the largest products with `(x, -x_0)`."""
    index = faiss.IndexFlatIP(gallery.shape[1] + 1)
    for some in gallery.split(ADDED):
        index.add(torch.cat([some, ops.time(some, CURV)[:, None]], 1).numpy())
    return index


def by_product(index: Any, queries: Tensor, k: int = K) -> Tensor:
    asked = torch.cat([queries, -ops.time(queries, CURV)[:, None]], 1)
    return torch.from_numpy(index.search(asked.numpy(), k)[1])


def reranked(index: Any, queries: Tensor, gallery: Tensor) -> Tensor:
    candidates = by_product(index, queries, CANDIDATES)
    order = ops.dist(queries[:, None], gallery[candidates], CURV).argsort(dim=1)
    return candidates.gather(1, order[:, :K])


# --- Measurements ---------------------------------------------------------------------------------


def peak(row: Searched, name: str) -> int:
    torch.set_num_threads(THREADS)
    queries, gallery = row.points()
    if name == "faiss":
        index_of(gallery[:SMALL])
        return added_by(lambda: by_product(index_of(gallery), queries))
    row.searches(queries, gallery[:SMALL])[name]()
    return added_by(row.searches(queries, gallery)[name])


def measured(row: Searched, seconds: float) -> dict[str, Any]:
    queries, gallery = row.points()
    searches = row.searches(queries, gallery)
    if row.similarity == "distance":
        searches["faiss"] = partial(by_product, index_of(gallery), queries)
    steps = {name: partial(step, search, []) for name, search in searches.items()}
    about = {"kind": row.similarity, "N": row.M, "D": row.D, "ms": in_turns(steps, seconds)}
    del searches, steps, gallery  # the processes that measure memory make their own
    return about | {"peak_mb": {n: in_fresh_process(peak, row, n) for n in about["ms"]}}


def recalls(M: int, D: int) -> Iterator[dict[str, float]]:
    queries, gallery = Searched("distance", M, D).points()
    for spread in SPREADS:
        gallery[: QUERIES * NEIGHBOURS] = _around(queries, spread).flatten(0, 1)
        exact, index = nearest(queries, gallery), index_of(gallery)
        found = {
            "faiss": by_product(index, queries),
            "reranked": reranked(index, queries, gallery),
        }
        yield {"spread": spread} | {name: _share(exact, of) for name, of in found.items()}


def _around(queries: Tensor, spread: float) -> Tensor:
    """Neighbours ``(QUERIES, NEIGHBOURS, D)``, by geodesics in all directions."""
    base = queries[:, None].expand(-1, NEIGHBOURS, -1)
    step = torch.randn_like(base)
    length = spread * (0.5 + torch.rand(QUERIES, NEIGHBOURS, 1))
    return ops.expmap(base, step * (length / ops.tangent_norm(base, step)[..., None]))


def _share(exact: Tensor, found: Tensor) -> float:
    return (exact[:, :, None] == found[:, None]).any(2).float().mean().item()


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
        row = measured(Searched(similarity, args.size, args.dimensions), args.seconds)
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
