"""A representative sample: the texts that together cover the graph best.

Shape letters: N texts, K neighbours stored, n texts chosen.
The coverage of a choice is the mean over all texts of the similarity to the chosen text that is nearest: 1 for a chosen text
itself, the stored similarity where the chosen text stores it, 0 otherwise (facility location). Texts are chosen greedily by
what they add, ties to the lower id, which reaches at least 1 - 1/e of the best coverage (Nemhauser, Wolsey and Fisher 1978).
What a text would add only shrinks while others are chosen, so that stale values are upper bounds: only the first of the queue
is computed anew (Minoux 1978).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.quality.curate.decisions import Decisions, require_neighbors, write_decisions
from graphbuild.store.arrays import Float32, Ids
from graphbuild.store.frames import Frames, graph_blocks
from graphbuild.store.graph import Graph
from graphbuild.store.outputs import require_replaceable
from graphbuild.system.answers import Answer, next_steps, quoted
from graphbuild.system.progress import progress, stages

REASONS = ("chosen", "covered by a chosen text", "not covered")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleResult(Answer):
    """What was chosen, and how much of the graph it covers."""

    graph_dir: Path
    out: Path
    texts: int
    chosen: int
    coverage: float
    """Mean similarity of all texts to the nearest chosen one that stores them."""
    random_coverage: float
    """The same of as many texts drawn at random."""
    uncovered: int
    """Texts that no chosen text stores."""
    samples: int
    kept_samples: int

    def summary(self) -> str:
        """Return lines for people."""
        return (
            f"{self.graph_dir}: {self.chosen:,} of {self.texts:,} texts chosen; coverage {self.coverage:.4f}, at random "
            f"{self.random_coverage:.4f}; {self.uncovered:,} texts are no stored neighbour of a chosen one\n"
            f"{self.out}: {self.kept_samples:,} of {self.samples:,} samples are kept, each with its reason\n"
            f"{next_steps(f'graphbuild subset --keep {quoted(self.out)} --out NEW_GRAPH', graph_dir=self.graph_dir)}"
        )


def choose_sample(graph_dir: Path, out: Path, *, count: int, seed: int = 0, overwrite: bool = False) -> SampleResult:
    """Choose representative texts and write which samples to keep: the first one of each chosen text.

    Args:
        graph_dir: A graph with neighbours.
        out: The Parquet file of decisions.
        count: Texts to choose.
        seed: Of the random choice that the coverage is compared with.
        overwrite: Replace any file, and not only those that a command of ours wrote.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there are fewer texts, or `out` is no Parquet file, or is somebody else's.
    """
    require_replaceable(out, overwrite=overwrite)
    tables = Frames(graph_dir)
    require_neighbors(tables)
    graph = tables.graph
    if count > graph.n_texts:
        raise OptionError(f"--count {count:,}: the graph has {graph.n_texts:,} texts. Choose at most as many.")
    with stages("first gains", "representatives", "decisions"):
        chosen, cover_N, by_N = greedy_cover(graph, count)
        with progress("decisions", None):
            random_N = _cover_of(graph, np.random.default_rng(seed).choice(graph.n_texts, count, replace=False))
            written = write_decisions(tables, out, _decide(chosen, cover_N, by_N))
    return SampleResult(
        graph_dir=graph_dir,
        out=out,
        texts=graph.n_texts,
        chosen=len(chosen),
        coverage=float(cover_N.mean(dtype=np.float64)),
        random_coverage=float(random_N.mean(dtype=np.float64)),
        uncovered=int((by_N < 0).sum()),
        samples=written.samples,
        kept_samples=written.kept,
    )


def greedy_cover(graph: Graph, count: int) -> tuple[Ids, Float32, Ids]:
    """Choose texts one after another, each the one that brings all texts nearest to their nearest chosen one.

    Returns:
        The chosen texts in order (n,); each text's similarity to its nearest chosen one (N,); and that one, -1 for none (N,).
    """
    with progress("first gains", None):
        queue = [(-gain, text) for text, gain in enumerate(_first_gains(graph).tolist())]
        heapq.heapify(queue)
    cover_N = np.zeros(graph.n_texts, np.float32)
    by_N = np.full(graph.n_texts, -1, np.int32)
    chosen: list[int] = []
    with progress("representatives", count, unit="texts") as meter:
        while len(chosen) < count:
            _, text = heapq.heappop(queue)
            ids, values = _reach(graph, text)
            gain = float(np.maximum(values - cover_N[ids], 0).sum(dtype=np.float64))
            if queue and (-gain, text) > queue[0]:
                heapq.heappush(queue, (-gain, text))
                continue
            nearer = values > cover_N[ids]
            cover_N[ids[nearer]], by_N[ids[nearer]] = values[nearer], text
            chosen.append(text)
            meter.advance()
    return np.array(chosen, np.int32), cover_N, by_N


def _reach(graph: Graph, text: int) -> tuple[Ids, Float32]:
    """Return the texts that a text covers, itself first, and how well; negative similarities cover nothing."""
    row = graph.rows([text])
    ids = np.concatenate([np.array([text], np.int32), row.neighbor_ids[0]])
    return ids, np.concatenate([np.ones(1, np.float32), np.maximum(row.similarities[0].astype(np.float32), 0)])


def _first_gains(graph: Graph) -> npt.NDArray[np.float64]:
    gains = [
        1 + np.maximum(rows.similarities.astype(np.float32), 0).sum(axis=1, dtype=np.float64) for _, rows in graph_blocks(graph)
    ]
    return np.concatenate(gains)


def _cover_of(graph: Graph, texts: npt.NDArray[np.int64]) -> Float32:
    cover_N = np.zeros(graph.n_texts, np.float32)
    for text in texts.tolist():
        ids, values = _reach(graph, text)
        cover_N[ids] = np.maximum(cover_N[ids], values)
    return cover_N


def _decide(chosen: Ids, cover_N: Float32, by_N: Ids) -> Decisions:
    reason_N = np.where(by_N >= 0, REASONS.index("covered by a chosen text"), REASONS.index("not covered")).astype(np.int8)
    reason_N[chosen] = REASONS.index("chosen")
    keep_N = np.zeros(len(by_N), np.bool_)
    keep_N[chosen] = True
    return Decisions(
        keep_N=keep_N,
        reason_N=reason_N,
        reasons=REASONS,
        other_N=np.where(keep_N, np.int32(-1), by_N).astype(np.int32),
        similarity_N=np.where(keep_N | (by_N < 0), np.float32(np.nan), cover_N).astype(np.float32),
        one_sample_a_text=True,
    )
