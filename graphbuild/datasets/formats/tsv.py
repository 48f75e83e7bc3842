"""Captions in tab-separated files with a header line. There are no quoting rules: every character stands for itself."""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo, mend
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Row, RowSource, Wanted
from graphbuild.errors import SourceError


class TsvFormat:
    """One record a line, fields between tabs; names in the first line, unless the format settles them."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._names = list(names)

    def columns(self, path: File) -> list[str] | None:
        """The settled names, else those in the first line."""
        with path.open("rb") as stream:
            line = stream.readline()
        if self._names:
            return self._names if line else None
        return _fields(line)[0] if line.strip() else None

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Records of a file.

        Raises:
            SourceError: If a line has another number of fields than the header.
        """
        with path.open("rb") as stream:
            names = self._names or _fields(stream.readline())[0]
            expected = f"not {len(names)}" if self._names else f"the header {len(names)}"
            caption, kept = names.index(wanted.caption), [names.index(name) for name in wanted.kept]
            sample_id = names.index(wanted.sample_id) if wanted.sample_id else None
            for number, line in enumerate(stream, 1 if self._names else 2):
                fields, invalid = _fields(line)
                if len(fields) != len(names):
                    raise SourceError(
                        f"{path}: line {number:,} has {len(fields)} fields, {expected}. "
                        "A tab inside a caption, or a broken line: mend it."
                    )
                yield Row(
                    captions=[fields[caption]],
                    sample_id=None if sample_id is None else fields[sample_id],
                    kept=tuple(fields[column] for column in kept),
                    invalid=invalid,
                )


def _fields(line: bytes) -> tuple[list[str], bool]:
    text, invalid = mended_line(line)
    return text.split("\t"), invalid


def mended_line(line: bytes) -> tuple[str, bool]:
    """A line without its end and byte-order mark, and whether it held invalid UTF-8, which is mended."""
    text, invalid = mend(line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r"))
    return text or "", invalid


SOURCE = RowSource(
    SourceInfo(
        name="tsv",
        what="Tab-separated files with a header line, without quoting rules: a lone quote is a character, NA and null are "
        "captions. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
    ),
    TsvFormat(),
    (".tsv",),
)
