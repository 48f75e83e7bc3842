"""Which texts a map shows, and each one's neighbours among them.

Shape letters: N texts of the graph, n texts on the map, K neighbours stored, m neighbours of a text on the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.knn.engines.choose import make_engine, required_memory
from graphbuild.store.arrays import Ids
from graphbuild.store.files import ShardRange
from graphbuild.store.frames import Frames
from graphbuild.system.memory import resolve_limit

MOST_TEXTS = 200_000
NEIGHBORS = 20
"""Neighbours of a text that the map links, where as many are stored."""
_HUB_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Selection:
    """The texts on the map; row i of the map is text `ids_n[i]`."""

    ids_n: Ids
    neighbors_nm: Ids
    """Rows of the map, nearest first."""
    similarities_nm: npt.NDArray[np.float32]
    how: str
    """In words, for the log and the page."""


def select_texts(tables: Frames, in_degree_N: npt.NDArray[np.integer], *, count: int | None, seed: int) -> Selection:
    """Choose the texts of the map and find their neighbours among them.

    All texts, or, where there are more than `count`: half of them those that most rows hold (the hubs, which decide what a map
    looks like), the rest at random.

    Args:
        tables: A graph with neighbours.
        in_degree_N: How many rows hold each text.
        count: Texts at most; None takes all.
        seed: Of the random rest.

    Raises:
        OptionError: If texts must be left out of a graph that holds no embeddings.
    """
    graph = tables.graph
    width = min(NEIGHBORS, graph.k)
    if count is None or graph.n_texts <= count:
        rows = [(rows.neighbor_ids[:, :width], rows.similarities[:, :width]) for _, rows in graph.shard_rows()]
        ids, values = np.concatenate([one for one, _ in rows]), np.concatenate([one for _, one in rows])
        return Selection(np.arange(graph.n_texts, dtype=np.int32), ids, values.astype(np.float32), f"all {graph.n_texts:,} texts")
    if "embed" not in tables.manifest.stages:
        raise OptionError(f"{tables.path}: a graph without embeddings is mapped whole. Add --all.")
    hubs = np.lexsort((np.arange(graph.n_texts), -in_degree_N))[: int(count * _HUB_SHARE)]
    rest = np.setdiff1d(np.arange(graph.n_texts), hubs)
    drawn = np.random.default_rng(seed).choice(rest, count - len(hubs), replace=False)
    ids_n = np.sort(np.concatenate([hubs, drawn])).astype(np.int32)
    how = f"{count:,} of {graph.n_texts:,} texts: the {len(hubs):,} that most rows hold, the rest at random (seed {seed})"
    return Selection(ids_n, *_search(graph.embeddings()[ids_n], min(NEIGHBORS, count - 1)), how)


def _search(vectors_nD: npt.NDArray[np.float16], width: int) -> tuple[Ids, npt.NDArray[np.float32]]:
    """Find exact neighbours among the chosen texts: stored rows hold too few of them."""
    count, dim = vectors_nD.shape
    limit = max(resolve_limit(None), required_memory(count, dim, width))
    engine = make_engine(np.ascontiguousarray(vectors_nD), k=width, memory_limit=limit)
    (found,) = engine.search([ShardRange(0, 0, count)])
    return found.ids_nK, found.similarities_nK.astype(np.float32)
