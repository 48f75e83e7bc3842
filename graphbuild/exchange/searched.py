"""The knn stage of graphs without vectors, whose similarity can be told for any pair: every pair is looked at.

What shards have in common, the basis of their sketches and whatever a similarity has to embed first, is written beside them under
the stage's key: a run that was killed, worker processes and parts go on from it. It is removed when the stage is entered.
Shape letters: N texts, K neighbours kept, M landmarks, R sketch width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.knn.blockwise import Landmarks, Similarity, nearest
from graphbuild.knn.engines.base import Advance, Neighbors
from graphbuild.knn.output import ShardWriter, no_neighbors
from graphbuild.knn.search import pair_progress
from graphbuild.knn.sketch import encode_within, landmark_basis
from graphbuild.knn.stage import stored_k
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, finished, write_parquet
from graphbuild.store.manifest import Manifest, stage_key, up_to_date
from graphbuild.store.parts import Part
from graphbuild.store.sketches import estimate
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import read_parquet
from graphbuild.system.cluster import Workers, run_tasks

_BASIS_FILE = f"{schemas.KNN}/basis.parquet"
_PROBES = 512
"""Texts whose sketches are compared with what they stand for."""


class Finder(Protocol):
    """Finds neighbours by a similarity."""

    @property
    def similarity(self) -> Similarity:
        """Of any two texts."""

    def find(self, shard: ShardRange, k: int, advance: Advance) -> tuple[Neighbors, NDArray[np.float64]]:
        """Find the k neighbours of each text of a shard, and how similar others are at most, (n,); facts say what is not proven."""


class Scan:
    """Looks at every pair."""

    def __init__(self, similarity: Similarity, count: int) -> None:
        self.similarity, self._count = similarity, count

    def find(self, shard: ShardRange, k: int, advance: Advance) -> tuple[Neighbors, NDArray[np.float64]]:
        """Find the k most similar texts to each text of a shard, and the similarity of the last of them; (n,)."""
        return nearest(self.similarity, np.arange(shard.start, shard.stop), self._count, k, advance)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the tasks of one search share; small, because it travels with each."""

    root: str
    """Absolute path of the graph directory."""
    key: str
    """Of the stage: jobs of one key have one result."""
    count: int
    k: int
    finder: Callable[[int, str], Finder] = field(compare=False)
    """Makes what finds so many neighbours; may keep under the key what it makes first."""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What is requested, and from what."""

    graph_dir: Path
    manifest: Manifest
    k_asked: int | str
    """Neighbours, as of `KnnConfig`."""
    options: dict[str, Any]
    inputs: Mapping[str, str]
    finder: Callable[[int, str], Finder]

    @classmethod
    def read(
        cls,
        graph_dir: Path,
        manifest: Manifest,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        finder: Callable[[int, str], Finder],
        *,
        k: int | str,
        sketch_dim: int,
    ) -> SearchRequest:
        """Read what is requested of a graph whose text stage is done.

        Args:
            graph_dir: The graph.
            manifest: Its manifest; `run` changes and saves it.
            config: What decides the similarity.
            inputs: Digests of what it is made from.
            finder: As of `Job`; worker processes must be able to take it, where there are any.
            k: Neighbours kept, as of `KnnConfig`.
            sketch_dim: R; 0 leaves the sketch out.
        """
        stored = stored_k(k, manifest.ranges("text", schemas.TEXTS)[-1].stop)
        options = {**config, "k": stored, "sketch_dim": sketch_dim, "shard_size": manifest.shard_size}
        return cls(graph_dir, manifest, k, options, inputs, finder)

    @property
    def job(self) -> Job:
        """What its tasks share."""
        key, count = stage_key(self.options, self.inputs), self._ranges[-1].stop
        return Job(root=str(self.graph_dir.absolute()), key=key, count=count, k=self.options["k"], finder=self.finder)

    @property
    def _ranges(self) -> list[ShardRange]:
        return self.manifest.ranges("text", schemas.TEXTS)

    def missing(self) -> list[ShardRange]:
        """Return the shards that are not there."""
        key = stage_key(self.options, self.inputs)
        return [shard for shard in self._ranges if _done(self.graph_dir, shard, key) is None]

    def is_done(self, *, overwrite: bool = False) -> bool:
        """Return whether the stage is, with these options; others are an error, unless it is to be replaced."""
        return up_to_date(self.manifest, self.graph_dir, "knn", self.options, self.inputs, overwrite=overwrite)

    def run(self, *, overwrite: bool, workers: Workers | None = None) -> bool:
        """Search for what is missing, and enter the knn stage; returns whether there was anything to do."""

        def work(key: str) -> Made:
            done = {shard: _done(self.graph_dir, shard, key) for shard in self._ranges}
            missing = [shard for shard, receipt in done.items() if receipt is None]
            made: list[Receipt] = []
            if missing:
                self.prepare()
                made = self._search(missing, workers or Workers())
            receipts = sorted([*made, *(receipt for receipt in done.values() if receipt is not None)], key=lambda one: one.path)
            return Made(receipts, self._facts(receipts, len(receipts) - len(missing)))

        return run_stage(self.graph_dir, self.manifest, "knn", self.options, self.inputs, work, overwrite=overwrite)

    def run_part(self, part: Part) -> tuple[int, int]:
        """Search for the shards of a part that are missing, and return how many these were, and how many of other parts are."""
        if self.is_done():
            return 0, 0
        own = [shard for shard in self.missing() if part.has(shard.index)]
        self._search(own, Workers())
        return len(own), len(self.missing())

    def is_prepared(self) -> bool:
        """Return whether what shards have in common is there."""
        return finished(self.graph_dir, _BASIS_FILE, key=stage_key(self.options, self.inputs)) is not None

    def prepare(self) -> None:
        """Make what shards have in common, unless it is there."""
        job, sketch_dim = self.job, self.options["sketch_dim"]
        if self.is_prepared():
            return
        # Also where there is no sketch: it makes what it keeps.
        similarity = job.finder(job.k, job.key).similarity
        basis_MR, facts = np.empty((1, 0)), {}
        if sketch_dim:
            basis_MR = landmark_basis(Landmarks(similarity, job.count).own(), sketch_dim)
            facts["sketch_rms_error"] = _sketch_error(similarity, basis_MR, job.count)
        table = pa.table({schemas.SKETCH: pa.array(list(basis_MR), pa.list_(pa.float64()))})
        write_parquet(self.graph_dir, _BASIS_FILE, table, key=job.key, facts=facts)

    def _search(self, shards: Sequence[ShardRange], workers: Workers) -> list[Receipt]:
        job = self.job
        calls = [(job, shard) for shard in shards]
        with pair_progress(sum(map(len, shards)) * job.count) as advance:
            run = partial(run_tasks, workers=workers, shared=[Path(job.root)], report=advance, release=let_go)
            return list(run(search_shard, calls))

    def _facts(self, receipts: Sequence[Receipt], reused: int) -> dict[str, Any]:
        held, count, k = [receipt.facts for receipt in receipts], self._ranges[-1].stop, self.options["k"]
        return {
            "k_asked": self.k_asked,
            "k": k,
            "texts": count,
            "complete": k == count - 1,
            "recomputed_rows": sum(one["recomputed_rows"] for one in held),
            "certified_rows": sum(receipt.facts.get("certified_rows", receipt.rows) for receipt in receipts),
            "precision": "float64",
            "reused_shards": reused,
            "absent_at_least": held[0]["absent_at_least"],
            "absent_at_most": max(one["absent_at_most"] for one in held),
            "absent_known_rows": sum(one["absent_known_rows"] for one in held),
            **({"sketch_rms_error": held[0]["sketch_rms_error"]} if "sketch_rms_error" in held[0] else {}),
        }


def search_shard(job: Job, shard: ShardRange, *, report: Advance) -> Receipt:
    """Find and write the neighbours of a shard's texts: the task that workers run. `report` is told of finished pairs."""
    if (done := _done(Path(job.root), shard, job.key)) is not None:
        return done
    return _open(job).make(shard, report)


