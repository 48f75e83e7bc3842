"""Tile search: scores in the fastest number format, a limit per row to select by, each tile serving rows and columns.

Shape letters: N texts, S rows of the state, B rows of a block, D vector width, K neighbours kept, W candidates a row has
room for.

Rows are taken in groups as large as memory allows. Within a group every pair is scored once, and serves both texts; the
rest of the texts serve the group's rows only. Limits start from a random sample of the texts. Candidates are re-ranked
exactly; rows that their certificate does not settle are searched by `rowblocks`. So the result is a function of the
vectors alone: of no format, group, number of threads, or order of tiles.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn import selection
from graphbuild.knn.engine import Advance, Neighbors, unheard
from graphbuild.knn.rowblocks import RowBlockEngine
from graphbuild.knn.scores import FORMATS, Bounds, Format, casting_error, fastest_format, make_bounds
from graphbuild.knn.threads import Threads, threads
from graphbuild.shards import ShardRange

_BLOCK = 1024
_TILE_ROWS = 512
"""A tile's scores (1 MB in half precision) stay in a core's second-level cache until they are selected from."""
_SAMPLE = 8192
_SAMPLE_SHARE = 16
"""The sample is at most a sixteenth of the texts."""
_BAND = 1.15
"""About how many candidates there are to each neighbour kept, given the error of the scores."""
_ROOM = 2.0
"""Candidates that a row has room for, to each of the band: with less, rows are thinned more often."""
_SPREAD = 3.0
"""Standard deviations by which a sample's rank is put lower, so that few rows start from too high a limit."""
_STRIPE = 8
"""Blocks of texts outside the group that are cast at a time."""
_CHUNK = 512
"""Rows that a thread re-ranks at a time."""
_FALLBACK_SHARE = 4
"""Of the memory, a quarter is for searching unsettled rows again."""
_RERANKING_PAIRS = 60_000
"""What re-ranking a row counts as in the work of a search: about the pairs scored in the same time."""
_PIVOTS = 256
"""Texts by which rows are brought into an order for re-ranking."""
_LONGEST = 1.01
"""Length of a vector, at most; the stage refuses longer ones."""


@dataclass(slots=True)
class _Blocks:
    """Vectors cast to the scoring format and cut into whole blocks; the last one is filled up with zeros."""

    vectors_SD: torch.Tensor
    ids_S: NDArray[np.int32]
    """Text id of each row; -1 where filled up."""

    @property
    def count(self) -> int:
        return len(self.ids_S) // _BLOCK

    def vectors(self, block: int) -> torch.Tensor:
        return self.vectors_SD[block * _BLOCK : (block + 1) * _BLOCK]

    def ids(self, block: int) -> NDArray[np.int32]:
        return self.ids_S[block * _BLOCK : (block + 1) * _BLOCK]


