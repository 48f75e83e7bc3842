"""A graph of any size on a small disk: shards of the real format that are holes but for the rows that a benchmark reads.

Shape letters: N texts, K neighbours stored, R sketch width.
A row that is asked for holds random neighbours; all other rows are zeros that take no disk. What a batch costs depends on
its own rows and on N, so this measures 12 M texts without their 19 GB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, shard_ranges
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest, Stage

_PAGE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSize:
    """How large a graph is."""

    texts: int
    k: int
    sketch_dim: int


class _SparseFile(io.RawIOBase):
    """A binary file whose pages of zeros become holes."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")

    def write(self, data: Any) -> int:
        values = np.frombuffer(memoryview(data), np.uint8)
        whole = len(values) // _PAGE * _PAGE
        filled: npt.NDArray[np.bool_] = np.asarray(values[:whole].reshape(-1, _PAGE).any(axis=1))
        # Runs of pages that are all holes or all filled are written, or skipped, at once.
        cuts = np.flatnonzero(np.diff(filled)) + 1
        for start, stop in zip([0, *cuts], [*cuts, len(filled)], strict=True):
            if stop > start and filled[start]:
                self._stream.write(values[start * _PAGE : stop * _PAGE].data)
            else:
                self._stream.seek((stop - start) * _PAGE, 1)
        self._stream.write(values[whole:].data)
        return len(values)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        if not self.closed:
            self._stream.truncate(self._stream.tell())
            self._stream.close()
        super().close()

    def writable(self) -> bool:
        return True


def write_synthetic_graph(graph_dir: Path, size: GraphSize, wanted: npt.NDArray[np.int64]) -> Graph:
    """Write neighbour shards in which the wanted texts have random distinct neighbours, none of them the text itself."""
    rng = np.random.default_rng(0)
    schema = schemas.knn_schema(size.k, size.sketch_dim)
    wanted = np.unique(wanted)
    (graph_dir / schemas.KNN).mkdir(parents=True, exist_ok=True)
    files = {}
    for shard in shard_ranges(size.texts, schemas.SHARD_SIZE):
        ids = wanted[np.searchsorted(wanted, shard.start) : np.searchsorted(wanted, shard.stop)]
        arrays = [to_array(values, field.type) for values, field in zip(_columns(rng, shard, ids, size), schema, strict=True)]
        name = schemas.part_name(schemas.KNN, shard.index)
        _write(graph_dir / name, pa.RecordBatch.from_arrays(arrays, schema=schema))
        files[name] = Receipt(path=name, digest="", rows=len(shard), bytes=(graph_dir / name).stat().st_size, key="synthetic")
    embedded = Receipt(path="embeddings/part-00000.parquet", digest="", rows=size.texts, bytes=0, key="synthetic")
    Manifest(
        stages={
            "embed": Stage(config={}, inputs={}, seconds=0.0, files={embedded.path: embedded}),
            "knn": Stage(config={}, inputs={}, seconds=0.0, files=files),
        }
    ).save(graph_dir)
    # There are no digests: those of gigabytes of holes would take longer than what is measured.
    return Graph.open(graph_dir, verify=False)


def _write(path: Path, batch: pa.RecordBatch) -> None:
    sink = _SparseFile(path)
    with pa.PythonFile(sink, mode="w") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)
    sink.close()


def _columns(
    rng: np.random.Generator, shard: ShardRange, wanted: npt.NDArray[np.int64], size: GraphSize
) -> Iterator[npt.NDArray[Any]]:
    rows = wanted - shard.start
    # Distances that add up to less than N: no neighbour comes twice, and none is the text itself.
    gaps = rng.integers(1, (size.texts - 1) // size.k + 1, (len(rows), size.k))
    yield np.arange(shard.start, shard.stop, dtype=np.int32)
    yield _spread(shard, rows, ((wanted[:, None] + gaps.cumsum(axis=1)) % size.texts).astype(np.int32))
    yield _spread(shard, rows, np.sort(rng.uniform(0.3, 0.9, (len(rows), size.k)), axis=1)[:, ::-1].astype(np.float16))
    yield _spread(shard, rows, rng.integers(-127, 128, (len(rows), size.sketch_dim)).astype(np.int8))
    yield _spread(shard, rows, rng.uniform(0.001, 0.002, len(rows)).astype(np.float32))


def _spread(shard: ShardRange, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    whole = np.zeros((len(shard), *values.shape[1:]), values.dtype)
    whole[rows] = values
    return whole


def to_array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Return values as Arrow has them, rows of several as fixed-size lists."""
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, type=kind)
