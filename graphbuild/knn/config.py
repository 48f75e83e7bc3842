"""How the search for neighbours is asked for, and what it answers. Importing this loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graphbuild.store import schemas
from graphbuild.system.answers import Answer, next_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnConfig:
    """How neighbours are searched."""

    k: int | Literal["auto", "all"] = "auto"
    """Neighbours kept per text, the text itself not counted; `auto` is all up to 4,096 texts, else 256."""
    sketch_dim: int = schemas.DEFAULT_SKETCH_DIM
    """R: bytes of sketch per text; 0 leaves the sketch out."""
    method: Literal["exact", "ivf"] = "exact"
    """`ivf` searches through index.faiss; similarities are exact all the same, but some neighbours are missed."""
    recall: float = 0.99
    """Share of the k nearest that `ivf` has to find, by similarity; measured on a random sample of texts."""
    memory_limit: str | None = None
    """Memory to stay within, such as `4GB` or `512MiB`; half of what is free where None. No byte depends on it.

    It counts what the data take, in all processes on this machine together, or in each worker of a cluster. It does not count
    the program's own code, or mapped embeddings, which the system takes back when it needs the memory."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one. No byte depends on it."""
    workers: int = 0
    """Worker processes on this machine, each of which takes one shard at a time; 0 searches in this process, where a pair
    scored once serves both of its texts."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    overwrite: bool = False
    """Build again what was built with other options or from other input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnResult(Answer):
    """What `build_knn` found there and what it searched."""

    graph_dir: Path
    texts: int
    k: int
    k_asked: int | str
    complete: bool
    """Whether all N-1 neighbours of every text are stored."""
    sketch_dim: int
    seconds: float
    reused_shards: int
    extended_shards: int
    """Shards of a graph that was appended to, whose rows were compared with the new texts only."""
    shards: int
    recomputed_rows: int
    """Rows that the certificate did not settle, and that were computed again in float64."""
    precision: str
    already_done: bool

    def summary(self) -> str:
        """Return one or two lines for people."""
        width = f"{self.k:,} neighbours a text" + (" (complete)" if self.complete else "")
        head = f"{self.graph_dir}: {self.texts:,} texts, {width}, sketch of {self.sketch_dim} bytes, {self.shards} shard(s)"
        after = next_steps("graphbuild verify", "graphbuild report", "train run", graph_dir=self.graph_dir)
        if self.already_done:
            return f"{head}: already done, nothing to do\n{after}"
        kept = f", {self.reused_shards} shard(s) were there" if self.reused_shards else ""
        extended = f", {self.extended_shards} shard(s) were compared with new texts only" if self.extended_shards else ""
        lines = [f"{head}: {self.seconds:.1f} s{kept}{extended}"]
        if isinstance(self.k_asked, int) and self.k_asked > self.k:
            lines.append(f"k {self.k_asked:,} is more than the {self.k:,} other texts: all are stored")
        return "\n".join([*lines, after])
