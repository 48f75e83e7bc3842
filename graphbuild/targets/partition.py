"""Chunks of neighbours: the samples of a graph, partitioned once along its edges, for batches that meet their neighbours.

Shape letters: S samples, T texts, N rows of the samples table, C samples a chunk.
A sample's edges are the union over its texts. Each sample is in one chunk; all chunks hold C samples, but for the last,
which holds what is left; at most two samples of a chunk share a text (docs/definitions.md, Partition).
Nothing here imports torch, faiss, dask or polars; the graph's reader and numba are loaded by what needs them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from graphbuild.errors import ArtifactError, ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.arrays import Int32, Int64
from graphbuild.store.cache import beside_or_cached
from graphbuild.store.files import RECORDS, Receipt, finished, write_arrow
from graphbuild.store.locks import exclusive
from graphbuild.store.manifest import Manifest, Stage, stage_key
from graphbuild.store.neighbors import outside
from graphbuild.store.stage import writing
from graphbuild.store.tables import map_arrow
from graphbuild.system.answers import next_steps
from graphbuild.system.memory import resolve_limit
from graphbuild.targets.chunks import PartitionConfig, chunk_samples, samples_of

if TYPE_CHECKING:
    from graphbuild.store.graph import Graph


@dataclass(frozen=True, slots=True)
class Partition:
    """The chunk of every sample of a graph."""

    sample_rows: Int64
    """First row of each sample in the samples table, ascending; (S,)."""
    chunks: Int32
    """(S,)."""

    def of_rows(self, sample_rows: Int64) -> Int32:
        """Return the chunks of samples by their first row; -1 where no sample begins there."""
        place = np.minimum(np.searchsorted(self.sample_rows, sample_rows), len(self.sample_rows) - 1)
        return np.where(self.sample_rows[place] == sample_rows, self.chunks[place], np.int32(-1))


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionResult:
    """How many chunks `build_partition` cut, and how well they hold together."""

    path: Path
    samples: int
    chunk: int
    facts: dict[str, Any]
    already_done: bool

    def summary(self) -> str:
        """Return one line for people."""
        facts = self.facts
        done = "already done, nothing to do" if self.already_done else f"{facts['seconds']:.1f} s"
        beyond_two = facts["beyond_two_of_a_text"]
        note = f"; {beyond_two:,} samples beyond two of one text in a chunk (too many have it)" if beyond_two else ""
        return (
            f"{self.path}: {self.samples:,} samples in {facts['chunks']:,} chunks of {self.chunk}, "
            f"{facts['neighbors_per_anchor']:.2f} stored neighbours per anchor in its chunk "
            f"({facts['neighbors_per_anchor_random']:.2g} at random){note}: {done}\n"
            f"{next_steps('train run --batches neighbors')}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        shown = {"path": str(self.path), "samples": self.samples, "chunk": self.chunk, "already_done": self.already_done}
        return {**shown, **self.facts}


def build_partition(graph_dir: Path, config: PartitionConfig) -> PartitionResult:
    """Partition the samples of a graph, unless that is done, and enter it in the manifest.

    That of a graph which cannot be written lies in the cache (`graphbuild.store.cache`).

    Of several processes that want the same partition one makes it, and the others wait.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If the ranks begin beyond the stored neighbours.
        ResourceError: If the memory limit is too small.
    """
    from graphbuild.store.graph import Graph

    return _build(Graph.open(graph_dir), config)


def load_partition(graph: Graph, config: PartitionConfig) -> Partition:
    """Return the partition of a graph, mapped; it is made first if it is missing, damaged or of an earlier graph.

    Raises:
        UserError: As `build_partition`.
    """
    result = _build(graph, config)
    remedy = "Remove it, and run `graphbuild partition` again."
    batch = map_arrow(result.path, schemas.PARTITION_SCHEMA.names, rows=result.samples, remedy=remedy)
    rows, chunks = batch.column(schemas.SAMPLE_ROW).to_numpy(), batch.column(schemas.CHUNK).to_numpy()
    if not batch.schema.equals(schemas.PARTITION_SCHEMA) or outside(chunks, -(-len(chunks) // config.chunk)):
        raise ArtifactError(f"{result.path}: holds a chunk that there is not, or other columns. {remedy}")
    return Partition(rows, chunks)


def _build(graph: Graph, config: PartitionConfig) -> PartitionResult:
    graph_dir, name = graph.path, config.file_name(graph.k)
    key = stage_key(config.key_fields(graph.k), _inputs(graph.manifest))
    # What is there needs no lock, so that a graph on a read-only disk can be trained on.
    place, receipt, already_done = graph_dir, finished(graph_dir, name, key=key), True
    if receipt is None or not _is_listed(graph.manifest, receipt):
        # The manifest lists what lies in the graph's own folder.
        if beside_or_cached(graph_dir, schemas.PARTITION) == graph_dir:
            receipt, already_done = _make_and_enter(graph, config, key)
        elif receipt is None:
            place = beside_or_cached(graph_dir, schemas.PARTITION)
            with exclusive(place / RECORDS / "lock", where=place, wait=True):
                receipt, already_done = _make(graph, config, place, key)
    return PartitionResult(
        path=place / name, samples=receipt.rows, chunk=config.chunk, facts=receipt.facts, already_done=already_done
    )


def _make_and_enter(graph: Graph, config: PartitionConfig, key: str) -> tuple[Receipt, bool]:
    inputs = _inputs(graph.manifest)
    with writing(graph.path, wait=True) as manifest:
        if "knn" not in manifest.stages or _inputs(manifest) != inputs:
            raise ArtifactMismatch(f"{graph.path}: another command changed the graph meanwhile. Run this command again.")
        receipt, already_done = _make(graph, config, graph.path, key)
        _enter(graph.path, manifest, receipt, config.key_fields(graph.k), inputs)
    return receipt, already_done


def _make(graph: Graph, config: PartitionConfig, place: Path, key: str) -> tuple[Receipt, bool]:
    """The receipt of a partition, and whether another process had just made it."""
    done = finished(place, config.file_name(graph.k), key=key)
    return (done, True) if done is not None else (_write(graph, config, place, key), False)


def _is_listed(manifest: Manifest, receipt: Receipt) -> bool:
    stage = manifest.stages.get("partition")
    return stage is not None and stage.files.get(receipt.path) == receipt


def _inputs(manifest: Manifest) -> dict[str, str]:
    inputs = manifest.column_digests("knn", [schemas.TEXT_ID, schemas.NEIGHBOR_IDS])
    inputs |= manifest.column_digests("text", [schemas.SAMPLE_HASH])
    return inputs | manifest.column_digests("text", [schemas.TEXT_ID], folder=schemas.SAMPLES)


def _write(graph: Graph, config: PartitionConfig, place: Path, key: str) -> Receipt:
    started = time.perf_counter()
    rows, offsets, text_ids = samples_of(graph, resolve_limit(config.memory_limit))
    chunks, facts = chunk_samples(graph, offsets, text_ids, config)
    facts["seconds"] = round(time.perf_counter() - started, 3)
    batch = pa.RecordBatch.from_arrays([pa.array(rows), pa.array(chunks)], schema=schemas.PARTITION_SCHEMA)
    return write_arrow(place, config.file_name(graph.k), batch, key=key, facts=facts)


def _enter(graph_dir: Path, manifest: Manifest, receipt: Receipt, fields: dict[str, Any], inputs: dict[str, str]) -> None:
    """Add a partition to the manifest, beside those of the same graph with other options."""
    before = manifest.stages.get("partition")
    kept = before if before is not None and before.inputs == inputs else Stage(config={}, inputs=inputs, seconds=0.0, files={})
    files = {**kept.files, receipt.path: receipt}
    manifest.stages["partition"] = Stage(
        config={**kept.config, receipt.path: fields},
        inputs=inputs,
        seconds=round(sum(file.facts["seconds"] for file in files.values()), 3),
        files=files,
        facts={**kept.facts, receipt.path: receipt.facts},
    )
    manifest.save(graph_dir)
