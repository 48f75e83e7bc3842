"""What the graph does to the training target: entropy by temperature, and the mass that k cuts off.

Shape letters: N texts, s texts of a sample, c texts compared with them, B samples of a batch, K neighbours stored.
Entropies are in nats. docs/definitions.md, Target and Health.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphbuild.store.graph import Graph
from graphbuild.store.sketches import corrected, residual_lengths
from graphbuild.targets.assemble import assemble
from graphbuild.targets.softmax import entropy, own_view_mass

AnyIds = npt.NDArray[np.integer[Any]]
TAUS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
_MOST_EMBEDDING_BYTES = 1 << 30
_COLUMNS = 32_768
_ROWS_AT_ONCE = 64
_TILE = 8_192


class PairSimilarity:
    """Similarity of any pair of texts: exact from embeddings that fit in memory, else the sketch's estimate."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        dim = int(graph.manifest.encoder.get("dim") or 0)
        self._vectors = graph.embeddings() if 0 < 2 * dim * graph.n_texts <= _MOST_EMBEDDING_BYTES else None
        self.source = "embeddings" if self._vectors is not None else "sketch" if graph.sketch_dim else None
        """Where the similarities come from; None where the graph holds neither."""

    def between(self, one_s: AnyIds, other_c: AnyIds) -> npt.NDArray[np.float32]:
        """Return the similarity of each of some texts to each of others; (s, c)."""
        own_sD, own_s = self._parts(one_s)
        tiles = [self._parts(other_c[i : i + _TILE]) for i in range(0, len(other_c), _TILE)]
        return np.concatenate([self._whole(own_sD @ parts.T, own_s[:, None] * lengths) for parts, lengths in tiles], axis=1)

    def of_pairs(self, one_c: AnyIds, other_c: AnyIds) -> npt.NDArray[np.float32]:
        """Return the similarity of each pair of texts; (c,)."""
        (own_cD, own_c), (others_cD, others_c) = self._parts(one_c), self._parts(other_c)
        return self._whole(np.einsum("cd,cd->c", own_cD, others_cD), own_c * others_c)

    def _parts(self, ids: AnyIds) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """What is known of the texts' vectors, and the length of what is not."""
        if self._vectors is not None:
            return np.asarray(self._vectors[ids], np.float32), np.zeros(len(ids), np.float32)
        rows = self._graph.rows(ids)
        return rows.sketch.astype(np.float32) * rows.sketch_scale[:, None], residual_lengths(rows.sketch, rows.sketch_scale)

    def _whole(self, products: npt.NDArray[np.float32], residuals: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return products if self._vectors is not None else corrected(products, residuals, self._graph.correction)


def random_pairs(pairs: PairSimilarity, n_texts: int, rng: np.random.Generator, count: int = 50_000) -> npt.NDArray[np.float32]:
    """Return the similarities of pairs of different texts drawn at random."""
    one = rng.integers(0, n_texts, count)
    other = (one + rng.integers(1, max(n_texts, 2), count)) % n_texts
    return np.concatenate([pairs.of_pairs(one[i : i + _TILE], other[i : i + _TILE]) for i in range(0, count, _TILE)])


def truncated_mass(
    graph: Graph, pairs: PairSimilarity, ids_s: npt.NDArray[np.integer[Any]], tau_s: float, rng: np.random.Generator
) -> float:
    """Return the share of softmax(similarity / tau_s) over all other texts that lies on pairs not stored; mean over rows.

    The texts beyond k are estimated from a random sample of them, so that millions need not be read.
    """
    if graph.is_complete:
        return 0.0
    columns = np.sort(rng.choice(graph.n_texts, min(graph.n_texts, _COLUMNS), replace=False))
    shares = []
    for start in range(0, len(ids_s), _ROWS_AT_ONCE):
        part = ids_s[start : start + _ROWS_AT_ONCE]
        rows = graph.rows(part)
        stored_s = np.exp((rows.similarities.astype(np.float64) - 1) / tau_s).sum(axis=1)
        left_sc = np.exp((pairs.between(part, columns).astype(np.float64) - 1) / tau_s)
        beyond_sc = columns[None, :] != part[:, None]
        for i, neighbors_K in enumerate(rows.neighbor_ids):
            beyond_sc[i] &= ~np.isin(columns, neighbors_K)
        rest_s = np.where(beyond_sc, left_sc, 0).sum(axis=1) / np.maximum(beyond_sc.sum(axis=1), 1)
        rest_s *= graph.n_texts - 1 - graph.k
        shares.append(rest_s / (rest_s + stored_s))
    return float(np.concatenate(shares).mean())


def target_by_temperature(
    graph: Graph, ids_B: npt.NDArray[np.integer[Any]], temperatures: tuple[float, ...], absent: float | None
) -> list[dict[str, float]]:
    """Return entropy, effective positives (its exponential) and own-view mass of a random batch's target, for each tau_s."""
    similarity = assemble(graph.rows(ids_B), ids_B, absent=absent).similarity_BB
    table = []
    for tau_s in temperatures:
        nats = entropy(similarity, tau_s)
        table.append(
            {
                "tau_s": tau_s,
                "entropy": round(nats, 4),
                "effective_positives": round(float(np.exp(nats)), 2),
                "own_view_mass": round(own_view_mass(similarity, tau_s), 4),
            }
        )
    return table
