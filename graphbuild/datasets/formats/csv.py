"""Captions in comma-separated files with a header line, quoted as in RFC 4180; NA and null are captions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from graphbuild.datasets.base import SourceInfo, mend
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Row, RowSource, Wanted
from graphbuild.errors import SourceError

_LONGEST_FIELD = 1 << 30


class CsvFormat:
    """One record a row; quoted fields may hold commas and line breaks."""

    def columns(self, path: File) -> list[str] | None:
        """Names in the first row."""
        with _reader(path) as rows:
            header = next(rows, None)
        return [_mended(name)[0] for name in header] if header else None

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Records of a file; empty lines are not records.

        Raises:
            SourceError: If a row has another number of fields than the header, or its quotes are broken.
        """
        with _reader(path) as rows:
            names = [_mended(name)[0] for name in next(rows)]
            taken = {name: names.index(name) for name in wanted.names()}
            for fields in rows:
                if not fields:
                    continue
                if len(fields) != len(names):
                    raise SourceError(
                        f"{path}: line {rows.line_num:,} has {len(fields)} fields, the header {len(names)}. "
                        "A comma outside quotes, or a broken row: mend it."
                    )
                values = {name: _mended(fields[column]) for name, column in taken.items()}
                yield Row(
                    captions=[values[wanted.caption][0]],
                    sample_id=values[wanted.sample_id][0] if wanted.sample_id else None,
                    kept=tuple(values[name][0] for name in wanted.kept),
                    invalid=any(broken for _, broken in values.values()),
                )


@contextmanager
def _reader(path: File) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)
    # Invalid bytes pass as surrogates, so that the row they stand in can be named.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        rows = csv.reader(stream, strict=True)
        try:
            yield rows
        except csv.Error as error:
            raise SourceError(f"{path}: line {rows.line_num:,} is not CSV ({error}). Mend it, or use --dataset tsv.") from None


def _mended(field: str) -> tuple[str, bool]:
    if field.isascii():
        return field, False
    text, invalid = mend(field.encode("utf-8", errors="surrogateescape"))
    return text or "", invalid


SOURCE = RowSource(
    SourceInfo(
        name="csv",
        what="Comma-separated files with a header line, fields quoted as in RFC 4180. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
    ),
    CsvFormat(),
    (".csv",),
)
