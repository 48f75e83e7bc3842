"""From sample ids to a batch's similarities: which samples the graph knows, and which of its texts each of them shows.

Shape letters: S samples asked for, B samples in a batch, C texts of a batch.
A *position* is the first row that a sample has in the graph's samples table: it is looked up once, and holds as long as the
graph has these samples, in any process. Nothing here imports torch, faiss, dask or polars.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from graphbuild.errors import OptionError, SourceError
from graphbuild.store import schemas
from graphbuild.store.arrays import Float32, Int64
from graphbuild.store.choices import Symmetrize
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import SampleTexts
from graphbuild.targets.assemble import assemble, resolve_absent
from graphbuild.targets.batches import draw_captions

Captions = Literal["draw", "average"]
"""What a sample with several captions shows: one of them, drawn by (seed, epoch), or the mean similarity of all."""
_EXAMPLES, _MOST_LOOKED_AT = 3, 100


class Coverage(NamedTuple):
    """How many of some sample ids a graph knows."""

    known: int
    total: int
    mask: npt.NDArray[np.bool_]
    """Whether the graph knows each of them; (S,)."""

    @property
    def share(self) -> float:
        """The share that is known, 0 to 1; 1 of no ids."""
        return self.known / self.total if self.total else 1.0


class BatchTexts(NamedTuple):
    """The texts that the samples of a batch show: sample i has `text_ids[offsets[i]:offsets[i + 1]]`."""

    offsets: Int64
    """(B + 1,)."""
    text_ids: npt.NDArray[np.int32]
    """(C,); one a sample where captions are drawn."""


def coverage(graph: Graph, sample_ids: Sequence[str]) -> Coverage:
    """Count how many of some sample ids a graph knows.

    Raises:
        SourceError: If they are not strings.
    """
    mask = _find(graph, sample_ids).known
    return Coverage(int(mask.sum()), len(mask), mask)


def positions_of(graph: Graph, sample_ids: Sequence[str]) -> Int64:
    """Look up the positions of samples; (S,).

    Raises:
        SourceError: If they are not strings, or the graph does not know all of them.
    """
    found = _find(graph, sample_ids)
    if not found.known.all():
        unknown = np.flatnonzero(~found.known)
        named = ", ".join(repr(str(sample_ids[index])) for index in unknown[:_EXAMPLES])
        more = ", ..." if len(unknown) > _EXAMPLES else ""
        raise SourceError(
            f"{graph.path} does not know {len(unknown):,} of the {len(found.known):,} sample ids: {named}{more}. "
            f"Its own are such as {_examples(graph)}. Pass ids as they were given to `graphbuild embed` (--id-column), "
            "or leave these samples out: coverage(ids).mask tells which are known."
        )
    return found.sample_rows[found.offsets[:-1]]


def texts_of_batch(graph: Graph, positions_B: Int64, *, captions: Captions, seed: int, epoch: int) -> BatchTexts:
    """Tell which texts the samples of a batch show.

    Args:
        graph: The graph, open for reading.
        positions_B: From `positions_of`; (B,).
        captions: One text a sample, or all of them.
        seed: Of the draw; with the position and the epoch it decides it, whatever the batch.
        epoch: From 0.

    Raises:
        OptionError: If a position lies outside the samples table.
    """
    try:
        found = graph.texts_of_rows(positions_B)
    except ValueError as error:
        raise OptionError(f"{graph.path}: {error}. Positions come from positions(ids), of the same graph.") from error
    if captions == "average" or len(found.text_ids) == len(positions_B):
        return BatchTexts(found.offsets, found.text_ids)
    first = found.offsets[:-1]
    # The draw is that of the trainer, with positions for sample numbers.
    counts = np.diff(found.offsets)
    drawn = draw_captions(counts, positions_B, seed=seed, epoch=epoch)
    return BatchTexts(np.arange(len(positions_B) + 1), found.text_ids[first + drawn])


def batch_similarity(
    graph: Graph,
    sample_ids: Sequence[str],
    *,
    absent: float | None = None,
    symmetrize: Symmetrize = "union",
    captions: Captions = "draw",
    seed: int = 0,
    epoch: int = 0,
) -> Float32:
    """Compute the similarities among samples (docs/definitions.md, Target): G, (B, B) float32, 1 on the diagonal.

    Args:
        graph: The graph, open for reading.
        sample_ids: The samples of a batch; (B,).
        absent: What a pair counts as that neither row stores; None takes the sketch.
        symmetrize: `mutual` takes a pair that only one of its rows stores for absent.
        captions: What a sample with several captions shows.
        seed: Of the draw among them.
        epoch: Of the draw among them.

    Raises:
        SourceError: If the graph does not know all samples.
        OptionError: If absent pairs have no similarity.
    """
    positions = positions_of(graph, sample_ids)
    offsets, text_ids = texts_of_batch(graph, positions, captions=captions, seed=seed, epoch=epoch)
    absent = resolve_absent(graph, absent)
    similarity = assemble(graph.rows(text_ids), text_ids, absent=absent, symmetrize=symmetrize).similarity_BB
    return similarity if len(text_ids) == len(positions) else _average(similarity, offsets, positions)


def _average(similarity_CC: Float32, offsets: Int64, positions_B: Int64) -> Float32:
    """Mean over the captions of both samples; 1 for a sample with itself, which is also the own view."""
    counts = np.diff(offsets).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(similarity_CC, offsets[:-1], axis=0), offsets[:-1], axis=1)
    means: Float32 = sums / (counts[:, None] * counts)
    means[positions_B[:, None] == positions_B] = 1.0
    return means


def _find(graph: Graph, sample_ids: Sequence[str]) -> SampleTexts:
    # Numbers could be meant as positions, or as ids written in some way: better asked than guessed.
    for other in (value for value in sample_ids if not isinstance(value, str)):
        raise SourceError(
            f"sample ids are strings, and {other!r} is of type {type(other).__name__}. In {graph.path} they were written such as "
            f"{_examples(graph)}: pass strings like these, or a tensor of positions from positions(ids)."
        )
    return graph.sample_texts(pa.array(list(sample_ids), pa.string()))


def _examples(graph: Graph) -> str:
    # A sample with several captions has as many rows, one after another as a rule.
    first = graph.sample_column(schemas.SAMPLE_ID)[:_MOST_LOOKED_AT].to_pylist()
    return ", ".join(repr(value) for value in list(dict.fromkeys(first))[:_EXAMPLES])
