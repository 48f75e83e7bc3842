"""From captions to unique texts and samples: the text policy, prompts, tokens, and the `text` stage's shards.

A text is unique by the token sequence that the encoder reads. Text ids run from 0 in order of first appearance. The
source is streamed: held in memory are one shard of texts, one shard of samples, and a few dozen bytes per unique text
and 8 per sample.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild import schemas
from graphbuild.datasets.base import CaptionBatch, OpenSource
from graphbuild.errors import OptionError, SourceError
from graphbuild.shards import Receipt, finished, write_parquet

DEFAULT_TEMPLATE = "a photo of a {}"
LISTED = 100
"""Examples of each thing left out or altered that the manifest lists."""
_CACHED_TEXTS = 100_000

Tokens = NDArray[np.int32]


class Tokenizer(Protocol):
    """What the text stage needs of an encoder."""

    def tokenize(self, texts: Sequence[str]) -> tuple[list[Tokens], list[bool]]:
        """Token ids of each text, cut to the encoder's length, and whether it was cut."""


@dataclass(frozen=True, slots=True)
class TextPolicy:
    """What is done to a caption before anything else."""

    replacements: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, replacements: Sequence[str]) -> TextPolicy:
        """From `OLD=NEW` options.

        Raises:
            OptionError: If one has no `=` or nothing before it.
        """
        pairs = []
        for entry in replacements:
            old, sign, new = entry.partition("=")
            if not sign or not old:
                raise OptionError(f"--replace {entry!r} is not OLD=NEW. Write, for example, --replace '<person>=someone'.")
            pairs.append((unicodedata.normalize("NFC", old), unicodedata.normalize("NFC", new)))
        return cls(tuple(pairs))

    def clean(self, text: str) -> str:
        """Unicode NFC, replacements, white space folded and trimmed."""
        text = unicodedata.normalize("NFC", text)
        for old, new in self.replacements:
            text = text.replace(old, new)
        return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Prompts:
    """How a caption, or a class name, becomes what the encoder reads."""

    templates: tuple[str, ...] = ()

    @classmethod
    def parse(cls, templates: Sequence[str]) -> Prompts:
        """From `--template` options; none means that captions are read as they are.

        Raises:
            OptionError: If one does not hold `{}` exactly once, or is given twice.
        """
        for template in templates:
            if template.count("{}") != 1:
                raise OptionError(f"--template {template!r} must hold {{}} exactly once: the place of the class name.")
        if len(set(templates)) < len(templates):
            raise OptionError("--template: one template is given twice. Give each once.")
        # Only the blanks at the ends go: those beside {} are part of the prompt.
        return cls(tuple(unicodedata.normalize("NFC", template).strip() for template in templates))

    def all_of(self, name: str) -> list[str]:
        """Every prompt of a class name; the first one is its text."""
        return [template.replace("{}", name) for template in self.templates] or [name]

    def name_of(self, text: str) -> str:
        """The class name in a text."""
        if not self.templates:
            return text
        before, after = self.templates[0].split("{}")
        return text[len(before) : len(text) - len(after)]


