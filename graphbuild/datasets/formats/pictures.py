"""Pictures of a data set, with their ids and columns: streamed from the start, or from any sample on.

Parquet files, webdataset shards and folders, as the captions of the same data are read: a picture has the id that its caption has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.datasets.base import BATCH_BYTES, CaptionBatch, SourceFile, SourceOptions, nothing_kept, require_columns
from graphbuild.datasets.formats.columns import captions_of, holds_captions, ids_of, kept_of, unify
from graphbuild.datasets.formats.files import File, describe_files, find_files, open_parquet
from graphbuild.datasets.formats.parquet_files import Header, holds_pictures, read_header
from graphbuild.datasets.formats.tar import TarColumns, TarCounts, read_pictures, settle_columns
from graphbuild.errors import OptionError, SourceError, one_line
from graphbuild.store.digests import digest_json
from graphbuild.store.images import Images, place_of
from graphbuild.system.inputs import PARQUET, SHARDS, LeftOut, walk_pictures

Contents = list[bytes | None]
PICTURE_FILES = ("parquet", "webdataset", "imagefolder")
"""Kinds of files whose pictures are read here."""
_CLASS = "class"
_FOLDER_SCHEMA = pa.schema([pa.field("path", pa.string()), pa.field(_CLASS, pa.string())])
_WALKED = 1_024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample stands."""

    file: int
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Pictures that were found; small enough to travel to workers."""

    kind: str
    files: tuple[File, ...]
    """Parquet files or shards; none of a folder."""
    root: str | None = None
    """The folder, of a folder."""
    image_column: str | None = None
    id_column: str | None = None
    caption_column: str | None = None
    keep_schema: pa.Schema
    """Names and types of the kept columns."""

    def read(self, start: Place | None = None) -> Iterator[tuple[int, CaptionBatch, Contents]]:
        """Yield the number of the file, samples and the bytes of their pictures, from a sample on.

        Raises:
            SourceError: If a file is missing or damaged.
        """
        first = start or Place(0, 0)
        if self.root is not None:
            yield from ((0, *found) for found in self._read_folder(Path(self.root), first.row))
            return
        read_file = self._read_parquet if self.kind == "parquet" else self._read_shard
        for number, file in enumerate(self.files):
            if number >= first.file:
                yield from ((number, *found) for found in read_file(file, first.row if number == first.file else 0))

    def _read_shard(self, file: File, first_row: int) -> Iterator[tuple[CaptionBatch, Contents]]:
        kept = tuple(self.keep_schema.names)
        columns = TarColumns(caption=self.caption_column, fallback="caption", sample_id=self.id_column, kept=kept)
        yield from read_pictures(file, columns, TarCounts(), first_row)

    def _read_folder(self, root: Path, first_row: int) -> Iterator[tuple[CaptionBatch, Contents]]:
        paths = walk_pictures(root)
        row, some = 0, list[str]()
        for path in paths:
            row += 1
            if row > first_row:
                some.append(path)
            if len(some) == _WALKED:
                yield _of_folder(root, row - len(some), some, self.keep_schema)
                some = []
        if some:
            yield _of_folder(root, row - len(some), some, self.keep_schema)

    def _read_parquet(self, file: File, first_row: int) -> Iterator[tuple[CaptionBatch, Contents]]:
        header = read_header(file)
        column = str(self.image_column)
        own = [name for name in self.keep_schema.names if name in header.schema.names]
        names = list(dict.fromkeys([column, *(one for one in (self.id_column, self.caption_column) if one is not None), *own]))
        for row, table in _tables(file, header, names, column, first_row):
            ids = [f"{file.name}:{row + i}" for i in range(table.num_rows)]
            if self.id_column is not None:
                ids = ids_of(table[self.id_column], self.id_column, str(file), row)
            captions, invalid = captions_of(table[self.caption_column]) if self.caption_column else ([[one] for one in ids], [])
            constant = {name: value for name, value in header.partition.items() if name not in header.schema.names}
            batch = CaptionBatch(
                file=file.name,
                first_row=row,
                sample_ids=ids,
                captions=captions,
                kept=kept_of(table, self.keep_schema, str(file), constant),
                invalid_rows=tuple(row + i for i in invalid),
            )
            yield batch, _contents(table[column])


def _of_folder(root: Path, first_row: int, paths: list[str], keep: pa.Schema) -> tuple[CaptionBatch, Contents]:
    columns = {"path": paths, _CLASS: [path.split("/")[0] if "/" in path else None for path in paths]}
    kept = pa.table([columns[name] for name in keep.names], schema=keep) if keep.names else nothing_kept(len(paths))
    batch = CaptionBatch(file=str(root), first_row=first_row, sample_ids=paths, captions=[[path] for path in paths], kept=kept)
    try:
        return batch, [(root / path).read_bytes() for path in paths]
    except OSError as error:
        raise SourceError(f"{root}: a picture cannot be read ({one_line(str(error))}). Restore it, and run again.") from None


def _tables(file: File, header: Header, names: list[str], column: str, first_row: int) -> Iterator[tuple[int, pa.Table]]:
    """Some columns from a row on, about `BATCH_BYTES` at a time, each table with the row at which it begins."""
    row = 0
    try:
        with open_parquet(file, metadata=header.metadata) as opened:
            for number in range(opened.metadata.num_row_groups):
                group = opened.metadata.row_group(number)
                if row + group.num_rows <= first_row:
                    row += group.num_rows
                    continue
                chunks = (group.column(place) for place in range(group.num_columns))
                size = sum(one.total_uncompressed_size for one in chunks if one.path_in_schema.split(".")[0] == column)
                rows = max(1, min(group.num_rows, BATCH_BYTES * group.num_rows // max(size, 1)))
                for batch in opened.iter_batches(rows, row_groups=[number], columns=names):
                    skipped = min(max(first_row - row, 0), batch.num_rows)
                    if skipped < batch.num_rows:
                        yield row + skipped, pa.Table.from_batches([batch.slice(skipped)])
                    row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{file}: cannot be read beyond row {row:,} ({one_line(str(error))}). Fetch it again.") from error


def _contents(column: pa.ChunkedArray) -> Contents:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    contents: Contents = column.to_pylist()
    return contents


def find_pictures(
    kind: str, options: SourceOptions, image_column: str | None, graph_dir: Path
) -> tuple[Pictures, tuple[SourceFile, ...], Images | None]:
    """Find pictures, and look at the heads of their files.

    Args:
        kind: `parquet`, `webdataset` or `imagefolder`.
        options: What the user said; the caption column may be None, because samples are called by their ids then.
        image_column: Of Parquet files; None: the only binary one.
        graph_dir: Relative to which the place of the pictures is recorded.

    Returns:
        The pictures, their files for the manifest, and where they are, for `train run`; None for several sources.

    Raises:
        SourceError: If there are none, or a column is missing.
        OptionError: If an option does not apply.
    """
    if image_column is not None and kind != "parquet":
        raise OptionError(f"--image-column {image_column}: only Parquet files have columns of pictures. Leave it out.")
    if kind == "imagefolder":
        return _find_folder(options, graph_dir)
    suffixes = PARQUET if kind == "parquet" else SHARDS
    found = find_files(options.sources, dataset=kind, suffixes=suffixes)
    # Absolute, because workers may run elsewhere.
    files = tuple(File(file.place.absolute(), file.name) if isinstance(file.place, Path) else file for file in found.files)
    pictures = _parquet(files, options, image_column) if kind == "parquet" else _shards(files, options)
    images = None
    if len(options.sources) == 1:
        images = Images(
            kind="parquet" if kind == "parquet" else "webdataset",
            path=place_of(options.sources[0], graph_dir),
            image_column=pictures.image_column,
            id_column=options.id_column,
        )
    return pictures, describe_files(found.files), images


def _parquet(files: tuple[File, ...], options: SourceOptions, image_column: str | None) -> Pictures:
    headers = {file: read_header(file) for file in files}
    binary = [one.name for one in headers[files[0]].schema if holds_pictures(one.type)]
    if image_column is None and len(binary) != 1:
        found = f"several binary columns ({', '.join(binary)})" if binary else "no binary column"
        raise SourceError(f"{files[0]}: {found}. Name that of the pictures with --image-column.")
    column = image_column or binary[0]
    named = [name for name in (options.id_column, options.caption_column) if name is not None]
    for file, header in headers.items():
        require_columns(str(file), header.names, (column, *named, *options.keep_columns))
        if not holds_pictures(header.schema.field(column).type):
            raise SourceError(f"{file}: column {column!r} holds {header.schema.field(column).type}, not pictures.")
        if (caption := options.caption_column) is not None and not holds_captions(header.schema.field(caption).type):
            raise SourceError(f"{file}: column {caption!r} holds {header.schema.field(caption).type}, not text.")
    keep = unify({file: header.all_columns() for file, header in headers.items()}, options.keep_columns)
    return Pictures(
        kind="parquet",
        files=files,
        image_column=column,
        id_column=options.id_column,
        caption_column=options.caption_column,
        keep_schema=keep,
    )


def _shards(files: tuple[File, ...], options: SourceOptions) -> Pictures:
    columns = settle_columns(
        list(files), caption=options.caption_column, sample_id=options.id_column, kept=options.keep_columns, fallback="caption"
    )
    return Pictures(
        kind="webdataset",
        files=files,
        id_column=options.id_column,
        caption_column=options.caption_column,
        keep_schema=columns.schema,
    )


def _find_folder(options: SourceOptions, graph_dir: Path) -> tuple[Pictures, tuple[SourceFile, ...], Images]:
    for option, value in (("--caption-column", options.caption_column), ("--id-column", options.id_column)):
        if value is not None:
            raise OptionError(f"{option} {value}: pictures in folders have no columns to choose from. Leave it out.")
    if len(options.sources) != 1 or not (root := Path(options.sources[0]).absolute()).is_dir():
        raise SourceError(f"{', '.join(options.sources) or '--source'}: give one folder of pictures with --source.")
    require_columns(str(root), _FOLDER_SCHEMA.names, options.keep_columns)
    sizes = {path: (root / path).stat().st_size for path in walk_pictures(root, left_out=LeftOut())}
    if not sizes:
        raise SourceError(f"{root}: no pictures in this folder. Check --source.")
    # Names and sizes: reading them all would take as long as embedding them.
    listed = SourceFile(name=root.name, bytes=sum(sizes.values()), digest=digest_json(sizes))
    pictures = Pictures(
        kind="imagefolder",
        files=(),
        root=str(root),
        keep_schema=pa.schema([_FOLDER_SCHEMA.field(name) for name in options.keep_columns]),
    )
    return pictures, (listed,), Images(kind="imagefolder", path=place_of(root, graph_dir))
