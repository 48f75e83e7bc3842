"""The shards that are missing, searched for and written: in this process, or as tasks for worker processes.

Shape letters: N texts, D vector width, R sketch width.
A run that was killed keeps the shards that it finished; the search for the others is made again, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn import sketch
from graphbuild.knn.approximate import IvfEngine, estimate_ivf
from graphbuild.knn.calibrate import calibrate
from graphbuild.knn.checks import read_sample_counts
from graphbuild.knn.engines.base import Engine
from graphbuild.knn.engines.choose import make_engine, tile_groups
from graphbuild.knn.engines.coding import Coding
from graphbuild.knn.engines.groups import Groups
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.knn.extension import Extension
from graphbuild.knn.output import ShardWriter, no_neighbors
from graphbuild.knn.plan import Estimate, Layout, MemoryPlan, Missing, make_estimate
from graphbuild.knn.scratch import all_vectors, first_vectors
from graphbuild.knn.tasks import Job, blocks, search_shards
from graphbuild.store import schemas
from graphbuild.store.atomic import scratch_name
from graphbuild.store.embeddings import require_unit_length, some_embeddings
from graphbuild.store.files import Receipt, ShardRange, damage, finished, require_intact
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import Part
from graphbuild.system.cluster import Workers, run_tasks
from graphbuild.system.progress import progress

_CALIBRATION_TEXTS = 65_536
_CALIBRATION_SECONDS = 5.0
_CALIBRATION_SHARE = 0.01
"""A real run spends at most this share of the expected time on its calibration."""
QUIET_PAIRS = 10**9
"""Searches of fewer pairs are over before an estimate of them would be."""
_MILLION = 10**6


class Search:
    """One run of the knn stage."""

    def __init__(
        self,
        graph_dir: Path,
        manifest: Manifest,
        layout: Layout,
        memory: MemoryPlan,
        key: str,
        *,
        workers: Workers,
        ivf_recall: float | None = None,
        extension: Extension | None = None,
        part: Part | None = None,
    ) -> None:
        self._graph_dir, self._manifest, self._layout, self._memory, self._key = graph_dir, manifest, layout, memory, key
        self._workers, self._ivf_recall = workers, ivf_recall
        self._ranges = manifest.ranges("embed", schemas.EMBEDDINGS)
        self._done = {
            shard.index: finished(graph_dir, schemas.part_name(schemas.KNN, shard.index), key=key) for shard in self._ranges
        }
        self._missing = [
            shard for shard in self._ranges if self._done[shard.index] is None and (part is None or part.has(shard.index))
        ]
        self._vectors_ND: NDArray[np.float16] | None = None
        """All embeddings, once they were read."""
        self._coding: Coding | None = None
        """How a calibration found that vectors are best shortened."""
        self._extension = extension
        self._extended = [shard for shard in self._missing if extension and shard.index in extension.receipts]
        self._searched = [shard for shard in self._missing if shard not in self._extended]
        if extension and self._pairs() >= self._search_pairs(self._missing):
            # So many texts are new that comparing the old ones with them takes longer than the whole search.
            self._extension, self._extended, self._searched = None, [], self._missing

    @property
    def reused(self) -> int:
        """Shards that were done before."""
        return len(self._ranges) - len(self._missing)

    @property
    def missing(self) -> int:
        """Shards that are to be made."""
        return len(self._missing)

    def run(self) -> list[Receipt]:
        """Return the receipts of all shards, those that were done before included.

        Raises:
            ArtifactError: If an embedding is damaged, zero, or not finite.
            ResourceError: If the disk has no room, or workers die again and again.
        """
        if self._missing:
            shape = (self._layout.texts, self._layout.dim)
            with all_vectors(self._graph_dir, shape, mapped=self._memory.mapped) as (vectors_ND, scratch):
                self._vectors_ND = vectors_ND
                with progress("checking vectors", None):
                    require_unit_length(self._graph_dir, vectors_ND)
                basis_DR = self._basis(vectors_ND) if self._layout.sketch_dim else None
                self._announce(vectors_ND)
                if scratch is not None and self._distributed():
                    receipts = self._on_workers(scratch, basis_DR)
                else:
                    receipts = self._here(vectors_ND, basis_DR)
                for shard, receipt in receipts:
                    self._done[shard] = receipt
        return [receipt for receipt in (self._done[shard.index] for shard in self._ranges) if receipt is not None]

    def embeddings(self, ids_n: NDArray[np.int64]) -> NDArray[np.float16]:
        """Return embeddings of some texts, ascending: read again only where nothing was missing; (n, D)."""
        if self._vectors_ND is None:
            return some_embeddings(self._graph_dir, ids_n, self._manifest)
        return self._vectors_ND[ids_n]

    def estimate(
        self, sample_nD: NDArray[np.float16] | None = None, *, seconds: float = _CALIBRATION_SECONDS, recall: float | None = None
    ) -> Estimate:
        """Return what is still to be done will take, by a calibration of so many seconds on some of the vectors.

        Args:
            sample_nD: The vectors; some of the first where None.
            seconds: Of the calibration.
            recall: If given, what an approximate search of that recall would take is measured, too.
        """
        ivf = None
        rates = None
        if self._missing and self._layout.k:
            sample_nD = first_vectors(self._graph_dir, _CALIBRATION_TEXTS) if sample_nD is None else sample_nD
            engine, device = self._memory.engine, self._memory.device
            rates = calibrate(
                sample_nD,
                count=self._layout.texts,
                k=self._layout.k,
                memory_limit=engine,
                seconds=seconds,
                device=device,
                coding=self._coding,
            )
            self._coding = rates.coding
            if recall is not None and (path := self._inverted_file()) is not None:
                ivf = estimate_ivf(path, sample_nD, k=self._layout.k, recall=recall, texts=self._layout.texts)
        missing = Missing(len(self._missing), len(self._ranges), sum(map(len, self._missing)), self._pairs())
        return make_estimate(self._layout, self._memory, self._graph_dir, missing, rates, ivf)

    def _inverted_file(self) -> Path | None:
        """The index where it is an inverted file, and as long as its receipt says; an estimate does not read all of it."""
        index = self._manifest.stages.get("index")
        if index is None or index.config["kind"] == "flat":
            return None
        problem = damage(self._graph_dir, index.files[schemas.INDEX_FILE], digest=False)
        return None if problem else self._graph_dir / schemas.INDEX_FILE

    def _announce(self, vectors_ND: NDArray[np.float16]) -> None:
        """Say what the run will take, unless it is over soon; refuse what does not fit the disk."""
        if self._ivf_recall is not None or self._pairs() < QUIET_PAIRS:
            return
        sample_nD = vectors_ND[:_CALIBRATION_TEXTS]
        first = self.estimate(sample_nD, seconds=0)
        seconds = min(_CALIBRATION_SECONDS, first.seconds * _CALIBRATION_SHARE)
        expected = self.estimate(sample_nD, seconds=seconds) if seconds > 1 else first
        click.echo(expected.line(), err=True)
        if expected.problem:
            raise ResourceError(f"{self._graph_dir}: {expected.problem}")

    def _distributed(self) -> bool:
        # One text has no neighbours to search for.
        several = min(self._workers.count, len(self._missing)) > 1
        return self._layout.k > 0 and (self._workers.scheduler is not None or several)

    def _pairs(self) -> int:
        return self._search_pairs(self._searched) + self._extension_pairs()

    def _search_pairs(self, ranges: list[ShardRange]) -> int:
        if not self._layout.k:
            return 0
        groups = self._groups()
        if groups is None:
            return sum(map(len, ranges)) * self._layout.texts
        return sum(groups.pairs([shard]) for shard in ranges) if self._distributed() else groups.pairs(ranges)

    def _extension_pairs(self) -> int:
        groups = self._groups() if self._extension else None
        return groups.extension_pairs(self._extended, self._extension.first_new) if groups and self._extension else 0

    def _groups(self) -> Groups | None:
        layout, memory = self._layout, self._memory
        return tile_groups(layout.texts, layout.dim, layout.k, memory.engine, memory.device)

    def _here(self, vectors_ND: NDArray[np.float16], basis_DR: NDArray[np.float64] | None) -> Iterator[tuple[int, Receipt]]:
        writer = ShardWriter(self._graph_dir, self._layout.k, basis_DR, self._key)
        if not self._layout.k:
            for shard in self._missing:
                yield shard.index, writer.write(shard, vectors_ND[shard.start : shard.stop], no_neighbors(shard), "none")
            return
        engine = self._engine(vectors_ND)
        if isinstance(engine, IvfEngine):
            click.echo(engine.recall.summary(), err=True)
            writer = replace(writer, facts={"ivf": engine.recall.to_json()})
        searched = list(self._searched)
        with pair_progress(engine.work(searched) + self._extension_pairs()) as advance:
            for shard in self._extended:
                stored = self._extension.stored(self._graph_dir, shard) if self._extension else None
                if not self._extension or stored is None or not isinstance(engine, TileEngine):
                    searched.append(shard)
                    continue
                found = engine.extend(shard, stored, self._extension.first_new, advance)
                extended = replace(writer, facts={"extended": True})
                yield shard.index, extended.write(shard, vectors_ND[shard.start : shard.stop], found, engine.precision)
            results = zip(searched, engine.search(searched, advance) if searched else (), strict=True)
            found_now = ((shard, vectors_ND[shard.start : shard.stop], found, engine.precision) for shard, found in results)
            yield from zip((shard.index for shard in searched), writer.write_behind(found_now), strict=True)

    def _engine(self, vectors_ND: NDArray[np.float16]) -> Engine:
        if self._ivf_recall is None:
            return self._exact_engine(vectors_ND)
        files = self._manifest.require("index", self._graph_dir).files
        require_intact(self._graph_dir, files, remedy="Run `graphbuild embed` again: it rebuilds the index.")
        path = self._graph_dir / schemas.INDEX_FILE
        return IvfEngine(vectors_ND, path, k=self._layout.k, memory_limit=self._memory.engine, recall=self._ivf_recall)

    def _exact_engine(self, vectors_ND: NDArray[np.float16]) -> Engine:
        memory, device = self._memory.engine, self._memory.device
        return make_engine(vectors_ND, k=self._layout.k, memory_limit=memory, precision=self._coding or "auto", device=device)

    def _on_workers(self, scratch: Path, basis_DR: NDArray[np.float64] | None) -> Iterator[tuple[int, Receipt]]:
        with scratch_name(self._graph_dir / schemas.KNN, "basis") as basis:
            if basis_DR is not None:
                with basis.open("wb") as stream:
                    np.save(stream, basis_DR)
            job = Job(
                root=str(self._graph_dir.absolute()),
                vectors=str(scratch.absolute()),
                shape=(self._layout.texts, self._layout.dim),
                basis=str(basis.absolute()) if basis_DR is not None else None,
                k=self._layout.k,
                memory=self._memory.engine,
                device=self._memory.device,
                key=self._key,
                extension=self._extension,
            )
            indices = {schemas.part_name(schemas.KNN, shard.index): shard.index for shard in self._missing}
            calls = [(job, block) for block in blocks(self._missing, self._memory.device)]
            shared = [self._graph_dir.absolute()]
            with progress("neighbours", sum(map(len, self._missing)), unit="texts") as meter:
                for receipts in run_tasks(search_shards, calls, workers=self._workers, shared=shared, report=meter.advance):
                    yield from ((indices[receipt.path], receipt) for receipt in receipts)

    def _basis(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float64]:
        weights = read_sample_counts(self._graph_dir, self._manifest, len(vectors_ND))
        with progress("sketch", len(vectors_ND), unit="texts") as meter:

            def parts() -> Iterator[tuple[NDArray[np.float16], NDArray[np.int32]]]:
                for shard in self._ranges:
                    yield vectors_ND[shard.start : shard.stop], weights[shard.start : shard.stop]
                    meter.advance(len(shard))

            return sketch.sketch_basis(sketch.second_moments(parts(), vectors_ND.shape[1]), self._layout.sketch_dim)


@contextmanager
def pair_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show progress in millions of pairs; what is left over by rounding is carried on."""
    with progress("neighbours", -(-total // _MILLION), unit="M pairs") as meter:
        done = shown = 0

        def advance(pairs: int) -> None:
            nonlocal done, shown
            done += pairs
            meter.advance(done // _MILLION - shown)
            shown = done // _MILLION

        yield advance