def hash_tokens(prompts: Sequence[Tokens]) -> tuple[int, int]:
    """`text_hash` of a text (xxh3_64 of its int32 tokens, all prompts joined by -1), and an independent second hash.

    Two texts are taken for one only if both agree; the first alone would err once in 2e5 data sets of 12 M texts.
    """
    joined = b"\xff\xff\xff\xff".join(tokens.astype("<i4").tobytes() for tokens in prompts)
    return xxhash.xxh3_64_intdigest(joined), xxhash.xxh64_intdigest(joined)


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
    for batch in source.read():
        ids.add(batch.sample_ids)
        rows, names = clean_batch(batch, work.policy, listings)
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
        counts=_counts(distinct, samples, texts, listings),
        facts={
            "listed": {name: listing.first for name, listing in listings.items() if listing.first},
            "truncated_text_ids": texts.truncated_ids()[:LISTED],
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
                listings["null"].add(f"{batch.file}:{batch.first_row + row}")
            elif text := policy.clean(caption):
                rows.append(row)
                cleaned.append(text)
            else:
                listings["blank"].add(f"{batch.file}:{batch.first_row + row}")
    for row in batch.invalid_rows:
        listings["invalid_utf8"].add(f"{batch.file}:{row}")
    return rows, cleaned


class TextTable:
    """Unique texts by token sequence: name -> text id."""

    def __init__(self, tokenizer: Tokenizer, prompts: Prompts) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._ids: dict[int, int] = {}
        self._second: list[NDArray[np.uint64]] = []
        self._checks = _Growing(np.uint64)
        self._counts = _Growing(np.int64)
        self._truncated: list[int] = []
        self._cache: dict[str, int] = {}
        self._new: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Text ids of clean captions or class names; new texts get the next ids, in order of first appearance."""
        known = {name: self._cache[name] for name in set(names) & self._cache.keys()}
        unknown = list(dict.fromkeys(name for name in names if name not in known))
        for name, (prompts, truncated) in zip(unknown, self._tokenize(unknown), strict=True):
            known[name] = self._enter(name, prompts, truncated)
            if len(self._cache) < _CACHED_TEXTS:
                self._cache[name] = known[name]
        text_ids = np.fromiter((known[name] for name in names), dtype=np.int32, count=len(names))
        self._counts.resize(len(self))
        np.add.at(self._counts.values, text_ids, 1)
        return text_ids

    def _tokenize(self, names: Sequence[str]) -> Iterator[tuple[list[Tokens], bool]]:
        prompts = [prompt for name in names for prompt in self._prompts.all_of(name)]
        tokens, cut = self._tokenizer.tokenize(prompts) if prompts else ([], [])
        width = max(1, len(self._prompts.templates))
        for start in range(0, len(prompts), width):
            yield tokens[start : start + width], any(cut[start : start + width])

    def _enter(self, name: str, prompts: list[Tokens], truncated: bool) -> int:
        text_hash, check = hash_tokens(prompts)
        found = self._ids.get(text_hash)
        if found is not None:
            if int(self._checks.values[found]) != check:
                raise SourceError(
                    f"the caption {name[:80]!r} has the 64-bit hash of another text (id {found:,}), by chance. "
                    "Leave it out, or change it with --replace."
                )
            return found
        text_id = len(self._ids)
        self._ids[text_hash] = text_id
        self._checks.append(check)
        self._new.append((text_id, self._prompts.all_of(name)[0], text_hash))
        if truncated:
            self._truncated.append(text_id)
        return text_id

    def take_new(self) -> list[tuple[int, str, int]]:
        """(text id, text, hash) of the texts that came since the last call."""
        new, self._new = self._new, []
        return new

    def counts(self) -> NDArray[np.int32]:
        """Captions of each text; shape (N,)."""
        return self._counts.values[: len(self)].astype(np.int32)

    def truncated_ids(self) -> list[int]:
        """Texts that are longer than the encoder reads."""
        return self._truncated

    def truncated_captions(self) -> int:
        """Captions whose text is longer than the encoder reads."""
        return int(self._counts.values[self._truncated].sum()) if self._truncated else 0


class _Growing:
    """A NumPy array that grows by doubling."""

    def __init__(self, dtype: Any) -> None:
        self._size = 0
        self.values: NDArray[Any] = np.zeros(1024, dtype)

    def resize(self, size: int) -> None:
        if size > len(self.values):
            self.values = np.concatenate([self.values, np.zeros(max(size, len(self.values)), self.values.dtype)])
        self._size = max(self._size, size)

    def append(self, value: int) -> None:
        self.resize(self._size + 1)
        self.values[self._size - 1] = value


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
        hashes = (xxhash.xxh3_64_intdigest(sample_id) for sample_id in sample_ids)
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
            for row, sample_id in enumerate(batch.sample_ids, batch.first_row):
                if xxhash.xxh3_64_intdigest(sample_id) not in hashes:
                    continue
                place = f"{batch.file}:{row}"
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
                    f"{batch.file}:{batch.first_row + row}: two classes of one name: {self._column} {first} is {first_name!r}, and "
                    f"{self._column} {classes[row]} is {name!r}. Give them different names."
                )


class _TextWriter:
    """Writes texts, and at the end their counts, a shard at a time."""

    def __init__(self, graph_dir: Path, work: TextWork) -> None:
        self._graph_dir, self._size, self._key = graph_dir, work.shard_size, work.key
        self._pending: list[tuple[int, str, int]] = []
        self._receipts: dict[str, Receipt] = {}
        self._shards = 0

    def add(self, new: list[tuple[int, str, int]]) -> None:
        self._pending += new
        while len(self._pending) >= self._size:
            self._write(self._pending[: self._size])
            del self._pending[: self._size]

    def _write(self, rows: list[tuple[int, str, int]]) -> None:
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
        hashes = np.fromiter((xxhash.xxh3_64_intdigest(sample_id) for sample_id in ids), dtype=np.uint64, count=len(ids))
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
