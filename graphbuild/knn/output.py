"""Neighbour shards: from what a search found to an Arrow file with its sketches and its receipt.

Shape letters: N texts, n texts of a shard, K neighbours kept, D vector width, R sketch width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.knn import sketch
from graphbuild.knn.engines.base import Neighbors
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, write_arrow

Encode: TypeAlias = Callable[[NDArray[np.float16], NDArray[np.float64]], tuple[NDArray[np.int8], NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """Writes the shards of one run."""

    graph_dir: Path
    k: int
    basis_DR: NDArray[np.float64] | None
    """Of the sketches; None leaves them out."""
    key: str
    """Of the receipts."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else the receipts say."""
    encode: Encode = sketch.encode
    """Makes codes and scales of vectors and basis."""

    def write(self, shard: ShardRange, vectors_nD: NDArray[np.float16], found: Neighbors, precision: str) -> Receipt:
        """Write the neighbours and sketches of one shard, and return its receipt.

        Args:
            shard: Which texts.
            vectors_nD: Their vectors.
            found: Their neighbours.
            precision: Number format of the search, for the record.
        """
        schema = schemas.knn_schema(self.k, 0 if self.basis_DR is None else self.basis_DR.shape[1])
        columns: list[pa.Array] = [
            pa.array(np.arange(shard.start, shard.stop, dtype=np.int32)),
            _fixed_size_list(found.ids_nK, schema.field(schemas.NEIGHBOR_IDS).type),
            _fixed_size_list(found.similarities_nK, schema.field(schemas.SIMILARITIES).type),
        ]
        if self.basis_DR is not None:
            codes_nR, scales_n = self.encode(vectors_nD, self.basis_DR)
            columns += [_fixed_size_list(codes_nR, schema.field(schemas.SKETCH).type), pa.array(scales_n)]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        facts = {"recomputed_rows": found.recomputed, "precision": precision, "pid": os.getpid(), **found.facts, **self.facts}
        return write_arrow(self.graph_dir, schemas.part_name(schemas.KNN, shard.index), batch, key=self.key, facts=facts)

    def write_behind(self, shards: Iterable[tuple[ShardRange, NDArray[np.float16], Neighbors, str]]) -> Iterator[Receipt]:
        """Yield receipts of shards, each of which is written as by `write` while the next one is searched for."""
        with ThreadPoolExecutor(1, "write") as pool:
            written: Future[Receipt] | None = None
            for shard in shards:
                if written:
                    yield written.result()
                written = pool.submit(self.write, *shard)
            if written:
                yield written.result()


def no_neighbors(shard: ShardRange) -> Neighbors:
    """Return what is stored where there is only one text."""
    return Neighbors(np.empty((len(shard), 0), np.int32), np.empty((len(shard), 0), np.float16), 0)


def _fixed_size_list(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    rows, width = values.shape
    if width:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    # from_arrays cannot tell how many lists of width 0 there are.
    return pa.array([[]] * rows, type=kind)
