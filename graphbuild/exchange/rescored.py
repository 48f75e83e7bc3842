"""Graphs fused by a rule that no inner product has, or without vectors: the union of each row's neighbours, scored by all graphs.

A text that is in no graph's row is at most as similar there as the last neighbour that the row stores. So a row is proven exact
where its K-th fused similarity reaches the rule's value of these bounds (the threshold of Fagin, Lotem and Naor, PODS 2001). The
rest is searched in full where that is affordable.
Shape letters: G graphs, N fused texts, T texts of one graph, n texts of a shard, K neighbours kept, U candidates of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from graphbuild.errors import SourceError
from graphbuild.exchange.relate.kernels import Inner
from graphbuild.exchange.relate.related import related
from graphbuild.exchange.relate.stage import METHOD as RELATE
from graphbuild.knn.blockwise import Rows, Similarity, Tile, as_stored, nearest
from graphbuild.knn.engines.base import Advance, Neighbors
from graphbuild.store import schemas
from graphbuild.store.digests import digest_json
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.files import ShardRange
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest

Rule: TypeAlias = Literal["mean", "max", "product"]
SEARCHED_PAIRS = 10**10
"""Pairs of rows that are not proven which are computed all the same: minutes."""
_ROOM = 4
"""Candidates a row takes from each graph, to each neighbour kept."""
LEAST_ROOM = 256
"""Candidates a row takes from each graph at least."""


def combine(rule: Rule, weights: Sequence[float], parts: Sequence[Any]) -> Any:
    """Return one similarity of those of several graphs; arrays of one shape. Negative ones count as 0 in a product."""
    if rule == "mean":
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))
    if rule == "max":
        return np.maximum.reduce(list(parts))
    return np.multiply.reduce([np.maximum(part, 0.0) for part in parts])


class Stored:
    """Edges that were imported: as stored by either row, 0 where by neither, and 1 of a text with itself."""

    def __init__(self, graph: Graph) -> None:
        count, k = graph.n_texts, graph.k
        rows = graph.rows(np.arange(count))
        starts = np.arange(0, count * k + 1, k) if k else np.zeros(count + 1, np.int64)
        values = rows.similarities.reshape(-1).astype(np.float64)
        # Zeros are stored similarities, too, and equal to what is absent.
        one_way = scipy.sparse.csr_array((values, rows.neighbor_ids.reshape(-1), starts), shape=(count, count))
        self.edges = _either(one_way) + scipy.sparse.eye_array(count, format="csr")
        self.least = min(0.0, float(values.min(initial=0.0)))

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        dense: Tile = self.edges[rows][:, columns].toarray()
        return dense


def _either(one_way: Any) -> Any:
    """Of a pair that both rows store, the larger similarity; of others that of the row which has it."""
    back = one_way.T.tocsr()
    both = (one_way != 0).multiply(back != 0)
    return one_way + back - both.multiply(one_way.minimum(back))


class Mapped:
    """The similarity of the texts that fused texts have in one graph."""

    def __init__(self, similarity: Similarity, texts_N: NDArray[np.integer]) -> None:
        self._similarity, self._texts_N = similarity, texts_N
        self.least = similarity.least

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        return self._similarity.tile(self._texts_N[rows], self._texts_N[columns])


class Fused:
    """The rule's similarity of fused texts."""

    def __init__(self, parts: Sequence[Similarity], rule: Rule, weights: Sequence[float]) -> None:
        self.parts, self.rule, self.weights = parts, rule, weights
        self.least = float(combine(rule, weights, [part.least for part in parts]))

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c)."""
        tile: Tile = combine(self.rule, self.weights, [part.tile(rows, columns) for part in self.parts])
        return tile


class _Lists:
    """The neighbours of fused texts in one graph, best first."""

    def __init__(self, graph: Graph, similarity: Similarity, texts_N: NDArray[np.integer], room: int) -> None:
        self._graph, self._texts_N, self._room = graph, texts_N, room
        self._edges = similarity.edges if isinstance(similarity, Stored) else None
        self._exact = graph.manifest.stages["knn"].config["method"] in ("exact", RELATE)
        # Fused texts by their text in this graph.
        self._fused = np.argsort(texts_N, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(texts_N[self._fused], np.arange(graph.n_texts + 1))

    def of(self, text: int) -> tuple[NDArray[np.int32], float | None]:
        """Return candidates of a fused text, itself among them, and how similar others are at most; None: as the last of these."""
        own = int(self._texts_N[text])
        ids, values, beyond = self._row(own)
        sizes = np.cumsum(self._starts[ids + 1] - self._starts[ids])
        taken = int(np.searchsorted(sizes, self._room))
        cut = taken < len(ids)
        if cut:
            # Rounded up, for it was stored in float16.
            beyond = float(np.nextafter(np.float16(values[taken]), np.float16(2)))
            ids = ids[: taken + 1]
        found = np.concatenate([self._fused[self._starts[one] : self._starts[one + 1]] for one in ids])
        return found[: self._room], beyond

    def _row(self, own: int) -> tuple[NDArray[np.integer], NDArray[np.floating[Any]], float | None]:
        """The text itself and its neighbours, their similarities, and what bounds the rest."""
        if self._edges is not None:
            part = slice(self._edges.indptr[own], self._edges.indptr[own + 1])
            order = np.argsort(-self._edges.data[part], kind="stable")
            ids, values = self._edges.indices[part][order], self._edges.data[part][order]
            return ids, values, 0.0
        row = self._graph.row(own)
        ids = np.concatenate([[own], row.neighbor_ids[0]])
        values = np.concatenate([[1.0], row.similarities[0].astype(np.float64)])
        if self._graph.is_complete:
            return ids, values, -np.inf
        return ids, values, None if self._exact else 1.0


class Rescoring:
    """Finds the neighbours of fused texts among those that they have in the graphs."""

    def __init__(self, graphs: Sequence[Path], texts_NG: NDArray[np.integer], rule: Rule, weights: Sequence[float], k: int) -> None:
        """Open the graphs.

        Args:
            graphs: Their folders; each has neighbours.
            texts_NG: The text that each fused text has in each of them.
            rule: How similarities become one.
            weights: Of a mean.
            k: Neighbours that will be asked for.
        """
        self._count = len(texts_NG)
        opened = [Graph.open(path) for path in graphs]
        held = [similarity_of(graph) for graph in opened]
        columns = [np.ascontiguousarray(texts_NG[:, number]) for number in range(len(graphs))]
        room = max(_ROOM * k, LEAST_ROOM) + 1
        self._lists = [_Lists(graph, one, texts_N, room) for graph, one, texts_N in zip(opened, held, columns, strict=True)]
        parts = [Mapped(one, texts_N) for one, texts_N in zip(held, columns, strict=True)]
        self.similarity = Fused(parts, rule, weights)

    def find(self, shard: ShardRange, k: int, advance: Advance) -> tuple[Neighbors, NDArray[np.float64]]:
        """Find the k most similar candidates of each text of a shard, and how similar the others are at most, (n,)."""
        ids_nK, kept_nK = np.empty((len(shard), k), np.int32), np.empty((len(shard), k))
        most_n, proven_n = np.empty(len(shard)), np.zeros(len(shard), np.bool_)
        for row, text in enumerate(range(shard.start, shard.stop)):
            ids_nK[row], kept_nK[row], most = self.row(text, k)
            proven_n[row] = kept_nK[row, -1] >= most - schemas.EXCHANGEABLE
            most_n[row] = max(most, kept_nK[row, -1])
            advance(self._count)
        found = as_stored(ids_nK, kept_nK)
        again = np.flatnonzero(~proven_n)
        if len(again) and len(again) * self._count**2 <= SEARCHED_PAIRS * len(shard):
            searched, most_n[again] = nearest(self.similarity, shard.start + again, self._count, k)
            found.ids_nK[again], found.similarities_nK[again] = searched.ids_nK, searched.similarities_nK
        else:
            again = again[:0]
        facts = {"certified_rows": int(proven_n.sum())}
        return Neighbors(found.ids_nK, found.similarities_nK, len(again), facts), most_n

    def row(self, text: int, k: int) -> tuple[NDArray[np.int32], NDArray[np.float64], float]:
        """Return the best k of a text's candidates, (k,), their similarities, (k,), and a bound of all others'."""
        lists = [one.of(text) for one in self._lists]
        union = np.unique(np.concatenate([found for found, _ in lists]))
        union = self._filled(union[union != text], text, k)
        parts = [part.tile(np.array([text]), union)[0] for part in self.similarity.parts]
        scores = combine(self.similarity.rule, self.similarity.weights, parts)
        bounds = [
            beyond if beyond is not None else float(part[np.isin(union, found)].min(initial=1.0))
            for (found, beyond), part in zip(lists, parts, strict=True)
        ]
        # Of a graph whose rows have all texts, nothing is left out.
        most = -np.inf if -np.inf in bounds else float(combine(self.similarity.rule, self.similarity.weights, bounds))
        best = np.lexsort((union, -scores))[:k]
        return union[best], scores[best], most

    def _filled(self, union: NDArray[np.int32], text: int, k: int) -> NDArray[np.int32]:
        """At least k candidates: with the first texts that are none, where there are fewer."""
        if len(union) >= k:
            return union
        others = np.setdiff1d(np.arange(min(self._count, k + len(union) + 1), dtype=np.int32), [*union, text])
        return np.union1d(union, others[: k - len(union)]).astype(np.int32)


def input_digests(origins: Sequence[Manifest], *stages: str) -> dict[str, str]:
    """Return the digest of what some stages of each graph hold, as a fused one records it."""
    return {
        f"graph {number}": digest_json(
            {
                receipt.path: receipt.digest
                for stage in stages
                if stage in origin.stages
                for receipt in origin.stages[stage].files.values()
            }
        )
        for number, origin in enumerate(origins)
    }


def similarity_of(graph: Graph) -> Similarity:
    """Return what tells the similarity of any two texts of a graph.

    Raises:
        SourceError: If nothing can: it was fused from others in this way.
    """
    manifest = graph.manifest
    if "embed" in manifest.stages:
        return Inner(load_embeddings(graph.path), np.arange(graph.n_texts))
    method = manifest.stages["knn"].config["method"]
    if method == RELATE:
        return related(graph.path, manifest, manifest.stages["knn"].config)
    if method == "import":
        return Stored(graph)
    raise SourceError(f"{graph.path}: was fused by {manifest.stages['knn'].config['rule']}. Fuse the graphs that it was made of.")
