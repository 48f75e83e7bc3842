"""Outliers: texts that are far from all others.

Shape letters: N texts, K neighbours stored.
A text's score is the mean similarity to its nearest neighbours (one by default), as stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graphbuild.errors import OptionError
from graphbuild.quality.curate.decisions import Decisions, require_neighbors, write_decisions
from graphbuild.store.frames import Frames
from graphbuild.store.outputs import require_replaceable
from graphbuild.system.answers import Answer, next_steps, plain, quoted, render, show, table
from graphbuild.system.progress import progress, stages

REASONS = ("ordinary", "outlier")
_LISTED = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class OutliersResult(Answer):
    """Which texts are far from all others."""

    graph_dir: Path
    out: Path
    texts: int
    outliers: int
    below: float
    """Texts whose score is lower are outliers."""
    ranks: int
    samples: int
    kept_samples: int
    farthest: tuple[tuple[int, float, str], ...]
    """Text id, score and text; the farthest first."""

    def summary(self) -> str:
        """Return lines for people, and the farthest texts."""
        head = (
            f"{self.graph_dir}: {self.outliers:,} of {self.texts:,} texts are outliers: mean similarity to the nearest "
            f"{self.ranks} below {self.below:.4f}\n"
            f"{self.out}: {self.kept_samples:,} of {self.samples:,} samples are kept, each with its reason\n"
            f"{next_steps(f'graphbuild subset --keep {quoted(self.out)} --out NEW_GRAPH', graph_dir=self.graph_dir)}"
        )
        listed = table(("similarity", "text_id", "text"), right=("similarity", "text_id"))
        for text_id, score, text in self.farthest:
            listed.add_row(f"{score:.3f}", f"{text_id:,}", plain(show(text)))
        return render(head, {"the farthest": listed})


def find_outliers(
    graph_dir: Path, out: Path, *, share: float | None = None, below: float | None = None, ranks: int = 1, overwrite: bool = False
) -> OutliersResult:
    """Find the texts that are farthest from all others and write which samples to keep: those of all other texts.

    Args:
        graph_dir: A graph with neighbours.
        out: The Parquet file of decisions.
        share: Share of all texts to call outliers; 0.01 where neither this nor `below` is given.
        below: Score below which a text is one.
        ranks: Nearest neighbours that the score averages.
        overwrite: Replace any file, and not only those that a command of ours wrote.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If both limits are given, fewer neighbours are stored, or `out` is no Parquet file, or is somebody else's.
    """
    if share is not None and below is not None:
        raise OptionError("--share and --below both set a limit: give one of them.")
    require_replaceable(out, overwrite=overwrite)
    tables = Frames(graph_dir)
    require_neighbors(tables)
    if ranks > tables.graph.k:
        raise OptionError(f"--ranks {ranks}: {tables.graph.k} neighbours are stored of a text. Choose at most as many.")
    with stages("scores", "decisions"):
        score_N, nearest_N = _scores(tables, ranks)
        limit = below if below is not None else float(np.quantile(score_N, 0.01 if share is None else share))
        outlier_N = score_N < limit
        with progress("decisions", None):
            written = write_decisions(tables, out, _decide(outlier_N, score_N, nearest_N))
    farthest = np.lexsort((np.arange(len(score_N)), score_N))[: min(_LISTED, int(outlier_N.sum()))]
    texts = dict(tables.texts_of(farthest.tolist()).iter_rows())
    return OutliersResult(
        graph_dir=graph_dir,
        out=out,
        texts=len(score_N),
        outliers=int(outlier_N.sum()),
        below=limit,
        ranks=ranks,
        samples=written.samples,
        kept_samples=written.kept,
        farthest=tuple((int(i), float(score_N[i]), texts[int(i)]) for i in farthest),
    )


def _scores(tables: Frames, ranks: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the mean similarity of each text to its nearest `ranks`, and the nearest one."""
    score_N, nearest_N = np.empty(tables.graph.n_texts, np.float32), np.empty(tables.graph.n_texts, np.int32)
    with progress("scores", tables.graph.n_texts, unit="texts") as meter:
        for start, rows in tables.graph.shard_rows():
            span = slice(start, start + len(rows.neighbor_ids))
            score_N[span] = rows.similarities[:, :ranks].astype(np.float32).mean(axis=1)
            nearest_N[span] = rows.neighbor_ids[:, 0]
            meter.advance(len(rows.neighbor_ids))
    return score_N, nearest_N


def _decide(outlier_N: npt.NDArray[np.bool_], score_N: npt.NDArray[np.float32], nearest_N: npt.NDArray[np.int32]) -> Decisions:
    return Decisions(
        keep_N=~outlier_N,
        reason_N=outlier_N.astype(np.int8),
        reasons=REASONS,
        other_N=nearest_N,
        similarity_N=score_N,
        one_sample_a_text=False,
    )
