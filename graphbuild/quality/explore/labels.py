"""Labels of a map's regions: of each cluster, the text that is nearest to its middle by the graph.

Shape letters: n texts on the map, m neighbours of each, C clusters of a level, R sketch width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphbuild.store.arrays import Ids

_LEVELS = (12, 48, 192)
"""Clusters a level; the first level is shown from afar, the last from near by."""
_LEAST_TEXTS_A_CLUSTER = 8


@dataclass(frozen=True, slots=True)
class Label:
    """A label of the map: the text that stands for a cluster, and how large that is."""

    row: int
    """Row of the map whose text it is."""
    level: int
    texts: int
    """Size of its cluster: larger ones win where labels overlap."""


def label_clusters(
    positions_n2: npt.NDArray[np.float32], neighbors_nm: Ids, similarities_nm: npt.NDArray[np.float32], *, seed: int
) -> list[Label]:
    """Cluster the map by k-means at several levels and name each cluster after its most central text.

    Most central is the text with the largest sum of similarities over stored edges whose other end is in the same cluster,
    counted from both ends; ties go to the lower row.

    Args:
        positions_n2: The map.
        neighbors_nm: Rows of each text's neighbours.
        similarities_nm: Of these.
        seed: Of k-means.
    """
    from sklearn.cluster import MiniBatchKMeans

    count = len(positions_n2)
    labels: list[Label] = []
    for level, clusters in enumerate(_LEVELS):
        clusters = min(clusters, count // _LEAST_TEXTS_A_CLUSTER)
        if clusters < 2 and level:
            break
        codes_n = (
            MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=8192).fit_predict(positions_n2)
            if clusters > 1
            else np.zeros(count, np.int32)
        )
        centrality_n = _centrality(codes_n, neighbors_nm, similarities_nm)
        order = np.lexsort((np.arange(count), -centrality_n, codes_n))
        first = order[np.unique(codes_n[order], return_index=True)[1]]
        sizes = np.bincount(codes_n)
        labels += [Label(int(row), level, int(sizes[codes_n[row]])) for row in first]
    return labels


def _centrality(
    codes_n: npt.NDArray[np.int32], neighbors_nm: Ids, similarities_nm: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    inside = (codes_n[neighbors_nm] == codes_n[:, None]) * np.maximum(similarities_nm, 0)
    received = np.bincount(neighbors_nm.reshape(-1), weights=inside.reshape(-1), minlength=len(codes_n))
    centrality: npt.NDArray[np.float64] = inside.sum(axis=1, dtype=np.float64) + received
    return centrality
