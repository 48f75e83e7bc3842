"""Other ways to the neighbour graph, for `benchmarks.knn`: exact and approximate, some of them optional packages.

Shape letters: N texts, q queries, K neighbours, D vector width.

Whoever has to build something first is charged for building it in every round. Whoever answers query by query answers a
share of them, in one large call, and that time is scaled up. Effort of the approximate ones rises, before anything is timed,
until a recall of 0.99 is reached, or no higher setting is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer]
Search = Callable[[], tuple[float, Ids]]
"""Runs once; gives the seconds of a full self-join, and the neighbours of the first texts, own id perhaps included."""
Recall = Callable[[Ids], float]

_QUERIES = 4096
"""Queries of those whose time is scaled up, at least: calls stay large, for `faiss.knn` is far slower on small ones."""
_TARGET = 0.99


@dataclass(slots=True)
class Contender:
    """One way to find neighbours, and what its rounds took."""

    name: str
    search: Search
    seconds: list[float] = field(default_factory=list)
    recall: float = float("nan")
    memory: int = 0
    """Most bytes that a round held beyond what was held before it; of a command of its own, nothing."""


def exact_peers(wide_ND: NDArray[np.float32], k: int) -> list[Contender]:
    """Return `faiss.knn`, which is the reference, and scikit-learn's brute force."""
    return [Contender("faiss.knn float32", _faiss(wide_ND, k)), Contender("scikit-learn brute force", _scikit_learn(wide_ND, k))]


def approximate_peers(wide_ND: NDArray[np.float32], k: int, recall: Recall) -> tuple[list[Contender], list[str]]:
    """Return approximate peers at a recall of 0.99 where they reach it, and a line for each that is not installed."""
    found, absent = [_tuned("faiss IVF", _faiss_ivf(wide_ND, k), recall)], []
    for name, make in (("pynndescent", _pynndescent), ("hnswlib", _hnswlib), ("usearch", _usearch)):
        try:
            found.append(_tuned(name, make(wide_ND, k), recall))
        except ImportError:
            absent.append(f"{name}: not installed (`pip install 'xclr-graph[bench]'` adds it)")
    return found, absent


def _tuned(name: str, efforts: Sequence[tuple[str, Search]], recall: Recall) -> Contender:
    for setting, search in efforts:
        contender = Contender(f"{name} {setting}", search)
        if recall(search()[1]) >= _TARGET:
            break
    return contender


def _faiss(wide_ND: NDArray[np.float32], k: int) -> Search:
    import faiss

    queries = min(len(wide_ND), _QUERIES)

    def search() -> tuple[float, Ids]:
        started = time.perf_counter()
        _, ids = faiss.knn(wide_ND[:queries], wide_ND, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        return (time.perf_counter() - started) * len(wide_ND) / queries, ids

    return search


def _scikit_learn(wide_ND: NDArray[np.float32], k: int) -> Search:
    from sklearn.neighbors import NearestNeighbors

    queries = min(len(wide_ND), _QUERIES)
    # On unit vectors the order by Euclidean distance is that by inner product.
    model = NearestNeighbors(n_neighbors=k + 1, algorithm="brute", metric="euclidean").fit(wide_ND)

    def search() -> tuple[float, Ids]:
        started = time.perf_counter()
        ids = model.kneighbors(wide_ND[:queries], return_distance=False)
        return (time.perf_counter() - started) * len(wide_ND) / queries, ids

    return search


def _scaled(build: Callable[[], Callable[[NDArray[np.float32]], Ids]], wide_ND: NDArray[np.float32]) -> Search:
    """Building in full, and a share of the queries."""
    queries = min(len(wide_ND), _QUERIES)

    def search() -> tuple[float, Ids]:
        started = time.perf_counter()
        query = build()
        built = time.perf_counter()
        ids = query(wide_ND[:queries])
        return built - started + (time.perf_counter() - built) * len(wide_ND) / queries, ids

    return search


def _faiss_ivf(wide_ND: NDArray[np.float32], k: int) -> list[tuple[str, Search]]:
    import faiss

    count, dim = wide_ND.shape
    lists = round(4 * np.sqrt(count))

    def effort(nprobe: int) -> tuple[str, Search]:
        def build() -> Callable[[NDArray[np.float32]], Ids]:
            index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
            index.train(wide_ND[:: max(1, count // (64 * lists))])
            index.add(wide_ND)
            index.nprobe = nprobe
            return lambda queries_qD: index.search(queries_qD, k + 1)[1]

        return f"nprobe {nprobe}", _scaled(build, wide_ND)

    return [effort(nprobe) for nprobe in (8, 16, 32, 64, 128, 256, 512, 1024) if nprobe <= lists]


def _pynndescent(wide_ND: NDArray[np.float32], k: int) -> list[tuple[str, Search]]:
    from pynndescent import NNDescent

    def effort(iterations: int) -> tuple[str, Search]:
        def search() -> tuple[float, Ids]:
            started = time.perf_counter()
            ids: Ids = NNDescent(wide_ND, metric="dot", n_neighbors=k + 1, n_iters=iterations, random_state=0).neighbor_graph[0]
            return time.perf_counter() - started, ids

        return f"{iterations} iterations", search

    return [effort(iterations) for iterations in (5, 10, 20)]


def _hnswlib(wide_ND: NDArray[np.float32], k: int) -> list[tuple[str, Search]]:
    import hnswlib

    count, dim = wide_ND.shape

    def effort(ef: int) -> tuple[str, Search]:
        def build() -> Callable[[NDArray[np.float32]], Ids]:
            index = hnswlib.Index(space="ip", dim=dim)
            index.init_index(max_elements=count, M=32, ef_construction=200)
            index.add_items(wide_ND)
            index.set_ef(ef)
            return lambda queries_qD: index.knn_query(queries_qD, k=k + 1)[0].astype(np.int64)

        return f"ef {ef}", _scaled(build, wide_ND)

    return [effort(ef) for ef in (k + 1, 2 * k, 4 * k, 8 * k)]


def _usearch(wide_ND: NDArray[np.float32], k: int) -> list[tuple[str, Search]]:
    from usearch.index import Index

    def effort(expansion: int) -> tuple[str, Search]:
        def build() -> Callable[[NDArray[np.float32]], Ids]:
            index = Index(
                ndim=wide_ND.shape[1], metric="ip", dtype="f16", connectivity=32, expansion_add=200, expansion_search=expansion
            )
            index.add(np.arange(len(wide_ND)), wide_ND)
            return lambda queries_qD: index.search(queries_qD, k + 1).keys.astype(np.int64)

        return f"expansion {expansion}", _scaled(build, wide_ND)

    return [effort(expansion) for expansion in (k + 1, 2 * k, 4 * k, 8 * k)]
