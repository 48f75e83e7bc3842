"""What a knn run takes, before it starts: memory, disk and time, and what of it does not fit. Importing this loads nothing heavy.

Shape letters: N texts, n texts of a shard, K neighbours kept, D vector width, R sketch width.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphbuild.errors import ResourceError

if TYPE_CHECKING:
    from graphbuild.knn.approximate import IvfEstimate
    from graphbuild.knn.calibrate import Rates
from graphbuild.system.answers import spell_seconds

_DECODED_ROWS = 8192
"""Rows that are decoded, checked, and projected onto the sketch at a time."""
_DECODING_BYTES = 32
"""Bytes for each number of these rows: float16 in and out, and float64 copies."""
_RESULT_BYTES = 26
"""Bytes for each neighbour of one shard: id and similarity, once more where joined, a copy for their digests, and those of the
shard before, which is being written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The numbers that decide how much memory and disk a run takes."""

    texts: int
    dim: int
    k: int
    sketch_dim: int
    shard_texts: int
    """Texts of the largest shard."""

    @property
    def vector_bytes(self) -> int:
        """All embeddings, as float16."""
        return 2 * self.texts * self.dim

    def output_bytes(self, texts: int) -> int:
        """Return the bytes of the neighbour files of so many texts."""
        return texts * (4 + 6 * self.k + (self.sketch_dim + 4 if self.sketch_dim else 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """How the memory is shared out, in bytes; what the program's own code takes is not counted."""

    limit: int
    mapped: bool
    """Whether the embeddings are mapped from a scratch file; then they take memory only as long as nothing else wants it."""
    held: int
    """Embeddings in memory."""
    engine: int
    """Left for the search."""
    device: str
    """Where scores are computed."""


def plan_memory(layout: Layout, limit: int, *, workers: int = 0, device: str = "cpu") -> MemoryPlan:
    """Share out a memory limit.

    Args:
        layout: Of the run.
        limit: Bytes, for all processes together.
        workers: Worker processes that share it; 0 for a search in this process.
        device: As for `make_engine`.

    Raises:
        ResourceError: If it is too small; the message says how much is needed.
    """
    from graphbuild.knn.engines.choose import required_memory

    share = limit // max(1, workers)
    wide = _DECODED_ROWS * layout.dim * _DECODING_BYTES + 24 * layout.dim**2
    around = (
        max(layout.shard_texts * layout.k * _RESULT_BYTES + layout.shard_texts * 3 * layout.sketch_dim, 4 * layout.texts) + wide
    )
    engine = required_memory(layout.texts, layout.dim, layout.k, device) if layout.k else 0
    least = around + engine
    if share < least:
        each = f" for each of {workers} workers" if workers > 1 else ""
        raise ResourceError(
            f"{layout.texts:,} texts with {layout.k:,} neighbours need at least {_megabytes(least)} of memory{each}, and the "
            f"memory limit is {limit / 1e6:,.1f} MB. Give --memory-limit {_megabytes(least * max(1, workers))} or more, "
            "or lower --k, or embed with a smaller --shard-size."
        )
    mapped = workers > 0 or share - layout.vector_bytes < max(least, share // 2)
    held = 0 if mapped else layout.vector_bytes
    return MemoryPlan(limit=limit, mapped=mapped, held=held, engine=share - held - around, device=device)


def _megabytes(size: int) -> str:
    # Rounded up, so that the figure that a message asks for is enough.
    return f"{-(-size // 10**6)}MB"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a run is expected to take."""

    texts: int
    k: int
    pairs: int
    """Pairs of texts that are scored; a pair within a group of rows serves both texts."""
    precision: str
    pairs_per_second: float
    """Measured now, on this machine."""
    seconds: float
    memory_limit: int
    memory_mapped: bool
    vector_bytes: int
    output_bytes: int
    scratch_bytes: int
    disk_free: int
    missing_shards: int
    shards: int
    ivf: IvfEstimate | None
    """What an approximate search would take; None where the index is flat, or there is nothing to do."""

    @property
    def problem(self) -> str | None:
        """What does not fit, or None."""
        needed = self.output_bytes + self.scratch_bytes
        if needed <= self.disk_free:
            return None
        return (
            f"the files need {_gigabytes(needed)} of disk, and {_gigabytes(self.disk_free)} are free. "
            "Free some space, lower --k, or choose another --graph-dir."
        )

    def line(self) -> str:
        """Return the estimate in one line."""
        where = "mapped from a scratch file" if self.memory_mapped else "in memory"
        scratch = f" and {_gigabytes(self.scratch_bytes)} of scratch" if self.scratch_bytes else ""
        return (
            f"estimate: {self.texts:,} texts, k {self.k:,}, {self.missing_shards} of {self.shards} shard(s) to do; "
            f"{self.pairs / 1e9:,.2f} G pairs at {self.pairs_per_second / 1e9:.2f} G/s ({self.precision}): "
            f"about {spell_seconds(self.seconds)}; "
            f"memory up to {_gigabytes(self.memory_limit)}, embeddings ({_gigabytes(self.vector_bytes)}) {where}; "
            f"disk {_gigabytes(self.output_bytes)}{scratch}, {_gigabytes(self.disk_free)} free"
        )

    def summary(self) -> str:
        """Return the estimate, and whether it fits, in two lines for people."""
        lines = [self.line(), f"does not fit: {self.problem}" if self.problem else "fits"]
        return "\n".join([*lines, self.ivf.line()] if self.ivf else lines)

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        return {**asdict(self), "problem": self.problem}


@dataclass(frozen=True, slots=True)
class Missing:
    """What a run has to do."""

    shards: int
    of_shards: int
    texts: int
    pairs: int


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 10**7 else f"{size / 1e6:,.2f} MB"


def make_estimate(
    layout: Layout, memory: MemoryPlan, graph_dir: Path, missing: Missing, rates: Rates | None, ivf: IvfEstimate | None
) -> Estimate:
    """Put the figures together.

    Args:
        layout: Of the run.
        memory: Its plan.
        graph_dir: Where the files go.
        missing: What is to be done.
        rates: Measured on this machine; None where nothing is to be searched.
        ivf: What an approximate search would take.
    """
    return Estimate(
        texts=layout.texts,
        k=layout.k,
        pairs=missing.pairs,
        precision=rates.precision if rates else "none",
        pairs_per_second=rates.pairs_per_second if rates else 0.0,
        seconds=rates.seconds(missing.pairs, missing.texts) if rates else 0.0,
        memory_limit=memory.limit,
        memory_mapped=memory.mapped,
        vector_bytes=layout.vector_bytes,
        output_bytes=layout.output_bytes(missing.texts),
        scratch_bytes=layout.vector_bytes if memory.mapped else 0,
        disk_free=shutil.disk_usage(graph_dir).free,
        missing_shards=missing.shards,
        shards=missing.of_shards,
        ivf=ivf,
    )
