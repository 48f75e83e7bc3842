"""Mapped neighbour shards: zero-copy views of their columns, and copying rows out of any of them in one pass.

Shape letters: n texts of a shard, B texts asked for, K neighbours stored, R sketch width. `graphbuild.store.graph` is the way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from graphbuild.errors import ArtifactError
from graphbuild.store import schemas
from graphbuild.store.arrays import Ids
from graphbuild.store.files import Receipt
from graphbuild.store.sketches import UNCORRECTED, Correction
from graphbuild.store.tables import map_arrow

REMEDY = "Run `graphbuild knn` again: it rebuilds only what is damaged."


@dataclass(frozen=True, kw_only=True, slots=True)
class _Estimated:
    """What is no column, so that the slots of `Rows` are its columns."""

    correction: Correction = UNCORRECTED
    """What sketches leave out of a similarity; the graph's, for all its rows."""


@dataclass(frozen=True, slots=True)
class Rows(_Estimated):
    """What the graph stores about B texts, in the order in which they were asked for."""

    neighbor_ids: Ids
    """Neighbours, nearest first; (B, K) int32."""
    similarities: npt.NDArray[np.float16]
    """Their similarities, as stored; (B, K) float16."""
    sketch: npt.NDArray[np.int8]
    """Short codes; (B, R) int8, R = 0 where the graph has none."""
    sketch_scale: npt.NDArray[np.float32]
    """s_ij is about scale_i scale_j <q_i, q_j>, before the correction; (B,) float32, zeros where the graph has no sketch."""

    @classmethod
    def empty(cls, count: int, k: int, sketch_dim: int, correction: Correction = UNCORRECTED) -> Rows:
        """Return room for `count` rows, to be filled again and again."""
        return cls(
            np.empty((count, k), np.int32),
            np.empty((count, k), np.float16),
            np.empty((count, sketch_dim), np.int8),
            np.zeros(count, np.float32),
            correction=correction,
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """One mapped neighbour shard: zero-copy views into its file."""

    first_id: int
    rows: Rows


def map_shard(graph_dir: Path, receipt: Receipt, *, texts: int, remedy: str = REMEDY) -> Shard:
    """Map one shard, and check that its rows and ids lie within the graph: all that reads it relies on that.

    Args:
        graph_dir: The graph directory.
        receipt: Of the shard; its digest is not compared here.
        texts: How many texts the graph has.
        remedy: The end of the message: what to do.

    Raises:
        ArtifactError: If it is missing, cut short, no neighbour shard, or names a text that is not there.
    """
    path = graph_dir / receipt.path
    batch = map_arrow(path, [schemas.TEXT_ID, schemas.NEIGHBOR_IDS, schemas.SIMILARITIES], rows=receipt.rows, remedy=remedy)
    try:
        text_ids, rows = batch.column(schemas.TEXT_ID).to_numpy(), _views(batch)
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise ArtifactError(f"{path} is no neighbour shard ({error}). {remedy}") from error
    if len(text_ids) and text_ids[-1] - text_ids[0] != len(text_ids) - 1:
        raise ArtifactError(f"{path} does not hold {receipt.rows:,} consecutive text ids. {remedy}")
    if outside(rows.neighbor_ids, texts):
        row, place = np.argwhere(rows.neighbor_ids.view(np.uint32) >= texts)[0]
        raise ArtifactError(
            f"{path}: the row of text_id {text_ids[row]} names text {rows.neighbor_ids[row, place]}, and ids run from 0 to "
            f"{texts - 1:,}. {remedy}"
        )
    return Shard(int(text_ids[0]) if len(text_ids) else 0, rows)


def outside(numbers: npt.NDArray[np.int32] | npt.NDArray[np.int64], limit: int) -> bool:
    """Tell whether any number lies outside 0 to `limit` - 1; one pass, and nothing is copied."""
    # As unsigned numbers, negative ones are the largest.
    unsigned = numbers.view(np.uint32 if numbers.dtype == np.int32 else np.uint64)
    return int(unsigned.max(initial=0)) >= limit if numbers.size else False


def _views(batch: pa.RecordBatch) -> Rows:
    """Views of a record batch's buffers; nothing is copied."""
    count = batch.num_rows
    ids = flat_values(batch.column(schemas.NEIGHBOR_IDS), np.dtype(np.int32)).reshape(count, -1)
    similarities = flat_values(batch.column(schemas.SIMILARITIES), np.dtype(np.float16)).reshape(count, -1)
    if schemas.SKETCH not in batch.schema.names:
        return Rows(ids, similarities, np.empty((count, 0), np.int8), np.zeros(count, np.float32))
    sketch = flat_values(batch.column(schemas.SKETCH), np.dtype(np.int8)).reshape(count, -1)
    return Rows(ids, similarities, sketch, batch.column(schemas.SKETCH_SCALE).to_numpy(zero_copy_only=True))


def flat_values(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values of a fixed-size list column as one flat view."""
    values: npt.NDArray[Any] = column.flatten().to_numpy(zero_copy_only=True)
    if values.dtype != dtype:
        raise pa.ArrowInvalid(f"values are {values.dtype}, not {dtype}")
    return values


def row_addresses(shards: Sequence[Shard], column: str) -> npt.NDArray[np.uintp]:
    """Return where each shard's rows begin in memory; the mapped arrays stay alive as long as the graph."""
    views = [getattr(shard.rows, column) for shard in shards]
    return np.array([view.ctypes.data for view in views], np.uintp)


def _address_to_pointer(_context: Any, address: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


# An integer address as a pointer, which numba has no spelling for.
_pointer: Any = intrinsic(_address_to_pointer)


def _copy_bytes(_context: Any, to: Any, source: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        target, origin = (builder.inttoptr(address, cgutils.voidptr_t) for address in arguments[:2])
        cgutils.raw_memcpy(builder, target, origin, arguments[2], 1)  # type: ignore[no-untyped-call]
        return context.get_dummy_value()

    return types.void(to, source, count), generate


# memcpy between two addresses: assigning one row to another makes a loop over single bytes, 2.7 ms of the 4 that a batch of 1,024
# then took.
_copy: Any = intrinsic(_copy_bytes)


@njit(nogil=True, cache=True, boundscheck=False)
def gather(
    addresses: npt.NDArray[np.uintp],
    width: int,
    shard_B: npt.NDArray[np.int64],
    local_B: npt.NDArray[np.int64],
    out: npt.NDArray[np.uint8],
) -> None:
    """Copy row `local_B[i]`, `width` bytes, of shard `shard_B[i]` to `out[i]`: one pass, however many shards there are.

    `out` is C-contiguous, (B, width); its shape is not checked.
    """
    to = np.uintp(out.ctypes.data)
    for i in range(len(shard_B)):
        _copy(to + np.uintp(i * width), addresses[shard_B[i]] + np.uintp(local_B[i] * width), np.uintp(width))


@njit(nogil=True, cache=True, boundscheck=False)
def mapped_row(addresses: npt.NDArray[np.uintp], starts: npt.NDArray[np.int64], k: int, text_id: int) -> Ids:
    """Return a view of one text's neighbours in its mapped shard; (K,) int32. For loops in numba that read rows one by one.

    Args:
        addresses: Where the neighbours of each shard begin, from `Graph.neighbor_addresses`.
        starts: First text of each shard.
        k: Neighbours stored a text.
        text_id: Which; it is not checked.
    """
    shard = np.searchsorted(starts, text_id, side="right") - 1
    return carray(_pointer(addresses[shard] + np.uintp((text_id - starts[shard]) * k * 4)), (k,), np.int32)
