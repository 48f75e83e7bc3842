"""The index of webdataset shards: built once, kept as a mapped file, and built again where a shard changed.

Webdataset streams shards; a batch of neighbours needs any sample by its place, and its id without reading its image.
Arrow IPC, uncompressed, one record batch a shard: sample_id · sample_hash (xxh3) · offset and size of the image, and of
the JSON. Every process that reads the shards maps the same file, compared with its receipt once a version. It lies in
`.xclr-index/` beside the shards, or, where that cannot be written, in the user's cache folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from graphbuild.errors import ArtifactError
from graphbuild.store.arrays import Int64
from graphbuild.store.atomic import remove_stale_temporaries
from graphbuild.store.cache import beside_or_cached
from graphbuild.store.digests import digest_json
from graphbuild.store.files import read_receipt, receipt_path, write_file
from graphbuild.store.hashes import hash_strings
from graphbuild.store.locks import exclusive
from graphbuild.store.verified import require_verified
from graphbuild.system.inputs import file_names
from graphbuild.system.progress import progress
from train.data.tar_scan import ScannedShard, scan_shard

FOLDER = ".xclr-index"
_FORMAT = "tar index 3"
_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.large_string(), nullable=False),
        pa.field("sample_hash", pa.uint64(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("offset", "size", "meta_offset", "meta_size")),
    ]
)
_THREADS = 16


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Samples of all shards; batch i is shard i."""

    batches: tuple[pa.RecordBatch, ...]
    failed: int
    without_image: int
    hidden: int
    broken: int

    def column(self, name: str) -> list[Int64]:
        """Return views of one number column, a shard each."""
        return [batch.column(name).to_numpy() for batch in self.batches]

    def ids(self) -> pa.ChunkedArray:
        """Return ids of all samples."""
        return pa.chunked_array([batch.column("sample_id") for batch in self.batches], type=pa.large_string())


def open_index(paths: Sequence[Path], id_field: str | None, *, skip_broken: bool = False) -> TarIndex:
    """Map the index of some shards; it is made first if it is missing or damaged, or a shard is another than it was.

    Of several processes that want the same index one makes it, and the others wait.

    Args:
        paths: The shards.
        id_field: Key of the samples' JSON that holds the id.
        skip_broken: Leave out what is damaged, and count it.

    Raises:
        SourceError: If a shard is missing or damaged; it is named.
    """
    root = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
    names = [path.absolute().relative_to(root).as_posix() for path in paths]
    name = f"index-{xxhash.xxh3_64_hexdigest(json.dumps([names, id_field, skip_broken]).encode())}.arrow"
    key = _key(paths, names)
    # One that lies beside the shards needs no place to write.
    if (found := _read(root / FOLDER, name, key)) is not None:
        return found
    folder = _writable(root)
    with exclusive((folder / name).with_suffix(".lock"), where=folder / name, wait=True):
        # It may lie in the cache, or another process may have made it while this one waited.
        found = _read(folder, name, key)
        if found is None:
            remove_stale_temporaries(folder)
            write = partial(_write, paths=paths, id_field=id_field, skip_broken=skip_broken)
            write_file(folder, name, write, rows=0, key=key)
            found = _read(folder, name, key)
    assert found is not None, "an index that was just written can be read"
    return found


def _key(paths: Sequence[Path], names: Sequence[str]) -> str:
    """Changes with the shards: their names, sizes and times of change."""
    facts = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in zip(names, paths, strict=True)]
    return digest_json([_FORMAT, facts])


def _read(folder: Path, name: str, key: str) -> TarIndex | None:
    receipt = read_receipt(receipt_path(folder, name))
    if receipt is None or receipt.key != key:
        return None
    try:
        # Its numbers are places in files: they are read only as they were written.
        require_verified(folder, [receipt], remedy="")
        opened = pa.ipc.open_file(pa.memory_map(str(folder / name)))
        found = [opened.get_batch_with_custom_metadata(number) for number in range(opened.num_record_batches)]
        counts = [json.loads(item.custom_metadata[b"skipped"]) for item in found]
    except (ArtifactError, OSError, pa.ArrowInvalid, KeyError, ValueError):
        # Missing, or damaged: it is made from the shards again.
        return None
    return TarIndex(tuple(item.batch for item in found), *(sum(one[place] for one in counts) for place in range(4)))


def _write(path: Path, *, paths: Sequence[Path], id_field: str | None, skip_broken: bool) -> None:
    """Scan all shards, several at a time, and write the index."""
    pool = ThreadPoolExecutor(min(_THREADS, len(paths)), thread_name_prefix="index")
    try:
        with (
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, _SCHEMA) as writer,
            progress("index shards", len(paths), unit="shards") as meter,
        ):
            names = file_names([str(shard.absolute()) for shard in paths])
            for scanned in pool.map(lambda shard, name: scan_shard(shard, id_field, name, skip_broken), paths, names):
                skipped = json.dumps([scanned.failed, scanned.without_image, scanned.hidden, scanned.broken])
                writer.write_batch(_batch(scanned), custom_metadata={"skipped": skipped})
                meter.advance()
    finally:
        pool.shutdown(cancel_futures=True)


def _batch(scanned: ScannedShard) -> pa.RecordBatch:
    places = np.array([(*image, *meta) for image, meta in zip(scanned.images, scanned.metas, strict=True)], np.int64).reshape(-1, 4)
    columns = [
        pa.array(scanned.sample_ids, pa.large_string()),
        pa.array(hash_strings(scanned.sample_ids)),
        *map(pa.array, places.T),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _writable(root: Path) -> Path:
    """The folder for the index: beside the shards, else in the cache."""
    place = beside_or_cached(root, FOLDER)
    folder = place / FOLDER if place == root else place
    folder.mkdir(exist_ok=True)
    return folder
