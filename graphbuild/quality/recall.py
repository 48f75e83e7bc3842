"""What the stored neighbours are worth: some rows against a float64 brute force over all texts, by vectors or another similarity.

Shape letters: N texts, s rows of the sample, b texts of a block, K neighbours stored, D vector width, R sketch width.
Independent of the search: it shares no code with `graphbuild.knn`, but for the tiles of a similarity that is no inner product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.knn.blockwise import Similarity
from graphbuild.store import schemas
from graphbuild.store.embeddings import embedding_blocks
from graphbuild.store.graph import Graph
from graphbuild.store.sketches import estimate
from graphbuild.system.progress import progress

_GROUP = 1024
_BLOCK = 8192
_QUANTILES = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """Measured on a random sample of rows."""

    rows: int
    recall: float
    """Share of stored neighbours whose exact similarity reaches the exact K-th, less `schemas.EXCHANGEABLE`; over all rows."""
    worst_row: int | None
    """The first text with the lowest recall, if that is below 1."""
    inexact: int
    """Stored similarities further than one float16 ulp from the exact one."""
    worst_inexact_row: int | None
    sketch_error: dict[str, float] | None
    """Quantiles of |estimate - exact| over pairs of sampled texts; None where there is no sketch."""
    sketch_error_edges: dict[str, float] | None
    """The same over the stored edges of the sampled texts."""


@dataclass(slots=True)
class _Group:
    """The exact side of some sampled rows."""

    kth_s: NDArray[np.float64]
    stored_sK: NDArray[np.float64]
    """Exact similarity of each stored neighbour."""
    pairs_ss: NDArray[np.float64]


def measure(graph: Graph, *, rows: int, seed: int, similarity: Similarity | None = None) -> Quality:
    """Compare a random sample of rows with a brute force.

    Args:
        graph: Its files must have been checked; they are not checked again.
        rows: How many texts to sample; all if there are no more.
        seed: Of the sample.
        similarity: By which neighbours were found; None: the inner product of the embeddings.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(graph.n_texts, min(rows, graph.n_texts), replace=False))
    recalls, inexact, pair_errors, edge_errors = [], [], [], []
    with progress("brute force", len(sample) * graph.n_texts, unit="pairs") as meter:
        for first in range(0, len(sample), _GROUP):
            ids_s = sample[first : first + _GROUP]
            stored = graph.rows(ids_s)
            group = _brute_force(graph, ids_s, stored.neighbor_ids, similarity, meter.advance)
            recalls.append((group.stored_sK >= group.kth_s[:, None] - schemas.EXCHANGEABLE).mean(axis=1))
            ulp_sK = np.spacing(np.abs(group.stored_sK).astype(np.float16)).astype(np.float64)
            inexact.append((np.abs(stored.similarities - group.stored_sK) > ulp_sK).sum(axis=1))
            if graph.sketch_dim:
                pairs, edges = _sketch_errors(graph, ids_s, stored.neighbor_ids, group)
                pair_errors.append(pairs)
                edge_errors.append(edges)
    recall_s, inexact_s = np.concatenate(recalls), np.concatenate(inexact)
    return Quality(
        rows=len(sample),
        recall=float(recall_s.mean()),
        worst_row=int(sample[recall_s.argmin()]) if recall_s.min() < 1 else None,
        inexact=int(inexact_s.sum()),
        worst_inexact_row=int(sample[inexact_s.argmax()]) if inexact_s.any() else None,
        sketch_error=_quantiles(pair_errors),
        sketch_error_edges=_quantiles(edge_errors),
    )


def _brute_force(
    graph: Graph,
    ids_s: NDArray[np.integer],
    neighbors_sK: NDArray[np.int32],
    similarity: Similarity | None,
    advance: Callable[[int], None],
) -> _Group:
    count, k = neighbors_sK.shape
    best_sK = np.full((count, k), -np.inf)
    stored_sK = np.full((count, k), np.nan)
    pairs_ss = np.empty((count, count))
    blocks = _by_vectors(graph.path, ids_s) if similarity is None else _by_similarity(similarity, ids_s, graph.n_texts)
    for first, scores_sb in blocks:
        width = scores_sb.shape[1]
        row, place = np.nonzero((neighbors_sK >= first) & (neighbors_sK < first + width))
        stored_sK[row, place] = scores_sb[row, neighbors_sK[row, place] - first]
        own = np.flatnonzero((ids_s >= first) & (ids_s < first + width))
        pairs_ss[:, own] = scores_sb[:, ids_s[own] - first]
        scores_sb[own, ids_s[own] - first] = -np.inf
        best_sK = np.partition(np.concatenate([best_sK, scores_sb], axis=1), width, axis=1)[:, width:]
        advance(count * width)
    return _Group(best_sK.min(axis=1), stored_sK, pairs_ss)


def _by_vectors(graph_dir: Path, ids_s: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The first of consecutive texts, and similarities with them, (s, b), until all were met."""
    parts = [block.vectors_nD[np.isin(block.ids_n, ids_s)] for block in embedding_blocks(graph_dir, check=False)]
    queries_sD = np.concatenate(parts).astype(np.float64)
    for block in embedding_blocks(graph_dir, check=False):
        yield block.start, queries_sD @ block.vectors_nD.astype(np.float64).T


def _by_similarity(similarity: Similarity, ids_s: NDArray[np.integer], count: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The same of another similarity."""
    for first in range(0, count, _BLOCK):
        yield first, similarity.tile(ids_s, slice(first, min(first + _BLOCK, count)))


def _sketch_errors(
    graph: Graph, ids_s: NDArray[np.integer], neighbors_sK: NDArray[np.int32], group: _Group
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    own = graph.rows(ids_s)
    sketches = own.sketch, own.sketch_scale
    pairs_ss = np.abs(estimate(*sketches, *sketches, graph.correction) - group.pairs_ss)
    edges_sK = np.empty(neighbors_sK.shape, np.float32)
    for i, neighbors_K in enumerate(neighbors_sK):
        others = graph.rows(neighbors_K)
        one = own.sketch[i : i + 1], own.sketch_scale[i : i + 1]
        edges_sK[i] = np.abs(estimate(*one, others.sketch, others.sketch_scale, graph.correction)[0] - group.stored_sK[i])
    return pairs_ss[~np.eye(len(ids_s), dtype=bool)].astype(np.float32), edges_sK.reshape(-1)


def _quantiles(parts: list[NDArray[np.float32]]) -> dict[str, float] | None:
    values = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(values):
        return None
    return {name: round(float(np.quantile(values, q)), 5) for name, q in _QUANTILES.items()}
