"""Plain text, a caption a line; nothing in a line has a meaning but the line break."""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Row, RowSource, Wanted
from graphbuild.datasets.formats.tsv import mended_line

_COLUMN = "text"


class LinesFormat:
    """One caption a line."""

    def columns(self, path: File) -> list[str] | None:
        """The one there is."""
        with path.open("rb") as stream:
            return [_COLUMN] if stream.read(1) else None

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Lines of a file; blank ones are blank captions, so that row numbers are line numbers less one."""
        with path.open("rb") as stream:
            for line in stream:
                text, invalid = mended_line(line)
                yield Row(captions=[text], sample_id=text, kept=(text,) * len(wanted.kept), invalid=invalid)


SOURCE = RowSource(
    SourceInfo(
        name="lines",
        what="Plain text, a caption a line. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
    ),
    LinesFormat(),
    (".txt",),
)
