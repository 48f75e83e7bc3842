"""Images in Parquet files: bytes in a binary column, plain or in the `{bytes, path}` struct of Hugging Face data sets.

Row groups are found by an index that is built once; those read last are kept, within a bound, so that reading in
random order does not read a row group again for every image.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.errors import SourceError, one_line
from graphbuild.store.arrays import Int64
from graphbuild.system.inputs import file_names
from train.data.base import Encoded
from train.data.label_columns import LabelColumns


@dataclass(frozen=True, slots=True)
class _Group:
    file: int
    number: int
    start: int


class ParquetImages(LabelColumns):
    """Images of one or more Parquet files, in the order of the files and their rows."""

    def __init__(self, paths: Sequence[Path], *, image_column: str | None = None, id_column: str | None = None) -> None:
        """Read the schema and the ids.

        Raises:
            SourceError: If a file is missing or no Parquet, a column does not exist, or there are no rows.
        """
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"
        self._paths = list(paths)
        # Footers are parsed once: that of a file of many row groups takes longer than reading one of them.
        footers = [_footer(path) for path in paths]
        self._metadata, self._schema = [metadata for metadata, _ in footers], footers[0][1]
        self.image_column = choose_image_column(self.name, self._schema, image_column)
        self.id_column = id_column
        self._groups, self._starts, self._rows = _index(
            paths, self._metadata, [self.image_column, *([id_column] if id_column else [])]
        )
        self.sample_ids: Sequence[str] = self._read_ids()
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._kept_bytes = 0
        self.keep_bytes = 2 << 30
        """Encoded images kept in memory, at most."""
        self._metas: pa.Table | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the stored bytes of some images; None where a cell is null."""
        groups = np.searchsorted(self._starts, np.asarray(indices), side="right") - 1
        result: list[Encoded] = [None] * len(indices)
        for group in np.unique(groups):
            column = self._group(int(group))
            for position in np.flatnonzero(groups == group):
                result[position] = column[int(indices[int(position)]) - self._groups[group].start].as_py()
        return result

    def _group(self, number: int) -> pa.ChunkedArray:
        # Under the lock: two threads would otherwise read the same row group twice.
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            group = self._groups[number]
            column = self._read_group(group)
            if pa.types.is_struct(column.type):
                column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks], type=column.type.field("bytes").type)
            self._kept[number] = column
            self._kept_bytes += column.nbytes
            while self._kept_bytes > self.keep_bytes and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return column

    def _read_group(self, group: _Group) -> pa.ChunkedArray:
        path = self._paths[group.file]
        try:
            with pq.ParquetFile(path, metadata=self._metadata[group.file]) as opened:
                return opened.read_row_group(group.number, columns=[self.image_column])[self.image_column]
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"{path}: row group {group.number} cannot be read ({one_line(str(error))}). Restore the file, and run again."
            ) from None

    @property
    def random_order_note(self) -> str:
        """What a user should know about reading in random order; empty if the images stay in memory once they are read."""
        sizes = [_image_bytes(metadata, self.image_column) for metadata in self._metadata]
        total, groups = sum(sizes), len(self._groups)
        if total <= self.keep_bytes:
            return ""
        return (
            f"{self.name}: {total / 1e9:.1f} GB of images do not stay in memory, and Parquet is read a row group at a time "
            f"({total / groups / 1e6:.0f} MB), for single images, too. `train reshard` writes shards that are read by position."
        )

    def _read_ids(self) -> list[str]:
        if self.id_column is None:
            counts = [metadata.num_rows for metadata in self._metadata]
            names = file_names([str(path.absolute()) for path in self._paths])
            return [f"{name}:{row}" for name, count in zip(names, counts, strict=True) for row in range(count)]
        return [str(value) for value in self._column(self.id_column)]

    def _column(self, name: str) -> list[object]:
        values: list[object] = []
        for path in self._paths:
            table = _read_columns(path, [name])
            values += table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        return values

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the columns of integers, strings or booleans."""
        if self._metas is None:
            # All of them: they are small beside the images, and asked for in any order.
            tables = [_read_columns(path, self.label_columns()) for path in self._paths]
            self._metas = pa.concat_tables(tables, promote_options="permissive")
        rows: list[dict[str, Any]] = self._metas.take(pa.array(indices, pa.int64())).to_pylist()
        return rows


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of images, or of what lies beside them.

    Raises:
        SourceError: If it is missing or no Parquet, or cannot be read while it is open.
    """
    try:
        with pq.ParquetFile(path) as opened:
            yield opened
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. Check --data.") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: not a readable Parquet file ({one_line(str(error))}). Was it copied completely?") from None


def _footer(path: Path) -> tuple[pq.FileMetaData, pa.Schema]:
    with open_parquet(path) as opened:
        return opened.metadata, opened.schema_arrow


def _read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    with open_parquet(path) as opened:
        return opened.read([name for name in columns if name in opened.schema_arrow.names])


def _image_bytes(metadata: pq.FileMetaData, column: str) -> int:
    """Uncompressed size of the images of a file."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def _index(paths: Sequence[Path], metadata: Sequence[pq.FileMetaData], columns: Sequence[str]) -> tuple[list[_Group], Int64, int]:
    """Every row group, the row at which each starts, and the number of rows."""
    groups: list[_Group] = []
    rows = 0
    for file, (path, one) in enumerate(zip(paths, metadata, strict=True)):
        names = one.schema.to_arrow_schema().names
        for column in columns:
            if names.count(column) != 1:
                what = "no column" if column not in names else "several columns called"
                raise SourceError(f"{path}: {what} {column!r}; the columns are: {', '.join(names)}.")
        for number in range(one.num_row_groups):
            groups.append(_Group(file, number, rows))
            rows += one.row_group(number).num_rows
    if not rows:
        raise SourceError(f"{paths[0]}: holds no rows. Check --data.")
    return groups, np.array([group.start for group in groups], dtype=np.int64), rows


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in {item.name for item in kind} and _holds_images(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def choose_image_column(where: str, schema: pa.Schema, wanted: str | None) -> str:
    """Return the column of images: the one asked for, else the only binary one.

    Raises:
        SourceError: If there is none, or several; the columns are named.
    """
    binary: list[str] = [item.name for item in schema if _holds_images(item.type)]
    if wanted is not None:
        if wanted not in schema.names:
            raise SourceError(f"{where}: no column {wanted!r}; the columns are: {', '.join(schema.names)}.")
        if wanted not in binary:
            raise SourceError(f"{where}: column {wanted!r} holds {schema.field(wanted).type}, not image bytes.")
        return wanted
    if len(binary) != 1:
        found = f"several binary columns ({', '.join(binary)})" if binary else f"no binary column among {', '.join(schema.names)}"
        raise SourceError(f"{where}: {found}. Name the images with --image-column.")
    return binary[0]
