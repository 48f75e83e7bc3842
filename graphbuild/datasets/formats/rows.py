"""What the sources of text rows share: a reader of rows in, batches of samples out.

Kept columns of these formats are text, as they stand in the file: text formats carry no types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from graphbuild.datasets.base import (
    BATCH_ROWS,
    CaptionBatch,
    Captions,
    OpenSource,
    SourceInfo,
    SourceOptions,
    choose_caption_column,
    nothing_kept,
    require_columns,
)
from graphbuild.datasets.formats.files import File, describe_files, find_files
from graphbuild.errors import SourceError


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a file."""

    captions: Captions
    sample_id: str | None
    kept: tuple[str | None, ...]
    invalid: bool
    """Whether it held invalid UTF-8, which was mended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The columns to take from each record."""

    caption: str
    sample_id: str | None
    kept: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        """All of them, once each."""
        return tuple(dict.fromkeys((self.caption, *([self.sample_id] if self.sample_id else []), *self.kept)))


class RowFormat(Protocol):
    """How one format of text rows is read."""

    def columns(self, path: File) -> list[str] | None:
        """Column names of a file, from its beginning; None if it is empty."""

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Records of a file, one after the other.

        Raises:
            SourceError: Naming file and line, if one cannot be understood.
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
    ) -> None:
        self.info = info
        self._format = row_format
        self._suffixes = suffixes
        self._caption_column, self._id_column = caption_column, id_column
        self._repeated_ids, self._replacements = repeated_ids, replacements

    def prepare(self, options: SourceOptions, graph_dir: Path) -> None:
        """Nothing to write."""

    def open(self, options: SourceOptions, graph_dir: Path) -> OpenSource:
        """Check that every file has the columns.

        Raises:
            SourceError: If a file or column is missing, or there are no rows.
        """
        paths = find_files(options.sources, dataset=self.info.name, suffixes=self._suffixes)
        headers = {path: columns for path in paths if (columns := self._format.columns(path)) is not None}
        if not headers:
            raise SourceError(f"{', '.join(options.sources)}: empty. Name files that hold captions with --source.")
        first, columns = next(iter(headers.items()))
        wanted = Wanted(
            caption=choose_caption_column(str(first), columns, options.caption_column or self._caption_column),
            sample_id=options.id_column or self._id_column,
            kept=options.keep_columns,
        )
        for path, names in headers.items():
            require_columns(str(path), names, wanted.names())
        return OpenSource(
            files=describe_files(paths),
            read=lambda: self._read(list(headers), wanted),
            caption_column=wanted.caption,
            id_column=wanted.sample_id,
            keep_schema=_keep_schema(wanted),
            class_column=next((name for name in ("wnid", "label", "class") if name in wanted.kept), None),
            repeated_ids=self._repeated_ids and wanted.sample_id == self._id_column,
            replacements=self._replacements,
        )

    def _read(self, paths: list[File], wanted: Wanted) -> Iterator[CaptionBatch]:
        for path in paths:
            pending = _Pending(path.name, wanted)
            for row in self._format.rows(path, wanted):
                pending.add(row)
                if len(pending.ids) == BATCH_ROWS:
                    yield pending.take()
            if pending.ids:
                yield pending.take()


def _keep_schema(wanted: Wanted) -> pa.Schema:
    return pa.schema([pa.field(name, pa.string()) for name in wanted.kept])


@dataclass(slots=True)
class _Pending:
    """Rows on their way into a batch."""

    file: str
    wanted: Wanted
    first_row: int = 0
    ids: list[str] = field(default_factory=list)
    captions: list[Captions] = field(default_factory=list)
    kept: list[tuple[str | None, ...]] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take in the next row of the file.

        Raises:
            SourceError: If it has no id where a column of ids was named.
        """
        number = self.first_row + len(self.ids)
        if self.wanted.sample_id is None:
            self.ids.append(f"{self.file}:{number}")
        elif row.sample_id:
            self.ids.append(row.sample_id)
        else:
            raise SourceError(
                f"{self.file}: row {number:,} has no id in column {self.wanted.sample_id!r}. Fill it, or leave --id-column out."
            )
        self.captions.append(row.captions)
        self.kept.append(row.kept)
        if row.invalid:
            self.invalid.append(number)

    def take(self) -> CaptionBatch:
        """Hand over the rows taken in since the last call, and begin the next batch after them."""
        schema = _keep_schema(self.wanted)
        columns = [list(column) for column in zip(*self.kept, strict=True)] if schema.names else []
        batch = CaptionBatch(
            file=self.file,
            first_row=self.first_row,
            sample_ids=self.ids,
            captions=self.captions,
            kept=pa.table(columns, schema=schema) if schema.names else nothing_kept(len(self.ids)),
            invalid_rows=tuple(self.invalid),
        )
        self.first_row += len(self.ids)
        self.ids, self.captions, self.kept, self.invalid = [], [], [], []
        return batch
