"""Captions in JSON lines: one object a line; a caption is text, a list of texts, or null."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graphbuild.datasets.base import Captions, SourceInfo, mend
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Row, RowSource, Wanted
from graphbuild.errors import SourceError


class JsonLinesFormat:
    """One object a line. A key that an object lacks is null there; the first object names the columns."""

    def columns(self, path: File) -> list[str] | None:
        """Keys of the first object."""
        for _, record, _ in _records(path):
            return list(record)
        return None

    def rows(self, path: File, wanted: Wanted) -> Iterator[Row]:
        """Records of a file; blank lines are not records.

        Raises:
            SourceError: If a line is not an object, or a caption is not text.
        """
        for number, record, invalid in _records(path):
            captions, lone = _captions(path, number, wanted.caption, record.get(wanted.caption))
            yield Row(
                captions=captions,
                sample_id=as_text(record.get(wanted.sample_id)) if wanted.sample_id else None,
                kept=tuple(as_text(record.get(name)) for name in wanted.kept),
                invalid=invalid or lone,
            )


def _records(path: File) -> Iterator[tuple[int, dict[str, Any], bool]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text, invalid = mend(line.removeprefix(b"\xef\xbb\xbf"))
            if not text or text.isspace():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                raise SourceError(f"{path}: line {number:,} is not JSON ({error}). Mend or remove it.") from None
            if not isinstance(record, dict):
                raise SourceError(f"{path}: line {number:,} is not a JSON object but {type(record).__name__}. One object a line.")
            yield number, record, invalid


def _captions(path: File, number: int, column: str, value: Any) -> tuple[Captions, bool]:
    values = value if isinstance(value, list) else [value]
    captions: Captions = []
    lone = False
    for item in values:
        if item is not None and not isinstance(item, str):
            raise SourceError(
                f"{path}: line {number:,}: {column!r} holds {type(item).__name__}, not text. Choose another --caption-column."
            )
        text = as_text(item)
        lone |= text != item
        captions.append(text)
    return captions, lone


def as_text(value: Any) -> str | None:
    """Text as it is, save that lone surrogates, which are no characters, become U+FFFD; other values as JSON."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", errors="surrogatepass").decode("utf-16", errors="replace")


SOURCE = RowSource(
    SourceInfo(
        name="jsonl",
        what="JSON lines: one object a line, captions as text or lists of text (several captions a sample). "
        "Kept columns become text. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs",
    ),
    JsonLinesFormat(),
    (".jsonl", ".ndjson"),
)
