"""Captions in JSON lines: one object a line; a caption is text, a list of texts, or null."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graphbuild.datasets.base import Captions, SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.rows import Broken, Record, Row, RowSource, Wanted
from graphbuild.errors import SourceError
from graphbuild.system.decoding import as_text, mend, parse_object

TEXT_FIELDS = ("raw", "caption", "text", "sentence")
"""Where captions that are objects hold their text, as in `dataset_karpathy.json`."""


class JsonLinesFormat:
    """One object a line. A key that an object lacks is null there; the first object names the columns."""

    def columns(self, file: File) -> list[str] | None:
        """Return the keys of the first object that can be read.

        Raises:
            SourceError: If no line can be read.
        """
        broken = None
        for number, record, _ in _records(file):
            if isinstance(record, dict):
                return list(record)
            broken = broken or f"line {number:,} {record}"
        if broken is not None:
            raise SourceError(f"{file}: {broken}")
        return None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the records of a file; blank lines are none, and those that are no object or have no text as caption are broken."""
        for number, record, invalid in _records(file):
            place = f"line {number:,}"
            yield record_row(place, record, wanted, invalid) if isinstance(record, dict) else Broken(f"{place} {record}")


def _records(file: File) -> Iterator[tuple[int, dict[str, Any] | str, bool]]:
    """Line, object or what is wrong, and whether it held invalid UTF-8."""
    with file.text() as stream:
        for number, line in enumerate(stream, 1):
            text, invalid = mend(line)
            if not text or text.isspace():
                continue
            try:
                yield number, parse_object(text), invalid
            except ValueError as error:
                yield number, f"is no JSON object ({error}). Mend or remove it.", invalid


def record_row(place: str, record: Mapping[str, Any], wanted: Wanted, invalid: bool) -> Record:
    """Return the row of a JSON object; a caption is text, a list of texts, objects that hold a text, or null."""
    try:
        captions, lone = captions_of_json(record.get(wanted.caption))
    except ValueError as error:
        return Broken(f"{place}: {wanted.caption!r} holds {error}, not text. Choose another --caption-column.")
    return Row(
        captions=captions,
        sample_id=as_text(record.get(wanted.sample_id)) if wanted.sample_id else None,
        kept=tuple(as_text(record.get(name)) for name in wanted.kept),
        invalid=invalid or lone,
    )


def captions_of_json(value: Any) -> tuple[Captions, bool]:
    """Return the captions that a JSON value holds, and whether a lone surrogate was repaired.

    Raises:
        ValueError: If it holds something else than text; the type is named.
    """
    captions: Captions = []
    lone = False
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            item = next((item[name] for name in TEXT_FIELDS if isinstance(item.get(name), str)), item)
        if item is not None and not isinstance(item, str):
            raise ValueError(type(item).__name__)
        text = as_text(item)
        lone |= text != item
        captions.append(text)
    return captions, lone


SOURCE = RowSource(
    SourceInfo(
        name="jsonl",
        what="JSON lines: one object a line, captions as text or lists of text (several captions a sample). "
        "Kept columns become text. Invalid UTF-8 becomes U+FFFD and is counted.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs, .gz or .zst too",
        named_by_source=True,
    ),
    JsonLinesFormat(),
    (".jsonl", ".ndjson"),
)
