"""The search for the neighbours of one group of texts: their candidates, as tiles of scores stream by, and re-ranking.

Shape letters: N texts, n rows of a piece of the group, S rows of the state, B rows of a block, D vector width, K neighbours
kept, W candidates a row has room for. `graphbuild.knn.engines.tiles` says which groups there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Advance, Neighbors
from graphbuild.knn.engines.scores import Bounds, Format
from graphbuild.knn.engines.threads import Threads
from graphbuild.knn.kernels import selection
from graphbuild.store.files import ShardRange

BLOCK = 1024
TILE_ROWS = 512
"""A tile's scores (1 MB in half precision) stay in a core's second-level cache until they are selected from."""
BAND = 1.15
"""About how many candidates there are to each neighbour kept, given the error of the scores."""
_SPREAD = 3.0
"""Standard deviations by which a sample's rank is put lower, so that few rows start from too high a limit."""
STRIPE = 8
"""Blocks of texts outside the group that are cast at a time."""
_CHUNK = 512
"""Rows that a thread re-ranks at a time."""
_RERANKING_PAIRS = 60_000
"""What re-ranking a row counts as in the work of a search: about the pairs scored in the same time."""
_PIVOTS = 256
"""Texts by which rows are brought into an order for re-ranking."""


@dataclass(slots=True)
class _Blocks:
    """Vectors cast to the scoring format and cut into whole blocks; the last one is filled up with zeros."""

    vectors_SD: torch.Tensor
    ids_S: NDArray[np.int32]
    """Text id of each row; -1 where filled up."""

    @property
    def count(self) -> int:
        return len(self.ids_S) // BLOCK

    def vectors(self, block: int) -> torch.Tensor:
        return self.vectors_SD[block * BLOCK : (block + 1) * BLOCK]

    def ids(self, block: int) -> NDArray[np.int32]:
        return self.ids_S[block * BLOCK : (block + 1) * BLOCK]


