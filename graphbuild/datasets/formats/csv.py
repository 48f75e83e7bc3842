"""Captions in comma-separated files, quoted as in RFC 4180; NA and null are captions.

The rows are split by Python's csv module; readers of data frames would guess types, and lose 007 and NA.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Broken, Record, Row, RowSource, Wanted
from graphbuild.errors import SourceError
from graphbuild.system.decoding import mend

_LONGEST_FIELD = 1 << 30


class CsvFormat:
    """One record a row; quoted fields may hold commas and line breaks. Names in the first row, unless they are given."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._names = list(names)

    def columns(self, file: File) -> list[str] | None:
        """Return the names that were given, else those in the first row."""
        with _reader(file) as rows:
            first = next(rows, None)
        if self._names:
            return self._names if first is not None else None
        return [_repaired(name)[0] for name in first] if first else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the records of a file; empty lines are none, and those with another number of fields than the header are broken.

        Raises:
            SourceError: If its quotes are broken.
        """
        with _reader(file) as rows:
            names = self._names or [_repaired(name)[0] for name in next(rows)]
            expected = f"not {len(names)}" if self._names else f"the header {len(names)}"
            taken = {name: names.index(name) for name in wanted.names()}
            for fields in rows:
                if not fields:
                    continue
                if len(fields) != len(names):
                    yield Broken(
                        f"line {rows.line_num:,} has {len(fields)} fields, {expected}. "
                        "A comma outside quotes, or a broken row: mend it."
                    )
                    continue
                values = {name: _repaired(fields[column]) for name, column in taken.items()}
                yield Row(
                    captions=[values[wanted.caption][0]],
                    sample_id=values[wanted.sample_id][0] if wanted.sample_id else None,
                    kept=tuple(values[name][0] for name in wanted.kept),
                    invalid=any(broken for _, broken in values.values()),
                )


@contextmanager
def _reader(file: File) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)
    # Invalid bytes pass as surrogates, so that the row they stand in can be named.
    with file.text() as raw, io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            yield rows
        except csv.Error as error:
            raise SourceError(f"{file}: line {rows.line_num:,} is not CSV ({error}). Mend it, or use --dataset tsv.") from None


def _repaired(field: str) -> tuple[str, bool]:
    if field.isascii():
        return field, False
    text, invalid = mend(field.encode("utf-8", errors="surrogateescape"))
    return text or "", invalid


SOURCE = RowSource(
    SourceInfo(
        name="csv",
        what="Comma-separated files with a header line, or with --columns, fields quoted as in RFC 4180. Invalid UTF-8 becomes "
        "U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs, .gz or .zst too",
        named_by_source=True,
    ),
    CsvFormat(),
    (".csv",),
    headerless=CsvFormat,
)
