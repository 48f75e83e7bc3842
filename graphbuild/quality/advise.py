"""What a graph's targets look like before training: which k and sketch suffice, and at which tau_s the target says something."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graphbuild.quality.fidelity import Fidelity, FidelityConfig, Sharpness, Storage, measure_fidelity

_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Advice:
    """What `graphbuild advise` shows."""

    graph_dir: Path
    config: FidelityConfig
    found: Fidelity

    def summary(self) -> str:
        """Tables for people."""
        output = io.StringIO()
        console = Console(file=output, width=_WIDTH, highlight=False)
        console.print(
            f"{self.graph_dir}: batches of {self.config.batch_size:,}; stored neighbours per anchor: "
            f"{self.found.hit_rate_random:.3g} at random, {self.found.hit_rate_neighbors:.3g} in chunks of {self.config.chunk}",
            soft_wrap=True,
            markup=False,
        )
        console.print(f"\nKL(dense || assembled) in nats at tau_s {self.config.fidelity_taus[0]:g}, by what is stored of a text")
        console.print(_table(("k", "sketch", "bytes a row", "random", "neighbors"), map(_storage_cells, self.found.storage)))
        console.print(
            f"without a sketch, absent pairs count as {self.found.absent:.2f}, the mean similarity of random pairs (--absent)"
        )
        console.print("\neffective positives (exp of the entropy) and mass on the own view of the dense target, by tau_s")
        columns = ("tau_s", "random", "own view", "neighbors", "own view", "target")
        console.print(_table(columns, map(_sharpness_cells, self.found.sharpness)))
        return output.getvalue().rstrip()

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {"graph_dir": str(self.graph_dir), **asdict(self.config), **asdict(self.found)}


def advise(
    graph_dir: Path, *, batch_size: int = 1024, tau_s: float = 0.1, batches: int = 4, chunk: int = 32, seed: int = 0
) -> Advice:
    """Measure a graph's targets on a few batches. A partition into chunks is made where it is missing.

    Args:
        graph_dir: Of a finished graph.
        batch_size: B.
        tau_s: Temperature of the target that the divergences are measured at.
        batches: Batches of either kind.
        chunk: Samples a chunk of the neighbour batches.
        seed: Of the batches.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there are fewer samples than a batch holds, or a value is out of its range.
    """
    taus = tuple(sorted({*FidelityConfig().sharpness_taus, tau_s}))
    config = FidelityConfig(
        batch_size=batch_size, fidelity_taus=(tau_s,), sharpness_taus=taus, batches=batches, chunk=chunk, seed=seed
    )
    return Advice(graph_dir, config, measure_fidelity(graph_dir, config))


def _storage_cells(choice: Storage) -> tuple[str, ...]:
    kept = (f"{choice.k:,}", f"{choice.sketch_dim}", f"{choice.bytes_a_row:,}")
    return (*kept, f"{choice.kl_random:.4f}", f"{choice.kl_neighbors:.4f}")


def _sharpness_cells(found: Sharpness) -> tuple[str, ...]:
    at_random = (f"{found.positives_random:,.1f}", f"{found.own_view_random:.3f}")
    return (f"{found.tau_s:g}", *at_random, f"{found.positives_neighbors:,.1f}", f"{found.own_view_neighbors:.3f}", found.verdict)


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "target" else "right")
    for row in rows:
        table.add_row(*row)
    return table
