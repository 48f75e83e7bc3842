"""Digests, as receipts and manifests record them: xxh3-128 in hexadecimal, of files, JSON values and columns of tables."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import xxhash

_CHUNK = 1 << 22


def digest_file(path: Path) -> str:
    """Return the xxh3-128 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return digest_stream(stream)


def digest_stream(stream: IO[bytes]) -> str:
    """Return the xxh3-128 of what is left of a stream, in hexadecimal."""
    hasher = xxhash.xxh3_128()
    while chunk := stream.read(_CHUNK):
        hasher.update(chunk)
    return hasher.hexdigest()


def digest_json(value: Any) -> str:
    """Return the xxh3-128 of a value's canonical JSON: equal values, equal digests, whatever the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def digest_columns(table: pa.Table) -> dict[str, str]:
    """Return the xxh3-128 of each column's values, independent of chunking and of the other columns."""
    digests = {}
    for name in table.column_names:
        # A copy, because the bytes of a slice hold traces of what lies before and after it.
        single = table.select([name]).take(np.arange(table.num_rows)).combine_chunks()
        sink = _HashSink()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), single.schema.remove_metadata()) as writer:
            writer.write_table(single)
        digests[name] = sink.hasher.hexdigest()
    return digests


class _HashSink(io.RawIOBase):
    """A file that only hashes what is written to it."""

    def __init__(self) -> None:
        self.hasher = xxhash.xxh3_128()
        self._position = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.hasher.update(view)
        self._position += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._position

    def writable(self) -> bool:
        return True