class TileEngine:
    """The fast engine for many texts."""

    def __init__(self, vectors_ND: NDArray[np.float16], *, k: int, memory_limit: int, precision: str = "auto") -> None:
        """Prepare for searches; `auto` precision measures the machine, which takes a tenth of a second.

        Raises:
            ResourceError: If the limit leaves no room for a group of rows.
        """
        count, dim = vectors_ND.shape
        self._vectors_ND = vectors_ND
        self._k = k
        self._format: Format = fastest_format(dim) if precision == "auto" else FORMATS[precision]
        self._sample = _sample_size(count)
        self._width = _width(k)
        fixed, per_row = _footprint(count, dim, k, self._format)
        self._group_rows = (memory_limit - memory_limit // _FALLBACK_SHARE - fixed) // per_row // _BLOCK * _BLOCK
        if self._group_rows < _BLOCK:
            needed = self.required_memory(count, dim, k, self._format.name)
            raise ResourceError(
                f"the search needs at least {needed / 1e6:,.0f} MB, and the memory limit leaves "
                f"{max(memory_limit, 0) / 1e6:,.0f} MB. Raise --memory-limit, or lower --k."
            )
        self._fallback = RowBlockEngine(vectors_ND, k=k, memory_limit=memory_limit // _FALLBACK_SHARE)

    @staticmethod
    def required_memory(count: int, dim: int, k: int, precision: str = "auto") -> int:
        """The least memory limit, in bytes."""
        fixed, per_row = _footprint(count, dim, k, fastest_format(dim) if precision == "auto" else FORMATS[precision])
        scoring = (fixed + per_row * _BLOCK) * _FALLBACK_SHARE // (_FALLBACK_SHARE - 1) + _FALLBACK_SHARE
        return max(scoring, RowBlockEngine.required_memory(count, dim, k) * _FALLBACK_SHARE)

    @property
    def precision(self) -> str:
        """Number format of the scoring pass."""
        return self._format.name

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Pairs of texts that a search scores, in whole tiles: those within a group serve both of their sides."""
        tiles = 0
        for group in self._groups(ranges):
            rows = sum(map(len, group))
            own, others = -(-rows // _BLOCK), -(-(len(self._vectors_ND) - rows) // _BLOCK)
            tiles += own * (own + 1) // 2 + own * others
        return tiles * _BLOCK**2

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """All that a search tells `advance`: pairs scored, and re-ranking as the pairs that could be scored meanwhile."""
        pieces = [piece for group in self._groups(ranges) for piece in group]
        return self.pairs(ranges) + sum(_chunks(piece) * _chunk_pairs(piece) for piece in pieces)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = unheard) -> Iterator[Neighbors]:
        """Neighbours of each range of texts, in turn; as many texts as fit the memory limit are scored together."""
        bounds = self._make_bounds()
        parts: list[Neighbors] = []
        with threads() as pool:
            for group in self._groups(ranges):
                search = _GroupSearch(self._vectors_ND, group, self._k, self._width, self._format, bounds)
                search.score(pool, self._sample_ids(), advance)
                for piece in group:
                    parts.append(self._settle(piece, *search.finish(pool, piece, advance)))
                    if piece.stop == ranges[piece.index].stop:
                        yield _join(parts)
                        parts = []
                # Before the next group's state is made.
                del search

    def _groups(self, ranges: Sequence[ShardRange]) -> Iterator[list[ShardRange]]:
        """Pieces of ranges, as many as fit at a time; `index` is that of the range among `ranges`."""
        group: list[ShardRange] = []
        room = self._group_rows
        for index, one in enumerate(ranges):
            start = one.start
            while start < one.stop:
                # A range is cut only where it does not fit a whole group.
                if group and one.stop - start > room:
                    yield group
                    group, room = [], self._group_rows
                stop = min(one.stop, start + room)
                group.append(ShardRange(index, start, stop))
                room -= stop - start
                start = stop
        yield group

    def _make_bounds(self) -> Bounds:
        step = _STRIPE * _BLOCK
        starts = range(0, len(self._vectors_ND), step)
        cast = max(casting_error(self._vectors_ND[start : start + step], self._format) for start in starts)
        return make_bounds(self._format, dim=self._vectors_ND.shape[1], longest=_LONGEST, cast=cast)

    def _sample_ids(self) -> NDArray[np.int64]:
        # Random rather than evenly spaced: captions of one picture follow one another at a fixed period.
        return np.sort(np.random.default_rng(0).choice(len(self._vectors_ND), self._sample, replace=False))

    def _settle(self, piece: ShardRange, found: Neighbors, failed_n: NDArray[np.bool_]) -> Neighbors:
        """Search the rows again that their certificate did not settle."""
        failed = np.flatnonzero(failed_n)
        if len(failed):
            again = self._fallback.search_rows(piece.start + failed)
            found.ids_nK[failed], found.similarities_nK[failed] = again.ids_nK, again.similarities_nK
        return Neighbors(found.ids_nK, found.similarities_nK, len(failed))


class _GroupSearch:
    """The search for the neighbours of one group of texts, among all texts."""

    def __init__(
        self, vectors_ND: NDArray[np.float16], group: list[ShardRange], k: int, width: int, form: Format, bounds: Bounds
    ) -> None:
        self._vectors_ND, self._group, self._k, self._format, self._bounds = vectors_ND, group, k, form, bounds
        self._bits_ND = vectors_ND.view(np.int16)
        self._blocks = self._cast(np.concatenate([np.arange(piece.start, piece.stop) for piece in group]))
        rows = len(self._blocks.ids_S)
        integers = np.dtype(f"int{8 * form.integer.itemsize}")
        self._closed = np.full(_BLOCK, np.iinfo(integers).max, integers)
        """Limits that no score exceeds: for columns that are not served."""
        self._limits_S = np.full(rows, self._closed[0], integers)
        self._counts_S = np.zeros(rows, np.int32)
        # Left empty: pages that no candidate reaches are never taken.
        self._ids_SW = np.empty((rows, width), np.int32)
        self._scores_SW = np.empty((rows, width), integers)
        self._locks = [threading.Lock() for _ in range(self._blocks.count)]

    def score(self, pool: Threads, sample: NDArray[np.int64], advance: Advance) -> None:
        """Collect the candidates of every row of the group, from all texts."""
        blocks = self._blocks.count
        outside = self._outside()
        stripes = [outside[start : start + _STRIPE * _BLOCK] for start in range(0, len(outside), _STRIPE * _BLOCK)]
        scratch = [torch.empty(_TILE_ROWS * _BLOCK, dtype=self._format.dtype) for _ in range(pool.count)]
        self._seed(pool, sample)

        def work_on(columns: _Blocks) -> Callable[[int, tuple[int, int]], None]:
            return lambda thread, pair: self._tile(scratch[thread], pair[0], pair[1], columns)

        def done() -> None:
            advance(_BLOCK**2)

        pool.run(_disjoint_pairs(blocks), work_on(self._blocks), done)
        for stripe in stripes:
            others = self._cast(stripe)
            tasks = ((row, column) for column in range(others.count) for row in range(blocks))
            pool.run(tasks, work_on(others), done)

    def finish(self, pool: Threads, piece: ShardRange, advance: Advance) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Exact neighbours of one piece of the group, and which of its rows are not settled."""
        at = sum(len(one) for one in self._group[: self._group.index(piece)])
        ids_nK = np.empty((len(piece), self._k), np.int32)
        bits_nK = np.empty((len(piece), self._k), np.int16)
        failed_n = np.empty(len(piece), np.bool_)
        state = slice(at, at + len(piece))
        order_n = self._near_order(state)

        def work(_thread: int, first: int) -> None:
            selection.finish_candidates(
                self._bits_ND,
                order_n[first : first + _CHUNK],
                self._blocks.ids_S[state],
                self._limits_S[state],
                self._counts_S[state],
                self._ids_SW[state],
                self._scores_SW[state],
                self._bounds.lowered,
                self._bounds.ceiling,
                self._format.shift,
                ids_nK,
                bits_nK,
                failed_n,
            )

        pool.run(range(0, len(piece), _CHUNK), work, lambda: advance(_chunk_pairs(piece)))
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def _near_order(self, rows: slice) -> NDArray[np.int64]:
        """An order of some rows of the state in which rows near one another follow one another, roughly."""
        vectors_nD = self._blocks.vectors_SD[rows]
        pivots_PD = vectors_nD[:: max(1, len(vectors_nD) // _PIVOTS)]
        starts = range(0, len(vectors_nD), _BLOCK)
        nearest = [(vectors_nD[start : start + _BLOCK] @ pivots_PD.T).argmax(dim=1) for start in starts]
        order: NDArray[np.int64] = torch.cat(nearest).argsort(stable=True).numpy()
        return order

    def _cast(self, ids: NDArray[np.int64]) -> _Blocks:
        rows = -(-len(ids) // _BLOCK) * _BLOCK
        vectors_SD = torch.zeros(rows, self._vectors_ND.shape[1], dtype=self._format.dtype)
        for start in range(0, len(ids), _BLOCK):
            part = torch.from_numpy(self._vectors_ND[ids[start : start + _BLOCK]])
            vectors_SD[start : start + len(part)] = part.to(self._format.dtype)
        padded = np.full(rows, -1, np.int32)
        padded[: len(ids)] = ids
        return _Blocks(vectors_SD, padded)

    def _outside(self) -> NDArray[np.int64]:
        inside = np.zeros(len(self._vectors_ND), np.bool_)
        for piece in self._group:
            inside[piece.start : piece.stop] = True
        return np.flatnonzero(~inside)

    def _seed(self, pool: Threads, sample: NDArray[np.int64]) -> None:
        """Give every row of the group its first limit: 0 where there are too few texts for a sample."""
        if not len(sample):
            self._limits_S[self._blocks.ids_S >= 0] = 0
            return
        vectors_MD = torch.from_numpy(self._vectors_ND[sample]).to(self._format.dtype)
        expected = _BAND * (self._k + 1) * len(sample) / len(self._vectors_ND)
        rank = min(int(np.ceil(expected + _SPREAD * np.sqrt(expected))) + 1, len(sample) // selection.LANES)
        step = _BLOCK // 4
        scratch = [torch.empty(step, len(sample), dtype=self._format.dtype) for _ in range(pool.count)]

        def work(thread: int, start: int) -> None:
            torch.mm(self._blocks.vectors_SD[start : start + step], vectors_MD.T, out=scratch[thread])
            scores = scratch[thread].view(self._format.integer).numpy().reshape(-1)
            selection.seed_limits(scores, len(sample), self._limits_S[start : start + step], rank, self._format.shift)

        pool.run(range(0, len(self._limits_S), step), work)
        self._limits_S[self._blocks.ids_S < 0] = self._closed[0]

    def _tile(self, scratch: torch.Tensor, row_block: int, column_block: int, columns: _Blocks) -> None:
        """Score one pair of blocks; where both are the group's own, and not the same, the columns are served too."""
        mutual = columns is self._blocks and row_block != column_block
        locks = sorted({row_block, column_block}) if mutual else [row_block]
        scores = scratch.view(_TILE_ROWS, _BLOCK)
        with ExitStack() as held:
            for block in locks:
                # In one order everywhere, so that no two threads wait for each other.
                held.enter_context(self._locks[block])
            for start in range(0, _BLOCK, _TILE_ROWS):
                rows = slice(start, start + _TILE_ROWS)
                torch.mm(self._blocks.vectors(row_block)[rows], columns.vectors(column_block).T, out=scores)
                selection.scan_tile(
                    scores.view(self._format.integer).numpy().reshape(-1),
                    _BLOCK,
                    self._blocks.ids(row_block)[rows],
                    row_block * _BLOCK + start,
                    columns.ids(column_block),
                    column_block * _BLOCK,
                    self._limits_S if mutual else self._closed,
                    column_block * _BLOCK if mutual else 0,
                    self._limits_S,
                    self._counts_S,
                    self._ids_SW,
                    self._scores_SW,
                    self._k,
                    self._bounds.lowered,
                    self._format.shift,
                )


def _sample_size(count: int) -> int:
    return min(_SAMPLE, count // _SAMPLE_SHARE) // selection.LANES * selection.LANES


def _width(k: int) -> int:
    return int(_BAND * _ROOM * (k + 1)) + 64


def _footprint(count: int, dim: int, k: int, form: Format) -> tuple[int, int]:
    """Bytes that are taken whatever the group of rows, and bytes a row of the group."""
    item, sample = form.dtype.itemsize, _sample_size(count)
    scratch = torch.get_num_threads() * item * max(_TILE_ROWS * _BLOCK, _BLOCK // 4 * sample)
    stripe = _STRIPE * _BLOCK * dim * (item + 4)
    # Nine bytes a text to tell those outside the group.
    return scratch + sample * dim * item + stripe + 9 * count, _width(k) * (4 + item) + dim * item + 32


def _chunks(piece: ShardRange) -> int:
    return -(-len(piece) // _CHUNK)


def _chunk_pairs(piece: ShardRange) -> int:
    return len(piece) * _RERANKING_PAIRS // _chunks(piece)


def _disjoint_pairs(count: int) -> Iterator[tuple[int, int]]:
    """All unordered pairs of 0..count-1, a number with itself included, so that pairs close by share no number.

    The pairs with i + j = r modulo `count` are disjoint: threads that work on neighbouring pairs do not wait for blocks.
    """
    for total in range(count):
        for one in range(count):
            other = (total - one) % count
            if one <= other:
                yield one, other


def _join(parts: Sequence[Neighbors]) -> Neighbors:
    if len(parts) == 1:
        return parts[0]
    return Neighbors(
        np.concatenate([part.ids_nK for part in parts]),
        np.concatenate([part.similarities_nK for part in parts]),
        sum(part.recomputed for part in parts),
    )
