"""The `text` stage: a data set in; shards of unique texts, their counts, and samples out.

The source is streamed: held in memory are one shard of texts, one of samples, some forty bytes for each unique text and
8 for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild import schemas
from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.errors import SourceError
from graphbuild.shards import Receipt, finished, write_parquet
from graphbuild.text import NewText, Prompts, TextPolicy, TextTable, Tokenizer, hash_sample_id

LISTED = 100
"""Examples of each thing left out or altered that the manifest lists."""


@dataclass(slots=True)
class Listing:
    """Counts something, and keeps the first places where it was met."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """Meet it once more."""
        self.count += 1
        if len(self.first) < LISTED:
            self.first.append(place)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOutcome:
    """What the text stage wrote and counted."""

    receipts: dict[str, Receipt]
    counts: dict[str, int]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextWork:
    """How the text stage works."""

    policy: TextPolicy
    prompts: Prompts
    multi_caption: bool
    shard_size: int
    key: str


def write_texts(
    graph_dir: Path, source: OpenSource, tokenizer: Tokenizer, work: TextWork, report: Callable[[int], None]
) -> TextOutcome:
    """Read a source once, and write the shards of texts, counts and samples.

    Shards that are already there, made for the same work, are left alone.

    Args:
        graph_dir: Where the shards go.
        source: An opened data set.
        tokenizer: Of the encoder that will read the texts.
        work: How to do it.
        report: Told the number of samples read, batch by batch.

    Raises:
        SourceError: If no caption is left, a sample id comes twice, or two classes have one name.
    """
    texts = TextTable(tokenizer, work.prompts)
    samples = _SampleWriter(graph_dir, source, work)
    writer = _TextWriter(graph_dir, work)
    ids = RepeatedIds(source, allowed=work.multi_caption)
    classes = _ClassNames(source, texts, work.prompts)
    listings = {name: Listing() for name in ("null", "blank", "invalid_utf8")}
    replaced = dict.fromkeys((old for old, _ in work.policy.replacements), 0)
    for batch in source.read():
        rows, names = clean_batch(batch, work.policy, listings)
        for old in replaced:
            replaced[old] += batch.captions_with(old)
        ids.add([batch.sample_ids[row] for row in dict.fromkeys(rows)])
        text_ids = texts.add(names)
        classes.add(batch, rows, names, text_ids)
        writer.add(texts.take_new())
        samples.add(batch, rows, text_ids)
        report(len(batch.sample_ids))
    distinct = ids.finish()
    if not samples.total:
        blank = listings["null"].count + listings["blank"].count
        raise SourceError(f"{_where(source)}: no caption to embed ({blank:,} are null or blank). Check --caption-column.")
    receipts = {**writer.finish(texts.counts()), **samples.finish()}
    return TextOutcome(
        receipts=receipts,
        counts={**_counts(distinct, samples, texts, listings), **source.counts},
        facts={
            "listed": {name: listing.first for name, listing in listings.items() if listing.first},
            "truncated_text_ids": texts.truncated_ids()[:LISTED].tolist(),
            "replaced": replaced,
            **source.facts,
        },
    )


def _counts(distinct: int, samples: _SampleWriter, texts: TextTable, listings: dict[str, Listing]) -> dict[str, int]:
    return {
        "samples": distinct,
        "captions": samples.total,
        "texts": len(texts),
        "duplicate_captions": samples.total - len(texts),
        "null_captions": listings["null"].count,
        "blank_captions": listings["blank"].count,
        "invalid_utf8_rows": listings["invalid_utf8"].count,
        "truncated_texts": len(texts.truncated_ids()),
        "truncated_captions": texts.truncated_captions(),
    }


def _where(source: OpenSource) -> str:
    names = [file.name for file in source.files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def clean_batch(batch: CaptionBatch, policy: TextPolicy, listings: dict[str, Listing]) -> tuple[list[int], list[str]]:
    """Clean captions, and the batch row that each belongs to; null and blank ones are left out and listed."""
    rows: list[int] = []
    cleaned: list[str] = []
    for row, captions in enumerate(batch.captions):
        # A sample without any caption in its list has none, too.
        for caption in captions or [None]:
            if caption is None:
                listings["null"].add(batch.place(row))
            elif text := policy.clean(caption):
                rows.append(row)
                cleaned.append(text)
            else:
                listings["blank"].add(batch.place(row))
    for row in batch.invalid_rows:
        listings["invalid_utf8"].add(f"{batch.file}:{row}")
    return rows, cleaned


class RepeatedIds:
    """Finds sample ids that come twice, from 8 bytes a sample."""

    _FIRST_CHECK = 1 << 20

    def __init__(self, source: OpenSource, *, allowed: bool) -> None:
        self._source = source
        self._allowed = allowed
        self._parts: list[NDArray[np.uint64]] = []
        self._total = 0
        self._next = self._FIRST_CHECK

    def add(self, sample_ids: Sequence[str]) -> None:
        """Note some ids; now and then look for repeated ones, so that a mistake shows early."""
        hashes = (hash_sample_id(sample_id) for sample_id in sample_ids)
        self._parts.append(np.fromiter(hashes, dtype=np.uint64, count=len(sample_ids)))
        self._total += len(sample_ids)
        if self._total >= self._next:
            self._next = 2 * self._total
            self.finish()

    def finish(self) -> int:
        """Number of distinct ids.

        Raises:
            SourceError: If one comes twice and that is not allowed; its places are named.
        """
        hashes = np.sort(np.concatenate(self._parts)) if self._parts else np.empty(0, np.uint64)
        twice = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(twice) and not self._allowed:
            self._raise_for({int(value) for value in np.unique(twice)})
        return self._total - len(twice)

    def _raise_for(self, hashes: set[int]) -> None:
        """Name the first repeated id; a second pass finds its places, for only hashes were kept."""
        places: dict[str, str] = {}
        for batch in self._source.read():
            for row, sample_id in enumerate(batch.sample_ids):
                if hash_sample_id(sample_id) not in hashes:
                    continue
                place = batch.place(row)
                if sample_id in places:
                    raise SourceError(
                        f"sample id {sample_id!r} comes twice, at {places[sample_id]} and {place}. Choose another --id-column, "
                        "or give --multi-caption if rows that share an id are captions of one sample."
                    )
                places[sample_id] = place


class _ClassNames:
    """Checks that each class has its own text, where a kept column tells the classes apart."""

    def __init__(self, source: OpenSource, texts: TextTable, prompts: Prompts) -> None:
        self._column = source.class_column if prompts.templates else None
        self._class_of: dict[int, tuple[Any, str]] = {}

    def add(self, batch: CaptionBatch, rows: Sequence[int], names: Sequence[str], text_ids: NDArray[np.int32]) -> None:
        if self._column is None:
            return
        classes = batch.kept[self._column].to_pylist()
        for row, name, text_id in zip(rows, names, text_ids.tolist(), strict=True):
            first, first_name = self._class_of.setdefault(text_id, (classes[row], name))
            if first != classes[row]:
                raise SourceError(
                    f"{batch.place(row)}: two classes of one name: {self._column} {first} is {first_name!r}, and "
                    f"{self._column} {classes[row]} is {name!r}. Give them different names."
                )


class _TextWriter:
    """Writes texts, and at the end their counts, a shard at a time."""

    def __init__(self, graph_dir: Path, work: TextWork) -> None:
        self._graph_dir, self._size, self._key = graph_dir, work.shard_size, work.key
        self._pending: list[NewText] = []
        self._receipts: dict[str, Receipt] = {}
        self._shards = 0

    def add(self, new: list[NewText]) -> None:
        self._pending += new
        while len(self._pending) >= self._size:
            self._write(self._pending[: self._size])
            del self._pending[: self._size]

    def _write(self, rows: list[NewText]) -> None:
        name = schemas.part_name(schemas.TEXTS, self._shards)
        self._shards += 1
        receipt = finished(self._graph_dir, name, key=self._key)
        if receipt is None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.table(columns, schema=schemas.TEXTS_SCHEMA)
            receipt = write_parquet(self._graph_dir, name, table, key=self._key)
        self._receipts[name] = receipt

    def finish(self, counts: NDArray[np.int32]) -> dict[str, Receipt]:
        if self._pending:
            self._write(self._pending)
        for shard in range(self._shards):
            name = schemas.part_name(schemas.COUNTS, shard)
            start = shard * self._size
            part = counts[start : start + self._size]
            text_ids = np.arange(start, start + len(part), dtype=np.int32)
            table = pa.table([text_ids, part], schema=schemas.COUNTS_SCHEMA)
            self._receipts[name] = finished(self._graph_dir, name, key=self._key) or write_parquet(
                self._graph_dir, name, table, key=self._key
            )
        return self._receipts


class _SampleWriter:
    """Writes sample rows, one for each caption, a shard at a time."""

    def __init__(self, graph_dir: Path, source: OpenSource, work: TextWork) -> None:
        self._graph_dir, self._size, self._key = graph_dir, work.shard_size, work.key
        self._schema = pa.schema([*schemas.SAMPLES_SCHEMA, *source.keep_schema])
        self._pending = self._schema.empty_table()
        self._receipts: dict[str, Receipt] = {}
        self.total = 0

    def add(self, batch: CaptionBatch, rows: Sequence[int], text_ids: NDArray[np.int32]) -> None:
        ids = [batch.sample_ids[row] for row in rows]
        hashes = np.fromiter((hash_sample_id(sample_id) for sample_id in ids), dtype=np.uint64, count=len(ids))
        kept = batch.kept.take(pa.array(rows, pa.int64())) if batch.kept.num_columns else batch.kept
        columns = [pa.array(ids, pa.string()), pa.array(hashes), pa.array(text_ids), *kept.columns]
        table = pa.table(dict(zip(self._schema.names, columns, strict=True))).cast(self._schema)
        self.total += len(ids)
        self._pending = pa.concat_tables([self._pending, table])
        while self._pending.num_rows >= self._size:
            self._write(self._pending.slice(0, self._size))
            self._pending = self._pending.slice(self._size)

    def _write(self, table: pa.Table) -> None:
        name = schemas.part_name(schemas.SAMPLES, len(self._receipts))
        self._receipts[name] = finished(self._graph_dir, name, key=self._key) or write_parquet(
            self._graph_dir, name, table.combine_chunks(), key=self._key
        )

    def finish(self) -> dict[str, Receipt]:
        if self._pending.num_rows:
            self._write(self._pending)
        return self._receipts
