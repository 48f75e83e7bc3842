"""Samples by id, in any number and order: two mapped files, sorted hashes that point and the ids themselves that decide.

Shape letters: N rows of the samples table, S samples asked for, M matches.
Both are made from the samples table in one pass, and are mapped when read: a look-up touches a few pages of each, and all
processes share them. Nothing here loads torch, faiss, dask or polars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.arrays import Ids, Int64
from graphbuild.store.atomic import scratch_name
from graphbuild.store.files import Receipt, write_arrow
from graphbuild.store.hashes import hash_column
from graphbuild.store.manifest import Manifest, Stage
from graphbuild.store.neighbors import outside
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import map_arrow, read_parquet
from graphbuild.store.verified import EMBED_AGAIN, require_verified

HASHES = f"{schemas.LOOKUP}/hashes.arrow"
IDS = f"{schemas.LOOKUP}/ids.arrow"
_READ = (schemas.SAMPLE_ID, schemas.SAMPLE_HASH, schemas.TEXT_ID)


@dataclass(frozen=True, slots=True)
class SampleTexts:
    """The texts of S samples, as ranges: sample i has `text_ids[offsets[i]:offsets[i + 1]]`."""

    offsets: Int64
    """(S + 1,); a sample unknown to the graph has an empty range."""
    text_ids: Ids
    """In the order of the graph's sample rows."""
    sample_rows: Int64
    """The row of the samples table that each text came from: the position in `Graph.sample_column`."""

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether the graph knows each sample; (S,)."""
        return np.diff(self.offsets) > 0


def build_lookup(graph_dir: Path, manifest: Manifest) -> bool:
    """Write both files and enter the `lookup` stage, unless it is there; returns whether it was built.

    Memory: 36 bytes a row of the samples table, and one shard of it.
    """
    inputs = _inputs(manifest)
    receipts = manifest.files("text", schemas.SAMPLES)
    return run_stage(graph_dir, manifest, "lookup", {}, inputs, partial(_write_files, graph_dir, receipts), overwrite=True)


def _write_files(graph_dir: Path, receipts: Sequence[Receipt], key: str) -> Made:
    # The ids' bytes together may be larger than memory.
    with scratch_name(graph_dir / schemas.LOOKUP, "ids") as spool:
        hashes_N, offsets_N, texts_N = _read_samples(graph_dir, receipts, spool)
        order_N = np.argsort(hashes_N, kind="stable")
        hashes = pa.RecordBatch.from_arrays([pa.array(hashes_N[order_N]), pa.array(order_N)], schema=schemas.LOOKUP_HASHES_SCHEMA)
        files = [write_arrow(graph_dir, HASHES, hashes, key=key, with_columns=False)]
        strings = pa.LargeStringArray.from_buffers(len(texts_N), pa.py_buffer(offsets_N), _mapped_bytes(spool))
        ids = pa.RecordBatch.from_arrays([strings, pa.array(texts_N)], schema=schemas.LOOKUP_IDS_SCHEMA)
        files.append(write_arrow(graph_dir, IDS, ids, key=key, with_columns=False))
    return Made(files)


def _inputs(manifest: Manifest) -> dict[str, str]:
    return manifest.column_digests("text", _READ, folder=schemas.SAMPLES)


def _read_samples(graph_dir: Path, receipts: Sequence[Receipt], spool: Path) -> tuple[NDArray[np.uint64], Int64, Ids]:
    """Hashes, ends of ids in the spool (after a leading 0), and texts of all rows."""
    count = sum(receipt.rows for receipt in receipts)
    hashes_N, offsets_N, texts_N = np.empty(count, np.uint64), np.zeros(count + 1, np.int64), np.empty(count, np.int32)
    row = 0
    with spool.open("wb") as stream:
        for receipt in receipts:
            table = read_parquet(graph_dir / receipt.path, _READ, remedy=EMBED_AGAIN)
            ids_n, rows = _string_array(table[schemas.SAMPLE_ID]), slice(row, row + table.num_rows)
            ends_n, data = _strings(ids_n)
            stream.write(data[ends_n[0] : ends_n[-1]].data)
            offsets_N[row + 1 : row + 1 + table.num_rows] = offsets_N[row] + (ends_n[1:] - ends_n[0])
            hashes_N[rows] = table[schemas.SAMPLE_HASH].to_numpy()
            texts_N[rows] = table[schemas.TEXT_ID].to_numpy()
            row += table.num_rows
    return hashes_N, offsets_N, texts_N


def _mapped_bytes(path: Path) -> pa.Buffer:
    # Nothing can be mapped of an empty file, as of samples whose only id is "".
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")


class _Strings(NamedTuple):
    """Strings of an Arrow array, uncopied: string i is `data[offsets[i]:offsets[i + 1]]`."""

    offsets: Int64
    data: NDArray[np.uint8]


class SampleLookup:
    """The look-up of one graph, mapped."""

    def __init__(self, graph_dir: Path, manifest: Manifest, *, verify: bool | None = None) -> None:
        """Map both files, and check that their rows and offsets lie within them: the search relies on that.

        Raises:
            ArtifactError: If they are not there, or damaged.
            ArtifactMismatch: If they were made from another samples table.
        """
        stage = manifest.require("lookup", graph_dir)
        if stage.inputs != _inputs(manifest):
            raise ArtifactMismatch(f"{graph_dir / schemas.LOOKUP}: made from other samples than the graph now holds. {EMBED_AGAIN}")
        require_verified(graph_dir, stage.files.values(), remedy=EMBED_AGAIN, verify=verify)
        hashes = self._map(graph_dir, stage, HASHES, schemas.LOOKUP_HASHES_SCHEMA)
        ids = self._map(graph_dir, stage, IDS, schemas.LOOKUP_IDS_SCHEMA)
        self._hashes_N = hashes.column(schemas.SAMPLE_HASH).to_numpy()
        self._rows_N = hashes.column(schemas.SAMPLE_ROW).to_numpy()
        self._sample_ids_N = ids.column(schemas.SAMPLE_ID)
        self._ids = _strings(self._sample_ids_N)
        self._texts_N = ids.column(schemas.TEXT_ID).to_numpy()
        self._require_in_bounds(graph_dir, sum(receipt.rows for receipt in manifest.files("text", schemas.TEXTS)))

    @staticmethod
    def _map(graph_dir: Path, stage: Stage, name: str, schema: pa.Schema) -> pa.RecordBatch:
        batch = map_arrow(graph_dir / name, schema.names, rows=stage.files[name].rows, remedy=EMBED_AGAIN)
        if not batch.schema.equals(schema):
            raise ArtifactError(f"{graph_dir / name}: holds other columns than a look-up. {EMBED_AGAIN}")
        return batch

    def _require_in_bounds(self, graph_dir: Path, texts: int) -> None:
        offsets_N, rows = self._ids.offsets, len(self._ids.offsets) - 1
        if len(self._rows_N) != rows or outside(self._rows_N, rows):
            raise ArtifactError(f"{graph_dir / HASHES}: names a sample row that is not there. {EMBED_AGAIN}")
        if offsets_N[0] < 0 or offsets_N[-1] > len(self._ids.data) or (offsets_N[1:] < offsets_N[:-1]).any():
            raise ArtifactError(f"{graph_dir / IDS}: its offsets do not rise within its bytes. {EMBED_AGAIN}")
        if outside(self._texts_N, texts):
            raise ArtifactError(f"{graph_dir / IDS}: names a text that is not there. {EMBED_AGAIN}")

    def find(
        self, sample_ids: Sequence[str] | pa.Array | pa.ChunkedArray, hashes_S: NDArray[np.uint64] | None = None
    ) -> SampleTexts:
        """Return which texts belong to samples, known or not, in any order; 72 bytes a sample, beside the answer.

        Args:
            sample_ids: The ids; (S,).
            hashes_S: Their xxh3, where it is known already.
        """
        ids = _string_array(sample_ids)
        hashes_S = hash_column(ids) if hashes_S is None else hashes_S
        # In order, so that searches close by read the same pages.
        order_S = np.argsort(hashes_S)
        low_S = np.empty(len(ids), np.int64)
        low_S[order_S] = np.searchsorted(self._hashes_N, hashes_S[order_S], side="left")
        counts_S = _run_lengths(self._hashes_N, low_S, hashes_S)
        counts_S[~ids.is_valid().to_numpy(zero_copy_only=False)] = 0
        samples_M = np.repeat(np.arange(len(ids)), counts_S)
        ends_S = np.cumsum(counts_S)
        rows_M = self._rows_N[np.arange(len(samples_M)) + (low_S - ends_S + counts_S)[samples_M]]
        # Hashes only point: two ids may share one, so the bytes decide.
        same_M = _same_strings(self._ids, rows_M, _strings(ids), samples_M)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(same_M)])[np.concatenate([np.zeros(1, np.int64), ends_S])]
        return SampleTexts(offsets, self._texts_N[rows_M[same_M]], rows_M[same_M])

    def texts_of_rows(self, rows_S: Int64) -> SampleTexts:
        """Find all texts of the samples that have some rows of the samples table, one row a sample; in the order of `rows_S`.

        Where no sample has two rows, the texts are read off; else each sample is found by its id, microseconds each.

        Raises:
            ValueError: If there is no such row.
        """
        if len(rows_S) and not (rows_S.min() >= 0 and rows_S.max() < len(self._texts_N)):
            raise ValueError(f"rows of the samples table run from 0 to {len(self._texts_N) - 1:,}, not to {rows_S.max():,}")
        if self._hash_of_row is None:
            return SampleTexts(np.arange(len(rows_S) + 1), self._texts_N[rows_S], rows_S)
        return self.find(self._sample_ids_N.take(pa.array(rows_S)), self._hash_of_row[rows_S])

    @cached_property
    def _hash_of_row(self) -> NDArray[np.uint64] | None:
        """The hash of each row's sample id, 8 bytes a row of memory; None where all of them differ."""
        if not (self._hashes_N[1:] == self._hashes_N[:-1]).any():
            return None
        hashes_N = np.empty(len(self._hashes_N), np.uint64)
        hashes_N[self._rows_N] = self._hashes_N
        return hashes_N


