"""Stored embeddings, read back: shards in, blocks of float16 vectors out, each checked against its receipt and its texts.

Shape letters: N texts, n texts of a block or shard, D vector width. Nothing here loads torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.files import Receipt
from graphbuild.store.manifest import Manifest
from graphbuild.store.tables import REMEDY, open_parquet, read_parquet
from graphbuild.store.verified import require_verified

LENGTH_TOLERANCE = 2.0**-10
"""Rounding to float16 moves a length by up to 2^-11, and a little more where numbers are subnormal."""
_BLOCK_ROWS = 8192
_BUFFER = 1 << 20
_READERS = 4
"""Files that are decoded at a time."""


@dataclass(frozen=True, slots=True)
class EmbeddingBlock:
    """Embeddings of consecutive texts."""

    start: int
    """Id of the first text."""
    vectors_nD: NDArray[np.float16]

    @property
    def ids_n(self) -> NDArray[np.int64]:
        """Return the text ids; (n,)."""
        return np.arange(self.start, self.start + len(self.vectors_nD))


def embedding_blocks(graph_dir: Path, *, check: bool = True, manifest: Manifest | None = None) -> Iterator[EmbeddingBlock]:
    """Read all embeddings in order of text id, a few thousand at a time, whatever the size of the files.

    Args:
        graph_dir: A graph whose embed stage is done.
        check: Compare files with their receipts and their texts; leave it out only where that was just done.
        manifest: What says which files there are; None reads it, and may find more than an earlier reading did.

    Raises:
        ArtifactError: If the stage is not done, a file is missing or damaged, or ids do not run from 0.
        ArtifactMismatch: If one holds embeddings of other texts than the graph has; only with `check`.
    """
    files = (manifest or Manifest.load(graph_dir)).require("embed", graph_dir).in_folder(schemas.EMBEDDINGS)
    if check:
        require_verified(graph_dir, files, remedy=REMEDY)
    start = 0
    for receipt in files:
        if check:
            require_aligned(graph_dir, receipt.path)
        yield from _file_blocks(graph_dir, receipt, start)
        start += receipt.rows


def load_embeddings(graph_dir: Path, *, check: bool = True, verify: bool | None = None) -> NDArray[np.float16]:
    """Read all embeddings into memory, row i that of text i; shape (N, D).

    Raises:
        ArtifactError: If the stage is not done, a file is missing or damaged, or ids do not run from 0.
        ArtifactMismatch: If one holds embeddings of other texts than the graph has; only with `check`.
    """
    manifest = Manifest.load(graph_dir)
    files = manifest.require("embed", graph_dir).in_folder(schemas.EMBEDDINGS)
    stops = list(itertools.accumulate(receipt.rows for receipt in files))
    if not stops or not stops[-1]:
        raise ArtifactError(f"{graph_dir}: the embed stage holds no vectors. {REMEDY}")
    if check:
        require_verified(graph_dir, files, remedy=REMEDY, verify=verify)
    vectors_ND = np.empty((stops[-1], manifest.encoder["dim"]), np.float16)

    def read(receipt: Receipt, stop: int) -> None:
        if check:
            require_aligned(graph_dir, receipt.path)
        for block in _file_blocks(graph_dir, receipt, stop - receipt.rows):
            vectors_ND[block.start : block.start + len(block.vectors_nD)] = block.vectors_nD

    # Decoding a file keeps one core busy.
    with ThreadPoolExecutor(min(len(files), _READERS)) as pool:
        list(pool.map(read, files, stops))
    return vectors_ND


def embeddings_table(texts: pa.Table, vectors_nD: NDArray[np.float16]) -> pa.Table:
    """Return an embedding shard: ids and hashes of a shard of texts, and their vectors, (n, D)."""
    schema = schemas.embeddings_schema(vectors_nD.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors_nD).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(schemas.EMBEDDING).type)
    return pa.table([texts[schemas.TEXT_ID], texts[schemas.TEXT_HASH], embedding], schema=schema)


def some_embeddings(graph_dir: Path, ids_n: NDArray[np.int64], manifest: Manifest) -> NDArray[np.float16]:
    """Read the embeddings of some texts, and of no file that holds none of them; files are not compared with their receipts.

    Args:
        graph_dir: A graph whose embed stage is done.
        ids_n: The texts, ascending; (n,).
        manifest: The graph's.

    Returns:
        A row a text; (n, D).

    Raises:
        ArtifactError: If a file is missing or damaged.
    """
    parts, start = [], 0
    for receipt in manifest.require("embed", graph_dir).in_folder(schemas.EMBEDDINGS):
        stop = start + receipt.rows
        if np.searchsorted(ids_n, start) < np.searchsorted(ids_n, stop):
            blocks = _file_blocks(graph_dir, receipt, start)
            parts += [block.vectors_nD[np.isin(block.ids_n, ids_n)] for block in blocks]
        start = stop
    return np.concatenate(parts)


def _file_blocks(graph_dir: Path, receipt: Receipt, start: int) -> Iterator[EmbeddingBlock]:
    path, stop = graph_dir / receipt.path, start + receipt.rows
    with open_parquet(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(_BLOCK_ROWS, columns=[schemas.TEXT_ID, schemas.EMBEDDING], use_threads=False):
            block = EmbeddingBlock(start, _matrix(batch[schemas.EMBEDDING]))
            if not np.array_equal(batch[schemas.TEXT_ID].to_numpy(), block.ids_n):
                raise ArtifactError(f"{path}: ids do not run from {start:,} to {block.ids_n[-1]:,}. {REMEDY}")
            yield block
            start += len(batch)
    if start != stop:
        raise ArtifactError(f"{path}: {receipt.rows + start - stop:,} rows, but the manifest says {receipt.rows:,}. {REMEDY}")


def _matrix(column: pa.FixedSizeListArray) -> NDArray[np.float16]:
    values: NDArray[np.float16] = column.flatten().to_numpy(zero_copy_only=True)
    if values.dtype != np.float16:
        raise pa.ArrowInvalid(f"vectors are {values.dtype}, not float16")
    return values.reshape(-1, column.type.list_size)


def require_aligned(graph_dir: Path, name: str) -> None:
    """Compare the ids and hashes stored with a shard of embeddings with those of the texts table.

    Args:
        graph_dir: The graph.
        name: Path of the embedding shard in it.

    Raises:
        ArtifactError: If the shard or that of texts cannot be read, or they hold other ids.
        ArtifactMismatch: Naming the first row of another text.
    """
    texts = graph_dir / name.replace(schemas.EMBEDDINGS, schemas.TEXTS, 1)
    ids_n, hashes_n = _ids_and_hashes(graph_dir / name)
    text_ids_n, text_hashes_n = _ids_and_hashes(texts)
    if not np.array_equal(text_ids_n, ids_n):
        run = f"{text_ids_n[0]:,} to {text_ids_n[-1]:,}" if len(text_ids_n) else "anything: there are no texts"
        raise ArtifactError(f"{graph_dir / name}: ids do not run from {run}, as in {texts}. {REMEDY}")
    differ = np.flatnonzero(text_hashes_n != hashes_n)
    if len(differ):
        row = int(differ[0])
        raise ArtifactMismatch(
            f"{graph_dir / name}: row {row} (text_id {ids_n[row]}) is the embedding of another text than {texts} has there "
            f"({len(differ):,} of {len(ids_n):,} rows differ). They come from different data sets or encoders. "
            "Run `graphbuild embed --overwrite`."
        )


def _ids_and_hashes(path: Path) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    table = read_parquet(path, [schemas.TEXT_ID, schemas.TEXT_HASH])
    return table[schemas.TEXT_ID].to_numpy(), table[schemas.TEXT_HASH].to_numpy()


def require_unit_length(where: Path, vectors_ND: NDArray[np.float16], *, start: int = 0) -> None:
    """Refuse vectors without a direction, or of another length than 1 within rounding.

    Args:
        where: The graph or the file, for the message.
        vectors_ND: Embeddings of consecutive texts.
        start: Id of the first one.

    Raises:
        ArtifactError: Naming the first text whose vector is zero, not finite, or not of length 1.
    """
    for first in range(0, len(vectors_ND), _BLOCK_ROWS):
        block_nD = vectors_ND[first : first + _BLOCK_ROWS].astype(np.float32)
        lengths_n = np.sqrt(np.einsum("nd,nd->n", block_nD, block_nD))
        bad = np.flatnonzero(~(np.abs(lengths_n - 1) <= LENGTH_TOLERANCE))
        if len(bad):
            length, text_id = float(lengths_n[bad[0]]), start + first + int(bad[0])
            what = "is zero" if length == 0 else f"has length {length:.4g}, not 1" if np.isfinite(length) else "is not finite"
            raise ArtifactError(
                f"{where}: the embedding of text_id {text_id} {what}, so it has no neighbours "
                f"({len(bad):,} such in texts {start + first:,} to {start + first + len(block_nD) - 1:,}). "
                "Look at it with `graphbuild inspect --sql`, and embed again without it or with another encoder."
            )
