"""Vectors that somebody has made already: of images, of captions, of anything; with their ids beside them.

Parquet files, and data sets that Hugging Face's `datasets` saved, hold ids and vectors together. A `.npy` or safetensors file has
its ids, if at all, in a Parquet file of the same name or, as clip-retrieval and embedding-reader lay them out,
`metadata/metadata_7.parquet` beside `img_emb/img_emb_7.npy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from graphbuild.datasets.base import (
    CaptionBatch,
    OpenSource,
    SourceInfo,
    SourceOptions,
    nothing_kept,
    refuse_headerless,
    require_columns,
)
from graphbuild.datasets.formats.columns import captions_of, holds_captions, ids_of, kept_of, unify
from graphbuild.datasets.formats.files import File, describe_files, find_files, path_of
from graphbuild.datasets.formats.parquet_files import Header, read_header, read_stream_header, read_tables
from graphbuild.datasets.formats.vector_files import ARROW, NPY, SAFETENSORS, VectorFile
from graphbuild.errors import SourceError
from graphbuild.system.hub import find_split, is_saved
from graphbuild.system.inputs import PARQUET, file_names

NAME = "vectors"
_IMAGE_VECTORS = "img_emb"
_METADATA = "metadata"
_NUMBER = re.compile(r"\d+$")
_ROWS = 8_192
_TABLES = (*PARQUET, ARROW)
"""Files that hold ids beside vectors."""


@dataclass(frozen=True, slots=True)
class VectorPart:
    """One file of vectors, and the Parquet file that tells its ids; None where rows are only counted."""

    vectors: VectorFile
    described_by: File | None
    header: Header | None


class VectorSource:
    """Any files of vectors."""

    info = SourceInfo(
        name=NAME,
        what="Vectors that were made elsewhere: Parquet columns of lists or tensors, .npy files (img_emb/*.npy beside "
        "metadata/*.parquet, as clip-retrieval writes them), safetensors, or folders of save_to_disk. No encoder is run.",
        size="any; read in blocks",
        licence="that of your data",
        origin="--source: files, folders or globs",
        named_by_source=True,
    )

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the files are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check the heads of all files; samples without a caption column have their ids as texts.

        Raises:
            SourceError: If a file or column is missing, widths or lengths differ, or there is no vector.
        """
        refuse_headerless(options, NAME)
        parts = find_vectors(options)
        headers = {part.vectors.file: part.header for part in parts if part.header is not None}
        keep = unify({file: header.schema for file, header in headers.items()}, options.keep_columns)
        files = {file.name: file for part in parts for file in (part.vectors.file, part.described_by) if file is not None}
        return OpenSource(
            files=describe_files(list(files.values())),
            read=lambda: (batch for part in parts for batch in _read(part, keep, options)),
            caption_column=options.caption_column,
            id_column=options.id_column,
            keep_schema=keep,
        )


def find_vectors(options: SourceOptions) -> list[VectorPart]:
    """Return the files of vectors, in order, each with the file of its ids.

    Raises:
        SourceError: As `VectorSource.open`.
    """
    sources = tuple(path for source in options.sources for path in _vectors_in(source))
    found = find_files(sources, dataset=NAME, suffixes=(*_TABLES, NPY, SAFETENSORS)).files
    beside = {path_of(file.place): path for file in found if file.suffix not in _TABLES and (path := _beside(file)) is not None}
    # Named together, so that no two of them, in different folders, have one name.
    places = {path: File(Path(path), path) for path in beside.values()} | {path_of(file.place): file for file in found}
    named = {path: File(places[path].place, name) for path, name in zip(places, file_names(list(places)), strict=True)}
    taken = {Path(path).resolve() for path in beside.values()}
    parts = [
        _describe(file, file if file.suffix in _TABLES else named.get(beside.get(path, "")), options)
        for path, file in named.items()
        if not (isinstance(file.place, Path) and file.place.resolve() in taken)
    ]
    filled = [part for part in parts if part.vectors.rows]
    if not filled:
        raise SourceError(f"{', '.join(options.sources)}: no vectors. Name files that hold some with --source.")
    first = filled[0].vectors
    for part in filled:
        if part.vectors.width != first.width:
            raise SourceError(
                f"{part.vectors.file}: vectors are {part.vectors.width:,} wide, but those of {first.file} {first.width:,}. "
                "Vectors of one graph have one width."
            )
    return filled


