"""What img2dataset writes: webdataset shards (`00000.tar`) with Parquet sidecars (`00000.parquet`), or Parquet with the pictures.

The URL is the sample id, for the keys depend on the crawl. Only rows that were downloaded (status success) are samples.
Sidecars are read where they lie beside their shards; without them, the `.txt` and `.json` members.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from graphbuild.datasets.base import (
    BATCH_ROWS,
    CaptionBatch,
    Captions,
    OpenSource,
    SourceInfo,
    SourceOptions,
    image_path,
    mend,
    nothing_kept,
    require_columns,
)
from graphbuild.datasets.formats.files import File, describe_files, find_files, is_url, open_parquet
from graphbuild.datasets.formats.jsonl import as_text
from graphbuild.datasets.formats.parquet import captions_of
from graphbuild.errors import SourceError

SUFFIXES = (".parquet", ".tar")
_URL = "url"
_SUCCESS = "success"
_FAILED = "failed_downloads"
_PICTURES = "jpg"

Count = Callable[[int], None]


class Img2DatasetSource:
    """Crawled pairs of URL and caption."""

    def __init__(self, info: SourceInfo, *, replacements: tuple[str, ...] = ()) -> None:
        self.info = info
        self._replacements = replacements

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Nothing to write."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check the sidecars' columns.

        Raises:
            SourceError: If files are missing, or are not img2dataset's.
        """
        paths = _without_twins(find_files(options.sources, dataset=self.info.name, suffixes=SUFFIXES))
        caption, url = options.caption_column or "caption", options.id_column or _URL
        schema, typed = None, all(path.suffix == ".parquet" for path in paths)
        for path in paths:
            if path.suffix == ".parquet":
                schema = _sidecar_schema(path, (url, caption, "status", *options.keep_columns))
        kinds = [schema.field(name).type if typed and schema else pa.string() for name in options.keep_columns]
        wanted = _Wanted(caption, url, pa.schema(list(zip(options.keep_columns, kinds, strict=True))))
        counts: dict[str, int] = {}
        return OpenSource(
            files=describe_files(paths),
            read=lambda: _read(paths, wanted, counts),
            caption_column=caption,
            id_column=url,
            keep_schema=wanted.kept,
            counts=counts,
            images=_images(options, schema, url, graph_dir),
            repeated_ids=True,
            replacements=self._replacements,
        )


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What to take of each sample."""

    caption: str
    url: str
    kept: pa.Schema


def _without_twins(paths: list[File]) -> list[File]:
    """Each shard once: a tar is left out where its sidecar is among the files."""
    sidecars = {path.name.removesuffix(".parquet") for path in paths if path.suffix == ".parquet"}
    return [path for path in paths if path.suffix == ".parquet" or path.name.removesuffix(".tar") not in sidecars]


def _sidecar_schema(path: File, columns: tuple[str, ...]) -> pa.Schema:
    try:
        with open_parquet(path) as file:
            schema: pa.Schema = file.schema_arrow.remove_metadata()
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a Parquet file, or a truncated one ({error}). Fetch it again.") from None
    require_columns(f"{path} (img2dataset's output?)", schema.names, columns)
    return schema


def _images(options: SourceOptions, schema: pa.Schema | None, url: str, graph_dir: Path) -> dict[str, Any] | None:
    source = options.sources[0]
    if len(options.sources) != 1 or is_url(source):
        return None
    path = Path(source)
    held = schema is not None and _PICTURES in schema.names
    tars = source if source.endswith(".tar") else str(path / "*.tar") if path.is_dir() and any(path.glob("*.tar")) else None
    if not held and tars is None:
        return None
    return {
        "kind": "parquet" if held else "webdataset",
        "path": image_path(source if held else str(tars), graph_dir),
        "image_column": _PICTURES if held else None,
        "id_column": url,
        "label_column": None,
        "val": None,
    }


def _read(paths: list[File], wanted: _Wanted, counts: dict[str, int]) -> Iterator[CaptionBatch]:
    counts[_FAILED] = 0

    def failed(count: int) -> None:
        counts[_FAILED] += count

    for path in paths:
        yield from (_read_sidecar if path.suffix == ".parquet" else _read_tar)(path, wanted, failed)


def _read_sidecar(path: File, wanted: _Wanted, failed: Count) -> Iterator[CaptionBatch]:
    names = list(dict.fromkeys([wanted.caption, wanted.url, "status", *wanted.kept.names]))
    first_row = 0
    try:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                table = pa.Table.from_batches([batch])
                good = pc.fill_null(pc.equal(table["status"].cast(pa.string()), _SUCCESS), False)
                rows = pc.add(pc.indices_nonzero(good), pa.scalar(first_row, pa.uint64())).to_pylist()
                failed(table.num_rows - len(rows))
                yield _sidecar_batch(path, tuple(rows), table.filter(good), wanted)
                first_row += table.num_rows
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: cannot be read beyond row {first_row:,} ({error}). Fetch it again.") from error


def _sidecar_batch(path: File, rows: tuple[int, ...], table: pa.Table, wanted: _Wanted) -> CaptionBatch:
    captions, invalid = captions_of(table[wanted.caption])
    ids = table[wanted.url].to_pylist()
    if None in ids:
        raise SourceError(f"{path}: row {rows[ids.index(None)]:,} has no {wanted.url!r}, though it was downloaded.")
    return CaptionBatch(
        file=path.name,
        first_row=rows[0] if rows else 0,
        sample_ids=[str(value) for value in ids],
        captions=captions,
        kept=table.select(wanted.kept.names).cast(wanted.kept) if wanted.kept.names else nothing_kept(len(rows)),
        invalid_rows=tuple(rows[row] for row in invalid),
        file_rows=rows,
    )


@dataclass(slots=True)
class _Sample:
    """The members of one key."""

    key: str
    members: dict[str, bytes] = field(default_factory=dict)


def _read_tar(path: File, wanted: _Wanted, failed: Count) -> Iterator[CaptionBatch]:
    rows: list[int] = []
    samples: list[tuple[str, Captions, tuple[str | None, ...], bool]] = []
    for row, sample in enumerate(_samples(path)):
        record = _record(path, sample)
        if record.get("status", _SUCCESS) != _SUCCESS:
            failed(1)
            continue
        rows.append(row)
        samples.append(_described(path, sample, record, wanted))
        if len(rows) == BATCH_ROWS:
            yield _tar_batch(path, rows, samples, wanted)
            rows, samples = [], []
    if rows:
        yield _tar_batch(path, rows, samples, wanted)


def _samples(path: File) -> Iterator[_Sample]:
    """Samples of a tar: members that share a key stand together, as webdataset writes them."""
    sample = _Sample("")
    try:
        with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                # tarfile remembers every member: a shard of pictures is small, a concatenation of them is not.
                tar.members = []  # type: ignore[attr-defined]
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if (key := folder + slash + stem) != sample.key:
                    if sample.members:
                        yield sample
                    sample = _Sample(key)
                if member.isfile():
                    content = tar.extractfile(member) if suffix in ("txt", "json") else None
                    sample.members[suffix] = content.read() if content is not None else b""
    except tarfile.TarError as error:
        raise SourceError(f"{path}: not a tar file, or a truncated one ({error}). Fetch it again.") from None
    if sample.members:
        yield sample


def _record(path: File, sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        record = json.loads(mend(sample.members["json"])[0] or "")
        if isinstance(record, dict):
            return record
        why = f"it holds {type(record).__name__}"
    except ValueError as error:
        why = str(error)
    raise SourceError(f"{path}: {sample.key}.json is no JSON object ({why}). Fetch the shard again.")


def _sample_id(path: File, sample: _Sample, record: dict[str, Any], wanted: _Wanted) -> str:
    """The URL, else what other writers of such shards put there, else the key: the ids that the trainer gives the pictures."""
    names = (wanted.url, "sample_id") if wanted.url == _URL else (wanted.url,)
    found = next((record[name] for name in names if record.get(name) is not None), None)
    if found is None and wanted.url != _URL:
        raise SourceError(f"{path}: {sample.key}.json has no {wanted.url!r}; it has: {', '.join(record) or 'nothing'}.")
    return sample.key if found is None else str(found)


def _described(
    path: File, sample: _Sample, record: dict[str, Any], wanted: _Wanted
) -> tuple[str, Captions, tuple[str | None, ...], bool]:
    """Id, captions, kept values, and whether something was mended."""
    text, invalid = mend(sample.members.get("txt"))
    if text is None:
        caption = record.get(wanted.caption)
        text = as_text(caption)
        invalid = text != caption
    kept = tuple(as_text(record.get(name)) for name in wanted.kept.names)
    return _sample_id(path, sample, record, wanted), [text], kept, invalid


def _tar_batch(
    path: File, rows: list[int], samples: list[tuple[str, Captions, tuple[str | None, ...], bool]], wanted: _Wanted
) -> CaptionBatch:
    ids, captions, kept, invalid = (list(column) for column in zip(*samples, strict=True))
    columns = [list(column) for column in zip(*kept, strict=True)]
    return CaptionBatch(
        file=path.name,
        first_row=rows[0],
        sample_ids=ids,
        captions=captions,
        kept=pa.table(columns, schema=wanted.kept) if wanted.kept.names else nothing_kept(len(rows)),
        invalid_rows=tuple(row for row, mended in zip(rows, invalid, strict=True) if mended),
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
    )
)
