"""A graph directory as lazy Polars tables: what `graphbuild.open` gives.

Tables: texts, samples, edges (src, dst, rank, similarity; one row per stored neighbour, rank 1 the nearest) and embeddings.
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

from graphbuild import schemas
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.graph import Graph, Rows
from graphbuild.manifest import Manifest
from graphbuild.shards import Receipt, damage

if TYPE_CHECKING:
    import polars as pl

    from graphbuild.health import Health
    from graphbuild.nearest import NearestTexts

EDGES = "edges"
SRC, DST, RANK, SIMILARITY = "src", "dst", "rank", "similarity"
_EDGES_A_BATCH = 1 << 19
_COMMANDS = {"text": "embed", "embed": "embed", "knn": "knn"}


class GraphView:
    """A graph directory, to look at. Made by `graphbuild.open`."""

    def __init__(self, graph_dir: Path) -> None:
        self.path = graph_dir
        self.manifest = Manifest.load(graph_dir)

    def __repr__(self) -> str:
        return f"GraphView({str(self.path)!r}: {self.manifest.counts.get('texts', 0):,} texts, {', '.join(self.manifest.stages)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # What was opened is opened again where it is needed.
        return GraphView, (self.path,)

    @cached_property
    def graph(self) -> Graph:
        """The reader of neighbour rows, as arrays.

        Raises:
            ArtifactError: If the knn stage is not done, or a shard is missing or damaged.
        """
        return Graph.open(self.path)

    @cached_property
    def _nearest(self) -> NearestTexts:
        from graphbuild.nearest import NearestTexts

        return NearestTexts.open(self.path)

    @property
    def texts(self) -> pl.LazyFrame:
        """text_id int32, text, text_hash uint64, sample_count int32; in order of text_id.

        Raises:
            ArtifactError: If the stage is not done, or a file is missing or cut short; also for the tables below.
        """
        counts = self._parquet("text", schemas.COUNTS)
        return self._parquet("text", schemas.TEXTS).join(counts, on=schemas.TEXT_ID, maintain_order="left")

    @property
    def samples(self) -> pl.LazyFrame:
        """sample_id, sample_hash uint64, text_id int32, and the kept columns; in order of the source."""
        return self._parquet("text", schemas.SAMPLES)

    @property
    def embeddings(self) -> pl.LazyFrame:
        """text_id int32, text_hash uint64, embedding Array(Float16, D): unit vectors."""
        return self._parquet("embed", schemas.EMBEDDINGS)

    @property
    def edges(self) -> pl.LazyFrame:
        """src int32, dst int32, rank int32 (1 the nearest), similarity float32; by src, then rank."""
        import polars as pl
        from polars.io.plugins import register_io_source

        self._intact("knn", schemas.KNN)
        # float32, for averages of float16 would be float16: too coarse for millions of rows.
        schema = {SRC: pl.Int32(), DST: pl.Int32(), RANK: pl.Int32(), SIMILARITY: pl.Float32()}
        return register_io_source(_EdgeSource(self.path), schema=schema, is_pure=True)

    def tables(self) -> dict[str, pl.LazyFrame]:
        """The tables that are there, by name: texts, samples, embeddings, edges."""
        stages = {schemas.TEXTS: "text", schemas.SAMPLES: "text", schemas.EMBEDDINGS: "embed", EDGES: "knn"}
        return {name: getattr(self, name) for name, stage in stages.items() if stage in self.manifest.stages}

    def neighbors(self, text: str | int, *, count: int = 10) -> pl.DataFrame:
        """The nearest texts of a text.

        Args:
            text: A text id, or a text. One that the graph holds is looked up; any other is embedded by the graph's encoder.
            count: How many; no more than are stored of a text in the graph.

        Returns:
            rank, text_id, similarity, text; nearest first.

        Raises:
            OptionError: If there is no such text id, or the text is blank.
            ArtifactMismatch: If a text must be embedded and the encoder at hand is not the graph's.
        """
        import polars as pl

        text_id = text if isinstance(text, int) else self._find(text)
        if text_id is None:
            found = self._nearest.find(str(text), count=count).found
            ids, values = [near.text_id for near in found], [near.similarity for near in found]
            return _ranked(ids, values).with_columns(pl.Series(schemas.TEXT, [near.text for near in found], dtype=pl.String))
        row = self._row(text_id)
        ids, values = row.neighbor_ids[0, :count].tolist(), row.similarities[0, :count].astype(float).tolist()
        frame = _ranked(ids, values)
        return frame.join(self.texts_of(ids), on=schemas.TEXT_ID, how="left", maintain_order="left")

    def texts_of(self, ids: list[int]) -> pl.DataFrame:
        """text_id and text of some texts; in order of text_id."""
        import polars as pl

        wanted = pl.col(schemas.TEXT_ID).is_in(pl.Series(sorted(set(ids)), dtype=pl.Int32).implode())
        return self._parquet("text", schemas.TEXTS).select(schemas.TEXT_ID, schemas.TEXT).filter(wanted).collect(engine="streaming")

    def health(self, **options: Any) -> Health:
        """How good the graph is, measured; see `graphbuild.health.check_health` for the options."""
        from graphbuild.health import check_health

        return check_health(self, **options)

    def _find(self, text: str) -> int | None:
        import polars as pl

        same = self._parquet("text", schemas.TEXTS).filter(pl.col(schemas.TEXT) == text).select(schemas.TEXT_ID)
        ids = same.head(1).collect(engine="streaming").to_series().to_list()
        return ids[0] if ids else None

    def _row(self, text_id: int) -> Rows:
        if not 0 <= text_id < self.graph.n_texts:
            raise OptionError(f"{self.path}: no text_id {text_id}; they run from 0 to {self.graph.n_texts - 1:,}.")
        return self.graph.rows([text_id])

    def _parquet(self, stage: str, folder: str) -> pl.LazyFrame:
        import polars as pl

        return pl.scan_parquet(self._intact(stage, folder))

    def _intact(self, stage: str, folder: str) -> list[Path]:
        """The files of a table; by size, for `verify` compares digests."""
        receipts = stage_files(self.manifest, stage, folder, self.path)
        for receipt in receipts:
            if problem := damage(self.path, receipt, digest=False):
                remedy = f"Run `graphbuild {_COMMANDS[stage]}` again: it rebuilds only what is damaged."
                raise ArtifactError(f"{self.path / receipt.path} {problem}. {remedy}")
        return [self.path / receipt.path for receipt in receipts]


def stage_files(manifest: Manifest, stage: str, folder: str, graph_dir: Path) -> list[Receipt]:
    """Receipts of the files that one folder of a stage holds, in order.

    Raises:
        ArtifactError: If the stage is not done.
    """
    files = manifest.require(stage, graph_dir).files
    return [receipt for name, receipt in sorted(files.items()) if name.startswith(f"{folder}/")]


def _ranked(ids: list[int], similarities: list[float]) -> pl.DataFrame:
    """rank, text_id and similarity, nearest first."""
    import polars as pl

    schema = {RANK: pl.Int32, schemas.TEXT_ID: pl.Int32, SIMILARITY: pl.Float32}
    return pl.DataFrame([range(1, len(ids) + 1), ids, similarities], schema=schema)


class _EdgeSource:
    """Makes batches of edges from the mapped shards. Opens the graph when it runs, so that plans can be pickled."""

    def __init__(self, graph_dir: Path) -> None:
        self._graph_dir = graph_dir

    def __call__(
        self, with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        import polars as pl

        graph = Graph.open(self._graph_dir)
        wanted = with_columns if with_columns is not None else [SRC, DST, RANK, SIMILARITY]
        left = n_rows
        for first, rows in graph_blocks(graph, _EDGES_A_BATCH):
            frame = pl.DataFrame({name: _COLUMNS[name](first, rows) for name in wanted})
            if predicate is not None:
                frame = frame.filter(predicate)
            if left is not None:
                frame = frame.head(left)
                left -= len(frame)
            yield frame
            if left == 0:
                return


def graph_blocks(graph: Graph, edges_a_block: int) -> Iterator[tuple[int, Rows]]:
    """First text id and stored rows of consecutive blocks of about so many edges; views of the mapped files."""
    size = max(1, edges_a_block // max(graph.k, 1))
    for start, rows in graph.shard_rows():
        count = len(rows.sketch_scale)
        for first in range(0, count, size):
            part = slice(first, min(first + size, count))
            yield (
                start + first,
                Rows(rows.neighbor_ids[part], rows.similarities[part], rows.sketch[part], rows.sketch_scale[part]),
            )


_COLUMNS: dict[str, Callable[[int, Rows], np.ndarray[Any, Any]]] = {
    SRC: lambda first, rows: np.repeat(
        np.arange(first, first + len(rows.neighbor_ids), dtype=np.int32), rows.neighbor_ids.shape[1]
    ),
    DST: lambda first, rows: rows.neighbor_ids.reshape(-1),
    RANK: lambda first, rows: np.tile(np.arange(1, rows.neighbor_ids.shape[1] + 1, dtype=np.int32), len(rows.neighbor_ids)),
    SIMILARITY: lambda first, rows: rows.similarities.reshape(-1).astype(np.float32),
}