def _vectors_in(source: str) -> list[str]:
    """The images of clip-retrieval's folder, which holds vectors of texts, too; the files of a split that was saved."""
    if is_saved(source):
        return [str(path) for path in find_split(source).files]
    inner = Path(source) / _IMAGE_VECTORS
    return [str(inner) if inner.is_dir() else source]


def _beside(file: File) -> str | None:
    """Path of the Parquet file that tells the ids of a file of vectors."""
    if not isinstance(file.place, Path):
        return None
    path, number = file.place.absolute(), _NUMBER.search(file.place.stem)
    places = [path.with_suffix(PARQUET[0])]
    if number:
        places.append(path.parent.parent / _METADATA / f"{_METADATA}_{number[0]}{PARQUET[0]}")
    return next((str(place) for place in places if place.is_file()), None)


def _describe(file: File, described_by: File | None, options: SourceOptions) -> VectorPart:
    vectors = VectorFile(file, options.vector_column)
    wanted = tuple(name for name in (options.id_column, options.caption_column, *options.keep_columns) if name is not None)
    if described_by is None:
        if wanted:
            raise SourceError(
                f"{file}: no Parquet file beside it has a column {wanted[0]!r}. Leave the option out, or add the file."
            )
        return VectorPart(vectors, None, None)
    header = read_stream_header(described_by) if described_by.suffix == ARROW else read_header(described_by)
    require_columns(str(described_by), header.schema.names, wanted)
    if (rows := header.rows) != vectors.rows:
        raise SourceError(
            f"{file}: holds {vectors.rows:,} vectors, but {described_by} has {rows:,} rows. They belong to different runs."
        )
    caption = options.caption_column
    if caption is not None and not holds_captions(header.schema.field(caption).type):
        raise SourceError(f"{described_by}: column {caption!r} holds {header.schema.field(caption).type}, not text.")
    return VectorPart(vectors, described_by, header)


def _read(part: VectorPart, keep: pa.Schema, options: SourceOptions) -> Iterator[CaptionBatch]:
    name, rows = part.vectors.file.name, part.vectors.rows
    wanted = [one for one in (options.id_column, options.caption_column, *keep.names) if one is not None]
    if not wanted or part.header is None or part.described_by is None:
        for start in range(0, rows, _ROWS):
            ids = [f"{name}:{row}" for row in range(start, min(start + _ROWS, rows))]
            yield CaptionBatch(
                file=name, first_row=start, sample_ids=ids, captions=[[one] for one in ids], kept=nothing_kept(len(ids))
            )
        return
    where = str(part.described_by)
    for first_row, table in read_tables(part.described_by, part.header, wanted, wanted[0]):
        count = table.num_rows
        ids = [f"{name}:{row}" for row in range(first_row, first_row + count)]
        if options.id_column is not None:
            ids = ids_of(table[options.id_column], options.id_column, where, first_row)
        captions, invalid = captions_of(table[options.caption_column]) if options.caption_column else ([[one] for one in ids], [])
        yield CaptionBatch(
            file=name,
            first_row=first_row,
            sample_ids=ids,
            # One text a vector: the first caption, and the id where there is none.
            captions=[[next((one for one in some if one and one.strip()), own)] for some, own in zip(captions, ids, strict=True)],
            kept=kept_of(table, keep, where),
            invalid_rows=tuple(first_row + row for row in invalid),
        )


SOURCE = VectorSource()
