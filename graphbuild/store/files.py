"""Shard files: their ranges, writing them so that a crash leaves nothing half-done, and telling what is left to do.

A file is written to a temporary name, flushed to disk, renamed; then its receipt `<file>.json` the same way. A shard is
done only if the file is there with the size and digest of its receipt, and the receipt was made for the same work
(`key`). Nothing here knows what a shard holds.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from graphbuild.errors import ArtifactError

_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class ShardRange:
    """Ids `start` to `stop` (exclusive) of shard number `index`."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What one finished file holds; stored beside it, and copied into the manifest."""

    path: str
    """Relative to the graph directory, with forward slashes."""
    digest: str
    rows: int
    bytes: int
    key: str
    """Digest of everything that the bytes depend on: options and inputs. Another key means: not done."""
    columns: dict[str, str] = field(default_factory=dict)
    """Digest of each column's values, so that a later stage depends only on the columns that it reads."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the writer wants to tell the client: counts, seconds, its process id."""


def shard_ranges(count: int, size: int) -> list[ShardRange]:
    """Cut ids 0..count-1 into contiguous ranges of `size`, the last one shorter."""
    if size < 1:
        raise ValueError(f"a shard holds at least one row, not {size}")
    return [ShardRange(i, start, min(start + size, count)) for i, start in enumerate(range(0, count, size))]


def digest_file(path: Path) -> str:
    """xxh3-128 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return digest_stream(stream)


def digest_stream(stream: IO[bytes]) -> str:
    """xxh3-128 of what is left of a stream, in hexadecimal."""
    hasher = xxhash.xxh3_128()
    while chunk := stream.read(_CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest()


def digest_json(value: Any) -> str:
    """xxh3-128 of a value's canonical JSON: equal values, equal digests, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def digest_columns(table: pa.Table) -> dict[str, str]:
    """xxh3-128 of each column's values, independent of chunking and of the other columns."""
    digests = {}
    for name in table.column_names:
        # A copy, for the bytes of a slice hold traces of what lies before and after it.
        single = table.select([name]).take(np.arange(table.num_rows)).combine_chunks()
        sink = _HashSink()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), single.schema.remove_metadata()) as writer:
            writer.write_table(single)
        digests[name] = sink.hasher.hexdigest()
    return digests


class _HashSink:
    """A file that only hashes what is written to it."""

    def __init__(self) -> None:
        self.hasher = xxhash.xxh3_128()
        self.closed = False
        self._position = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        self.hasher.update(view)
        self._position += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to it, flushed, when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, readable by people."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def remove_stale_temporaries(folder: Path) -> None:
    """Remove what killed writers left behind. Call it only where no writer is at work."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def remove_strays(graph_dir: Path, folder: str, names: Collection[str]) -> None:
    """Remove Parquet shards that an earlier, larger build left behind, and what killed writers left."""
    remove_stale_temporaries(graph_dir / folder)
    for path in (graph_dir / folder).glob("part-*.parquet"):
        if f"{folder}/{path.name}" not in names:
            receipt_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


@contextmanager
def scratch_name(folder: Path, label: str) -> Iterator[Path]:
    """A name for a file that is gone when the block ends; what a killed run leaves is removed by the next run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{label}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def receipt_path(path: Path) -> Path:
    """Where the receipt of a file lies."""
    return path.with_name(path.name + ".json")


def finish(
    graph_dir: Path,
    path: Path,
    *,
    rows: int,
    key: str,
    columns: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Receipt:
    """Enter a file that was just written: its receipt is stored beside it and returned."""
    receipt = Receipt(
        path=path.relative_to(graph_dir).as_posix(),
        digest=digest_file(path),
        rows=rows,
        bytes=path.stat().st_size,
        key=key,
        columns=dict(columns or {}),
        facts=dict(facts or {}),
    )
    write_json(receipt_path(path), asdict(receipt))
    return receipt


def write_parquet(graph_dir: Path, name: str, table: pa.Table, *, key: str, facts: Mapping[str, Any] | None = None) -> Receipt:
    """Write a Parquet shard and its receipt. The same table gives the same bytes."""
    path = graph_dir / name
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return finish(graph_dir, path, rows=table.num_rows, key=key, columns=digest_columns(table), facts=facts)


def write_arrow(graph_dir: Path, name: str, batch: pa.RecordBatch, *, key: str, facts: Mapping[str, Any] | None = None) -> Receipt:
    """Write an Arrow IPC shard of one uncompressed record batch, so that readers map it, and its receipt."""
    path = graph_dir / name
    with (
        atomic_path(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, batch.schema) as writer,
    ):
        writer.write_batch(batch)
    columns = digest_columns(pa.Table.from_batches([batch]))
    return finish(graph_dir, path, rows=batch.num_rows, key=key, columns=columns, facts=facts)


def read_receipt(path: Path) -> Receipt | None:
    """The receipt of a file, or None where there is none that can be read."""
    try:
        return Receipt(**json.loads(receipt_path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def finished(graph_dir: Path, name: str, *, key: str) -> Receipt | None:
    """The receipt of a shard that is done: there, undamaged, and made for the same work; else None."""
    path = graph_dir / name
    receipt = read_receipt(path)
    if receipt is None or receipt.key != key or receipt.path != name or damage(graph_dir, receipt):
        return None
    return receipt


def damage(graph_dir: Path, receipt: Receipt, *, digest: bool = True) -> str | None:
    """What is wrong with a file, in a few words, or None if it is as its receipt says; its bytes are read for the digest."""
    path = graph_dir / receipt.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    if size != receipt.bytes:
        return f"has {size:,} bytes, not {receipt.bytes:,}"
    if digest and digest_file(path) != receipt.digest:
        return "has other bytes than were written (its digest differs)"
    return None


def require_intact(graph_dir: Path, receipts: Mapping[str, Receipt], *, remedy: str) -> None:
    """Check files by size and digest.

    Raises:
        ArtifactError: Naming the first file that is missing or damaged, and the remedy.
    """
    for name, receipt in receipts.items():
        if problem := damage(graph_dir, receipt):
            raise ArtifactError(f"{graph_dir / name} {problem}. {remedy}")
