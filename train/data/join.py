"""Which images the graph knows, and their texts.

Images are found by their sample id, or, where the graph's samples are classes (`graphbuild embed --dataset imagenet`), by
the class that the source knows of each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import numpy as np

from graphbuild.errors import ArtifactMismatch
from graphbuild.store import schemas
from graphbuild.store.arrays import Int32, Int64
from graphbuild.store.graph import Graph
from graphbuild.store.lookup import SampleTexts
from train.data.base import ImageSource
from train.data.tar import MappedIds

LEAST_KNOWN = 0.95
"""Share of the images that the graph must know."""
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Joined:
    """The images that the graph knows; sample i has `text_ids[offsets[i]:offsets[i + 1]]`, at least one."""

    indices: Int64
    """Positions in the source; (N,)."""
    offsets: Int64
    """(N + 1,)."""
    text_ids: Int32
    graph_rows: Int64
    """First row of each sample in the graph's samples table; (N,)."""
    by: str
    """`sample id` or `class`."""
    unknown: int
    """Images of the source that the graph does not know."""
    examples: tuple[str, ...]
    """Ids of some of them."""

    def summary(self) -> str:
        """Return how many images were found, for people."""
        known = len(self.indices)
        return f"the graph knows {known:,} of {known + self.unknown:,} images ({known / (known + self.unknown):.1%}), by {self.by}"


def join(source: ImageSource, graph: Graph, *, allow_missing: bool = False) -> Joined:
    """Look up every image of a source in a graph.

    Args:
        source: The images.
        graph: The graph.
        allow_missing: Accept fewer than 95 % known images, but not none.

    Raises:
        ArtifactMismatch: If too few are known; the message shows ids of both sides.
    """
    ids, by = source.sample_ids, "sample id"
    found = graph.sample_texts(ids.array, hashes=ids.hashes()) if isinstance(ids, MappedIds) else graph.sample_texts(ids)
    if found.known.mean() < LEAST_KNOWN and (classes := source.class_ids()) is not None:
        by_class = graph.sample_texts(classes)
        if by_class.known.sum() > found.known.sum():
            ids, by, found = classes, "class", by_class
    share = float(found.known.mean())
    if not share or (share < LEAST_KNOWN and not allow_missing):
        raise ArtifactMismatch(_explain(source, graph, ids, found))
    return _keep_known(ids, found, by)


class Known(NamedTuple):
    """A graph, and the texts that it has of the images."""

    graph: Graph
    joined: Joined


def join_all(source: ImageSource, graphs: Sequence[Graph], *, allow_missing: bool = False) -> tuple[list[Known], list[str]]:
    """Look up every image of a source in several graphs.

    Args:
        source: The images.
        graphs: One or more.
        allow_missing: Accept fewer than 95 % known images, but not none.

    Returns:
        Each graph with the images that all of them know; and what each of them knows, for people.

    Raises:
        ArtifactMismatch: If a graph knows too few, or all of them together do.
    """
    every = [join(source, graph, allow_missing=allow_missing) for graph in graphs]
    told = [f"{graph.path}: {joined.summary()}" for graph, joined in zip(graphs, every, strict=True)]
    shared = reduce(np.intersect1d, [joined.indices for joined in every])
    total = len(source.sample_ids)
    if not len(shared) or (len(shared) < LEAST_KNOWN * total and not allow_missing):
        raise ArtifactMismatch(
            f"{source.name}: only {len(shared):,} of {total:,} images are known to all {len(graphs)} graphs ({'; '.join(told)}). "
            "Take graphs of the same samples" + ("; --allow-missing trains on the shared ones." if len(shared) else ".")
        )
    return [Known(graph, _restrict(joined, shared, source)) for graph, joined in zip(graphs, every, strict=True)], told


def _restrict(joined: Joined, shared: Int64, source: ImageSource) -> Joined:
    """The same of fewer images; `shared` are positions in the source, in order."""
    if len(shared) == len(joined.indices):
        return joined
    kept = np.isin(joined.indices, shared)
    counts = np.diff(joined.offsets)
    left_out = np.setdiff1d(np.arange(len(source.sample_ids)), shared)
    return replace(
        joined,
        indices=shared,
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts[kept])]),
        text_ids=joined.text_ids[np.repeat(kept, counts)],
        graph_rows=joined.graph_rows[kept],
        unknown=len(left_out),
        examples=tuple(source.sample_ids[index] for index in left_out[:_EXAMPLES].tolist()),
    )


def _keep_known(ids: Sequence[str], found: SampleTexts, by: str) -> Joined:
    indices = np.flatnonzero(found.known)
    counts = np.diff(found.offsets)[indices]
    unknown = np.flatnonzero(~found.known)
    return Joined(
        indices=indices,
        # Unknown samples have empty ranges, so leaving them out moves no text.
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        text_ids=found.text_ids,
        graph_rows=found.sample_rows[found.offsets[indices]],
        by=by,
        unknown=len(unknown),
        examples=tuple(ids[index] for index in unknown[:_EXAMPLES]),
    )


def _explain(source: ImageSource, graph: Graph, ids: Sequence[str], found: SampleTexts) -> str:
    known = int(found.known.sum())
    stored = graph.sample_column(schemas.SAMPLE_ID)
    theirs = ", ".join(repr(value.as_py()) for value in stored[:_EXAMPLES])
    ours = ", ".join(repr(ids[index]) for index in np.flatnonzero(~found.known)[:_EXAMPLES])
    remedy = "Choose the ids with --id-column, or another --graph-dir or --data"
    remedy += "; --allow-missing trains on the known ones." if known else "."
    return (
        f"{graph.path} knows {known:,} of the {len(ids):,} images of {source.name}, fewer than {LEAST_KNOWN:.0%}: "
        f"images have ids such as {ours}, the graph's {len(stored):,} samples such as {theirs}. Are they of one data set? {remedy}"
    )
