"""Captions in Parquet files: a column of strings, or of lists of strings (several captions a sample)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.datasets.base import (
    CLASS_COLUMNS,
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
from graphbuild.datasets.formats.files import File, describe_files, find_files, is_url
from graphbuild.datasets.formats.parquet_files import Header, picture_columns, read_header, read_tables
from graphbuild.errors import SourceError
from graphbuild.store.images import Images, place_of
from graphbuild.system.inputs import PARQUET, suffix_of

_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?\.parquet")
"""As the Hugging Face hub names files."""


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
    """Open a data set of files of typed columns; its pictures are not looked for.

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
        class_column=next((name for name in CLASS_COLUMNS if name in keep.names), None),
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
    """Return the place of the pictures in the only column of them, as a manifest records it; None where there is none, or several.

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


SOURCE = ParquetSource()
