"""Images in webdataset shards: `00000.tar` with KEY.jpg, KEY.txt, KEY.json.

Any image in any order: an index that is built once says where its bytes lie, and they are read by position.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graphbuild.errors import SourceError
from graphbuild.store.arrays import Int64
from graphbuild.system.archives import DamagedArchive, parse_record
from train.data.base import Encoded
from train.data.label_columns import LabelColumns
from train.data.tar_index import open_index


class TarImages(LabelColumns):
    """Images of one or more shards, in the order of the shards and their members."""

    def __init__(
        self, paths: Sequence[Path], *, id_column: str | None = None, skip_broken: bool = False, open_files: int = 128
    ) -> None:
        """Map the index, which is built first where it is missing or a shard changed.

        Args:
            paths: The shards.
            id_column: Key of the samples' JSON that holds the id; None: sample_id or url, else shard and key.
            skip_broken: Leave out damaged samples, and what follows where a shard cannot be read further.
            open_files: Shards held open at a time; systems allow a process about a thousand files.

        Raises:
            SourceError: If a shard is missing, cut short or damaged, or none holds an image.
        """
        self.name = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} shards)"
        self.id_column = id_column
        self._paths = list(paths)
        index = open_index(paths, id_column, skip_broken=skip_broken)
        self.skipped = {
            "samples that were not downloaded": index.failed,
            "samples without an image": index.without_image,
            "hidden members": index.hidden,
            "samples that are damaged": index.broken,
        }
        """What was left out."""
        self._starts = np.cumsum([0, *(batch.num_rows for batch in index.batches)], dtype=np.int64)
        if not self._starts[-1]:
            raise SourceError(f"{self.name}: holds no images (KEY.jpg, KEY.png, ...). Check --data.")
        self._images = list(zip(index.column("offset"), index.column("size"), strict=True))
        self._metas = list(zip(index.column("meta_offset"), index.column("meta_size"), strict=True))
        self.sample_ids: Sequence[str] = MappedIds(index.ids(), self._starts, index.column("sample_hash"))
        self._files = _OpenFiles(self._paths, open_files)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the stored bytes of some images.

        Raises:
            SourceError: If a shard went away or shrank.
        """
        return list(self._read(indices, self._images))

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the JSON of some samples; empty where there is none.

        Raises:
            SourceError: If a shard went away, or holds something else than it did.
        """
        found = zip(indices, self._read(indices, self._metas), strict=True)
        try:
            return [parse_record(data, f"the JSON of {self.sample_ids[index]}") if data else {} for index, data in found]
        except DamagedArchive as error:
            raise SourceError(f"{self.name}: {error}. Restore the shard, and run again.") from None

    def _read(self, indices: Sequence[int], places: list[tuple[Int64, Int64]]) -> Iterator[bytes]:
        shards = np.searchsorted(self._starts, np.asarray(indices, np.int64), side="right") - 1
        for index, shard in zip(indices, shards.tolist(), strict=True):
            offsets, sizes = places[shard]
            row = index - int(self._starts[shard])
            yield self._files.read(shard, int(offsets[row]), int(sizes[row]))

    def label_columns(self) -> tuple[str, ...]:
        """Return the keys of the first sample's JSON that hold an integer, a string or a boolean."""
        return tuple(name for name, value in self.metas([0])[0].items() if isinstance(value, int | str))

    def _column(self, name: str) -> list[object]:
        return [meta.get(name) for meta in self.metas(range(len(self)))]


class MappedIds(Sequence[str]):
    """Ids that stay in a mapped file: twelve million strings would take gigabytes in every process."""

    def __init__(self, array: pa.ChunkedArray, starts: Int64, hashes: Sequence[npt.NDArray[Any]]) -> None:
        self.array = array
        """All of them."""
        self._starts, self._hashes = starts, hashes

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        value: str = self.array.chunk(shard)[position - int(self._starts[shard])].as_py()
        return value

    def __iter__(self) -> Iterator[str]:
        for chunk in self.array.chunks:
            yield from chunk.to_pylist()

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the xxh3 of every id; (N,)."""
        return np.concatenate(self._hashes)


class _OpenFile:
    """A file descriptor, closed by whoever lets go of it last."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class _OpenFiles:
    """Shards, opened when they are needed; those used last stay open. Safe from several threads."""

    def __init__(self, paths: Sequence[Path], most: int) -> None:
        self._paths, self._most = paths, most
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Return bytes of a shard by their position.

        Raises:
            SourceError: If the shard went away or shrank.
        """
        data = self._file(shard).read(offset, size)
        if len(data) < size:
            raise SourceError(f"{self._paths[shard]}: shorter than it was when it was indexed. Restore it, and run again.")
        return data

    def _file(self, shard: int) -> _OpenFile:
        with self._lock:
            if shard not in self._open:
                try:
                    self._open[shard] = _OpenFile(self._paths[shard])
                except OSError as error:
                    raise SourceError(f"{self._paths[shard]}: {error.strerror}. Restore it, and run again.") from None
                if len(self._open) > self._most:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]
