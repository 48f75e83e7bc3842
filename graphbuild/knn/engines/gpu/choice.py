"""Which way is fastest on this device, with these vectors: measured on tiles of a panel, whose hits all count.

Shape letters: t rows and C columns of a tile, K neighbours kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from graphbuild.knn.engines.base import Advance
from graphbuild.knn.engines.gpu.lists import Lists
from graphbuild.knn.engines.gpu.streams import new_event
from graphbuild.knn.engines.gpu.sweep import pairs_of
from graphbuild.knn.engines.gpu.tiles import Buffers, Rows, Segments, Way

_TIMED = 3
"""Tiles that are timed for each way, at most, after one that is not: it may compile."""
TOPK = "product and topk"


class Choice:
    """Deals out columns of a panel to each way, and remembers the time that a pair took."""

    def __init__(self, ways: Sequence[Way], buffers: Buffers, *, k: int, share: float, topk: bool) -> None:
        """Name the contenders.

        Args:
            ways: The first is taken where there are too few columns for a trial.
            buffers: For the scores.
            k: K.
            share: Pairs that a sweep scores, to each that `topk` would.
            topk: Whether `topk` is a contender.
        """
        self._ways, self._buffers, self._k, self._share, self._topk = ways, buffers, k, share, topk
        self.picoseconds: dict[str, float] = {}
        """By way: time of each pair of a row and a text, of those that the whole search covers."""
        self.taken = ways[0].name

    def __call__(self, lists: Lists, rows: Rows, segments: Segments, advance: Advance) -> Way | None:
        """The fastest way; None if that is `topk`."""
        self._time_way(self._ways[0], lists, rows, segments, advance)
        if self._topk and self.picoseconds:
            self._time_topk(lists, rows, segments, advance)
        for way in self._ways[1:]:
            self._time_way(way, lists, rows, segments, advance)
        if self.picoseconds:
            self.taken = min(self.picoseconds, key=self.picoseconds.__getitem__)
        return next((way for way in self._ways if way.name == self.taken), None)

    def _time_way(self, way: Way, lists: Lists, rows: Rows, segments: Segments, advance: Advance) -> None:
        """Time some tiles, if there are columns enough."""
        tiles = min(_TIMED, segments.following // way.columns - 1)
        if tiles < 1:
            return

        def run(tiles: int) -> None:
            for _ in range(tiles):
                columns = segments.next(way.columns)
                assert columns is not None
                way.run(lists, rows, columns)
                advance(pairs_of(rows, columns))
            way.join()

        run(1)
        seconds = timed(lambda: run(tiles), rows.vectors_tD.device)
        self.picoseconds[way.name] = self._share * seconds / (tiles * len(rows) * way.columns) * 1e12

    def _time_topk(self, lists: Lists, rows: Rows, segments: Segments, advance: Advance) -> None:
        """Time a product and its best scores; without the merging of tiles that a search by these needs, so not too high."""
        width = min(self._ways[0].columns, segments.following)
        if width <= self._k:
            return
        columns = segments.next(width)
        assert columns is not None
        scores_tC = self._buffers.product(rows.vectors_tD, columns.vectors_CD)[: len(rows), :width]

        def best() -> None:
            self._buffers.product(rows.vectors_tD, columns.vectors_CD)
            scores_tC.topk(min(self._k + 1, width), dim=1, sorted=False)

        best()
        seconds = timed(best, scores_tC.device)
        self.picoseconds[TOPK] = seconds / (len(rows) * width) * 1e12
        # The tile is the sweep's, too.
        self._ways[0].run(lists, rows, columns)
        self._ways[0].join()
        advance(pairs_of(rows, columns))


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Measure the seconds that the device takes for some work."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    first, last = (new_event(timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
