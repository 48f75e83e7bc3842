"""A graph directory as lazy Polars tables.

Tables: texts, samples, edges (src, dst, rank, similarity; one row per stored neighbour, rank 1 the nearest), embeddings, and
rescored, the edges by a cross-encoder's similarity.
Nothing is read before a query is collected, and then only the columns that it names. Edges are made from the mapped
neighbour shards a few thousand rows at a time, so that `collect(engine="streaming")` counts billions of them in little
memory. Fixed-size lists are Array columns: use `.arr`, not `.list`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphbuild.store import schemas
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import COMMANDS, Manifest
from graphbuild.store.neighbors import Rows
from graphbuild.store.tables import read_texts
from graphbuild.store.verified import require_verified

if TYPE_CHECKING:
    import polars as pl

EDGES = "edges"
SRC, DST, RANK, SIMILARITY = "src", "dst", "rank", "similarity"
_EDGES_A_BATCH = 1 << 19
EDGES_A_BLOCK = 1 << 21


class Frames:
    """The tables of a graph directory."""

    def __init__(self, graph_dir: Path, *, verify: bool | None = None) -> None:
        # Absolute, because it outlives a change of the working folder.
        self.path = graph_dir.absolute()
        self.manifest = Manifest.load(self.path)
        self._verify = verify

    def __repr__(self) -> str:
        done = ", ".join(self.manifest.stages)
        return f"{type(self).__name__}({str(self.path)!r}: {self.manifest.counts.get('texts', 0):,} texts, {done})"

    def __reduce__(self) -> tuple[Any, ...]:
        # What was opened is opened again where it is needed.
        return _reopen, (type(self), self.path, self._verify)

    @cached_property
    def graph(self) -> Graph:
        """The reader of neighbour rows, as arrays.

        Raises:
            ArtifactError: If the knn stage is not done, or a shard is missing or damaged.
        """
        return Graph.open(self.path, verify=self._verify)

    @property
    def texts(self) -> pl.LazyFrame:
        """text_id int32, text, text_hash uint64, sample_count and caption_count int32; in order of text_id.

        In graphs of versions that counted only captions both counts are theirs.

        Raises:
            ArtifactError: If the stage is not done, or a file is missing or damaged; also for the tables below.
        """
        import polars as pl

        counts = self.parquet("text", schemas.COUNTS)
        if schemas.CAPTION_COUNT not in counts.collect_schema():
            counts = counts.with_columns(pl.col(schemas.SAMPLE_COUNT).alias(schemas.CAPTION_COUNT))
        return self.parquet("text", schemas.TEXTS).join(counts, on=schemas.TEXT_ID, maintain_order="left")

    @property
    def samples(self) -> pl.LazyFrame:
        """sample_id, sample_hash uint64, text_id int32, and the kept columns; in order of the source."""
        return self.parquet("text", schemas.SAMPLES)

    @property
    def embeddings(self) -> pl.LazyFrame:
        """text_id int32, text_hash uint64, embedding Array(Float16, D): unit vectors."""
        return self.parquet("embed", schemas.EMBEDDINGS)

    @property
    def edges(self) -> pl.LazyFrame:
        """src int32, dst int32, rank int32 (1 the nearest), similarity float32; by src, then rank."""
        import polars as pl
        from polars.io.plugins import register_io_source

        self._intact("knn", schemas.KNN)
        # float32, because averages of float16 would be float16: too coarse for millions of rows.
        schema = {SRC: pl.Int32(), DST: pl.Int32(), RANK: pl.Int32(), SIMILARITY: pl.Float32()}
        return register_io_source(_EdgeSource(self.path, self._verify), schema=schema, is_pure=True)

    @property
    def rescored(self) -> pl.LazyFrame:
        """src int32, dst int32, rank int32, similarity by the cross-encoder and stored_similarity float32; by src, then rank."""
        import polars as pl

        lists, ranks = [schemas.NEIGHBOR_IDS, schemas.SIMILARITIES, schemas.STORED_SIMILARITIES], pl.int_range(1, pl.len() + 1)
        rows = pl.scan_ipc(self._intact("rescore", schemas.RESCORED), glob=False, hive_partitioning=False)
        edges = rows.with_columns(pl.col(name).arr.to_list() for name in lists).explode(lists)
        return edges.select(
            pl.col(schemas.TEXT_ID).alias(SRC),
            pl.col(schemas.NEIGHBOR_IDS).alias(DST),
            ranks.over(schemas.TEXT_ID).cast(pl.Int32).alias(RANK),
            pl.col(schemas.SIMILARITIES).cast(pl.Float32).alias(SIMILARITY),
            pl.col(schemas.STORED_SIMILARITIES).cast(pl.Float32).alias("stored_similarity"),
        )

    def tables(self) -> dict[str, pl.LazyFrame]:
        """Return the tables that are there, by name: texts, samples, embeddings, edges, rescored."""
        stages = {
            schemas.TEXTS: "text",
            schemas.SAMPLES: "text",
            schemas.EMBEDDINGS: "embed",
            EDGES: "knn",
            schemas.RESCORED: "rescore",
        }
        return {name: getattr(self, name) for name, stage in stages.items() if stage in self.manifest.stages}

    def texts_of(self, ids: list[int]) -> pl.DataFrame:
        """Return text_id and text of some texts; in order of text_id."""
        import polars as pl

        shards = self.manifest.require("text", self.path).in_folder(schemas.TEXTS)
        found = read_texts(self.path, shards, np.array(ids, np.int64), verify=self._verify)
        return pl.DataFrame(list(found.items()), schema={schemas.TEXT_ID: pl.Int32, schemas.TEXT: pl.String}, orient="row")

    def parquet(self, stage: str, folder: str) -> pl.LazyFrame:
        """Return the Parquet files of a folder of a stage, as one table."""
        import polars as pl

        # The names are names: `[1]` in a folder is no pattern, and `a=1` no column.
        return pl.scan_parquet(self._intact(stage, folder), glob=False, hive_partitioning=False)

    def _intact(self, stage: str, folder: str) -> list[Path]:
        """The files of a table, compared with their receipts."""
        receipts = self.manifest.require(stage, self.path).in_folder(folder)
        remedy = f"Run `graphbuild {COMMANDS[stage]}` again: it rebuilds only what is damaged."
        require_verified(self.path, receipts, remedy=remedy, verify=self._verify)
        return [self.path / receipt.path for receipt in receipts]


def _reopen(kind: type[Frames], graph_dir: Path, verify: bool | None) -> Frames:
    """Open a graph where it was sent to."""
    return kind(graph_dir, verify=verify)


class _EdgeSource:
    """Makes batches of edges from the mapped shards. Opens the graph when it runs, so that plans can be pickled."""

    def __init__(self, graph_dir: Path, verify: bool | None) -> None:
        self._graph_dir, self._verify = graph_dir, verify

    def __call__(
        self, with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        import polars as pl

        graph = Graph.open(self._graph_dir, verify=self._verify)
        wanted = with_columns if with_columns is not None else [SRC, DST, RANK, SIMILARITY]
        left = n_rows
        for first, rows in graph_blocks(graph, _EDGES_A_BATCH):
            frame = pl.DataFrame({name: EDGE_COLUMNS[name](first, rows) for name in wanted})
            if predicate is not None:
                frame = frame.filter(predicate)
            if left is not None:
                frame = frame.head(left)
                left -= len(frame)
            yield frame
            if left == 0:
                return


def graph_blocks(graph: Graph, edges_a_block: int = EDGES_A_BLOCK) -> Iterator[tuple[int, Rows]]:
    """Yield the first text id and stored rows of consecutive blocks of about so many edges; views of the mapped files."""
    size = max(1, edges_a_block // max(graph.k, 1))
    for start, rows in graph.shard_rows():
        count = len(rows.sketch_scale)
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            yield (
                start + first,
                Rows(rows.neighbor_ids[part], rows.similarities[part], rows.sketch[part], rows.sketch_scale[part]),
            )


EDGE_COLUMNS: dict[str, Callable[[int, Rows], np.ndarray[Any, Any]]] = {
    SRC: lambda first, rows: np.repeat(
        np.arange(first, first + len(rows.neighbor_ids), dtype=np.int32), rows.neighbor_ids.shape[1]
    ),
    DST: lambda first, rows: rows.neighbor_ids.reshape(-1),
    RANK: lambda first, rows: np.tile(np.arange(1, rows.neighbor_ids.shape[1] + 1, dtype=np.int32), len(rows.neighbor_ids)),
    SIMILARITY: lambda first, rows: rows.similarities.reshape(-1).astype(np.float32),
}
