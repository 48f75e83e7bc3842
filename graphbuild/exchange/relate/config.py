"""How a graph of metadata is asked for, and what is answered. Importing this loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graphbuild.store import schemas
from graphbuild.system.answers import Answer, next_steps, spell_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateConfig:
    """Which columns are compared, and how."""

    sources: tuple[str, ...]
    """Parquet, CSV, TSV or JSON lines: files, folders or globs."""
    kernels: tuple[str, ...]
    """`COLUMN=KIND...`, one for each column."""
    weights: tuple[float, ...] = ()
    """One a kernel, of any sum, for the mean; none: all alike."""
    rule: Literal["mean", "product"] = "mean"
    """How the similarities of several columns become one."""
    id_column: str | None = None
    """None: `<file>:<row>`."""
    keep_columns: tuple[str, ...] = ()
    """Copied into samples beside the kernels' own."""
    k: int | Literal["auto", "all"] = "auto"
    """As of `KnnConfig`."""
    sketch_dim: int = schemas.DEFAULT_SKETCH_DIM
    """As of `KnnConfig`."""
    shard_size: int = schemas.SHARD_SIZE
    """Texts a shard."""
    workers: int = 0
    """Worker processes on this machine; 0 works in this process."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    overwrite: bool = False
    """Replace a graph of other columns or kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateResult(Answer):
    """What was related, and what was counted."""

    graph_dir: Path
    counts: dict[str, int]
    k: int
    sketch_dim: int
    facts: dict[str, Any]
    already_done: bool

    def summary(self) -> str:
        """Return a few lines for people."""
        width = f"{self.k:,} neighbours a text" + (" (complete)" if self.facts["complete"] else "")
        sketch = f"sketch of {self.sketch_dim} bytes" if self.sketch_dim else "no sketch (train with --absent)"
        head = f"{self.graph_dir}: {self.counts['samples']:,} samples, {self.counts['texts']:,} texts, {width}, {sketch}"
        lines = [f"{head}: already done, nothing to do" if self.already_done else head, *describe_absent(self.facts)]
        return "\n".join([*lines, next_steps("graphbuild verify", "graphbuild report", "train run", graph_dir=self.graph_dir)])


@dataclass(frozen=True, kw_only=True, slots=True)
class RelateEstimate(Answer):
    """What a run is expected to take."""

    samples: int
    texts: int
    """Samples that are equal in all kernel columns are one."""
    k: int
    pairs: int
    """That are still to be computed."""
    pairs_per_second: float
    """Measured now, in this process, on all cores."""
    embedded: int
    """Different texts of text columns."""
    embed_seconds: float
    """For these, by embedding a few."""
    seconds: float
    """In all, embedding included."""
    memory: int
    """Bytes beside the columns: neighbours of one shard, and vectors of texts."""
    bytes: int
    """Of the neighbour files that are written."""
    missing_shards: int
    shards: int

    def summary(self) -> str:
        """Return a line or two for people."""
        head = f"{self.samples:,} samples, {self.texts:,} texts, k {self.k:,}"
        if not self.missing_shards:
            return f"estimate: {head}: nothing is missing"
        embedding = f"; {self.embedded:,} texts to embed: about {spell_seconds(self.embed_seconds)}" if self.embedded else ""
        return (
            f"estimate: {head}, {self.missing_shards:,} of {self.shards:,} shard(s) to do; {self.pairs / 1e9:,.2f} G pairs at "
            f"{self.pairs_per_second / 1e6:,.0f} M/s{embedding}; about {spell_seconds(self.seconds)} in all; memory "
            f"{self.memory / 1e9:,.2f} GB beside the columns; disk {self.bytes / 1e9:,.2f} GB"
        )


def describe_absent(facts: dict[str, Any]) -> list[str]:
    """Return a line on what is known of pairs that are not stored; none where all are stored."""
    if facts["complete"]:
        return []
    least, most, share = facts["absent_at_least"], facts["absent_at_most"], facts["absent_known_rows"] / facts["texts"]
    if share == 1:
        return [f"pairs that are not stored: exactly {least:g}"]
    known = f"; exactly {least:g} in {share:.1%} of rows" if share else ""
    return [f"pairs that are not stored: {least:g} to {most:.3f}{known}"]
