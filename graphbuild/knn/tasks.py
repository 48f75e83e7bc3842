"""One shard's search as a task: what worker processes run, on this machine or on a cluster.

Everything that shards share lies in scratch files that the client made; a task that is run twice writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from graphbuild.knn.engines.choose import make_engine
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.extension import Extension
from graphbuild.knn.output import ShardWriter
from graphbuild.knn.scratch import map_vectors
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, finished

_REPORTS = 50
"""How often a shard tells of its progress, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the tasks of one run share; small, for it travels with each."""

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


def search_shard(job: Job, shard: ShardRange, *, report: Callable[[int], None]) -> Receipt:
    """Search for the neighbours of one shard of texts, and write them; `report` is told of finished texts."""
    # A worker that dies takes along receipts that were not fetched yet; its tasks come again, but not their work.
    if (done := finished(Path(job.root), schemas.part_name(schemas.KNN, shard.index), key=job.key)) is not None:
        return done
    vectors_ND = map_vectors(Path(job.vectors), job.shape)
    engine = make_engine(vectors_ND, k=job.k, memory_limit=job.memory, device=_device(job.device, shard))
    writer = ShardWriter(Path(job.root), job.k, np.load(job.basis) if job.basis else None, job.key)
    stored = job.extension.stored(Path(job.root), shard) if job.extension else None
    if job.extension and stored and isinstance(engine, TileEngine):
        told = _Told(engine.extension_pairs([shard], job.extension.first_new), len(shard), report)
        found = engine.extend(shard, stored, job.extension.first_new, told.advance)
        writer = replace(writer, facts={"extended": True})
    else:
        told = _Told(engine.work([shard]), len(shard), report)
        found = next(iter(engine.search([shard], told.advance)))
    receipt = writer.write(shard, vectors_ND[shard.start : shard.stop], found, engine.precision)
    told.finish()
    return receipt


def _device(name: str, shard: ShardRange) -> str:
    return f"cuda:{shard.index % torch.cuda.device_count()}" if name == "cuda" and torch.cuda.is_available() else name


class _Told:
    """Turns pairs into finished texts, and tells of them now and then: messages cross the network."""

    def __init__(self, pairs: int, texts: int, report: Callable[[int], None]) -> None:
        self._pairs, self._texts, self._report = pairs, texts, report
        self._done, self._told = 0, 0

    def advance(self, pairs: int) -> None:
        """Enter pairs that were done."""
        self._done += pairs
        texts = min(self._texts, self._done * self._texts // self._pairs)
        if (texts - self._told) * _REPORTS >= self._texts:
            self._report(texts - self._told)
            self._told = texts

    def finish(self) -> None:
        """Tell what is left to tell."""
        self._report(self._texts - self._told)
