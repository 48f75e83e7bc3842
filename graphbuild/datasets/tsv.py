"""Captions in tab-separated files with a header line. There are no quoting rules: every character stands for itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from graphbuild.datasets.base import SourceInfo, mend
from graphbuild.datasets.rows import Row, RowSource, Wanted
from graphbuild.errors import SourceError


class TsvFormat:
    """One record a line, fields between tabs."""

    def columns(self, path: Path) -> list[str] | None:
        """Names in the first line."""
        with path.open("rb") as stream:
            line = stream.readline()
        return _fields(line)[0] if line.strip() else None

    def rows(self, path: Path, wanted: Wanted) -> Iterator[Row]:
        """Records of a file.

        Raises:
            SourceError: If a line has another number of fields than the header.
        """
        with path.open("rb") as stream:
            names, _ = _fields(stream.readline())
            caption, kept = names.index(wanted.caption), [names.index(name) for name in wanted.kept]
            sample_id = names.index(wanted.sample_id) if wanted.sample_id else None
            for number, line in enumerate(stream, 2):
                fields, invalid = _fields(line)
                if len(fields) != len(names):
                    raise SourceError(
                        f"{path}: line {number:,} has {len(fields)} fields, the header {len(names)}. "
                        "A tab inside a caption, or a broken line: mend it."
                    )
                yield Row(
                    captions=[fields[caption]],
                    sample_id=None if sample_id is None else fields[sample_id],
                    kept=tuple(fields[column] for column in kept),
                    invalid=invalid,
                )


def _fields(line: bytes) -> tuple[list[str], bool]:
    text, invalid = mend(line.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r"))
    return (text or "").split("\t"), invalid


SOURCE = RowSource(
    SourceInfo(
        name="tsv",
        what="Tab-separated files with a header line, without quoting rules: a lone quote is a character, NA and null are "
        "captions. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders or globs",
    ),
    TsvFormat(),
    (".tsv",),
)
