"""Are rescored pairs those of the graph? Each row holds its nearest stored neighbours, with what it stores of them.

Shape letters: b rows of a block, T nearest neighbours that were rescored. The cross-encoder itself is not asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError
from graphbuild.store import schemas
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import flat_values
from graphbuild.store.tables import map_arrow
from graphbuild.store.verified import repair_by

RESCORE_REMEDY = repair_by("rescore")
_SYMMETRY_SAMPLE = 200
_ROW_BLOCK = 8192


def check_rescored(graph: Graph, manifest: Manifest, seed: int) -> None:
    """Compare every rescored row with the row that the graph stores.

    Args:
        graph: Its knn stage was checked.
        manifest: The same graph's.
        seed: Of the texts whose pairs are compared both ways.

    Raises:
        ArtifactError: Naming the file and the text of the first row that is wrong.
    """
    rescored, start = Graph.open(graph.path, similarity="rescored", verify=False), 0
    for receipt in manifest.files("rescore", schemas.RESCORED):
        path = graph.path / receipt.path
        batch = map_arrow(path, [schemas.STORED_SIMILARITIES], rows=receipt.rows, remedy=RESCORE_REMEDY)
        before = flat_values(batch.column(schemas.STORED_SIMILARITIES), np.dtype(np.float16)).reshape(-1, rescored.k)
        for first in range(0, receipt.rows, _ROW_BLOCK):
            block = before[first : first + _ROW_BLOCK]
            _check_rows(path, np.arange(start + first, start + first + len(block)), rescored, graph, block)
        start += receipt.rows
    require_symmetric(rescored, graph.path / schemas.RESCORED, seed, RESCORE_REMEDY)


def _check_rows(path: Path, texts_b: NDArray[np.int64], rescored: Graph, graph: Graph, before_bT: NDArray[np.float16]) -> None:
    found, stored = rescored.rows(texts_b), graph.rows(texts_b)
    ids_bT, scores_bT = found.neighbor_ids, found.similarities
    nearest_bT, nearest_scores_bT = (values[:, : rescored.k] for values in (stored.neighbor_ids, stored.similarities))
    by_id, nearest_by_id = np.argsort(ids_bT, axis=1), np.argsort(nearest_bT, axis=1)
    same_bT = np.take_along_axis(ids_bT, by_id, 1) == np.take_along_axis(nearest_bT, nearest_by_id, 1)
    kept_bT = np.take_along_axis(before_bT, by_id, 1) == np.take_along_axis(nearest_scores_bT, nearest_by_id, 1)
    falls = scores_bT[:, 1:] < scores_bT[:, :-1]
    ties_up = (scores_bT[:, 1:] == scores_bT[:, :-1]) & (ids_bT[:, 1:] > ids_bT[:, :-1])
    faults = {
        "holds other texts than its nearest stored neighbours": ~same_bT.all(axis=1),
        "does not hold the stored similarities of its neighbours": ~kept_bT.all(axis=1),
        "holds a similarity that is not from 0 to 1": ~((scores_bT >= 0) & (scores_bT <= 1)).all(axis=1),
        "is not ordered by similarity, then id": ~(falls | ties_up).all(axis=1),
    }
    for what, bad_b in faults.items():
        if bad_b.any():
            raise ArtifactError(f"{path}: the row of text_id {texts_b[int(bad_b.argmax())]} {what}. {RESCORE_REMEDY}")


def require_symmetric(graph: Graph, folder: Path, seed: int, remedy: str) -> None:
    """Check that pairs which both rows store have one similarity, by the rows of some texts.

    Raises:
        ArtifactError: Naming the first such pair.
    """
    sample = np.random.default_rng(seed).permutation(graph.n_texts)[:_SYMMETRY_SAMPLE]
    if unequal := asymmetric_pairs(graph, sample):
        one, other = unequal[0]
        raise ArtifactError(f"{folder}: texts {one} and {other} store different similarities of each other. {remedy}")


def asymmetric_pairs(graph: Graph, text_ids: NDArray[np.integer]) -> list[tuple[int, int]]:
    """Return pairs (text, neighbour) that both rows store, with different similarities; only rows of `text_ids` are looked at."""
    found = []
    for text_id in text_ids:
        own = graph.rows([text_id])
        others = graph.rows(own.neighbor_ids[0])
        back, place = np.nonzero(others.neighbor_ids == text_id)
        differs = others.similarities[back, place] != own.similarities[0, back]
        found += [(int(text_id), int(own.neighbor_ids[0, q])) for q in back[differs]]
    return found
