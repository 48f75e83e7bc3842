"""Stored embeddings, read back: shards in, float16 matrices out.

Shape letters: N texts (n in one shard), D vector width. Every file is checked against its receipt before it is read.
Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.files import require_intact
from graphbuild.store.manifest import Manifest

REMEDY = "Run `graphbuild embed` again with the same options: it rebuilds this file alone."

_BLOCK_ROWS = 8192
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class EmbeddingShard:
    """The embeddings of one contiguous range of texts."""

    ids_n: NDArray[np.int32]
    hashes_n: NDArray[np.uint64]
    vectors_nD: NDArray[np.float16]


def iterate_embeddings(graph_dir: Path, *, check: bool = True) -> Iterator[EmbeddingShard]:
    """Read the embedding shards in order of text id.

    Args:
        graph_dir: A graph whose embed stage is done.
        check: Compare each file with its receipt first; leave it out only where that was just done.

    Raises:
        ArtifactError: If the stage is not done, or a file is missing or damaged.
        ArtifactMismatch: If one holds embeddings of other texts than the graph has; only with `check`.
    """
    stage = Manifest.load(graph_dir).require("embed", graph_dir)
    for name in sorted(stage.files):
        if check:
            require_intact(graph_dir, {name: stage.files[name]}, remedy=REMEDY)
        shard = read_embedding_shard(graph_dir / name)
        if check:
            require_aligned(graph_dir, name, shard.ids_n, shard.hashes_n)
        yield shard


def read_embedding_shard(path: Path) -> EmbeddingShard:
    """Read one embedding file.

    Raises:
        ArtifactError: If it cannot be read.
    """
    try:
        table = pq.read_table(path)
        return EmbeddingShard(
            ids_n=table[schemas.TEXT_ID].combine_chunks().to_numpy(),
            hashes_n=table[schemas.TEXT_HASH].combine_chunks().to_numpy(),
            vectors_nD=_matrix(table[schemas.EMBEDDING]),
        )
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {REMEDY}") from error


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float16]:
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, width) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts or [np.empty((0, width), np.float16)])


def load_embeddings(graph_dir: Path, *, check: bool = True) -> NDArray[np.float16]:
    """All embeddings, row i that of text i; shape (N, D), held in memory.

    Raises:
        ArtifactError: If the stage is not done, a file is missing or damaged, or ids do not run from 0.
        ArtifactMismatch: If one holds embeddings of other texts than the graph has; only with `check`.
    """
    stage = Manifest.load(graph_dir).require("embed", graph_dir)
    count = sum(receipt.rows for receipt in stage.files.values())
    vectors_ND: NDArray[np.float16] | None = None
    start = 0
    for block_nD in embedding_blocks(graph_dir, check=check):
        if vectors_ND is None:
            vectors_ND = np.empty((count, block_nD.shape[1]), np.float16)
        vectors_ND[start : start + len(block_nD)] = block_nD
        start += len(block_nD)
    if vectors_ND is None:
        raise ArtifactError(f"{graph_dir}: the embed stage lists no file. {REMEDY}")
    return vectors_ND


def embedding_blocks(graph_dir: Path, *, check: bool = True) -> Iterator[NDArray[np.float16]]:
    """All embeddings in order of text id, a few thousand at a time, whatever the size of the files.

    Raises:
        ArtifactError: If the stage is not done, a file is missing or damaged, or ids do not run from 0.
        ArtifactMismatch: If one holds embeddings of other texts than the graph has; only with `check`.
    """
    stage = Manifest.load(graph_dir).require("embed", graph_dir)
    start = 0
    for name in sorted(stage.files):
        if check:
            require_intact(graph_dir, {name: stage.files[name]}, remedy=REMEDY)
            require_aligned(graph_dir, name, *_ids_and_hashes(graph_dir / name))
        for ids_n, block_nD in _file_blocks(graph_dir / name):
            if not np.array_equal(ids_n, np.arange(start, start + len(ids_n))):
                raise ArtifactError(f"{graph_dir / name}: ids do not run from {start:,} to {start + len(ids_n) - 1:,}. {REMEDY}")
            yield block_nD
            start += len(ids_n)


def _file_blocks(path: Path) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float16]]]:
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(_BLOCK_ROWS, columns=[schemas.TEXT_ID, schemas.EMBEDDING], use_threads=False):
                yield batch[schemas.TEXT_ID].to_numpy(), _matrix(pa.chunked_array([batch[schemas.EMBEDDING]]))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {REMEDY}") from error


def require_aligned(graph_dir: Path, name: str, ids_n: NDArray[np.int32], hashes_n: NDArray[np.uint64]) -> None:
    """Compare the text hashes stored with embeddings with those of the texts table.

    Args:
        graph_dir: The graph.
        name: Path of the embedding shard in it.
        ids_n: Text ids of the shard; (n,).
        hashes_n: Hashes of the texts that its vectors were made of; (n,).

    Raises:
        ArtifactError: If the shard of texts cannot be read, or holds other ids.
        ArtifactMismatch: Naming the first row of another text.
    """
    texts = graph_dir / name.replace(schemas.EMBEDDINGS, schemas.TEXTS, 1)
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
    try:
        table = pq.read_table(path, columns=[schemas.TEXT_ID, schemas.TEXT_HASH])
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {REMEDY}") from error
    return table[schemas.TEXT_ID].to_numpy(), table[schemas.TEXT_HASH].to_numpy()
