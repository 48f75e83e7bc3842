"""Plain text, a caption a line; nothing in a line has a meaning but the line break."""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Record, Row, RowSource, Wanted
from graphbuild.datasets.formats.tsv import repaired_line

_COLUMN = "text"


class LinesFormat:
    """One caption a line."""

    def columns(self, file: File) -> list[str] | None:
        """Return the one there is."""
        with file.text() as stream:
            return [_COLUMN] if stream.read(1) else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the lines of a file; blank ones are blank captions, so that row numbers are line numbers less one."""
        with file.text() as stream:
            for line in stream:
                text, invalid = repaired_line(line)
                yield Row(captions=[text], sample_id=text, kept=(text,) * len(wanted.kept), invalid=invalid)


SOURCE = RowSource(
    SourceInfo(
        name="lines",
        what="Plain text, a caption a line. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs, .gz or .zst too",
        named_by_source=True,
    ),
    LinesFormat(),
    (".txt",),
)
