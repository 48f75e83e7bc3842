"""Captions in webdataset shards: the `.txt` and `.json` members of each sample, for img2dataset's shards and any others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from graphbuild.datasets.base import (
    BATCH_BYTES,
    BrokenRows,
    CaptionBatch,
    Captions,
    choose_caption_column,
    show_names,
)
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.jsonl import captions_of_json
from graphbuild.datasets.formats.pending import Pending, text_schema
from graphbuild.errors import SourceError
from graphbuild.system.archives import OWN_FIELD, DamagedArchive, Sample, Shard, download_failed, leaving_out
from graphbuild.system.decoding import as_text, mend

TEXT_MEMBER = "txt"
_LONGEST_TEXT = 1 << 20
"""Bytes of a `.txt` member that are read: captions are cut long before."""
_READ_AS_TEXT = (TEXT_MEMBER, "cls", "text", "caption")
"""Members, besides JSON, that can be captions or kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarColumns:
    """What to take of each sample: keys of its JSON, or what follows its key in members' names (`txt`, `cls`)."""

    caption: str | None
    """None: the `.txt` member, else `fallback`."""
    fallback: str
    sample_id: str | None
    """None: the usual keys, else shard and key."""
    kept: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """Kept values are text, as JSON has them."""
        return text_schema(self.kept)


@dataclass(slots=True)
class TarCounts:
    """What was left out."""

    failed: int = 0
    hidden: int = 0


@contextmanager
def _opened(file: File, id_field: str | None) -> Iterator[Shard]:
    try:
        with file.open() as stream:
            total = stream.seek(0, 2)
            yield Shard(file.name, stream, total, id_field)
    except DamagedArchive as error:
        raise SourceError(f"{file}: not a whole tar file: {error}. Fetch it again, or move it away.") from None


def settle_columns(
    files: Sequence[File],
    *,
    caption: str | None,
    sample_id: str | None,
    kept: tuple[str, ...],
    fallback: str | None,
    skip_broken: bool = False,
) -> TarColumns:
    """Find the columns that are asked for in the first samples that have them.

    Args:
        files: The shards.
        caption: As asked for.
        sample_id: As asked for.
        kept: As asked for.
        fallback: Key of the captions where a sample has no `.txt` member; None: the only usual name among the keys.
        skip_broken: Whether what is damaged is passed over.

    Raises:
        SourceError: If no sample has one of them; the names that there are, are listed.
    """
    missing = dict.fromkeys([*([caption] if caption else []), *([sample_id] if sample_id else []), *kept])
    seen: dict[str, None] = {}
    passed_over = (lambda _: None) if skip_broken else None
    for file in files:
        with _opened(file, sample_id) as shard, leaving_out(passed_over):
            for sample in shard.samples():
                names = [*sample.members]
                with leaving_out(passed_over):
                    names = [*shard.record(sample), *names]
                seen |= dict.fromkeys(names)
                for name in [name for name in missing if name in names]:
                    del missing[name]
                if not missing and seen:
                    if caption is None and fallback is None:
                        texts = [name for name in names if name not in sample.members]
                        usable = TEXT_MEMBER in sample.members
                        fallback = "caption" if usable else choose_caption_column(str(file), texts, None)
                    return TarColumns(caption=caption, fallback=fallback or "caption", sample_id=sample_id, kept=kept)
    if not seen:
        raise SourceError(f"{', '.join(map(str, files[:3]))}: no samples in these shards. Check --source.")
    raise SourceError(f"{files[0]}: no sample has {next(iter(missing))!r}; they have: {show_names(list(seen))}.")


def read_shard(file: File, columns: TarColumns, counts: TarCounts, broken: BrokenRows | None = None) -> Iterator[CaptionBatch]:
    """Yield the samples of one shard.

    Args:
        file: The shard.
        columns: What to take.
        counts: Told what was left out.
        broken: Told of samples that are damaged, and where a shard cannot be read further; None: both are errors.

    Raises:
        SourceError: If it is damaged, or a sample has no id; the sample and the byte are named.
    """
    batch = Pending(file.name, columns.kept)
    skip = None if broken is None else lambda why: broken.add(f"{file.name}: {why}")
    skip_rest = None if broken is None else lambda why: broken.add(f"{file.name}: {why}; what comes after it is left out")
    with _opened(file, columns.sample_id) as shard:
        with leaving_out(skip_rest):
            for row, sample in enumerate(shard.samples()):
                with leaving_out(skip):
                    record = shard.record(sample)
                    if download_failed(record.get("status")) and OWN_FIELD not in record:
                        counts.failed += 1
                    else:
                        _add(batch, columns, row, shard, sample, record)
                if batch.full:
                    yield batch.take()
        if batch.ids:
            yield batch.take()
        counts.hidden += shard.hidden


def read_pictures(
    file: File, columns: TarColumns, counts: TarCounts, first_row: int = 0
) -> Iterator[tuple[CaptionBatch, list[bytes | None]]]:
    """Yield the samples of one shard from a row on, with the bytes of their pictures; None where a sample has none.

    Raises:
        SourceError: As `read_shard`.
    """
    batch, contents, size = Pending(file.name, columns.kept), list[bytes | None](), 0
    with _opened(file, columns.sample_id) as shard:
        for row, sample in enumerate(shard.samples()):
            if row < first_row:
                continue
            record, picture = shard.record(sample), sample.picture
            if download_failed(record.get("status")) and OWN_FIELD not in record:
                counts.failed += 1
                continue
            _add(batch, columns, row, shard, sample, record)
            contents.append(None if picture is None else shard.read(picture, picture.size))
            size += picture.size if picture else 0
            if size + batch.bytes > BATCH_BYTES:
                yield batch.take(), contents
                contents, size = [], 0
        if batch.ids:
            yield batch.take(), contents
        counts.hidden += shard.hidden


def _add(batch: Pending, columns: TarColumns, row: int, shard: Shard, sample: Sample, record: Mapping[str, Any]) -> None:
    # All that may be damaged comes first.
    captions, repaired = _captions(shard, sample, record, columns)
    kept = tuple(_value(shard, sample, record, name) for name in columns.kept)
    batch.add(row, shard.sample_id(sample, record), captions, kept, invalid=repaired)


def _captions(shard: Shard, sample: Sample, record: Mapping[str, Any], columns: TarColumns) -> tuple[Captions, bool]:
    """Captions of a sample, and whether something was repaired."""
    name = columns.caption or (TEXT_MEMBER if TEXT_MEMBER in sample.members else columns.fallback)
    if name in record and (columns.caption is not None or name != TEXT_MEMBER):
        try:
            return captions_of_json(record[name])
        except ValueError as error:
            raise DamagedArchive(
                f"sample {sample.key} has {error} under {name!r}, which is not text; choose another --caption-column"
            ) from None
    text, repaired = _text(shard, sample, name)
    return [text], repaired


def _value(shard: Shard, sample: Sample, record: Mapping[str, Any], name: str) -> str | None:
    return as_text(record[name]) if name in record else _text(shard, sample, name)[0]


def _text(shard: Shard, sample: Sample, name: str) -> tuple[str | None, bool]:
    member = sample.members.get(name) if name in _READ_AS_TEXT else None
    return (None, False) if member is None else mend(shard.read(member, _LONGEST_TEXT))
