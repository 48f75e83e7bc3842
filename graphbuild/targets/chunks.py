"""Any samples in chunks of neighbours: which edges lead from each to which others, and the order in which chunks are grown.

Shape letters: S samples, T texts, N rows of the samples table, C samples a chunk.
A sample's edges are the union over its texts. Each sample is in one chunk; all chunks hold C samples, but for the last,
which holds what is left; at most two samples of a chunk share a text (docs/definitions.md, Partition).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from graphbuild.errors import OptionError, ResourceError
from graphbuild.store import schemas
from graphbuild.store.arrays import Int32, Int64
from graphbuild.system.progress import progress

if TYPE_CHECKING:
    from graphbuild.store.graph import Graph
    from graphbuild.targets.growth import Links


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
        """Return the path relative to the graph directory; partitions of several options lie side by side."""
        first, last = self.key_fields(k)["neighbor_ranks"]
        return f"{schemas.PARTITION}/chunk-{self.chunk}-ranks-{first}-{last}-seed-{self.seed}.arrow"


def parse_ranks(text: str | None) -> tuple[int, int | None]:
    """Return first and last rank of `1:64`, counted from 1; (1, None) of None.

    Raises:
        OptionError: If it is no range of ranks.
    """
    if text is None:
        return 1, None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise OptionError(f"--neighbor-ranks {text!r}: write the first and the last rank, as in 1:64; the nearest neighbour has 1.")
    return int(match[1]), int(match[2])


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
    from graphbuild.targets.rule_of_two import keep_rule_of_two

    links = _links(graph, offsets, text_ids, config)
    order = _grow(links, config)
    failed = keep_rule_of_two(links, order, config.chunk)
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


def samples_of(graph: Graph, limit: int) -> tuple[Int64, Int64, Int32]:
    """Return first row, text offsets and texts of every sample, in the order of their first rows.

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
