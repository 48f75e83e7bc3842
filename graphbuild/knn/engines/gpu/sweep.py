"""The search of a group of rows: each pair of the group scored once for both of its texts, the other texts for its rows alone.

Shape letters: N texts, n rows of the group, t rows of a panel, C columns of a tile, K neighbours kept.

Rows and columns are met in the order of `vectors`. A panel of rows meets its own square first, then the group's columns to its
right, which list its rows at the same time, then the texts outside the group; then it is through. Limits rise where all that a
row has met is a random sample (`limits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from graphbuild.knn.engines.base import Advance
from graphbuild.knn.engines.gpu.certificate import Certificate
from graphbuild.knn.engines.gpu.limits import checkpoints, first_sample, rank_for
from graphbuild.knn.engines.gpu.lists import Best, Columns, Lists, Steps
from graphbuild.knn.engines.gpu.tiles import Buffers, Rows, Segments, Way
from graphbuild.knn.engines.gpu.vectors import ALIGNED, Places, Vectors


@dataclass(frozen=True, slots=True)
class Panel:
    """Rows that are through."""

    places_t: Places
    best: Best
    open_t: Tensor
    """Rows that the certificate does not settle, whose results mean nothing."""


Choose = Callable[[Lists, Rows, Segments, Advance], Way | None]
"""Takes columns of a panel to find the fastest way; None where a search of another kind is faster than all."""
_HIGH = 4
"""A panel is high enough for a trial if it has a quarter of a tile's rows, at least; those before a checkpoint may be lower."""


