"""What img2dataset writes: webdataset shards (`00000.tar`) or folders of files (`00000/`), with Parquet sidecars
(`00000.parquet`), or Parquet with the pictures.

The URL is the sample id, because the keys depend on the crawl. Only rows that were downloaded are samples. Sidecars are read where
they lie beside their shards; without them, the `.txt` and `.json` members.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.datasets.base import (
    BrokenRows,
    CaptionBatch,
    OpenSource,
    SourceInfo,
    SourceOptions,
    refuse_headerless,
    require_columns,
)
from graphbuild.datasets.formats.columns import captions_of, ids_of, kept_of, unify
from graphbuild.datasets.formats.files import File, describe_files, find_files, is_url
from graphbuild.datasets.formats.parquet_files import Header, read_header, read_tables
from graphbuild.datasets.formats.tar import TarColumns, TarCounts, read_shard, settle_columns
from graphbuild.store.images import Images, place_of
from graphbuild.system.archives import URL
from graphbuild.system.inputs import SHARDS, list_files, suffix_of

SUFFIXES = (".parquet", ".tar")
_CAPTION = "caption"
_STATUS = "status"
_PICTURES = "jpg"


class Img2DatasetSource:
    """Crawled pairs of URL and caption."""

    def __init__(self, info: SourceInfo, *, replacements: tuple[str, ...] = ()) -> None:
        self.info = info
        self._replacements = replacements

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the shards are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check the sidecars' columns, and those of the first samples of shards.

        Raises:
            SourceError: If files are missing, or are not img2dataset's.
        """
        refuse_headerless(options, self.info.name)
        found = find_files(options.sources, dataset=self.info.name, suffixes=SUFFIXES)
        files = _without_twins(found.files)
        headers = {file: _sidecar_header(file, options) for file in files if file.suffix == ".parquet"}
        shards = [file for file in files if file not in headers]
        columns = (
            settle_columns(
                shards,
                caption=options.caption_column,
                sample_id=options.id_column,
                kept=options.keep_columns,
                fallback=_CAPTION,
                skip_broken=options.skip_broken,
            )
            if shards
            else None
        )
        # Members of shards carry no types.
        keep = columns.schema if columns else unify({file: one.schema for file, one in headers.items()}, options.keep_columns)
        counts, facts = dict[str, int](), dict[str, Any]()
        broken = BrokenRows(counts, facts) if options.skip_broken else None
        return OpenSource(
            files=describe_files(files),
            read=lambda: _read(files, headers, options, keep, columns, TarCounts(hidden=found.hidden), counts, broken),
            caption_column=options.caption_column or (_CAPTION if headers else None),
            id_column=options.id_column or (URL if headers else None),
            keep_schema=keep,
            counts=counts,
            facts=facts,
            images=_images(options, list(headers.values()), graph_dir),
            repeated_ids=True,
            replacements=self._replacements,
        )


def _without_twins(files: list[File]) -> list[File]:
    """Each shard once: a tar is left out where its sidecar is among the files."""
    sidecars = {file.name.removesuffix(".parquet") for file in files if file.suffix == ".parquet"}
    return [file for file in files if file.suffix == ".parquet" or file.name.removesuffix(".tar") not in sidecars]


def _sidecar_header(file: File, options: SourceOptions) -> Header:
    header = read_header(file)
    columns = (options.id_column or URL, options.caption_column or _CAPTION, _STATUS, *options.keep_columns)
    require_columns(f"{file} (img2dataset's output?)", header.schema.names, columns)
    return header


def _images(options: SourceOptions, headers: list[Header], graph_dir: Path) -> Images | None:
    if (shards := shards_of(options, graph_dir)) is not None or len(options.sources) != 1 or is_url(options.sources[0]):
        return shards
    source = options.sources[0]
    place, id_column = place_of(source, graph_dir), options.id_column or URL
    if headers and _PICTURES in headers[0].schema.names:
        return Images(kind="parquet", path=place, image_column=_PICTURES, id_column=id_column)
    if Path(source).is_dir() and any(path.with_suffix("").is_dir() for path in Path(source).glob("*.parquet")):
        return Images(kind="img2dataset", path=place, id_column=id_column)
    return None


def shards_of(options: SourceOptions, graph_dir: Path) -> Images | None:
    """Return the shards that a source names, as pictures; None where it names something else, or several things."""
    if len(options.sources) != 1 or is_url(options.sources[0]):
        return None
    source = options.sources[0]
    if not any(suffix_of(path.name) in SHARDS for path in list_files(source, SHARDS).paths):
        return None
    return Images(kind="webdataset", path=place_of(source, graph_dir), id_column=options.id_column)


def _read(
    files: list[File],
    headers: dict[File, Header],
    options: SourceOptions,
    keep: pa.Schema,
    columns: TarColumns | None,
    left_out: TarCounts,
    counts: dict[str, int],
    broken: BrokenRows | None,
) -> Iterator[CaptionBatch]:
    # Told for the whole reading, and a source is read more than once.
    left_out = TarCounts(hidden=left_out.hidden)
    if broken is not None:
        broken.begin()
    for file in files:
        if columns is not None and file not in headers:
            yield from read_shard(file, columns, left_out, broken)
        else:
            yield from _read_sidecar(file, headers[file], options, keep, left_out, broken)
    counts.update({"failed_downloads": left_out.failed, "hidden_files": left_out.hidden})


def _read_sidecar(
    file: File, header: Header, options: SourceOptions, keep: pa.Schema, left_out: TarCounts, broken: BrokenRows | None
) -> Iterator[CaptionBatch]:
    caption, id_column = options.caption_column or _CAPTION, options.id_column or URL
    for first_row, table in read_tables(file, header, [caption, id_column, _STATUS, *keep.names], caption, broken):
        failed = pc.fill_null(pc.starts_with(table[_STATUS].cast(pa.string()), "failed"), True)
        rows = pc.add(pc.indices_nonzero(pc.invert(failed)), pa.scalar(first_row, pa.uint64())).to_pylist()
        left_out.failed += table.num_rows - len(rows)
        good = table.filter(pc.invert(failed))
        captions, invalid = captions_of(good[caption])
        yield CaptionBatch(
            file=file.name,
            first_row=rows[0] if rows else 0,
            sample_ids=ids_of(good[id_column], id_column, str(file), first_row),
            captions=captions,
            kept=kept_of(good, keep, str(file)),
            invalid_rows=tuple(rows[row] for row in invalid),
            file_rows=tuple(rows),
        )


SOURCE = Img2DatasetSource(
    SourceInfo(
        name="img2dataset",
        what="What img2dataset wrote: .tar shards, their .parquet sidecars, or .parquet with pictures; ids are URLs. Only what was "
        "downloaded (status success) is read; the rest is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: its output folder, files, a glob or a URL",
        named_by_source=True,
    )
)
