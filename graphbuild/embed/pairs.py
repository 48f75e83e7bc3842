"""Pairs of a shard scored by a cross-encoder, and rows put together from what all shards scored: the work of the rescore stage.

Shape letters: n texts of a shard, b rows of a block, T nearest neighbours that are rescored, m pairs.
A pair that both its rows store belongs to the lower text: it is scored once, so both rows hold the same number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.embed.cross_encoder import CrossScorer, load_cross_encoder
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.store import schemas
from graphbuild.store.arrays import Float16, Ids, Int64
from graphbuild.store.files import Receipt, ShardRange, finished, write_arrow
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import flat_values
from graphbuild.store.tables import map_arrow

ROW_BLOCK = 1_024
_PAIRS_A_CALL = 2_048
_PAIRS_A_READ = 1 << 19
"""Pairs whose texts are read at once: neighbours lie in any shard of texts, and each read goes through all of them."""
_REMEDY = "Run `graphbuild rescore` again: it rebuilds only what is damaged."


def scored_name(index: int) -> str:
    """Return the name of the file of a shard's own scores, which is removed when the stage is entered."""
    return f"{schemas.RESCORED}/scored-{index:05d}.arrow"


def score_shard(root: str, shard: ShardRange, spec: EncoderSpec, top: int, key: str, *, report: Callable[[int], None]) -> Receipt:
    """Score the pairs that belong to a shard's texts; the task that workers run.

    Args:
        root: Absolute path of the graph directory.
        shard: Which texts.
        spec: The cross-encoder.
        top: T.
        key: Of the receipt.
        report: Told how many pairs were finished.
    """
    graph_dir, name = Path(root), scored_name(shard.index)
    if (done := finished(graph_dir, name, key=key)) is not None:
        return done
    graph, scorer = Graph.open(graph_dir), load_cross_encoder(spec)
    blocks = list(_blocks(graph, shard, top))
    ids_nT, own_nT = np.concatenate([ids for ids, _ in blocks]), np.concatenate([own for _, own in blocks])
    scores_nT = np.full(ids_nT.shape, np.nan, np.float16)
    rows_m, places_m = np.nonzero(own_nT)
    for start in range(0, len(rows_m), _PAIRS_A_READ):
        rows, places = rows_m[start : start + _PAIRS_A_READ], places_m[start : start + _PAIRS_A_READ]
        scores_nT[rows, places] = _score(graph, scorer, rows + shard.start, ids_nT[rows, places], report)
    batch = _batch(shard, [ids_nT, scores_nT], schemas.knn_schema(top, 0))
    return write_arrow(graph_dir, name, batch, key=key, with_columns=False)


def _score(graph: Graph, scorer: CrossScorer, firsts_m: Int64, seconds_m: Ids, report: Callable[[int], None]) -> Float16:
    """Similarities of pairs of texts, as they are stored; (m,)."""
    texts, scores_m = graph.texts_of(np.concatenate([firsts_m, seconds_m])), np.empty(len(firsts_m), np.float16)
    for start in range(0, len(firsts_m), _PAIRS_A_CALL):
        part = slice(start, start + _PAIRS_A_CALL)
        pairs = [
            (texts[first], texts[second]) for first, second in zip(firsts_m[part].tolist(), seconds_m[part].tolist(), strict=True)
        ]
        scores_m[part] = scorer.similarities(pairs)
        report(len(pairs))
    return scores_m


def _blocks(graph: Graph, shard: ShardRange, top: int) -> Iterator[tuple[Ids, NDArray[np.bool_]]]:
    """T nearest neighbours, and whether the pairs belong to the row, of blocks of a shard's rows; (b, T) each."""
    for first in range(shard.start, shard.stop, ROW_BLOCK):
        texts_b = np.arange(first, min(first + ROW_BLOCK, shard.stop))
        ids_bT = graph.rows(texts_b).neighbor_ids[:, :top]
        yield ids_bT, owned(graph, texts_b, ids_bT, top)


