"""The embeddings as one matrix: in memory, or mapped from a scratch file that every process can share.

Shape letters: N texts, D vector width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphbuild.store import schemas
from graphbuild.store.atomic import scratch_name
from graphbuild.store.embeddings import embedding_blocks, load_embeddings


@contextmanager
def all_vectors(graph_dir: Path, shape: tuple[int, int], *, mapped: bool) -> Iterator[tuple[NDArray[np.float16], Path | None]]:
    """Open all embeddings, and the scratch file where they are mapped.

    Args:
        graph_dir: A graph whose embed stage is done.
        shape: (N, D).
        mapped: Decode the shards into a scratch file of raw float16 and map it, instead of holding them.

    Raises:
        ArtifactError: If a file is missing or damaged.
    """
    if not mapped:
        yield load_embeddings(graph_dir), None
        return
    with scratch_name(graph_dir / schemas.KNN, "vectors") as path:
        with path.open("wb") as stream:
            for block in embedding_blocks(graph_dir):
                block.vectors_nD.tofile(stream)
        yield map_vectors(path, shape), path


def map_vectors(path: Path, shape: tuple[int, int]) -> NDArray[np.float16]:
    """Return a scratch file as a matrix; nothing that is done to it reaches the file."""
    # Copy on write, for numba and torch tell read-only arrays apart; nobody writes.
    return np.asarray(np.memmap(path, np.float16, "c", shape=shape))


def first_vectors(graph_dir: Path, count: int) -> NDArray[np.float16]:
    """Return the embeddings of the first `count` texts, or a few more; files are not compared with their receipts."""
    parts: list[NDArray[np.float16]] = []
    for block in embedding_blocks(graph_dir, check=False):
        parts.append(block.vectors_nD)
        if block.ids_n[-1] + 1 >= count:
            break
    return np.concatenate(parts)
