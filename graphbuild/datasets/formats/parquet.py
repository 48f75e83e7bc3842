"""Captions in Parquet files: a column of strings, or of lists of strings (several captions a sample)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphbuild.datasets.base import (
    BATCH_ROWS,
    CaptionBatch,
    Captions,
    OpenSource,
    SourceInfo,
    SourceOptions,
    choose_caption_column,
    image_path,
    mend,
    nothing_kept,
    require_columns,
)
from graphbuild.datasets.formats.files import File, describe_files, find_files, is_url, open_parquet
from graphbuild.errors import SourceError

# Tell classes apart where captions are class names, best first.
_CLASS_COLUMNS = ("wnid", "label", "class")
_SUFFIXES = (".parquet", ".pq")
_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
"""As the Hugging Face hub names files."""


class ParquetSource:
    """Any Parquet files with a caption column."""

    info = SourceInfo(
        name="parquet",
        what="Parquet files: a column of captions or class names (strings, or lists of strings: several captions a sample). "
        "Pictures may lie in the same files.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Nothing to write."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check the schemas of all files.

        Raises:
            SourceError: If a file or column is missing, a column has the wrong type, or there are no rows.
        """
        options = replace(options, sources=tuple(_hub_data(source) for source in options.sources))
        paths = find_files(options.sources, dataset="parquet", suffixes=_SUFFIXES)
        _refuse_mixed_splits(options.sources, paths)
        headers = {path: _read_header(path) for path in paths}
        schema, _ = headers[paths[0]]
        caption_column = choose_caption_column(str(paths[0]), schema.names, options.caption_column)
        used = tuple(dict.fromkeys((caption_column, *([options.id_column] if options.id_column else []), *options.keep_columns)))
        for path, (other, _) in headers.items():
            _check_columns(path, other, caption_column, options.id_column, used)
        if not sum(rows for _, rows in headers.values()):
            raise SourceError(f"{', '.join(options.sources)}: no rows. Name files that hold captions with --source.")
        return OpenSource(
            files=describe_files(paths),
            read=lambda: _read(paths, caption_column, options),
            caption_column=caption_column,
            id_column=options.id_column,
            keep_schema=pa.schema([schema.field(name) for name in options.keep_columns]),
            class_column=next((name for name in _CLASS_COLUMNS if name in options.keep_columns), None),
            images=_images(schema, options, graph_dir),
        )


def _hub_data(source: str) -> str:
    """A clone of a data set of the Hugging Face hub keeps its files in `data`."""
    folder = Path(source)
    inner = folder / "data"
    if not inner.is_dir() or any(path.suffix in _SUFFIXES for path in folder.iterdir()):
        return source
    return str(inner)


def _refuse_mixed_splits(sources: tuple[str, ...], paths: list[File]) -> None:
    """A folder names all its files; those of train and test together are hardly ever meant.

    Raises:
        SourceError: If a folder holds several splits, named as on the Hugging Face hub; they are listed.
    """
    splits = sorted({match[1] for path in paths if (match := _SPLIT.fullmatch(path.name))})
    if len(splits) > 1 and len(sources) == 1 and Path(sources[0]).is_dir():
        raise SourceError(
            f"{sources[0]}: holds the splits {', '.join(splits)}. Choose with a pattern, such as --source "
            f"'{sources[0]}/{splits[-1]}-*.parquet', or name several."
        )


def _read_header(path: File) -> tuple[pa.Schema, int]:
    try:
        with open_parquet(path) as file:
            return file.schema_arrow.remove_metadata(), file.metadata.num_rows
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a Parquet file, or a truncated one ({error}). Fetch it again.") from error


def _check_columns(path: File, schema: pa.Schema, caption_column: str, id_column: str | None, used: tuple[str, ...]) -> None:
    require_columns(str(path), schema.names, used)
    captions = schema.field(caption_column).type
    if not _is_text(captions.value_type if _is_list(captions) else captions):
        raise SourceError(f"{path}: column {caption_column!r} holds {captions}, not text or lists of text. Choose another.")
    if id_column is not None and not _is_id(schema.field(id_column).type):
        raise SourceError(f"{path}: column {id_column!r} holds {schema.field(id_column).type}; ids are text or whole numbers.")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _images(schema: pa.Schema, options: SourceOptions, graph_dir: Path) -> dict[str, Any] | None:
    columns = [field.name for field in schema if _holds_pictures(field.type)]
    # A manifest names one path or glob; several sources are for `train run --data` to name, as are URLs.
    if len(columns) != 1 or len(options.sources) != 1 or is_url(options.sources[0]):
        return None
    return {
        "kind": "parquet",
        "path": image_path(options.sources[0], graph_dir),
        "image_column": columns[0],
        "id_column": options.id_column,
        "label_column": "label" if "label" in schema.names else None,
        "val": None,
    }


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read(paths: list[File], caption_column: str, options: SourceOptions) -> Iterator[CaptionBatch]:
    wanted = list(dict.fromkeys([caption_column, *([options.id_column] if options.id_column else []), *options.keep_columns]))
    for path in paths:
        first_row = 0
        try:
            with open_parquet(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                    yield _caption_batch(path, first_row, pa.Table.from_batches([batch]), caption_column, options)
                    first_row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path}: cannot be read beyond row {first_row:,} ({error}). Fetch it again.") from error


def _caption_batch(path: File, first_row: int, table: pa.Table, caption_column: str, options: SourceOptions) -> CaptionBatch:
    captions, invalid = captions_of(table[caption_column])
    return CaptionBatch(
        file=path.name,
        first_row=first_row,
        sample_ids=_sample_ids(path, first_row, table, options.id_column),
        captions=captions,
        kept=table.select(list(options.keep_columns)) if options.keep_columns else nothing_kept(table.num_rows),
        invalid_rows=tuple(first_row + row for row in invalid),
    )


def _sample_ids(path: File, first_row: int, table: pa.Table, id_column: str | None) -> list[str]:
    if id_column is None:
        return [f"{path.name}:{row}" for row in range(first_row, first_row + table.num_rows)]
    try:
        values = table[id_column].to_pylist()
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: column {id_column!r} holds invalid UTF-8 after row {first_row:,} ({error.reason}).") from None
    if None in values:
        row = first_row + values.index(None)
        raise SourceError(f"{path}: row {row:,} has no id in column {id_column!r}. Fill it, or leave --id-column out.")
    return [str(value) for value in values]


def captions_of(column: pa.ChunkedArray) -> tuple[list[Captions], list[int]]:
    """Captions of each row, and the rows that held invalid UTF-8."""
    invalid: list[int] = []
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values, invalid = _mended(column)
    if _is_list(column.type):
        return [[None] if value is None else value for value in values], invalid
    return [[value] for value in values], invalid


def _mended(column: pa.ChunkedArray) -> tuple[list[Any], list[int]]:
    nested = _is_list(column.type)
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks])
    raw = column.cast(pa.large_list(pa.large_binary()) if nested else pa.large_binary()).to_pylist()
    values: list[Any] = []
    invalid = []
    for row, value in enumerate(raw):
        pairs = [mend(item) for item in (value if nested and value is not None else [value])]
        if any(broken for _, broken in pairs):
            invalid.append(row)
        texts = [text for text, _ in pairs]
        values.append(texts if nested else texts[0])
    return values, invalid


SOURCE = ParquetSource()
