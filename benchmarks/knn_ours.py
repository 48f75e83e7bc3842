"""Our own ways to the neighbour graph, for `benchmarks.knn`: the CPU's engine, the GPU's, and the whole command.

Shape letters: N texts, K neighbours, D vector width.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.knn_peers import Ids, Search
from graphbuild.knn.engines.base import Engine
from graphbuild.store import schemas
from graphbuild.store.files import shard_ranges
from graphbuild.store.graph import Graph

FIRST = 500
"""Texts whose neighbours a search gives back, for its recall."""


def on_cpu(vectors_ND: NDArray[np.float16], k: int, precision: str) -> Search:
    """Return a search of the CPU's engine; its kernels are compiled."""
    from graphbuild.knn.engines.tiles import TileEngine
    from graphbuild.system.memory import free_memory

    # Compiling is not searching: a first, small search loads the kernels.
    few = vectors_ND[:4096]
    list(TileEngine(few, k=64, memory_limit=10**9, precision=precision).search(shard_ranges(len(few), 4096)))
    return _search(lambda: TileEngine(vectors_ND, k=k, memory_limit=free_memory() // 2, precision=precision), len(vectors_ND))


def on_gpu(vectors_ND: NDArray[np.float16], k: int) -> Search:
    """Return a search of the GPU's engine."""
    from graphbuild.knn.engines.gpu.engine import DeviceEngine
    from graphbuild.system.memory import free_memory

    return _search(lambda: DeviceEngine(vectors_ND, k=k, memory_limit=free_memory() // 2, device="cuda"), len(vectors_ND))


def as_command(graph_dir: Path, k: int) -> Search:
    """Return `graphbuild knn` as a process of its own, on a copy without neighbours: start-up, reading and writing included."""

    def search() -> tuple[float, Ids]:
        with tempfile.TemporaryDirectory(prefix="bench-knn-", dir=graph_dir.parent) as folder:
            copy = Path(folder) / "graph"
            shutil.copytree(graph_dir, copy, ignore=shutil.ignore_patterns(schemas.KNN, schemas.REPORT, "partition"))
            command = [sys.executable, "-c", "from graphbuild.cli import main; main()", "knn", "--overwrite", "--k", str(k)]
            started = time.perf_counter()
            subprocess.run([*command, "--graph-dir", str(copy)], check=True, capture_output=True)
            seconds = time.perf_counter() - started
            return seconds, Graph.open(copy).rows(np.arange(FIRST)).neighbor_ids

    return search


def _search(make: Callable[[], Engine], texts: int) -> Search:
    def search() -> tuple[float, Ids]:
        started = time.perf_counter()
        first: Ids | None = None
        for found in make().search(shard_ranges(texts, 65_536)):
            first = found.ids_nK[:FIRST].copy() if first is None else first
        assert first is not None
        return time.perf_counter() - started, first

    return search
