"""One pass over all stored edges: in-degrees, nearest neighbours, connected components; beside a shuffled graph.

Shape letters: N texts, n texts of a block, K neighbours stored, T thresholds, s texts of a sample.
The shuffled graph has the same rows and similarities, but every edge ends at a text drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from graphbuild.store.arrays import Float32, Ids
from graphbuild.store.frames import graph_blocks
from graphbuild.store.graph import Graph
from graphbuild.system.progress import progress

THRESHOLDS = (0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Similarities from which an edge joins its two texts into one component."""
NEAR_RANKS = 10
"""Ranks that the usual measure of hubness counts."""
_FEW = 16


@dataclass(slots=True)
class EdgeCounts:
    """What one pass counted, of the stored graph or the shuffled one."""

    in_degree_N: Ids
    """How many rows hold each text."""
    near_degree_N: Ids
    """How many rows hold it among their first ten."""
    parents_TN: Ids
    """Union-find forests, one a threshold."""
    weight: float = 0.0
    """Sum over edges of the product of their texts' shares of all samples: the chance that two random samples meet."""


@dataclass(slots=True)
class EdgePass:
    """The stored graph beside the shuffled one."""

    stored: EdgeCounts
    shuffled: EdgeCounts
    nearest_N: Float32
    """Similarity to the nearest neighbour; NaN where none is stored."""
    components: list[dict[str, Any]] = field(default_factory=list)


def count_edges(graph: Graph, share_N: npt.NDArray[np.float64], rng: np.random.Generator) -> EdgePass:
    """Read every stored edge once; memory is about 70 bytes a text.

    Args:
        graph: To read.
        share_N: Each text's share of all samples; sums to 1.
        rng: Draws the shuffled graph.
    """
    n_texts = graph.n_texts
    found = EdgePass(_empty(n_texts), _empty(n_texts), np.full(n_texts, np.nan, np.float32))
    with progress("edges", n_texts, unit="texts") as meter:
        for first, rows in graph_blocks(graph):
            values_nK = rows.similarities.astype(np.float32)
            if graph.k:
                found.nearest_N[first : first + len(values_nK)] = values_nK[:, 0]
            _add(found.stored, first, rows.neighbor_ids, values_nK, share_N)
            _add(found.shuffled, first, random_ends(rng, first, rows.neighbor_ids.shape, n_texts), values_nK, share_N)
            meter.advance(len(values_nK))
    found.components = _components(found)
    return found


def _empty(n_texts: int) -> EdgeCounts:
    forests = np.tile(np.arange(n_texts, dtype=np.int32), (len(THRESHOLDS), 1))
    return EdgeCounts(np.zeros(n_texts, np.int32), np.zeros(n_texts, np.int32), forests)


def _add(counts: EdgeCounts, first: int, ids_nK: Ids, values_nK: Float32, share_N: npt.NDArray[np.float64]) -> None:
    counts.weight += _count(counts.in_degree_N, counts.near_degree_N, first, ids_nK, NEAR_RANKS, share_N)
    for parents_N, threshold in zip(counts.parents_TN, THRESHOLDS, strict=True):
        _unite(parents_N, first, ids_nK, values_nK, np.float32(threshold))


def random_ends(rng: np.random.Generator, first: int, shape: tuple[int, ...], n_texts: int) -> Ids:
    """Return the ends of the shuffled graph's edges: any other text with equal chance; (n, K) int32.

    Drawn independently where K is far below N; without repetition where rows are nearly full, because it matters there.
    """
    count, k = shape
    own_n1 = np.arange(first, first + count, dtype=np.int32)[:, None]
    if 4 * k < n_texts:
        ends_nK = rng.integers(0, max(n_texts - 1, 1), size=shape, dtype=np.int32)
    else:
        others = np.tile(np.arange(n_texts - 1, dtype=np.int32), (count, 1))
        ends_nK = rng.permuted(others, axis=1)[:, :k]
    # Over all texts but the own one.
    return ends_nK + (ends_nK >= own_n1)


@njit(nogil=True, cache=True)
def _count(degree_N: Ids, near_N: Ids, first: int, ids_nK: Ids, near_ranks: int, share_N: npt.NDArray[np.float64]) -> float:
    weight = 0.0
    for i in range(ids_nK.shape[0]):
        row = 0.0
        for c in range(ids_nK.shape[1]):
            j = ids_nK[i, c]
            degree_N[j] += 1
            if c < near_ranks:
                near_N[j] += 1
            row += share_N[j]
        weight += row * share_N[first + i]
    return weight


@njit(nogil=True, cache=True)
def _root(parents_N: Ids, i: int) -> int:
    """Root of a tree, halving the path to it on the way."""
    while parents_N[i] != i:
        parents_N[i] = parents_N[parents_N[i]]
        i = parents_N[i]
    return i


@njit(nogil=True, cache=True)
def _unite(parents_N: Ids, first: int, ids_nK: Ids, values_nK: Float32, threshold: np.float32) -> None:
    """Join the trees of texts whose edge reaches the threshold; the lower id becomes the root."""
    for i in range(ids_nK.shape[0]):
        for c in range(ids_nK.shape[1]):
            # Rows are sorted: the rest is further away.
            if values_nK[i, c] < threshold:
                break
            one, other = _root(parents_N, first + i), _root(parents_N, ids_nK[i, c])
            if one < other:
                parents_N[other] = one
            elif other < one:
                parents_N[one] = other


@njit(nogil=True, cache=True)
def _flatten(parents_N: Ids) -> None:
    for i in range(len(parents_N)):
        parents_N[i] = _root(parents_N, i)


def component_sizes(parents_N: Ids) -> npt.NDArray[np.int64]:
    """Return the sizes of the components of a union-find forest, largest first."""
    _flatten(parents_N)
    sizes = np.bincount(parents_N)
    return np.sort(sizes[sizes > 0])[::-1]


def _components(found: EdgePass) -> list[dict[str, Any]]:
    table = []
    for number, threshold in enumerate(THRESHOLDS):
        sizes = component_sizes(found.stored.parents_TN[number])
        random_sizes = component_sizes(found.shuffled.parents_TN[number])
        texts = len(found.nearest_N)
        table.append(
            {
                "threshold": threshold,
                "components": len(sizes),
                "alone_share": float((sizes == 1).sum() / texts),
                "largest": int(sizes[0]),
                "largest_share": float(sizes[0] / texts),
                "shuffled_largest_share": float(random_sizes[0] / texts),
            }
        )
    return table


def mutual_share(graph: Graph, ids_s: npt.NDArray[np.integer[Any]], ranks: int) -> float:
    """Return the share of edges (first `ranks` of each sampled row) whose end holds the text among its own first `ranks`."""
    mutual = 0
    for start in range(0, len(ids_s), _FEW):
        part = ids_s[start : start + _FEW]
        ends = graph.rows(part).neighbor_ids[:, :ranks]
        back = graph.rows(ends.reshape(-1)).neighbor_ids[:, :ranks].reshape(*ends.shape, -1)
        mutual += int((back == part[:, None, None]).any(axis=2).sum())
    return mutual / (len(ids_s) * ranks)
