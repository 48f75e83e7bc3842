"""The `text` stage: a data set in; shards of unique texts, their counts, and samples out.

The source is streamed: one shard of texts, one of samples, some forty bytes for each unique text and 8 for each sample
are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.embed.text.append import ExistingTexts, Segment, segment_facts
from graphbuild.embed.text.policy import LISTED, Cleaner, collapse_facts
from graphbuild.embed.text.table import NewText, Prompts, TextPolicy, TextTable, Tokenizer
from graphbuild.embed.text.unique import ClassNames, RepeatedIds
from graphbuild.errors import SourceError
from graphbuild.store import schemas
from graphbuild.store.counts import count_samples, manifest_counts, write_counts
from graphbuild.store.files import Receipt, ensure_parquet, finished, write_parquet
from graphbuild.store.hashes import hash_strings


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
    segments: tuple[Segment, ...]
    """How the shards are cut; just one where nothing was appended."""
    held: ExistingTexts | None = None
    """The graph that is appended to; only the last segment is then read."""
    known: frozenset[str] = frozenset()
    """Files of the source that the graph has already."""


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
    reading = _Reading(graph_dir, source, tokenizer, work)
    for batch in source.read():
        if batch.file not in work.known:
            reading.take(batch)
            report(len(batch.sample_ids))
    return reading.finish()


def check_source(source: OpenSource, policy: TextPolicy, prompts: Prompts, *, repeated: bool) -> None:
    """Read a source to its end for nothing but its errors.

    Args:
        source: An opened data set.
        policy: How captions are cleaned.
        prompts: Of class names.
        repeated: Whether sample ids may repeat.

    Raises:
        SourceError: As `write_texts`.
    """
    ids, classes, cleaner = RepeatedIds(source, allowed=repeated), ClassNames(source, prompts), Cleaner(policy)
    captions = 0
    for batch in source.read():
        rows, names = cleaner.clean(batch)
        ids.add([batch.sample_ids[row] for row in dict.fromkeys(rows)])
        # Any number that is the same for equal names.
        classes.add(batch, rows, names, hash_strings(names))
        captions += len(names)
    ids.finish()
    _require_captions(source, captions, cleaner)


def _require_captions(source: OpenSource, captions: int, cleaner: Cleaner) -> None:
    if not captions:
        blank = f"{cleaner.left_out:,} are null or blank"
        raise SourceError(f"{_where(source)}: no caption to embed ({blank}). Check --caption-column.")


class _Reading:
    """One pass over a source."""

    def __init__(self, graph_dir: Path, source: OpenSource, tokenizer: Tokenizer, work: TextWork) -> None:
        self._graph_dir, self._source, self._work = graph_dir, source, work
        self._texts = TextTable(tokenizer, work.prompts)
        self._samples = _SampleWriter(graph_dir, source, work)
        self._writer = _TextWriter(graph_dir, work)
        self._ids = RepeatedIds(source, allowed=work.multi_caption, known=work.known)
        self._classes = ClassNames(source, work.prompts)
        self._cleaner = Cleaner(work.policy, work.held)
        self._replaced = dict.fromkeys((old for old, _ in work.policy.replacements), 0)
        self._segment = 0
        if work.held is not None:
            self._segment = len(work.segments) - 1
            self._replaced |= work.held.stage.facts.get("replaced", {})
            self._texts.restore(work.held)
            self._ids.restore(work.held)
            self._classes.restore(work.held)

    def take(self, batch: CaptionBatch) -> None:
        """Take in the next samples."""
        self._turn_to(batch.file)
        rows, names = self._cleaner.clean(batch)
        for old in self._replaced:
            self._replaced[old] += batch.captions_with(old)
        self._ids.add([batch.sample_ids[row] for row in dict.fromkeys(rows)])
        text_ids = self._texts.add(names)
        self._classes.add(batch, rows, names, text_ids)
        self._writer.add(self._texts.take_new())
        self._samples.add(batch, rows, text_ids)

    def _turn_to(self, file: str) -> None:
        """Begin new shards where a file begins a segment."""
        segments = self._work.segments
        segment = next((index for index, one in enumerate(segments) if file in one.files), self._segment)
        if segment < self._segment:
            raise SourceError(
                f"{file}: comes after a file that was appended to it. Give the sources in the order in which they came to the "
                f"graph: {', '.join(name for one in segments for name in one.files)}."
            )
        if segment > self._segment:
            self._segment = segment
            self._writer.cut(segments[segment].key)
            self._samples.cut(segments[segment].key)

    def finish(self) -> TextOutcome:
        """Write what is left, and count."""
        distinct = self._ids.finish()
        _require_captions(self._source, self._samples.total, self._cleaner)
        counts = self._texts.counts()
        receipts = {**self._writer.finish(), **self._samples.finish()}
        receipts |= {receipt.path: receipt for receipt in self._write_counts(counts, distinct)}
        return TextOutcome(
            receipts=receipts,
            counts=self._counts(distinct),
            facts={
                **segment_facts(self._work.segments),
                **collapse_facts(self._graph_dir, self._writer.receipts, counts),
                "listed": self._cleaner.listed(),
                "truncated_text_ids": self._texts.truncated_ids()[:LISTED].tolist(),
                "unknown_text_ids": self._texts.unknown_ids()[:LISTED].tolist(),
                "replaced": self._replaced,
                **self._source.facts,
            },
        )

    def _write_counts(self, captions_N: NDArray[np.int32], distinct: int) -> list[Receipt]:
        """All of them, since those of older texts change, too."""
        samples_N = captions_N
        if distinct < self._samples.total:
            samples_N = count_samples((self._graph_dir / name for name in self._samples.receipts), len(captions_N))
        rows = [receipt.rows for receipt in self._writer.receipts.values()]
        return write_counts(self._graph_dir, rows, samples_N, captions_N, key=self._work.segments[-1].key)

    def _counts(self, distinct: int) -> dict[str, int]:
        # What the source itself left out counts for all that was read, in earlier calls, too.
        before = self._work.held.counts if self._work.held is not None else {}
        return {
            **manifest_counts(samples=distinct, captions=self._samples.total, texts=len(self._texts)),
            "truncated_texts": len(self._texts.truncated_ids()),
            "truncated_captions": self._texts.truncated_captions(),
            "unknown_captions": self._texts.unknown_captions(),
            **self._cleaner.counts(),
            **{name: count + before.get(name, 0) for name, count in self._source.counts.items()},
        }


def _where(source: OpenSource) -> str:
    names = [file.name for file in source.files]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class _TextWriter:
    """Writes texts, a shard at a time."""

    def __init__(self, graph_dir: Path, work: TextWork) -> None:
        self._graph_dir, self._size, self._key = graph_dir, work.shard_size, _first_key(work)
        self._pending: list[NewText] = []
        self.receipts = work.held.receipts(schemas.TEXTS) if work.held is not None else {}

    def add(self, new: list[NewText]) -> None:
        self._pending += new
        while len(self._pending) >= self._size:
            self._write(self._pending[: self._size])
            del self._pending[: self._size]

    def cut(self, key: str) -> None:
        """Begin a new shard: what follows is made for other work."""
        if self._pending:
            self._write(self._pending)
        self._pending, self._key = [], key

    def _write(self, rows: list[NewText]) -> None:
        name = schemas.part_name(schemas.TEXTS, len(self.receipts))
        receipt = finished(self._graph_dir, name, key=self._key)
        if receipt is None:
            columns = [list(column) for column in zip(*rows, strict=True)]
            table = pa.table(columns, schema=schemas.TEXTS_SCHEMA)
            receipt = write_parquet(self._graph_dir, name, table, key=self._key)
        self.receipts[name] = receipt

    def finish(self) -> dict[str, Receipt]:
        """Write what is left; returns the receipts of all shards."""
        self.cut(self._key)
        return self.receipts


class _SampleWriter:
    """Writes sample rows, one for each caption, a shard at a time."""

    def __init__(self, graph_dir: Path, source: OpenSource, work: TextWork) -> None:
        self._graph_dir, self._size, self._key = graph_dir, work.shard_size, _first_key(work)
        self._schema = pa.schema([*schemas.SAMPLES_SCHEMA, *source.keep_schema])
        self._pending = self._schema.empty_table()
        self.receipts = work.held.receipts(schemas.SAMPLES) if work.held is not None else {}
        self.total = sum(receipt.rows for receipt in self.receipts.values())

    def add(self, batch: CaptionBatch, rows: Sequence[int], text_ids: NDArray[np.int32]) -> None:
        ids = [batch.sample_ids[row] for row in rows]
        hashes = hash_strings(ids)
        kept = batch.kept.take(pa.array(rows, pa.int64())) if batch.kept.num_columns else batch.kept
        columns = [pa.array(ids, pa.string()), pa.array(hashes), pa.array(text_ids), *kept.columns]
        table = pa.table(dict(zip(self._schema.names, columns, strict=True))).cast(self._schema)
        self.total += len(ids)
        self._pending = pa.concat_tables([self._pending, table])
        while self._pending.num_rows >= self._size:
            self._write(self._pending.slice(0, self._size))
            self._pending = self._pending.slice(self._size)

    def cut(self, key: str) -> None:
        """Begin a new shard: what follows is made for other work."""
        if self._pending.num_rows:
            self._write(self._pending)
        self._pending, self._key = self._schema.empty_table(), key

    def _write(self, table: pa.Table) -> None:
        name = schemas.part_name(schemas.SAMPLES, len(self.receipts))
        self.receipts[name] = ensure_parquet(self._graph_dir, name, table.combine_chunks(), key=self._key)

    def finish(self) -> dict[str, Receipt]:
        """Write what is left; returns the receipts of all shards."""
        self.cut(self._key)
        return self.receipts


def _first_key(work: TextWork) -> str:
    """Key of the first shard to be written."""
    return work.segments[-1 if work.held is not None else 0].key
