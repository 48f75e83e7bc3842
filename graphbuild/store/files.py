"""Shard files: their ranges, writing them with a receipt each, and telling what is left to do.

A file is written to a temporary name and flushed; its receipt is stored in `.graphbuild/receipts/`; then the file is renamed.
So every file of ours that stands under its name is listed by a receipt, and a folder of data holds only data. A shard is
done only if the file is there with the size and digest of its receipt, and the receipt was made for the same work
(`key`). What no receipt lists is never removed or replaced. Nothing here knows what a shard holds.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.atomic import atomic_path, read_json, remove_stale_temporaries, write_json
from graphbuild.store.digests import digest_columns, digest_file, digest_json

RECORDS = ".graphbuild"
"""What this program keeps for itself in a graph directory; whoever has this folder is a graph."""
_OWN_DIGEST = "own_digest"


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
    """What one finished file holds; stored among the records, and copied into the manifest."""

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


def remove_strays(graph_dir: Path, folder: str, names: Collection[str]) -> None:
    """Remove files that an earlier build listed and this one does not, and what killed writers left; links are left alone."""
    if (graph_dir / folder).is_symlink():
        return
    remove_stale_temporaries(graph_dir / folder)
    for record in sorted((graph_dir / RECORDS / "receipts" / folder).glob("*.json")):
        name = f"{folder}/{record.name.removesuffix('.json')}"
        if name not in names and not (graph_dir / name).is_symlink():
            (graph_dir / name).unlink(missing_ok=True)
            record.unlink(missing_ok=True)


def receipt_path(graph_dir: Path, name: str) -> Path:
    """Return where the receipt of a file lies; `name` is the file's path in the graph directory."""
    return graph_dir / RECORDS / "receipts" / f"{name}.json"


def write_file(
    graph_dir: Path,
    name: str,
    write: Callable[[Path], object],
    *,
    rows: int,
    key: str,
    columns: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Receipt:
    """Write a file of the graph and its receipt.

    Args:
        graph_dir: The graph.
        name: Path of the file in it.
        write: Writes the content to the path that it is given.
        rows: Of the content.
        key: Digest of all that the bytes depend on.
        columns: Digests of the columns.
        facts: What else the receipt says.

    Raises:
        OptionError: If a file stands there that no receipt lists.
    """
    path = graph_dir / name
    if os.path.lexists(path) and not receipt_path(graph_dir, name).exists():
        raise OptionError(f"{path}: is in the way, and was not written by this program. Move it, or choose another --graph-dir.")
    with atomic_path(path) as temporary:
        write(temporary)
        receipt = Receipt(
            path=name,
            digest=digest_file(temporary),
            rows=rows,
            bytes=temporary.stat().st_size,
            key=key,
            columns=dict(columns or {}),
            facts=dict(facts or {}),
        )
        # Before the file has its name: killed in between, the receipt names bytes that are not there, so they are made again.
        write_receipt(graph_dir, receipt)
    return receipt


def copy_files(graph_dir: Path, folder: str, source: Path) -> list[Receipt]:
    """Copy the files of a folder elsewhere into one of the graph; those that are there with the same bytes stay.

    Returns:
        Their receipts, in order of their names.
    """
    receipts = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name, key = f"{folder}/{path.relative_to(source).as_posix()}", digest_file(path)
        copy = partial(shutil.copyfile, path)
        receipts.append(finished(graph_dir, name, key=key) or write_file(graph_dir, name, copy, rows=0, key=key))
    return receipts


def write_receipt(graph_dir: Path, receipt: Receipt) -> None:
    """Store a receipt among the records, with a digest of what it says."""
    content = json.loads(json.dumps(asdict(receipt)))
    write_json(receipt_path(graph_dir, receipt.path), content | {_OWN_DIGEST: digest_json(content)})


def write_parquet(graph_dir: Path, name: str, table: pa.Table, *, key: str, facts: Mapping[str, Any] | None = None) -> Receipt:
    """Write a Parquet shard and its receipt. The same table gives the same bytes."""

    def write(path: Path) -> None:
        pq.write_table(table, path, compression="zstd")

    return write_file(graph_dir, name, write, rows=table.num_rows, key=key, columns=digest_columns(table), facts=facts)


def ensure_parquet(graph_dir: Path, name: str, table: pa.Table, *, key: str) -> Receipt:
    """Return the receipt of a Parquet shard: of the file that is finished, else of this table, which is written."""
    return finished(graph_dir, name, key=key) or write_parquet(graph_dir, name, table, key=key)


def write_arrow(
    graph_dir: Path,
    name: str,
    batch: pa.RecordBatch,
    *,
    key: str,
    facts: Mapping[str, Any] | None = None,
    with_columns: bool = True,
) -> Receipt:
    """Write an Arrow IPC shard of one uncompressed record batch, so that readers map it, and its receipt.

    Without `with_columns` the receipt has no digests of columns, which take a copy of each.
    """

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)

    columns = digest_columns(pa.Table.from_batches([batch])) if with_columns else {}
    return write_file(graph_dir, name, write, rows=batch.num_rows, key=key, columns=columns, facts=facts)


def read_receipt(path: Path) -> Receipt | None:
    """Return the receipt that a file holds, or None where there is none that can be read, or that says what was written."""
    try:
        content = dict(read_json(path))
        # Receipts of earlier versions have none.
        own = content.pop(_OWN_DIGEST, None)
        return Receipt(**content) if own is None or own == digest_json(content) else None
    except (OSError, ValueError, TypeError):
        return None


def finished(graph_dir: Path, name: str, *, key: str) -> Receipt | None:
    """Return the receipt of a shard that is done: there, undamaged, and made for the same work; else None."""
    receipt = read_receipt(receipt_path(graph_dir, name))
    if receipt is None or receipt.key != key or receipt.path != name or damage(graph_dir, receipt):
        return None
    return receipt


def damage(graph_dir: Path, receipt: Receipt, *, digest: bool = True) -> str | None:
    """Return what is wrong with a file, in a few words, or None if it is as its receipt says; its bytes are read for the digest."""
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