def owned(graph: Graph, texts_b: Int64, ids_bT: Ids, top: int) -> NDArray[np.bool_]:
    """Tell which pairs belong to the row that stores them: not those of a lower text whose T nearest hold it; (b, T)."""
    own_bT = np.ones(ids_bT.shape, np.bool_)
    rows_m, places_m = np.nonzero(ids_bT < texts_b[:, None])
    for start in range(0, len(rows_m), ROW_BLOCK * 8):
        rows, places = rows_m[start : start + ROW_BLOCK * 8], places_m[start : start + ROW_BLOCK * 8]
        others_mT = graph.rows(ids_bT[rows, places]).neighbor_ids[:, :top]
        own_bT[rows, places] = ~(others_mT == texts_b[rows, None]).any(axis=1)
    return own_bT


class ScoredRows:
    """What has been scored, of all shards: rows of ids and similarities, mapped."""

    def __init__(self, graph_dir: Path, key: str, ranges: list[ShardRange], top: int) -> None:
        self._starts = np.array([shard.start for shard in ranges], np.int64)
        self._rows: list[tuple[Ids, Float16]] = []
        for shard in ranges:
            names = (scored_name(shard.index), schemas.part_name(schemas.RESCORED, shard.index))
            name = next(one for one in names if finished(graph_dir, one, key=key) is not None)
            batch = map_arrow(graph_dir / name, [schemas.NEIGHBOR_IDS], rows=len(shard), remedy=_REMEDY)
            ids = flat_values(batch.column(schemas.NEIGHBOR_IDS), np.dtype(np.int32)).reshape(-1, top)
            self._rows.append((ids, flat_values(batch.column(schemas.SIMILARITIES), np.dtype(np.float16)).reshape(-1, top)))

    def of_shard(self, index: int) -> tuple[Ids, Float16]:
        """Return ids and similarities of a shard, NaN where a pair belongs to another row; (n, T)."""
        return self._rows[index]

    def find(self, texts_m: Int64, neighbors_m: Int64) -> Float16:
        """Return the similarity of each pair, from the row of its first text; (m,)."""
        found_m, shard_m = np.empty(len(texts_m), np.float16), np.searchsorted(self._starts, texts_m, side="right") - 1
        for index in np.unique(shard_m):
            here = np.flatnonzero(shard_m == index)
            ids_nT, scores_nT = self._rows[int(index)]
            rows_m = texts_m[here] - self._starts[index]
            places_m = (ids_nT[rows_m] == neighbors_m[here, None]).argmax(axis=1)
            found_m[here] = scores_nT[rows_m, places_m]
        return found_m


def merge(graph: Graph, shard: ShardRange, scored: ScoredRows, top: int, key: str) -> Receipt:
    """Put a shard's rows together, by similarity, ties by id, and write them."""
    stored = graph.rows(np.arange(shard.start, shard.stop))
    ids_nT, before_nT = stored.neighbor_ids[:, :top], stored.similarities[:, :top]
    scores_nT = scored.of_shard(shard.index)[1].copy()
    rows_m, places_m = np.nonzero(np.isnan(scores_nT))
    pairs = int(scores_nT.size - len(rows_m))
    for start in range(0, len(rows_m), ROW_BLOCK * 8):
        rows, places = rows_m[start : start + ROW_BLOCK * 8], places_m[start : start + ROW_BLOCK * 8]
        scores_nT[rows, places] = scored.find(ids_nT[rows, places].astype(np.int64), rows + shard.start)
    order_nT = np.lexsort((ids_nT, -scores_nT.astype(np.float32)), axis=1)
    columns = [np.take_along_axis(values, order_nT, axis=1) for values in (ids_nT, scores_nT, before_nT)]
    facts = {"pairs": pairs, "changed_nearest": int((columns[0][:, 0] != ids_nT[:, 0]).sum())}
    batch = _batch(shard, columns, schemas.rescored_schema(top))
    return write_arrow(graph.path, schemas.part_name(schemas.RESCORED, shard.index), batch, key=key, facts=facts)


def _batch(shard: ShardRange, columns: list[NDArray[Any]], schema: pa.Schema) -> pa.RecordBatch:
    kinds = [field.type for field in schema][1:]
    lists = [
        pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
        for values, kind in zip(columns, kinds, strict=True)
    ]
    return pa.RecordBatch.from_arrays([pa.array(np.arange(shard.start, shard.stop, dtype=np.int32)), *lists], schema=schema)
