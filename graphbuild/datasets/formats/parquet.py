"""Captions in Parquet files: a column of strings, or of lists of strings (several captions a sample)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from graphbuild.datasets.base import (
    BATCH_BYTES,
    BATCH_ROWS,
    BrokenRows,
    CaptionBatch,
    Captions,
    OpenSource,
    SourceInfo,
    SourceOptions,
    choose_caption_column,
    refuse_headerless,
    require_columns,
)
from graphbuild.datasets.formats.columns import captions_of, holds_captions, ids_of, is_text, kept_of, unify
from graphbuild.datasets.formats.files import File, describe_files, find_files, is_url, open_parquet
from graphbuild.errors import SourceError, one_line
from graphbuild.store.images import Images, place_of
from graphbuild.system.hub import map_stream
from graphbuild.system.inputs import PARQUET, suffix_of

# Tell classes apart where captions are class names, best first.
_CLASS_COLUMNS = ("wnid", "label", "class")
_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
"""As the Hugging Face hub names files."""
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


class ParquetSource:
    """Any Parquet files with a caption column."""

    info = SourceInfo(
        name="parquet",
        what="Parquet files: a column of captions or class names (strings, or lists of strings: several captions a sample), or of "
        "labels whose names a Hugging Face data set records. Pictures may lie in the same files; folders such as lang=de "
        "are columns.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
        named_by_source=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the files are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check the schemas of all files.

        Raises:
            SourceError: If a file or column is missing, a column has the wrong type, or there are no rows.
        """
        refuse_headerless(options, "parquet")
        options = replace(options, sources=tuple(_hub_data(source) for source in options.sources))
        found = find_files(options.sources, dataset="parquet", suffixes=PARQUET)
        _refuse_mixed_splits(options.sources, found.files)
        headers = {file: read_header(file) for file in found.files}
        opened = open_tables(headers, options)
        opened.counts.update({"hidden_files": found.hidden} if found.hidden else {})
        schema = next(iter(headers.values())).schema
        return replace(opened, images=images_in(schema, options.sources, options.id_column, graph_dir))


def open_tables(headers: dict[File, Header], options: SourceOptions) -> OpenSource:
    """A data set of files of typed columns; its pictures are not looked for.

    Args:
        headers: Of all files, in order.
        options: What the user said.

    Raises:
        SourceError: If a column is missing or has the wrong type, or there are no rows.
    """
    first, header = next(iter(headers.items()))
    caption = _choose_caption(str(first), header, options.caption_column)
    for file, other in headers.items():
        _check_columns(file, other, caption, options)
    if not sum(other.rows for other in headers.values()):
        raise SourceError(f"{', '.join(options.sources)}: no rows. Name files that hold captions with --source.")
    keep = unify({file: header.all_columns() for file, header in headers.items()}, options.keep_columns)
    counts, facts = dict[str, int](), dict[str, Any]()
    broken = BrokenRows(counts, facts) if options.skip_broken else None
    return OpenSource(
        files=describe_files(list(headers)),
        read=lambda: _read(headers, caption, keep, options.id_column, broken),
        caption_column=caption,
        id_column=options.id_column,
        keep_schema=keep,
        class_names=caption in header.class_names,
        class_column=next((name for name in _CLASS_COLUMNS if name in keep.names), None),
        counts=counts,
        facts=facts,
    )


def _hub_data(source: str) -> str:
    """A clone of a data set of the Hugging Face hub keeps its files in `data`."""
    folder = Path(source)
    inner = folder / "data"
    if not inner.is_dir() or any(suffix_of(path.name) in PARQUET for path in folder.iterdir()):
        return source
    return str(inner)


def _refuse_mixed_splits(sources: tuple[str, ...], files: list[File]) -> None:
    """A folder names all its files; those of train and test together are hardly ever meant.

    Raises:
        SourceError: If a folder holds several splits, named as on the Hugging Face hub; they are listed.
    """
    splits = sorted({match[1] for file in files if (match := _SPLIT.fullmatch(file.name))})
    if len(splits) > 1 and len(sources) == 1 and Path(sources[0]).is_dir():
        raise SourceError(
            f"{sources[0]}: holds the splits {', '.join(splits)}. Choose with a pattern, such as --source "
            f"'{sources[0]}/{splits[-1]}-*.parquet', or name several."
        )


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


def class_names_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the labels in each column that is a `ClassLabel` of a Hugging Face data set."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    # Whatever else stands there is none.
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    whole = (name for name in found if name in schema.names and pa.types.is_integer(schema.field(name).type))
    return {name: [str(one).replace("_", " ") for one in found[name]] for name in whole}


def _choose_caption(where: str, header: Header, wanted: str | None) -> str:
    if wanted is None and len(header.class_names) == 1:
        try:
            return choose_caption_column(where, header.names, None)
        except SourceError:
            return next(iter(header.class_names))
    return choose_caption_column(where, header.names, wanted)


