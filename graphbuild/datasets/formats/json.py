"""Captions in JSON files: an array of objects, or an object with one, as in the `dataset_*.json` of Karpathy's splits."""

from __future__ import annotations

from collections.abc import Iterator

from graphbuild.datasets.base import SourceInfo
from graphbuild.datasets.formats.files import File
from graphbuild.datasets.formats.json_stream import first_array, stream_objects
from graphbuild.datasets.formats.jsonl import record_row
from graphbuild.datasets.formats.rows import Record, RowSource, Wanted

_EXPECTED = "It should be a list of objects, or an object with one list of them; for an object a line use --dataset jsonl."


class JsonFormat:
    """One object of the array a row; the first one names the columns."""

    def columns(self, file: File) -> list[str] | None:
        """Return the keys of the first object."""
        first = next(stream_objects(file, first_array(file, expected=_EXPECTED), expected=_EXPECTED), None)
        return list(first[0]) if first is not None else None

    def rows(self, file: File, wanted: Wanted) -> Iterator[Record]:
        """Read the objects of a file; those whose caption is no text are broken."""
        key = first_array(file, expected=_EXPECTED)
        for number, (record, invalid) in enumerate(stream_objects(file, key, expected=_EXPECTED)):
            yield record_row(f"object {number:,}", record, wanted, invalid)


SOURCE = RowSource(
    SourceInfo(
        name="json",
        what="JSON files: a list of objects, or an object with one list of them; captions are text, lists of text, or lists of "
        "objects with a text ('raw', 'caption', 'text'). Kept columns become text.",
        size="any; read in batches",
        licence="that of your data",
        origin="--source: files, folders, globs or URLs, .gz or .zst too",
        named_by_source=True,
    ),
    JsonFormat(),
    (".json",),
)
