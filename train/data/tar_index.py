"""The index of webdataset shards: built once, kept as a mapped file, and built again where a shard changed.

Arrow IPC, uncompressed, one record batch a shard: sample_id · sample_hash (xxh3) · offset and size of the image, and of
the JSON. Every process that reads the shards maps the same file. It lies in `.xclr-index/` beside the shards, or, where
that cannot be written, in the user's cache folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from graphbuild.store.cache import beside_or_cached
from graphbuild.store.hashes import hash_strings
from graphbuild.store.locks import exclusive
from graphbuild.system.inputs import file_names
from graphbuild.system.progress import progress
from train.data.base import Int64
from train.data.tar_scan import ScannedShard, scan_shard

FOLDER = ".xclr-index"
_FORMAT = "tar index 2"
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.large_string(), nullable=False),
        pa.field("sample_hash", pa.uint64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("offset", "size", "meta_offset", "meta_size")),
    ]
)
_KEY = b"key"
_THREADS = 16


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Samples of all shards; batch i is shard i."""

    batches: tuple[pa.RecordBatch, ...]
    failed: int
    without_image: int
    hidden: int

    def column(self, name: str) -> list[Int64]:
        """Views of one number column, a shard each."""
        return [batch.column(name).to_numpy() for batch in self.batches]

    def ids(self) -> pa.ChunkedArray:
        """Return ids of all samples."""
        return pa.chunked_array([batch.column("sample_id") for batch in self.batches], type=pa.large_string())


def open_index(paths: Sequence[Path], id_field: str | None) -> TarIndex:
    """Map the index of some shards; it is made first if it is missing or a shard is another than it was.

    Of several processes that want the same index one makes it, and the others wait.

    Raises:
        SourceError: If a shard is missing or damaged; it is named.
    """
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    names = [path.absolute().relative_to(root).as_posix() for path in paths]
    name = f"tar-{xxhash.xxh3_64_hexdigest(json.dumps([names, id_field]).encode())}.arrow"
    key = _key(paths, names)
    # One that lies beside the shards needs no place to write.
    if (found := _read(root / FOLDER / name, key)) is not None:
        return found
    path = _writable(root) / name
    with exclusive(path.with_suffix(".lock"), where=path, wait=True):
        # It may lie in the cache, or another process may have made it while this one waited.
        found = _read(path, key)
        if found is None:
            _build(path, paths, id_field, key)
            found = _read(path, key)
    assert found is not None, "an index that was just written can be read"
    return found


def _key(paths: Sequence[Path], names: Sequence[str]) -> bytes:
    """Changes with the shards: their names, sizes and times of change."""
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in zip(names, paths, strict=True)]
    return xxhash.xxh3_128_hexdigest(json.dumps([_FORMAT, facts]).encode()).encode()


def _read(path: Path, key: bytes) -> TarIndex | None:
    try:
        opened = pa.ipc.open_file(pa.memory_map(str(path)))
        if (opened.schema.metadata or {}).get(_KEY) != key:
            return None
        found = [opened.get_batch_with_custom_metadata(number) for number in range(opened.num_record_batches)]
        counts = [json.loads(item.custom_metadata[b"skipped"]) for item in found]
    except (OSError, pa.ArrowInvalid, KeyError):
        # Missing, or damaged: it is made from the shards again.
        return None
    return TarIndex(tuple(item.batch for item in found), *(sum(one[place] for one in counts) for place in range(3)))


def _build(path: Path, paths: Sequence[Path], id_field: str | None, key: bytes) -> None:
    """Scan all shards, several at a time, and write the index under its name when it is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    schema = _SCHEMA.with_metadata({_KEY: key})
    pool = ThreadPoolExecutor(min(_THREADS, len(paths)), thread_name_prefix="index")
    try:
        with (
            pa.OSFile(str(temporary), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
            progress("index shards", len(paths), unit="shards") as meter,
        ):
            names = file_names([str(shard.absolute()) for shard in paths])
            for scanned in pool.map(lambda shard, name: scan_shard(shard, id_field, name), paths, names):
                skipped = json.dumps([scanned.failed, scanned.without_image, scanned.hidden])
                writer.write_batch(_batch(scanned, schema), custom_metadata={"skipped": skipped})
                meter.advance()
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        pool.shutdown(cancel_futures=True)
        temporary.unlink(missing_ok=True)


def _batch(scanned: ScannedShard, schema: pa.Schema) -> pa.RecordBatch:
    places = np.array([(*image, *meta) for image, meta in zip(scanned.images, scanned.metas, strict=True)], np.int64).reshape(-1, 4)
    columns = [
        pa.array(scanned.sample_ids, pa.large_string()),
        pa.array(hash_strings(scanned.sample_ids)),
        *map(pa.array, places.T),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _writable(root: Path) -> Path:
    """The folder for the index: beside the shards, else in the cache."""
    place = beside_or_cached(root, FOLDER)
    folder = place / FOLDER if place == root else place
    folder.mkdir(exist_ok=True)
    return folder
