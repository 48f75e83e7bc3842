"""Parquet read, and Arrow files mapped, with errors that name the file and what to do.

Shape letters: n rows of a file, Q texts asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ensure_parquet, shard_ranges
from graphbuild.store.verified import require_verified

REMEDY = "Run `graphbuild embed` again with the same options: it rebuilds this file alone."


def read_parquet(path: Path, columns: Sequence[str] | None = None, *, remedy: str = REMEDY) -> pa.Table:
    """Read a Parquet file, or some of its columns.

    Raises:
        ArtifactError: If it is missing, no Parquet, or lacks a column.
    """
    try:
        # No partitioning: a folder named `a=1` above the graph is no column.
        return pq.read_table(path, columns=None if columns is None else list(columns), partitioning=None)
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {remedy}") from error


@contextmanager
def open_parquet(path: Path, *, remedy: str = REMEDY, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file, to be read piece by piece.

    Args:
        path: The file.
        remedy: The end of the message: what to do.
        options: Of `pyarrow.parquet.ParquetFile`.

    Raises:
        ArtifactError: If it is missing or no Parquet, or cannot be read while it is open.
    """
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {remedy}") from error


def ensure_shard(graph_dir: Path, folder: str, index: int, table: pa.Table, *, key: str) -> Receipt:
    """Write one Parquet shard of a folder, unless it is finished, and return its receipt."""
    return ensure_parquet(graph_dir, schemas.part_name(folder, index), table, key=key)


def ensure_shards(graph_dir: Path, folder: str, table: pa.Table, size: int, *, key: str) -> list[Receipt]:
    """Cut a table into the Parquet shards of a folder; those that are finished stay.

    Args:
        graph_dir: The graph.
        folder: The stage's folder in it.
        table: Rows of all shards.
        size: Rows a shard.
        key: Digest of all that the bytes depend on.

    Returns:
        Their receipts, in order.
    """
    return [
        ensure_shard(graph_dir, folder, shard.index, table.slice(shard.start, len(shard)).combine_chunks(), key=key)
        for shard in shard_ranges(table.num_rows, size)
    ]


def with_text_ids(samples: pa.Table, text_ids: NDArray[np.int32]) -> pa.Table:
    """Return rows of a samples table with other texts."""
    at = samples.column_names.index(schemas.TEXT_ID)
    return samples.set_column(at, samples.schema.field(at), pa.array(text_ids))


def map_arrow(path: Path, columns: Sequence[str], *, rows: int, remedy: str) -> pa.RecordBatch:
    """Map an Arrow file of one uncompressed record batch; its buffers are as long as its rows need.

    Args:
        path: The file.
        columns: Names of the columns that it must have, without nulls.
        rows: How many rows it must have.
        remedy: The end of the message: what to do.

    Raises:
        ArtifactError: If it is missing, cut short, or not such a file.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        batch.validate()
        nulls = [name for name in columns if batch.column(name).null_count]
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {remedy}") from error
    if nulls or batch.num_rows != rows:
        what = f"nulls in {nulls[0]}" if nulls else f"{batch.num_rows:,} rows, not {rows:,}"
        raise ArtifactError(f"{path}: holds {what}. {remedy}")
    return batch


def read_texts(
    graph_dir: Path, shards: Iterable[Receipt], ids_Q: NDArray[np.integer], *, verify: bool | None = None
) -> dict[int, str]:
    """Read the texts of some ids; only the shards that hold them are read.

    Args:
        graph_dir: The graph directory.
        shards: Receipts of all its shards of texts, in order.
        ids_Q: Text ids, in any order, repeated or not; (Q,).
        verify: Whether digests are compared; see `require_verified`.

    Returns:
        Text by id.

    Raises:
        ArtifactError: If a shard is missing or damaged, or there is no text of an id.
    """
    wanted_Q, start = np.unique(ids_Q), 0
    parts: list[tuple[Receipt, NDArray[np.integer]]] = []
    for shard in shards:
        here = wanted_Q[(wanted_Q >= start) & (wanted_Q < start + shard.rows)]
        if len(here):
            parts.append((shard, here - start))
        start += shard.rows
    if len(outside := wanted_Q[(wanted_Q < 0) | (wanted_Q >= start)]):
        raise ArtifactError(f"{graph_dir}: there is no text {outside[0]}; ids run from 0 to {start - 1:,}. {REMEDY}")
    require_verified(graph_dir, [shard for shard, _ in parts], remedy=REMEDY, verify=verify)
    texts = [text for shard, rows in parts for text in _texts_of(graph_dir, shard).take(pa.array(rows)).to_pylist()]
    return dict(zip(wanted_Q.tolist(), texts, strict=True))


def find_text(graph_dir: Path, shards: Iterable[Receipt], text: str, *, verify: bool | None = None) -> int | None:
    """Return the id of a text, compared character by character; None if the graph does not have it.

    Raises:
        ArtifactError: If a shard is missing or damaged.
    """
    shards, start = list(shards), 0
    require_verified(graph_dir, shards, remedy=REMEDY, verify=verify)
    for shard in shards:
        place: int = pc.index(_texts_of(graph_dir, shard), text).as_py()
        if place >= 0:
            return start + place
        start += shard.rows
    return None


def _texts_of(graph_dir: Path, shard: Receipt) -> pa.ChunkedArray:
    column = read_parquet(graph_dir / shard.path, [schemas.TEXT])[schemas.TEXT]
    if len(column) != shard.rows:
        raise ArtifactError(f"{graph_dir / shard.path}: holds {len(column):,} rows, not {shard.rows:,}. {REMEDY}")
    return column
