"""Near-duplicates: one text kept of each group, by a stated rule.

Shape letters: N texts, E edges at or above a threshold.
Texts are taken by falling number of samples, equal ones by id. A text is kept unless a text that was kept before reaches the
threshold with it. So no two kept texts are near-duplicates as far as the graph stores their pair, and every text that is
dropped has a kept one that is at least as similar as the threshold: there are no chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from scipy.sparse import csr_array

from graphbuild.quality.curate.decisions import Decisions, require_neighbors, write_decisions
from graphbuild.store import schemas
from graphbuild.store.arrays import Float32, Ids
from graphbuild.store.frames import Frames, graph_blocks
from graphbuild.store.outputs import require_replaceable
from graphbuild.system.answers import Answer, next_steps, plain, quoted, render, show, table
from graphbuild.system.progress import progress, stages

LEVELS = (0.99, 0.98, 0.97, 0.95, 0.93, 0.9)
"""Thresholds that `--show` compares."""
REASONS = ("unique", "representative", "near-duplicate")
_SHOWN_PAIRS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """What one threshold would drop."""

    threshold: float
    groups: int
    dropped_texts: int
    least_similar: tuple[tuple[float, str, str], ...]
    """The pairs nearest to the threshold: similarity, text dropped, text kept in its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupResult(Answer):
    """What was kept and dropped."""

    graph_dir: Path
    out: Path | None
    threshold: float
    texts: int
    groups: int
    """Texts that stand for at least one other."""
    dropped_texts: int
    samples: int | None
    kept_samples: int | None
    full_rows: int
    """Texts all of whose stored neighbours reach the threshold: there may be more of them beyond the stored ones."""
    levels: tuple[Level, ...]

    def summary(self) -> str:
        """Return lines for people; with levels, a table of them."""
        lines = [
            f"{self.graph_dir}: of {self.texts:,} texts, {self.dropped_texts:,} are near-duplicates (similarity from "
            f"{self.threshold:g}) of {self.groups:,} that are kept in their place"
        ]
        if self.out is not None:
            lines.append(f"{self.out}: {self.kept_samples:,} of {self.samples:,} samples are kept, each with its reason")
            lines.append(next_steps(f"graphbuild subset --keep {quoted(self.out)} --out NEW_GRAPH", graph_dir=self.graph_dir))
        if self.full_rows:
            lines.append(
                f"{self.full_rows:,} texts have more near-duplicates than neighbours are stored; some may remain. Run `graphbuild "
                "knn` with a larger --k, or repeat dedup on the subset."
            )
        head = "\n".join(lines)
        return render(head, {"by threshold, with the least similar pairs": self._level_table()}) if self.levels else head

    def _level_table(self) -> Any:
        made = table(
            ("threshold", "groups", "texts dropped", "similarity", "dropped", "kept"),
            right=("threshold", "groups", "texts dropped"),
        )
        for level in self.levels:
            head = [f"{level.threshold:.2f}", f"{level.groups:,}", f"{level.dropped_texts:,}"]
            pairs = level.least_similar or ((float("nan"), "", ""),)
            for number, (similarity, dropped, kept) in enumerate(pairs):
                shown = "" if similarity != similarity else f"{similarity:.3f}"
                made.add_row(*(head if number == 0 else ["", "", ""]), shown, plain(show(dropped)), plain(show(kept)))
        return made


def find_duplicates(
    graph_dir: Path, out: Path | None, *, threshold: float = 0.95, show_levels: bool = False, overwrite: bool = False
) -> DedupResult:
    """Find near-duplicate texts and write which samples to keep.

    Args:
        graph_dir: A graph with neighbours.
        out: The Parquet file of decisions; None writes none.
        threshold: Similarity from which two texts count as the same.
        show_levels: Whether to compare several thresholds.
        overwrite: Replace any file, and not only those that a command of ours wrote.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If `out` is no Parquet file, or is somebody else's.
    """
    if out is not None:
        require_replaceable(out, overwrite=overwrite)
    tables = Frames(graph_dir)
    require_neighbors(tables)
    lowest = min((threshold, *LEVELS)) if show_levels else threshold
    with stages("near-duplicates", "decisions"):
        similar, full_rows = _edges_from(tables, lowest, threshold)
        with progress("decisions", None):
            order_N = _order(tables)
            keeper_N, similarity_N = _keepers(similar, order_N, threshold)
            written = write_decisions(tables, out, _decide(keeper_N, similarity_N)) if out is not None else None
    dropped = int((keeper_N >= 0).sum())
    return DedupResult(
        graph_dir=graph_dir,
        out=out,
        threshold=threshold,
        texts=len(keeper_N),
        groups=len(np.unique(keeper_N[keeper_N >= 0])),
        dropped_texts=dropped,
        samples=written.samples if written else None,
        kept_samples=written.kept if written else None,
        full_rows=full_rows,
        levels=tuple(_level(tables, similar, order_N, level) for level in LEVELS) if show_levels else (),
    )


