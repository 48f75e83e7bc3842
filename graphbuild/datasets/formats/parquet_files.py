"""Parquet files of captions as they are: what their footers say, their types, and their rows in tables of bounded size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.datasets.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    BrokenRows,
)
from graphbuild.datasets.formats.files import File, open_parquet
from graphbuild.errors import SourceError, one_line
from graphbuild.system.hub import map_stream

_PARTITION = re.compile(r"([^=]+)=(.+)")
"""A folder of a hive-partitioned data set: a column and its value in all files below."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself."""

    schema: pa.Schema
    rows: int
    metadata: pq.FileMetaData | None
    """The footer; None of an Arrow stream."""
    partition: dict[str, str] = field(default_factory=dict)
    """Columns that the names of its folders give."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Of columns of labels: what the numbers stand for, as Hugging Face data sets record it."""

    @property
    def names(self) -> list[str]:
        """The names of all columns."""
        names: list[str] = self.all_columns().names
        return names

    def all_columns(self) -> pa.Schema:
        """Return the types of all columns; those that folders give are text."""
        folders = [pa.field(name, pa.string()) for name in self.partition if name not in self.schema.names]
        return pa.schema([*self.schema, *folders])


def read_header(file: File) -> Header:
    """Return the footer of a file.

    Raises:
        SourceError: If it is no Parquet file, or a truncated one.
    """
    with open_parquet(file) as opened:
        schema: pa.Schema = opened.schema_arrow
        parts = PurePosixPath(str(file)).parent.parts
        partition = {match[1]: match[2] for part in parts if (match := _PARTITION.fullmatch(part))}
        return Header(schema.remove_metadata(), opened.metadata.num_rows, opened.metadata, partition, class_names_of(schema))


def read_stream_header(file: File) -> Header:
    """Return what an Arrow stream says about itself, as `datasets` saves them.

    Raises:
        SourceError: If it is none, or cut short.
    """
    table = map_stream(Path(str(file.place)))
    return Header(table.schema.remove_metadata(), table.num_rows, None, class_names=class_names_of(table.schema))


def class_names_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the labels in each column that is a `ClassLabel` of a Hugging Face data set."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    # Whatever else stands there is none.
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    whole = (name for name in found if name in schema.names and pa.types.is_integer(schema.field(name).type))
    return {name: [str(one).replace("_", " ") for one in found[name]] for name in whole}


def picture_columns(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that can hold pictures: bytes, or structs with bytes."""
    return [field.name for field in schema if holds_pictures(field.type)]


def holds_pictures(kind: pa.DataType) -> bool:
    """Return whether a column of this type may hold the bytes of pictures, plain or in the struct of Hugging Face data sets."""
    if pa.types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_tables(
    file: File, header: Header, wanted: Sequence[str], caption: str, broken: BrokenRows | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Read some columns of a file, in tables of at most `BATCH_ROWS` rows and about `BATCH_BYTES` bytes, each with its first row.

    Args:
        file: A Parquet file.
        header: Its footer.
        wanted: The columns.
        caption: The one of the captions.
        broken: Told of row groups that cannot be read, which are left out; None: they are errors.

    Raises:
        SourceError: If the file is damaged; the row is named.
    """
    names = list(dict.fromkeys(wanted))
    if header.metadata is None:
        yield from _stream_tables(file, names)
        return
    kind = header.schema.field(caption).type
    # Repeated texts then stay one text each, however often they are repeated.
    dictionary = [caption] if pa.types.is_string(kind) or pa.types.is_large_string(kind) else []
    groups = [header.metadata.row_group(number).num_rows for number in range(header.metadata.num_row_groups)]
    # Row groups one by one only where one may be left out: many small ones are read faster together.
    parts = [list(range(len(groups)))] if broken is None else [[number] for number in range(len(groups))]
    with open_parquet(file, metadata=header.metadata, read_dictionary=dictionary) as opened:
        for part in parts:
            first_row = start = sum(groups[: part[0]]) if part else 0
            try:
                for batch in opened.iter_batches(_batch_rows(header.metadata, names), columns=names, row_groups=part):
                    yield first_row, pa.Table.from_batches([batch])
                    first_row += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                why = f"cannot be read beyond row {first_row:,} ({one_line(str(error))})"
                if broken is None:
                    raise SourceError(f"{file}: {why}. Fetch it again.") from error
                last = start + groups[part[0]]
                broken.add(f"{file.name}: {why}, up to row {last - 1:,}", rows=last - first_row)


def _stream_tables(file: File, names: list[str]) -> Iterator[tuple[int, pa.Table]]:
    table = map_stream(Path(str(file.place))).select(names)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES * table.num_rows // max(table.nbytes, 1)))
    for start in range(0, table.num_rows, rows):
        yield start, table.slice(start, rows)


def _batch_rows(metadata: pq.FileMetaData, names: Sequence[str]) -> int:
    rows = BATCH_ROWS
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        chunks = (group.column(number) for number in range(group.num_columns))
        used = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in names)
        rows = min(rows, BATCH_BYTES * group.num_rows // max(used, 1))
    return max(1, rows)