def _done(graph_dir: Path, shard: ShardRange, key: str) -> Receipt | None:
    return finished(graph_dir, schemas.part_name(schemas.KNN, shard.index), key=key)


class _Search:
    """What makes the shards of one job."""

    def __init__(self, job: Job) -> None:
        root = Path(job.root)
        self._job, self._finder = job, job.finder(job.k, job.key)
        self._landmarks = Landmarks(self._finder.similarity, job.count)
        receipt = finished(root, _BASIS_FILE, key=job.key)
        assert receipt is not None
        basis_MR = np.array(read_parquet(root / _BASIS_FILE)[schemas.SKETCH].to_pylist(), np.float64)
        self._basis_MR = basis_MR if basis_MR.shape[1] else None
        self._facts = receipt.facts

    def make(self, shard: ShardRange, advance: Advance) -> Receipt:
        """Find a shard's neighbours and write them; returns its receipt."""
        found, last_n = no_neighbors(shard), np.ones(len(shard))
        if self._job.k:
            found, last_n = self._finder.find(shard, self._job.k, advance)
        least = self._finder.similarity.least
        absent = {
            "absent_at_least": least,
            "absent_at_most": float(last_n.max(initial=least)),
            "absent_known_rows": int((last_n <= least).sum()),
        }
        wanted = np.arange(shard.start, shard.stop if self._basis_MR is not None else shard.start)
        facts = {**self._facts, **absent}
        root, job = Path(self._job.root), self._job
        writer = ShardWriter(root, job.k, self._basis_MR, job.key, facts=facts, encode=encode_within)
        return writer.write(shard, self._landmarks.features(wanted), found, "float64")


@lru_cache(maxsize=1)
def _open(job: Job) -> _Search:
    """For all shards that a process makes."""
    return _Search(job)


def let_go() -> None:
    """Forget what this process holds for the shards of a job; it may be large."""
    _open.cache_clear()


def _sketch_error(similarity: Similarity, basis_MR: NDArray[np.float64], count: int) -> float:
    """Root of the mean squared error over pairs of some texts."""
    ids_s = np.random.default_rng(1).permutation(count)[:_PROBES]
    codes_sR, scales_s = encode_within(Landmarks(similarity, count).features(ids_s), basis_MR)
    errors_ss = estimate(codes_sR, scales_s, codes_sR, scales_s) - similarity.tile(ids_s, ids_s)
    return float(np.sqrt(np.square(errors_ss[~np.eye(len(ids_s), dtype=np.bool_)]).mean())) if len(ids_s) > 1 else 0.0