@njit(cache=True, nogil=True)
def _run_lengths(hashes_N: NDArray[np.uint64], low_S: Int64, hashes_S: NDArray[np.uint64]) -> Int64:
    """How many of the sorted stored hashes, from place `low_S[i]` on, equal `hashes_S[i]`; (S,)."""
    counts_S = np.zeros(len(hashes_S), np.int64)
    for i in range(len(hashes_S)):
        at = low_S[i]
        while at < len(hashes_N) and hashes_N[at] == hashes_S[i]:
            at += 1
        counts_S[i] = at - low_S[i]
    return counts_S


@njit(cache=True, nogil=True)
def _same_strings(ours: _Strings, ours_M: Int64, theirs: _Strings, theirs_M: Int64) -> NDArray[np.bool_]:
    """Whether string `ours_M[i]` of one array equals string `theirs_M[i]` of another, byte for byte; (M,)."""
    same_M = np.empty(len(ours_M), np.bool_)
    for i in range(len(ours_M)):
        one, other = ours.offsets[ours_M[i]], theirs.offsets[theirs_M[i]]
        length = ours.offsets[ours_M[i] + 1] - one
        same = theirs.offsets[theirs_M[i] + 1] - other == length
        for c in range(length if same else 0):
            same = same and ours.data[one + c] == theirs.data[other + c]
        same_M[i] = same
    return same_M


def _string_array(values: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return (values if isinstance(values, pa.Array) else pa.array(values, pa.string())).cast(pa.large_string())


def _strings(strings: pa.Array) -> _Strings:
    """Return offsets and bytes of a large_string array."""
    _, offsets, data = strings.buffers()
    views = (
        np.frombuffer(offsets, np.int64)[strings.offset : strings.offset + len(strings) + 1]
        if len(strings)
        else np.zeros(1, np.int64)
    )
    return _Strings(views, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8))