class GroupSearch:
    """The search for the neighbours of one group of texts, among all texts."""

    def __init__(
        self, vectors_ND: NDArray[np.float16], group: list[ShardRange], k: int, width: int, form: Format, bounds: Bounds
    ) -> None:
        self._vectors_ND, self._group, self._k, self._format, self._bounds = vectors_ND, group, k, form, bounds
        self._bits_ND = vectors_ND.view(np.int16)
        self._blocks = self._cast(np.concatenate([np.arange(piece.start, piece.stop) for piece in group]))
        rows = len(self._blocks.ids_S)
        integers = np.dtype(f"int{8 * form.integer.itemsize}")
        self._closed = np.full(BLOCK, np.iinfo(integers).max, integers)
        """Limits that no score exceeds: for columns that are not served."""
        self._limits_S = np.full(rows, self._closed[0], integers)
        self._counts_S = np.zeros(rows, np.int32)
        # Left empty: pages that no candidate reaches are never taken.
        self._ids_SW = np.empty((rows, width), np.int32)
        self._scores_SW = np.empty((rows, width), np.int16)
        """The upper 16 bits of scores: the error bounds see no more."""
        self._locks = [threading.Lock() for _ in range(self._blocks.count)]

    def score(self, pool: Threads, sample: NDArray[np.int64], advance: Advance) -> None:
        """Collect the candidates of every row of the group, from all texts."""
        scratch = self._scratch(pool)
        self._seed(pool, sample)

        def work(thread: int, pair: tuple[int, int]) -> None:
            self._tile(scratch[thread], pair[0], pair[1], self._blocks)

        pool.run(disjoint_pairs(self._blocks.count), work, lambda: advance(BLOCK**2))
        self._score_against(pool, scratch, self._outside(), advance)

    def score_new(self, pool: Threads, limits_n: NDArray[Any], first_new: int, advance: Advance) -> None:
        """Collect candidates from the texts from `first_new` on, of rows that begin with a limit each."""
        self._limits_S[: len(limits_n)] = limits_n
        self._score_against(pool, self._scratch(pool), np.arange(first_new, len(self._vectors_ND)), advance)

    def _scratch(self, pool: Threads) -> list[torch.Tensor]:
        return [torch.empty(TILE_ROWS * BLOCK, dtype=self._format.dtype) for _ in range(pool.count)]

    def _score_against(self, pool: Threads, scratch: list[torch.Tensor], ids: NDArray[np.int64], advance: Advance) -> None:
        """Score texts that are none of the group's, a stripe at a time; they serve the rows only."""
        for start in range(0, len(ids), STRIPE * BLOCK):
            others = self._cast(ids[start : start + STRIPE * BLOCK])
            tasks = ((row, column) for column in range(others.count) for row in range(self._blocks.count))

            def work(thread: int, pair: tuple[int, int], others: _Blocks = others) -> None:
                self._tile(scratch[thread], pair[0], pair[1], others)

            pool.run(tasks, work, lambda: advance(BLOCK**2))

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

        pool.run(range(0, len(piece), _CHUNK), work, lambda: advance(chunk_pairs(piece)))
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def finish_new(self, pool: Threads, stored: Neighbors) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Exact neighbours of the group's rows among those they had and the candidates; and which rows are not settled."""
        count = len(stored.ids_nK)
        ids_nK, bits_nK = np.empty((count, self._k), np.int32), np.empty((count, self._k), np.int16)
        failed_n = np.empty(count, np.bool_)

        def work(_thread: int, first: int) -> None:
            part = slice(first, min(first + _CHUNK, count))
            selection.finish_new(
                self._bits_ND,
                self._blocks.ids_S[part],
                stored.ids_nK[part],
                self._limits_S[part],
                self._counts_S[part],
                self._ids_SW[part],
                self._bounds.ceiling,
                self._format.shift,
                ids_nK[part],
                bits_nK[part],
                failed_n[part],
            )

        pool.run(range(0, count, _CHUNK), work)
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def _near_order(self, rows: slice) -> NDArray[np.int64]:
        """An order of some rows of the state in which rows near one another follow one another, roughly."""
        vectors_nD = self._blocks.vectors_SD[rows]
        pivots_PD = vectors_nD[:: max(1, len(vectors_nD) // _PIVOTS)]
        starts = range(0, len(vectors_nD), BLOCK)
        nearest = [(vectors_nD[start : start + BLOCK] @ pivots_PD.T).argmax(dim=1) for start in starts]
        order: NDArray[np.int64] = torch.cat(nearest).argsort(stable=True).numpy()
        return order

    def _cast(self, ids: NDArray[np.int64]) -> _Blocks:
        rows = -(-len(ids) // BLOCK) * BLOCK
        vectors_SD = torch.zeros(rows, self._vectors_ND.shape[1], dtype=self._format.dtype)
        for start in range(0, len(ids), BLOCK):
            part = torch.from_numpy(self._vectors_ND[ids[start : start + BLOCK]])
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
        expected = BAND * (self._k + 1) * len(sample) / len(self._vectors_ND)
        rank = min(int(np.ceil(expected + _SPREAD * np.sqrt(expected))) + 1, len(sample) // selection.LANES)
        step = BLOCK // 4
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
        scores = scratch.view(TILE_ROWS, BLOCK)
        with ExitStack() as held:
            for block in locks:
                # In one order everywhere, so that no two threads wait for each other.
                held.enter_context(self._locks[block])
            for start in range(0, BLOCK, TILE_ROWS):
                rows = slice(start, start + TILE_ROWS)
                torch.mm(self._blocks.vectors(row_block)[rows], columns.vectors(column_block).T, out=scores)
                selection.scan_tile(
                    scores.view(self._format.integer).numpy().reshape(-1),
                    BLOCK,
                    self._blocks.ids(row_block)[rows],
                    row_block * BLOCK + start,
                    columns.ids(column_block),
                    column_block * BLOCK,
                    self._limits_S if mutual else self._closed,
                    column_block * BLOCK if mutual else 0,
                    self._limits_S,
                    self._counts_S,
                    self._ids_SW,
                    self._scores_SW,
                    self._k,
                    self._bounds.lowered,
                    self._format.shift,
                )


def chunks(piece: ShardRange) -> int:
    """Tasks that a piece is re-ranked in."""
    return -(-len(piece) // _CHUNK)


def chunk_pairs(piece: ShardRange) -> int:
    """What each of them counts as, in pairs scored."""
    return len(piece) * _RERANKING_PAIRS // chunks(piece)


def disjoint_pairs(count: int) -> Iterator[tuple[int, int]]:
    """All unordered pairs of 0..count-1, a number with itself included, so that pairs close by share no number.

    The pairs with i + j = r modulo `count` are disjoint: threads that work on neighbouring pairs do not wait for blocks.
    """
    for total in range(count):
        for one in range(count):
            other = (total - one) % count
            if one <= other:
                yield one, other
