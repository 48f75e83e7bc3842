"""Captions in tab-separated files. There are no quoting rules: every character stands for itself.

Python's csv module is no help here: it would give quotes a meaning.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Broken, Record, Row, RowSource, Wanted
from graphbuild.system.decoding import mend


class TsvFormat:
    """One record a line, fields between tabs; names in the first line, unless they are given."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._names = list(names)

    def columns(self, file: File) -> list[str] | None:
        """Return the names that were given, else those in the first line."""
        with file.text() as stream:
            line = stream.readline()
        if self._names:
            return self._names if line else None
        return _fields(line)[0] if line.strip() else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the records of a file; a line with another number of fields than the header is a broken one."""
        with file.text() as stream:
            names = self._names or _fields(stream.readline())[0]
            expected = f"not {len(names)}" if self._names else f"the header {len(names)}"
            caption, kept = names.index(wanted.caption), [names.index(name) for name in wanted.kept]
            sample_id = names.index(wanted.sample_id) if wanted.sample_id else None
            for number, line in enumerate(stream, 1 if self._names else 2):
                fields, invalid = _fields(line)
                if len(fields) != len(names):
                    yield Broken(
                        f"line {number:,} has {len(fields)} fields, {expected}. A tab inside a caption, or a broken line: mend it."
                    )
                    continue
                yield Row(
                    captions=[fields[caption]],
                    sample_id=None if sample_id is None else fields[sample_id],
                    kept=tuple(fields[column] for column in kept),
                    invalid=invalid,
                )


def _fields(line: bytes) -> tuple[list[str], bool]:
    text, invalid = repaired_line(line)
    return text.split("\t"), invalid


def repaired_line(line: bytes) -> tuple[str, bool]:
    """Return a line without its end, and whether it held invalid UTF-8, which is repaired."""
    text, invalid = mend(line.removesuffix(b"\n").removesuffix(b"\r"))
    return text or "", invalid


SOURCE = RowSource(
    SourceInfo(
        name="tsv",
        what="Tab-separated files with a header line, or with --columns, without quoting rules: a lone quote is a character, NA "
        "and null are captions. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs, .gz or .zst too",
        named_by_source=True,
    ),
    TsvFormat(),
    (".tsv",),
    headerless=TsvFormat,
)
