"""The FAISS index over all texts: embeddings in, index.faiss out. `graphbuild.embed.nearest` asks it.

Shape letters: N texts, n of one shard, D vector width. The index holds the stored float16 values without loss.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.store import schemas
from graphbuild.store.embeddings import embedding_blocks
from graphbuild.store.files import finished, write_file
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import Made, run_stage
from graphbuild.system.memory import free_memory
from graphbuild.system.progress import progress

FLAT_LIMIT = 200_000
"""Texts up to which the index is flat; above, IVF with float16 codes."""
_TRAIN_PER_LIST = 64
_GROWTH = 1.3
"""Memory that growing lists take, to what they hold at the end (benchmarks/RESULTS.md)."""


def build_index(graph_dir: Path, manifest: Manifest, *, overwrite: bool, flat_limit: int = FLAT_LIMIT) -> bool:
    """Build index.faiss from the stored embeddings, and enter the `index` stage, unless it is there.

    Args:
        graph_dir: A graph whose embed stage is done.
        manifest: Its manifest; changed and saved.
        overwrite: Replace an index made from other embeddings.
        flat_limit: Texts up to which the index is flat.

    Returns:
        Whether it was built.
    """
    count = sum(receipt.rows for receipt in manifest.require("embed", graph_dir).files.values())
    lists = 0 if count <= flat_limit else round(4 * math.sqrt(count))
    config = {"kind": "ivf-float16" if lists else "flat", "lists": lists}
    inputs = manifest.column_digests("embed", (schemas.TEXT_ID, schemas.EMBEDDING))

    def work(key: str) -> Made:
        done = finished(graph_dir, schemas.INDEX_FILE, key=key)
        if done is None:
            write = partial(_write_index, index=_fill_index(graph_dir, manifest.encoder["dim"], count, lists))
            done = write_file(graph_dir, schemas.INDEX_FILE, write, rows=count, key=key)
        return Made([done])

    return run_stage(graph_dir, manifest, "index", config, inputs, work, overwrite=overwrite)


def _fill_index(graph_dir: Path, dim: int, count: int, lists: int) -> Any:
    import faiss

    index: Any
    if lists:
        _say_memory(dim, count, lists)
        coarse = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        # Codes of the vectors themselves, which are exact, and not of their residuals, which would be rounded.
        index.by_residual = False
        if getattr(faiss, "get_num_gpus", int)():
            # Only the centroids are sought there; the index itself stays in memory.
            index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim))
        sample_nD = _training_sample(graph_dir, count, lists)
        # FAISS does not tell how far it is.
        click.echo(f"training the index: {lists:,} lists from {len(sample_nD):,} vectors", err=True)
        index.train(sample_nD)
        del sample_nD
    else:
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
    with progress("indexing", count, unit="texts") as meter:
        # The embed stage has just compared every file with its receipt.
        for block in embedding_blocks(graph_dir, check=False):
            index.add_with_ids(block.vectors_nD.astype(np.float32), block.ids_n)
            meter.advance(len(block.ids_n))
    return index


def _say_memory(dim: int, count: int, lists: int) -> None:
    """What the index takes while it is built; said where there is less."""
    # The sample is held twice, in its parts and as a whole; it is gone before the lists grow.
    needed = max(8 * dim * (count // _sample_step(count, lists)), round(_GROWTH * count * (2 * dim + 8)))
    if needed > (free := free_memory()):
        click.echo(
            f"index: {count:,} vectors take about {needed / 1e9:.1f} GB of memory while their lists are made, and "
            f"{free / 1e9:.1f} GB are free; a machine with more finishes it, if this one does not",
            err=True,
        )


def _sample_step(count: int, lists: int) -> int:
    return max(1, count // (lists * _TRAIN_PER_LIST))


def _training_sample(graph_dir: Path, count: int, lists: int) -> NDArray[np.float32]:
    """Every so-many-th vector: spread over all shards, the same at every run."""
    step = _sample_step(count, lists)
    return np.concatenate(
        [block.vectors_nD[block.ids_n % step == 0].astype(np.float32) for block in embedding_blocks(graph_dir, check=False)]
    )


def _write_index(path: Path, index: Any) -> None:
    """Write an index in pieces, through Python: no second copy of it, and a full disk is an error with a name."""
    import faiss

    # FAISS's annotations leave out what its wrapper adds.
    library: Any = faiss
    failures: list[OSError] = []
    with path.open("wb") as stream:

        def write(piece: bytes) -> None:
            try:
                stream.write(piece)
            except OSError as error:
                failures.append(error)
                raise

        try:
            library.write_index(index, library.PyCallbackIOWriter(write))
        except (RuntimeError, OSError):
            # FAISS has an error of its own for whatever the callback raised.
            raise failures[0] if failures else ResourceError(f"{path}: FAISS could not write the index.") from None
