"""Chunks of neighbours: the samples of a graph, partitioned once along its edges, for batches that meet their neighbours.

Shape letters: S samples, T texts, N rows of the samples table, C samples a chunk.
A sample's edges are the union over its texts. Each sample is in one chunk; all chunks hold C samples, but for the last,
which holds what is left; at most two samples of a chunk share a text (docs/definitions.md, Partition).
Nothing here imports torch, faiss, dask or polars; the graph's reader and numba are loaded by what needs them.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, ResourceError
from graphbuild.store import schemas
from graphbuild.store.cache import beside_or_cached
from graphbuild.store.files import RECORDS, Receipt, finished, write_arrow
from graphbuild.store.locks import exclusive
from graphbuild.store.manifest import Manifest, Stage, stage_key
from graphbuild.store.neighbors import outside
from graphbuild.store.stage import writing
from graphbuild.store.tables import map_arrow
from graphbuild.system.answers import next_steps
from graphbuild.system.memory import resolve_limit
from graphbuild.system.progress import progress

if TYPE_CHECKING:
    from graphbuild.store.graph import Graph
    from graphbuild.targets.growth import Links

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

MOST_CHUNK = 128
_METHOD = "greedy growth 1"
"""Enters the key of a partition: another method gives other chunks."""
_STEP_SAMPLES = 65_536
_BYTES_A_ROW, _BYTES_A_TEXT = 96, 32
"""Memory at the peak, of sorting the sample rows; the edges are mapped, not loaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionConfig:
    """How samples are partitioned.

    Raises:
        OptionError: If a value is out of its range.
    """

    chunk: int = 32
    """C: samples a chunk, at most 128."""
    neighbor_ranks: str | None = None
    """Ranks of the neighbours that chunks are grown along, such as `1:64`, both included; None: all."""
    seed: int = 0
    """Orders seeds that as many edges lead to."""
    memory_limit: str | None = None
    """Memory to stay within; half of what is free where None."""

    def __post_init__(self) -> None:
        if not 1 <= self.chunk <= MOST_CHUNK:
            raise OptionError(f"--chunk {self.chunk}: a chunk holds 1 to {MOST_CHUNK} samples.")
        parse_ranks(self.neighbor_ranks)

    def key_fields(self, k: int) -> dict[str, Any]:
        """Return what decides the chunks; k neighbours are stored a text."""
        first, last = parse_ranks(self.neighbor_ranks)
        return {"method": _METHOD, "chunk": self.chunk, "neighbor_ranks": [first, min(last or k, k)], "seed": self.seed}

    def file_name(self, k: int) -> str:
        """Path relative to the graph directory; partitions of several options lie side by side."""
        first, last = self.key_fields(k)["neighbor_ranks"]
        return f"{schemas.PARTITION}/chunk-{self.chunk}-ranks-{first}-{last}-seed-{self.seed}.arrow"


