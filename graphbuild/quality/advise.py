"""What a graph's targets look like before training: which k and sketch suffice, and at which tau_s the target says something."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from graphbuild.quality.fidelity import (
    LEAST_OWN_VIEW,
    MOST_OWN_VIEW,
    Fidelity,
    FidelityConfig,
    Sharpness,
    Storage,
    choose_tau_s,
    measure_fidelity,
)
from graphbuild.system.answers import next_steps, plain, render, table
from graphbuild.system.progress import stages

TAUS = (0.05, 0.07, 0.1, 0.12, 0.15, 0.2)
"""Closest where the target turns soft: with short captions between 0.1 and 0.2."""
ENOUGH_NATS = 0.02
"""KL(dense || assembled) up to which what is stored is recommended: twice that of 256 neighbours and 64 bytes of sketch."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """What to take, and why."""

    k: int
    sketch_dim: int
    tau_s: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Advice:
    """What `graphbuild advise` shows."""

    graph_dir: Path
    config: FidelityConfig
    found: Fidelity
    recommended: Recommendation

    def summary(self) -> str:
        """Return the recommendation and two tables for people."""
        found, choice = self.found, self.recommended
        chosen = f"--k {choice.k} --sketch-dim {choice.sketch_dim}"
        head = (
            f"{self.graph_dir}: batches of {self.config.batch_size:,}; stored neighbours per anchor: "
            f"{found.hit_rate_random:.3g} at random, {found.hit_rate_neighbors:.3g} in chunks of {self.config.chunk}\n"
            f"recommended: {chosen} (graphbuild knn), --tau-s {choice.tau_s:g} (train run)"
        )
        why = table(("",))
        why.show_header = False
        for reason in choice.reasons:
            why.add_row(plain(reason))
        tau_s = found.storage[0].tau_s
        stored = f"by what is stored of a text (sketch 0: absent = {found.absent:.2f})"
        storage = f"KL(dense || assembled) in nats at tau_s {tau_s:g}, {stored}"
        sharpness = "effective positives (exp of the entropy) and mass on the own view of the dense target, by tau_s"
        tables = {
            "why": why,
            storage: _table(("k", "sketch", "bytes a row", "random", "neighbors"), map(_storage_cells, found.storage)),
            sharpness: _table(
                ("tau_s", "random", "own view", "neighbors", "own view", "target"), map(_sharpness_cells, found.sharpness)
            ),
        }
        after = next_steps(f"graphbuild knn {chosen} --dry-run", f"train run --tau-s {choice.tau_s:g}", graph_dir=self.graph_dir)
        return f"{render(head, tables)}\n\n{after}"

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        recommended = asdict(self.recommended)
        return {"graph_dir": str(self.graph_dir), "recommended": recommended, **asdict(self.config), **asdict(self.found)}


def advise(
    graph_dir: Path, *, batch_size: int = 1024, tau_s: float | None = None, batches: int = 4, chunk: int = 32, seed: int = 0
) -> Advice:
    """Measure a graph's targets on a few batches, and recommend k, sketch and tau_s.

    A partition into chunks is made where it is missing.

    Args:
        graph_dir: Of a finished graph.
        batch_size: B.
        tau_s: Temperature of the target; None: one is recommended.
        batches: Batches of either kind.
        chunk: Samples a chunk of the neighbour batches.
        seed: Of the batches.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there are fewer samples than a batch holds, or a value is out of its range.
    """
    chosen = () if tau_s is None else (tau_s,)
    config = FidelityConfig(
        batch_size=batch_size,
        fidelity_taus=chosen,
        sharpness_taus=tuple(sorted({*TAUS, *chosen})),
        batches=batches,
        chunk=chunk,
        seed=seed,
    )
    with stages("partition", "embeddings", "targets"):
        found = measure_fidelity(graph_dir, config)
    return Advice(graph_dir, config, found, recommend(found, tau_s))


def recommend(found: Fidelity, tau_s: float | None = None) -> Recommendation:
    """Choose from what was measured: the fewest bytes a row that lose up to 0.02 nats, and the temperature.

    Args:
        found: Divergences at one temperature, and the targets of several.
        tau_s: A temperature that the user settled; None: the one that `choose_tau_s` takes.
    """
    storage, storage_reason = _choose_storage(found.storage)
    sharpness = choose_tau_s([one for one in found.sharpness if tau_s in (None, one.tau_s)])
    within = LEAST_OWN_VIEW <= sharpness.own_view_random <= MOST_OWN_VIEW
    softness = (
        f"tau_s {sharpness.tau_s:g}: {sharpness.own_view_random:.2f} of the target is on the own view in random batches, "
        f"{sharpness.own_view_neighbors:.2f} in batches of neighbours, and {sharpness.positives_random:,.0f} and "
        f"{sharpness.positives_neighbors:,.0f} samples count as positives; "
    )
    softness += (
        f"of the temperatures with {LEAST_OWN_VIEW:g} to {MOST_OWN_VIEW:g} on the own view it is nearest to the paper's 0.1"
        if within and tau_s is None
        else "it was given"
        if tau_s is not None
        else f"none has {LEAST_OWN_VIEW:g} to {MOST_OWN_VIEW:g} on the own view, and it comes nearest"
    )
    training = "which tau_s trains best is not known from a graph: try its neighbours in the table"
    return Recommendation(storage.k, storage.sketch_dim, sharpness.tau_s, (storage_reason, softness, training))


def _choose_storage(choices: Iterable[Storage]) -> tuple[Storage, str]:
    stored = [choice for choice in choices if choice.k]
    enough = [choice for choice in stored if _worst(choice) <= ENOUGH_NATS]
    if enough:
        best = min(enough, key=lambda choice: (choice.bytes_a_row, _worst(choice)))
        told = f"the fewest bytes a row that lose up to {ENOUGH_NATS:g} nats of the target in both kinds of batches"
    else:
        best = min(stored, key=_worst)
        told = f"nothing that can be stored loses up to {ENOUGH_NATS:g} nats, and this loses the least"
    shown = f"k {best.k:,} with {best.sketch_dim} bytes of sketch: {best.bytes_a_row:,} bytes a row, "
    return best, f"{shown}{best.kl_random:.4f} nats at random, {best.kl_neighbors:.4f} among neighbours; {told}"


def _worst(choice: Storage) -> float:
    return max(choice.kl_random, choice.kl_neighbors)


def _storage_cells(choice: Storage) -> tuple[str, ...]:
    kept = (f"{choice.k:,}", f"{choice.sketch_dim}", f"{choice.bytes_a_row:,}")
    return (*kept, f"{choice.kl_random:.4f}", f"{choice.kl_neighbors:.4f}")


def _sharpness_cells(found: Sharpness) -> tuple[str, ...]:
    at_random = (f"{found.positives_random:,.1f}", f"{found.own_view_random:.3f}")
    return (f"{found.tau_s:g}", *at_random, f"{found.positives_neighbors:,.1f}", f"{found.own_view_neighbors:.3f}", found.verdict)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    made = table(columns, right=tuple(column for column in columns if column != "target"))
    for row in rows:
        made.add_row(*row)
    return made