def duplicate_keepers(tables: Frames, threshold: float) -> tuple[Ids, Float32]:
    """Return the kept text that stands for each near-duplicate (-1 for texts that are kept), and their similarity (NaN); (N,)."""
    similar, _ = _edges_from(tables, threshold, threshold)
    return _keepers(similar, _order(tables), threshold)


def _edges_from(tables: Frames, lowest: float, threshold: float) -> tuple[csr_array, int]:
    """Stored pairs at or above a similarity, both ways, and the number of rows that hold nothing below the threshold."""
    graph = tables.graph
    sources, ends, values = [], [], []
    full = 0
    with progress("near-duplicates", graph.n_texts, unit="texts") as meter:
        for first, rows in graph_blocks(graph):
            values_nK = rows.similarities.astype(np.float32)
            at, rank = np.nonzero(values_nK >= np.float32(lowest))
            sources.append((at + first).astype(np.int32))
            ends.append(rows.neighbor_ids[at, rank])
            values.append(values_nK[at, rank])
            full += 0 if graph.is_complete else int((values_nK[:, -1] >= np.float32(threshold)).sum())
            meter.advance(len(values_nK))
    source, end, value = (np.concatenate(parts) for parts in (sources, ends, values))
    size = (graph.n_texts, graph.n_texts)
    stored = csr_array((value, (source, end)), shape=size)
    # A pair stored by both rows has the same similarity in both.
    return csr_array(stored.maximum(stored.T)), full


def _order(tables: Frames) -> npt.NDArray[np.int64]:
    """Return text ids by falling sample count, then by id."""
    counts = tables.texts.select(schemas.SAMPLE_COUNT).collect(engine="streaming").to_series().to_numpy()
    return np.lexsort((np.arange(len(counts)), -counts.astype(np.int64)))


def _keepers(similar: csr_array, order_N: npt.NDArray[np.int64], threshold: float) -> tuple[Ids, Float32]:
    """Return the kept text that stands for each dropped one (-1 for kept texts), and their similarity (NaN)."""
    return _choose(similar.indptr.astype(np.int64), similar.indices.astype(np.int32), similar.data, order_N, np.float32(threshold))


@njit(nogil=True, cache=True)
def _choose(
    starts: npt.NDArray[np.int64], ends_E: Ids, values_E: Float32, order_N: npt.NDArray[np.int64], threshold: np.float32
) -> tuple[Ids, Float32]:
    count = len(order_N)
    keeper_N = np.full(count, -1, np.int32)
    similarity_N = np.full(count, np.nan, np.float32)
    for text in order_N:
        if keeper_N[text] >= 0:
            continue
        for edge in range(starts[text], starts[text + 1]):
            other = ends_E[edge]
            # Of several kept texts the most similar one stands for a dropped text.
            nearer = np.isnan(similarity_N[other]) or values_E[edge] > similarity_N[other]
            if values_E[edge] >= threshold and nearer:
                keeper_N[other], similarity_N[other] = text, values_E[edge]
    return keeper_N, similarity_N


def _decide(keeper_N: Ids, similarity_N: Float32) -> Decisions:
    reason_N = np.zeros(len(keeper_N), np.int8)
    dropped_N = keeper_N >= 0
    reason_N[np.unique(keeper_N[dropped_N])] = REASONS.index("representative")
    reason_N[dropped_N] = REASONS.index("near-duplicate")
    return Decisions(
        keep_N=~dropped_N,
        reason_N=reason_N,
        reasons=REASONS,
        other_N=keeper_N,
        similarity_N=similarity_N,
        one_sample_a_text=True,
    )


def _level(tables: Frames, similar: csr_array, order_N: npt.NDArray[np.int64], threshold: float) -> Level:
    keeper_N, similarity_N = _keepers(similar, order_N, threshold)
    dropped = np.flatnonzero(keeper_N >= 0)
    least = dropped[np.lexsort((dropped, similarity_N[dropped]))][:_SHOWN_PAIRS]
    texts = dict(tables.texts_of([*least.tolist(), *keeper_N[least].tolist()]).iter_rows())
    return Level(
        threshold=threshold,
        groups=len(np.unique(keeper_N[dropped])),
        dropped_texts=len(dropped),
        least_similar=tuple((float(similarity_N[i]), texts[int(i)], texts[int(keeper_N[i])]) for i in least),
    )
