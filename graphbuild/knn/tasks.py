"""The search for some shards as a task: what worker processes run, on this machine or on a cluster.

Everything that shards share lies in scratch files that the client made; a task that is run twice writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Engine, Neighbors
from graphbuild.knn.engines.choose import make_engine
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.extension import Extension
from graphbuild.knn.output import ShardWriter
from graphbuild.knn.scratch import map_vectors
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, finished

_LEAST_TASKS = 16
_MOST_SHARDS = 4
"""On a GPU, where there are many shards: each task has some work beside its pairs."""
_REPORTS = 50
"""How often a task tells of its progress, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the tasks of one run share; small, because it travels with each."""

    root: str
    """Absolute path of the graph directory."""
    vectors: str
    """Scratch file of all vectors."""
    shape: tuple[int, int]
    basis: str | None
    """Scratch file of the sketches' basis, or None where there are none."""
    k: int
    memory: int
    """Bytes for the engine."""
    device: str
    """`cpu`, or `cuda`: shards take turns among a worker's GPUs."""
    key: str
    extension: Extension | None = None
    """Old shards to go on from, where texts were appended."""


def blocks(missing: Sequence[ShardRange], device: str) -> list[tuple[ShardRange, ...]]:
    """Return the shards of each task: one on a CPU; some on a GPU, which scores pairs within a task once for both texts."""
    size = 1 if device == "cpu" else min(_MOST_SHARDS, -(-len(missing) // _LEAST_TASKS))
    return [tuple(missing[first : first + size]) for first in range(0, len(missing), max(1, size))]


def search_shards(job: Job, shards: tuple[ShardRange, ...], *, report: Callable[[int], None]) -> list[Receipt]:
    """Search for the neighbours of some shards of texts, and write them; `report` is told of finished texts."""
    root = Path(job.root)
    # A worker that dies takes along receipts that were not fetched yet; its tasks come again, but not their work.
    found = {shard.index: finished(root, schemas.part_name(schemas.KNN, shard.index), key=job.key) for shard in shards}
    receipts = [receipt for receipt in found.values() if receipt is not None]
    missing = [shard for shard in shards if found[shard.index] is None]
    if missing:
        vectors_ND = map_vectors(Path(job.vectors), job.shape)
        engine = make_engine(vectors_ND, k=job.k, memory_limit=job.memory, device=_device(job.device, missing[0]))
        receipts += list(_search(job, missing, vectors_ND, engine, report))
    return receipts


def _search(
    job: Job, shards: list[ShardRange], vectors_ND: NDArray[np.float16], engine: Engine, report: Callable[[int], None]
) -> Iterator[Receipt]:
    writer = ShardWriter(Path(job.root), job.k, np.load(job.basis) if job.basis else None, job.key)
    meter, results = _begin(job, shards, engine, report)
    for shard, found in zip(shards, results, strict=True):
        yield writer.write(shard, vectors_ND[shard.start : shard.stop], found, engine.precision)
    meter.finish()


def _begin(job: Job, shards: list[ShardRange], engine: Engine, report: Callable[[int], None]) -> tuple[_Texts, Iterator[Neighbors]]:
    """Return what reports progress, and the neighbours of each shard, which are searched for as they are taken."""
    texts = sum(map(len, shards))
    stored = job.extension.stored(Path(job.root), shards[0]) if job.extension else None
    if job.extension and stored and isinstance(engine, TileEngine):
        # On a CPU, where a task is a shard.
        meter = _Texts(engine.groups.extension_pairs(shards, job.extension.first_new), texts, report)
        extended = engine.extend(shards[0], stored, job.extension.first_new, meter.advance)
        return meter, iter([replace(extended, facts={"extended": True})])
    meter = _Texts(engine.work(shards), texts, report)
    return meter, engine.search(shards, meter.advance)


def _device(name: str, shard: ShardRange) -> str:
    return f"cuda:{shard.index % torch.cuda.device_count()}" if name == "cuda" and torch.cuda.is_available() else name


class _Texts:
    """Reports pairs as finished texts, but seldom: messages cross the network."""

    def __init__(self, pairs: int, texts: int, report: Callable[[int], None]) -> None:
        self._pairs, self._texts, self._report = pairs, texts, report
        self._done, self._reported = 0, 0

    def advance(self, pairs: int) -> None:
        """Count pairs that were scored."""
        self._done += pairs
        texts = min(self._texts, self._done * self._texts // self._pairs)
        if (texts - self._reported) * _REPORTS >= self._texts:
            self._report(texts - self._reported)
            self._reported = texts

    def finish(self) -> None:
        """Report the texts that were not reported yet."""
        self._report(self._texts - self._reported)
