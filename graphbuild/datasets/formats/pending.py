"""Rows of one file on their way into a batch of bounded size; their kept columns are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from graphbuild.datasets.base import BATCH_BYTES, BATCH_ROWS, CaptionBatch, Captions, nothing_kept


def text_schema(names: Sequence[str]) -> pa.Schema:
    """Return the schema of kept columns that are text."""
    return pa.schema([pa.field(name, pa.string()) for name in names])


@dataclass(slots=True)
class Pending:
    """Rows that were read and not handed over yet."""

    file: str
    names: tuple[str, ...]
    """Of the kept columns."""
    bytes: int = 0
    """Of text."""
    numbers: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    captions: list[Captions] = field(default_factory=list)
    kept: list[tuple[str | None, ...]] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether the batch is to be handed over."""
        return len(self.ids) == BATCH_ROWS or self.bytes > BATCH_BYTES

    def add(self, number: int, sample_id: str, captions: Captions, kept: tuple[str | None, ...], *, invalid: bool) -> None:
        """Take in a row of the file, and whether it held invalid UTF-8."""
        self.numbers.append(number)
        self.ids.append(sample_id)
        self.captions.append(captions)
        self.kept.append(kept)
        self.bytes += sum(len(text) for text in (*captions, *kept) if text)
        if invalid:
            self.invalid.append(number)

    def take(self) -> CaptionBatch:
        """Hand over the rows taken in since the last call, and begin the next batch after them."""
        columns = [list(column) for column in zip(*self.kept, strict=True)]
        batch = CaptionBatch(
            file=self.file,
            first_row=self.numbers[0],
            sample_ids=self.ids,
            captions=self.captions,
            kept=pa.table(columns, schema=text_schema(self.names)) if self.names else nothing_kept(len(self.ids)),
            invalid_rows=tuple(self.invalid),
            file_rows=tuple(self.numbers),
        )
        self.numbers, self.ids, self.captions, self.kept, self.invalid, self.bytes = [], [], [], [], [], 0
        return batch