class Sweep:
    """The search of one group."""

    def __init__(
        self,
        vectors: Vectors,
        group_n: Places,
        *,
        k: int,
        width: int,
        tile: int,
        steps: Steps,
        buffers: Buffers,
        certificate: Certificate,
    ) -> None:
        """Prepare the lists of a group.

        Args:
            vectors: All.
            group_n: The group's rows, ascending.
            k: K.
            width: Candidates that a row has room for.
            tile: Rows of a panel; a multiple of `ALIGNED`.
            steps: How scores and candidates are dealt with.
            buffers: For the scores.
            certificate: What a limit proves.
        """
        self._vectors, self._group_n, self._k, self._tile = vectors, group_n, k, tile
        self._steps, self._buffers, self._certificate = steps, buffers, certificate
        self._lists = Lists.empty(len(group_n), width, vectors.device)
        outside_N = np.ones(vectors.count, np.bool_)
        outside_N[group_n.host] = False
        outside = Places.of(np.flatnonzero(outside_N).astype(np.int32), vectors.device)
        self._ranks = {place: rank_for((k + 1) * place / vectors.count) for place in checkpoints(vectors.count)}
        """The rank that limits have where all texts before a position, or some of them, were met."""
        sampled = int(np.searchsorted(outside.host, max(self._ranks)))
        # What of the random sample is outside the group is met by all rows first.
        self._sample, self._rest = outside[:sampled], outside[sampled:]
        within = {self._first_row(place): rank for place, rank in self._ranks.items() if not sampled or place == max(self._ranks)}
        self._raises = {row: rank for row, rank in within.items() if 0 < row < len(group_n)}
        """Rows of the group before which all columns are of the sample, and the rank that limits then have."""

    def panels(self, choose: Choose, advance: Advance) -> Iterator[Panel]:
        """Yield the group's rows, a panel at a time, in order; those before the first high panel alone if `choose` finds no way."""
        self._first_limits()
        way, tried = Way(self._buffers, self._steps, columns=self._tile), None
        self._meet_sample(way, advance)
        for top, bottom in spans(0, len(self._group_n), self._tile, cuts=self._raises):
            rows = self._rows(top, bottom)
            self._meet(way, rows, Segments(self._vectors, [(rows.places_t, None)]), advance)
            self._raise(slice(top, bottom), bottom)
            *sampled, last = spans(bottom, len(self._group_n), len(self._group_n), cuts=self._raises) or [(bottom, bottom)]
            for left, right in sampled:
                self._meet(way, rows, Segments(self._vectors, [(self._group_n[left:right], left)]), advance)
                self._raise(slice(top, bottom), right)
            segments = Segments(self._vectors, [(self._group_n[last[0] :], last[0]), (self._rest, None)])
            if tried is None and bottom - top >= self._tile // _HIGH:
                tried = choose(self._lists, rows, segments, advance)
                if tried is None:
                    return
                way = tried
            self._meet(way, rows, segments, advance)
            # The rows that follow have met exactly those before `bottom`.
            self._raise(slice(bottom, len(self._group_n)), bottom)
            yield self._finish(top, bottom)

    def _first_row(self, place: int) -> int:
        """The row of the group before which all are before a position, in whole words."""
        return int(np.searchsorted(self._group_n.host, place)) // ALIGNED * ALIGNED

    def _rows(self, top: int, bottom: int) -> Rows:
        places_t = self._group_n[top:bottom]
        return Rows(self._vectors.block(places_t), places_t, top)

    def _first_limits(self) -> None:
        """Give every row its first limit: 0 where there are too few texts for a sample."""
        # At least one padded row of scores fits the buffer.
        size = min(first_sample(self._vectors.count), self._buffers.size // ALIGNED**2 * ALIGNED)
        rank = rank_for((self._k + 1) * size / self._vectors.count)
        if not size or rank > size:
            return
        sample_MD = self._vectors.block(self._vectors.places_N[:size])
        step = min(self._tile, self._buffers.size // (size * ALIGNED) * ALIGNED)
        for top, bottom in spans(0, len(self._group_n), step):
            scores_tM = self._buffers.product(self._rows(top, bottom).vectors_tD, sample_MD)[: bottom - top]
            self._lists.limits_n[top:bottom] = self._steps.first_limits(scores_tM, rank)

    def _meet_sample(self, way: Way, advance: Advance) -> None:
        """Score the part of the random sample that is outside the group, for all rows; raise their limits by it."""
        sizes = [int(np.searchsorted(self._sample.host, place)) for place in self._ranks]
        for first, last, rank in zip([0, *sizes], sizes, self._ranks.values(), strict=False):
            if last > first:
                for top, bottom in spans(0, len(self._group_n), self._tile):
                    self._meet(way, self._rows(top, bottom), Segments(self._vectors, [(self._sample[first:last], None)]), advance)
                self._steps.raise_limits(self._lists, slice(0, len(self._group_n)), rank, None)

    def _meet(self, way: Way, rows: Rows, segments: Segments, advance: Advance) -> None:
        while (columns := segments.next(way.columns)) is not None:
            way.run(self._lists, rows, columns)
            advance(pairs_of(rows, columns))
        way.join()

    def _raise(self, part: slice, met: int) -> None:
        """Raise the limits of some rows, if what they have met is a random sample, and no more."""
        if met in self._raises and part.stop > part.start:
            self._steps.raise_limits(self._lists, part, self._raises[met], None)

    def _finish(self, top: int, bottom: int) -> Panel:
        """Drop what cannot be among the K best, score the rest exactly, and ask the certificate."""
        part, places_t = slice(top, bottom), self._group_n[top:bottom]
        self._steps.raise_limits(self._lists, part, self._k + 1, self._certificate.lowered)
        best = self._steps.best(self._vectors, places_t.device, self._lists.ids_nW[part], self._lists.counts_n[part], self._k)
        highest_t = self._certificate.highest(self._lists.limits_n[part].view(torch.float16))
        return Panel(places_t, best, (highest_t >= best.kth_t) | (self._lists.spilled_n[part] != 0))


def spans(start: int, stop: int, size: int, cuts: Iterable[int] = ()) -> list[tuple[int, int]]:
    """Return ranges of at most `size` that together go from `start` to `stop`, and reach over no cut."""
    edges = sorted({start, stop, *(cut for cut in cuts if start < cut < stop)})
    return [(at, min(at + size, right)) for left, right in pairwise(edges) for at in range(left, right, size)]


def pairs_of(rows: Rows, columns: Columns) -> int:
    """Count the pairs of texts of a tile, each for every side that it serves."""
    return len(rows) * len(columns.positions_C) * (1 if columns.at is None else 2)