def parse_ranks(text: str | None) -> tuple[int, int | None]:
    """First and last rank of `1:64`, counted from 1; (1, None) of None.

    Raises:
        OptionError: If it is no range of ranks.
    """
    if text is None:
        return 1, None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise OptionError(f"--neighbor-ranks {text!r}: write the first and the last rank, as in 1:64; the nearest neighbour has 1.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class Partition:
    """The chunk of every sample of a graph."""

    sample_rows: Int64
    """First row of each sample in the samples table, ascending; (S,)."""
    chunks: Int32
    """(S,)."""

    def of_rows(self, sample_rows: Int64) -> Int32:
        """Chunks of samples by their first row; -1 where no sample begins there."""
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
        """One line for people."""
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


def chunk_samples(graph: Graph, offsets: Int64, text_ids: Int32, config: PartitionConfig) -> tuple[Int32, dict[str, Any]]:
    """Partition any samples along a graph.

    Args:
        graph: The graph, open for reading.
        offsets: Sample i has `text_ids[offsets[i]:offsets[i + 1]]`, at least one; (S + 1,).
        text_ids: Texts of all samples; one that comes twice for a sample counts twice.
        config: How.

    Returns:
        The chunk of each sample, (S,), numbered from 0; and what was counted.

    Raises:
        OptionError: If the ranks begin beyond the stored neighbours.
        ResourceError: If the memory limit is too small.
    """
    from graphbuild.targets import growth

    links = _links(graph, offsets, text_ids, config)
    order = _grow(links, config)
    failed = growth.keep_rule_of_two(links, order, config.chunk)
    samples = len(order)
    chunks = np.empty(samples, np.int32)
    chunks[order] = np.arange(samples, dtype=np.int32) // config.chunk
    facts = {
        "samples": samples,
        "chunks": -(-samples // config.chunk),
        "neighbors_per_anchor": round(float(growth.neighbors_inside(links, order, config.chunk)), 4),
        "neighbors_per_anchor_random": round((min(config.chunk, samples) - 1) * graph.k / max(graph.n_texts - 1, 1), 6),
        "beyond_two_of_a_text": int(failed),
    }
    return chunks, facts


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


def samples_of(graph: Graph, limit: int) -> tuple[Int64, Int64, Int32]:
    """First row, text offsets and texts of every sample, in the order of their first rows.

    Rows of one sample are found by the hash of its id. Should two ids share one, their samples are in one chunk together.
    """
    hashes, texts = graph.sample_rows()
    needed = _BYTES_A_ROW * len(hashes) + _BYTES_A_TEXT * graph.n_texts
    if needed > limit:
        raise ResourceError(
            f"a partition of {len(hashes):,} sample rows takes about {needed / 1e9:.1f} GB, and the limit is {limit / 1e9:.1f} GB. "
            "Raise --memory-limit, or free some memory."
        )
    # Stable: the first of equal hashes is the lowest row.
    by_hash = np.argsort(hashes, kind="stable")
    begins = np.ones(len(hashes), np.bool_)
    begins[1:] = hashes[by_hash][1:] != hashes[by_hash][:-1]
    first_rows = np.empty(len(hashes), np.int64)
    first_rows[by_hash] = by_hash[begins][np.cumsum(begins) - 1]
    order = np.argsort(first_rows, kind="stable")
    rows, counts = np.unique(first_rows, return_counts=True)
    return rows, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]), texts[order]


def _links(graph: Graph, offsets: Int64, text_ids: Int32, config: PartitionConfig) -> Links:
    from graphbuild.targets.growth import Links

    first, last = parse_ranks(config.neighbor_ranks)
    if graph.k and first > graph.k:
        raise OptionError(
            f"--neighbor-ranks {config.neighbor_ranks}: the graph stores {graph.k} neighbours a text. Begin at a lower rank."
        )
    owners = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    counts = np.bincount(text_ids, minlength=graph.n_texts)
    addresses, starts = graph.neighbor_addresses
    return Links(
        text_offsets=np.ascontiguousarray(offsets, np.int64),
        texts=np.ascontiguousarray(text_ids, np.int32),
        sample_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
        samples=owners[np.argsort(text_ids, kind="stable")],
        addresses=addresses,
        starts=starts,
        k=graph.k,
        first_rank=min(first - 1, graph.k),
        last_rank=min(last or graph.k, graph.k),
    )


def _grow(links: Links, config: PartitionConfig) -> Int32:
    """Samples, chunk after chunk; (S,)."""
    from graphbuild.targets import growth

    samples = len(links.text_offsets) - 1
    state = growth.new_state(links, _seeds(links, config.seed))
    step = max(1, _STEP_SAMPLES // config.chunk)
    chunks = -(-samples // config.chunk)
    with progress("partition", samples, unit="samples") as meter:
        for first in range(0, chunks, step):
            last = min(first + step, chunks)
            growth.grow(links, state, first, last, config.chunk)
            meter.advance(min(last * config.chunk, samples) - first * config.chunk)
    return np.argsort(state.chunk_of, kind="stable").astype(np.int32)


def _seeds(links: Links, seed: int) -> Int32:
    """Samples in the order in which they begin chunks: those first that most edges lead to.

    Of the orders tried, this gives the most neighbours per anchor: dense regions are cut up while they are whole.
    """
    from graphbuild.targets import growth

    degrees = np.zeros(len(links.sample_offsets) - 1, np.int64)
    for first in range(0, len(degrees), _STEP_SAMPLES):
        growth.in_degrees(links, degrees, first, min(first + _STEP_SAMPLES, len(degrees)))
    total = np.add.reduceat(degrees[links.texts], links.text_offsets[:-1])
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(total))
    return shuffled[np.argsort(-total[shuffled], kind="stable")].astype(np.int32)


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
