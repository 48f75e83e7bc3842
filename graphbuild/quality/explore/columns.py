"""What a map says of every text beside its position.

Shape letters: N texts of the graph, n texts on the map, m neighbours of each, R sketch width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from graphbuild.quality.curate.dedup import duplicate_keepers
from graphbuild.quality.explore.select import Selection
from graphbuild.quality.pictures import picture_bytes
from graphbuild.store import schemas
from graphbuild.store.arrays import Ids
from graphbuild.store.frames import Frames, graph_blocks
from graphbuild.store.graph import Graph
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import load_partition

NEAR_DUPLICATE = 0.95
THUMBNAIL_PIXELS = 96
MOST_PICTURES = 20_000
"""Above this many texts thumbnails are left out: they would weigh more than all else."""
_RANKS = (1, 16, 256)
_INTERNAL = {schemas.SAMPLE_ID, schemas.SAMPLE_HASH, schemas.TEXT_ID}


def in_degrees(graph: Graph) -> npt.NDArray[np.int64]:
    """Return how many rows hold each text; (N,)."""
    counts_N = np.zeros(graph.n_texts, np.int64)
    for _, rows in graph_blocks(graph):
        counts_N += np.bincount(rows.neighbor_ids.reshape(-1), minlength=graph.n_texts)
    return counts_N


def start_positions(tables: Frames, chosen: Selection) -> npt.NDArray[np.float32]:
    """Return where texts begin: the second and third coordinate of their sketches (the first is the mean), else at random."""
    graph = tables.graph
    if graph.sketch_dim < 3:
        return np.random.default_rng(0).uniform(size=(len(chosen.ids_n), 2)).astype(np.float32)
    rows = graph.rows(chosen.ids_n)
    return rows.sketch[:, 1:3].astype(np.float32) * rows.sketch_scale[:, None]


def map_columns(
    tables: Frames, chosen: Selection, in_degree_N: npt.NDArray[np.int64], positions_n2: npt.NDArray[np.float32]
) -> pl.DataFrame:
    """Return one row a text of the map: position, neighbours, figures of the graph, and the columns of its first sample."""
    graph = tables.graph
    ids_n = chosen.ids_n
    keeper_N, _ = duplicate_keepers(tables, NEAR_DUPLICATE)
    group_n = np.where(keeper_N >= 0, keeper_N, np.arange(graph.n_texts, dtype=np.int32))[ids_n]
    texts = tables.texts.filter(pl.col(schemas.TEXT_ID).is_in(pl.Series(ids_n).implode())).collect(engine="streaming")
    frame = texts.sort(schemas.TEXT_ID).select(schemas.TEXT_ID, schemas.TEXT, schemas.SAMPLE_COUNT)
    return frame.with_columns(
        pl.Series("x", positions_n2[:, 0]),
        pl.Series("y", positions_n2[:, 1]),
        _neighbor_column(chosen),
        pl.Series("in_degree", in_degree_N[ids_n].astype(np.int32)),
        pl.Series("near_duplicate_group", group_n),
        *_similarities(graph, ids_n),
        *_chunks(tables, ids_n),
    ).join(_sample_columns(tables), on=schemas.TEXT_ID, how="left", maintain_order="left")


def _neighbor_column(chosen: Selection) -> pl.Series:
    width = chosen.neighbors_nm.shape[1]
    fields = {
        "ids": pl.Series(chosen.neighbors_nm, dtype=pl.Array(pl.Int32, width)).arr.to_list(),
        "distances": pl.Series(np.maximum(1 - chosen.similarities_nm, 0), dtype=pl.Array(pl.Float32, width)).arr.to_list(),
    }
    return pl.DataFrame(fields).to_struct("neighbors")


def _similarities(graph: Graph, ids_n: Ids) -> list[pl.Series]:
    rows = graph.rows(ids_n)
    return [
        pl.Series(f"similarity_{rank}", rows.similarities[:, rank - 1].astype(np.float32)) for rank in _RANKS if rank <= graph.k
    ]


def _chunks(tables: Frames, ids_n: Ids) -> list[pl.Series]:
    """The chunk of each text's first sample, where the default partition is stored; -1 for a sample's later captions."""
    graph, config = tables.graph, PartitionConfig()
    stage = tables.manifest.stages.get("partition")
    if stage is None or config.file_name(graph.k) not in stage.files:
        return []
    texts, first_rows = np.unique(graph.sample_rows()[1], return_index=True)
    chunks_N = np.full(graph.n_texts, -1, np.int32)
    chunks_N[texts] = load_partition(graph, config).of_rows(first_rows.astype(np.int64))
    return [pl.Series("partition_chunk", chunks_N[ids_n])]


def _sample_columns(tables: Frames) -> pl.DataFrame:
    """Each text's first sample: its id and the kept columns that a chart can show."""
    schema = tables.samples.collect_schema()
    kept = [name for name, kind in schema.items() if name not in _INTERNAL and not kind.is_nested()]
    first = tables.samples.select(schemas.TEXT_ID, schemas.SAMPLE_ID, *kept)
    return first.unique(schemas.TEXT_ID, keep="first", maintain_order=True).collect(engine="streaming")


def thumbnails(tables: Frames, chosen: Selection) -> pl.Series | None:
    """Return JPEG thumbnails of each text's first sample; None where no picture is at hand, or texts are too many."""
    if len(chosen.ids_n) > MOST_PICTURES:
        return None
    samples = _sample_columns(tables).filter(pl.col(schemas.TEXT_ID).is_in(pl.Series(chosen.ids_n).implode()))
    by_text = dict(samples.select(schemas.TEXT_ID, schemas.SAMPLE_ID).iter_rows())
    found, _ = picture_bytes(tables.path, tables.manifest, list(by_text.values()), pixels=THUMBNAIL_PIXELS)
    if not found:
        return None
    values: list[dict[str, Any] | None] = []
    for text_id in chosen.ids_n.tolist():
        data = found.get(by_text.get(text_id, ""))
        values.append(None if data is None else {"bytes": data, "path": None})
    return pl.Series("image", values, dtype=pl.Struct({"bytes": pl.Binary, "path": pl.String}))
