"""What the sources of text rows share: a reader of rows in, batches of samples out.

Kept columns of these formats are text, as they stand in the file: text formats carry no types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
from graphbuild.datasets.formats.files import File, describe_files, find_files, tell_forms
from graphbuild.datasets.formats.pending import Pending, text_schema
from graphbuild.errors import SourceError


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    captions: Captions
    sample_id: str | None
    kept: tuple[str | None, ...]
    invalid: bool
    """Whether it held invalid UTF-8, which was repaired."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be understood."""

    why: str
    """Where it stands, what is wrong, and what to do; the file is named by whoever tells it."""


Record = Row | Broken


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The columns to take from each record."""

    caption: str
    sample_id: str | None
    kept: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """Return all of them, once each."""
        return tuple(dict.fromkeys((self.caption, *([self.sample_id] if self.sample_id else []), *self.kept)))


class RowFormat(Protocol):
    """How one format of text rows is read."""

    def columns(self, file: File) -> list[str] | None:
        """Return the column names of a file, from its beginning; None if it is empty."""

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the records of a file, one after the other.

        Raises:
            SourceError: If nothing beyond some place can be understood.
        """


class RowSource:
    """A data source over some format of text rows.

    Args:
        info: How it is described.
        row_format: How its files are read.
        suffixes: Of the files that are taken from a folder.
        caption_column: The captions, where the format settles that.
        id_column: The sample ids, unless the user names others; None makes them of file and row.
        repeated_ids: Rows of one id are captions of one sample.
        replacements: `OLD=NEW` for placeholders in the captions.
        headerless: How files without a header are read, by the names of their columns; None: there are none.
    """

    def __init__(
        self,
        info: SourceInfo,
        row_format: RowFormat,
        suffixes: tuple[str, ...],
        *,
        caption_column: str | None = None,
        id_column: str | None = None,
        repeated_ids: bool = False,
        replacements: tuple[str, ...] = (),
        headerless: Callable[[tuple[str, ...]], RowFormat] | None = None,
    ) -> None:
        self.info = info
        self._format = row_format
        self._suffixes = suffixes
        self._caption_column, self._id_column = caption_column, id_column
        self._repeated_ids, self._replacements = repeated_ids, replacements
        self._headerless = headerless

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Write nothing: the files are there."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check that every file has the columns.

        Raises:
            SourceError: If a file or column is missing, or there are no rows.
        """
        if self._headerless is None:
            refuse_headerless(options, self.info.name)
        used = self._headerless(options.columns) if self._headerless and options.columns else self._format
        found = find_files(options.sources, dataset=self.info.name, suffixes=self._suffixes)
        headers = {file: columns for file in found.files if (columns := used.columns(file)) is not None}
        if not headers:
            raise SourceError(f"{', '.join(options.sources)}: empty. Name files that hold captions with --source.")
        first, columns = next(iter(headers.items()))
        wanted = Wanted(
            caption=choose_caption_column(str(first), columns, options.caption_column or self._caption_column),
            sample_id=options.id_column or self._id_column,
            kept=options.keep_columns,
        )
        for file, names in headers.items():
            require_columns(str(file), names, wanted.names())
        tell_forms(found.files)
        counts, facts = {"hidden_files": found.hidden} if found.hidden else {}, dict[str, Any]()
        broken = BrokenRows(counts, facts) if options.skip_broken else None
        return OpenSource(
            files=describe_files(found.files),
            read=lambda: _read(used, list(headers), wanted, broken),
            caption_column=wanted.caption,
            id_column=wanted.sample_id,
            keep_schema=text_schema(wanted.kept),
            class_column=next((name for name in CLASS_COLUMNS if name in wanted.kept), None),
            repeated_ids=self._repeated_ids and wanted.sample_id == self._id_column,
            replacements=self._replacements,
            counts=counts,
            facts=facts,
        )


def _read(row_format: RowFormat, files: list[File], wanted: Wanted, skipped: BrokenRows | None) -> Iterator[CaptionBatch]:
    if skipped is not None:
        skipped.begin()
    for file in files:
        pending = Pending(file.name, wanted.kept)
        for number, record in enumerate(row_format.rows(file, wanted)):
            row = _checked(record, number, wanted)
            if isinstance(row, Row):
                own_id = row.sample_id if wanted.sample_id and row.sample_id else f"{file.name}:{number}"
                pending.add(number, own_id, row.captions, row.kept, invalid=row.invalid)
            elif skipped is None:
                raise SourceError(f"{file}: {row.why} Or leave such rows out with --skip-broken.")
            else:
                skipped.add(f"{file.name}: {row.why}")
            if pending.full:
                yield pending.take()
        if pending.ids:
            yield pending.take()


def _checked(record: Record, number: int, wanted: Wanted) -> Record:
    """The record, or what is wrong with it."""
    if isinstance(record, Row) and wanted.sample_id is not None and not record.sample_id:
        return Broken(f"row {number:,} has no id in column {wanted.sample_id!r}. Fill it, or leave --id-column out.")
    return record