def _check_columns(file: File, header: Header, caption: str, options: SourceOptions) -> None:
    id_column = options.id_column
    require_columns(str(file), header.names, (caption, *([id_column] if id_column else []), *options.keep_columns))
    schema = header.schema
    if caption not in schema.names or not (caption in header.class_names or holds_captions(schema.field(caption).type)):
        kind = schema.field(caption).type if caption in schema.names else "a value for each folder"
        raise SourceError(f"{file}: column {caption!r} holds {kind}, not text or lists of text. Choose another.")
    if id_column is not None and not (
        id_column in schema.names and (is_text(schema.field(id_column).type) or pa.types.is_integer(schema.field(id_column).type))
    ):
        kind = schema.field(id_column).type if id_column in schema.names else "a value for each folder"
        raise SourceError(f"{file}: column {id_column!r} holds {kind}; ids are text or whole numbers.")


def images_in(schema: pa.Schema, sources: Sequence[str], id_column: str | None, graph_dir: Path) -> Images | None:
    """The pictures in the only column of them, as a manifest records their place; None where there is none, or several.

    Args:
        schema: Of one of the files.
        sources: Of all files.
        id_column: Of the sample ids.
        graph_dir: Whose manifest it is.
    """
    columns = picture_columns(schema)
    # A manifest names one path or glob; several sources are for `train run --data` to name, as are URLs.
    if len(columns) != 1 or len(sources) != 1 or is_url(sources[0]):
        return None
    return Images(
        kind="parquet",
        path=place_of(sources[0], graph_dir),
        image_column=columns[0],
        id_column=id_column,
        label_column="label" if "label" in schema.names else None,
    )


def picture_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that can hold pictures: bytes, or structs with bytes."""
    return [field.name for field in schema if holds_pictures(field.type)]


def holds_pictures(kind: pa.DataType) -> bool:
    """Return whether a column of this type may hold the bytes of pictures, plain or in the struct of Hugging Face data sets."""
    if pa.types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read(
    headers: dict[File, Header], caption: str, keep: pa.Schema, id_column: str | None, broken: BrokenRows | None
) -> Iterator[CaptionBatch]:
    if broken is not None:
        broken.begin()
    for file, header in headers.items():
        wanted = [caption, *([id_column] if id_column else []), *(name for name in keep.names if name in header.schema.names)]
        constant = {name: value for name, value in header.partition.items() if name not in header.schema.names}
        for first_row, whole in read_tables(file, header, wanted, caption, broken):
            rows, table = _with_ids(whole, id_column, file, first_row, broken)
            captions, invalid = _captions(file, header, caption, table[caption], first_row)
            yield CaptionBatch(
                file=file.name,
                first_row=first_row,
                sample_ids=[f"{file.name}:{row}" for row in rows]
                if id_column is None
                else ids_of(table[id_column], id_column, str(file), first_row),
                captions=captions,
                kept=kept_of(table, keep, str(file), constant),
                invalid_rows=tuple(rows[row] for row in invalid),
                file_rows=tuple(rows) if len(rows) < whole.num_rows else None,
            )


def _with_ids(
    table: pa.Table, id_column: str | None, file: File, first_row: int, broken: BrokenRows | None
) -> tuple[Sequence[int], pa.Table]:
    """The rows that have an id, and their places in the file; all, where those without one are not left out."""
    rows = range(first_row, first_row + table.num_rows)
    if broken is None or id_column is None or not table[id_column].null_count:
        return rows, table
    has_id = table[id_column].is_valid()
    for row in pc.indices_nonzero(pc.invert(has_id)).to_pylist():
        broken.add(f"{file.name}: row {first_row + row:,} has no id in column {id_column!r}")
    return [rows[row] for row in pc.indices_nonzero(has_id).to_pylist()], table.filter(has_id)


def _captions(
    file: File, header: Header, caption: str, column: pa.ChunkedArray, first_row: int
) -> tuple[list[Captions], list[int]]:
    names = header.class_names.get(caption)
    if names is None:
        return captions_of(column)
    codes = column.to_pylist()
    for row, code in enumerate(codes):
        # -1 says that there is no label.
        if code is not None and not -1 <= code < len(names):
            raise SourceError(f"{file}: row {first_row + row:,} has the label {code}, but the file names {len(names)} classes.")
    return [[None if code is None or code < 0 else names[code]] for code in codes], []


def read_tables(
    file: File, header: Header, wanted: Sequence[str], caption: str, broken: BrokenRows | None = None
) -> Iterator[tuple[int, pa.Table]]:
    """Some columns of a file, in tables of at most `BATCH_ROWS` rows and about `BATCH_BYTES` bytes, each with its first row.

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


SOURCE = ParquetSource()
