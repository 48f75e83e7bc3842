"""The search for the neighbours of one group of texts: their candidates, as tiles of scores stream by, and re-ranking.

Shape letters: N texts, n rows of a piece of the group, S rows of the state, B rows of a block, D vector width, P width of
the codes, K neighbours kept, W candidates a row has room for. `graphbuild.knn.engines.tiles` says which groups there are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.knn.engines.base import Advance, Neighbors
from graphbuild.knn.engines.coding import LONGEST, Coding, multiply
from graphbuild.knn.engines.threads import Threads
from graphbuild.knn.kernels import selection
from graphbuild.knn.kernels.halves import LANES
from graphbuild.store.files import ShardRange

BLOCK = 1024
TILE_ROWS, TILE_COLUMNS = 512, 256
"""A tile's scores (half a megabyte) and its texts' vectors stay in a core's second-level cache until they are selected from."""
_SEED_ROWS = 64
_SPREAD = 3.0
"""Standard deviations by which a sample's rank is put lower, so that few rows start from too high a limit."""
STRIPE = 8
"""Blocks of texts outside the group that are coded at a time."""
_PIVOTS = 256
"""Texts by which a group is brought into order."""
_CHUNK = 512
"""Rows that a thread re-ranks at a time."""
_RERANKING_PAIRS = 8_000
"""What re-ranking a row counts as in the work of a search: about the pairs scored in the same time."""


@dataclass(slots=True)
class _Blocks:
    """Texts in whole blocks, as codes; the last block is filled up with zeros."""

    codes_SP: torch.Tensor
    facts: selection.Codes

    @property
    def count(self) -> int:
        return len(self.facts.ids) // BLOCK

    def part(self, start: int, rows: int) -> tuple[torch.Tensor, selection.Codes]:
        """The codes of some rows, and what bounds take beside them."""
        chosen = slice(start, start + rows)
        return self.codes_SP[chosen], selection.some(self.facts, chosen)


class GroupSearch:
    """The search for the neighbours of one group of texts, among all texts."""

    def __init__(
        self, vectors_ND: NDArray[np.float16], group: list[ShardRange], k: int, width: int, coding: Coding, *, near: bool = True
    ) -> None:
        """Code the texts of a group.

        Args:
            vectors_ND: All vectors.
            group: The texts.
            k: Neighbours a text.
            width: Candidates that a row has room for.
            coding: How vectors are shortened.
            near: Put texts near one another into the same blocks. Then most pairs that are scored in full lie in few tiles,
                and their vectors in the cache.
        """
        self._vectors_ND, self._group, self._k, self._coding = vectors_ND, group, k, coding
        self._bits_ND = vectors_ND.view(np.int16)
        ids = np.concatenate([np.arange(piece.start, piece.stop) for piece in group])
        self._blocks = self._code(ids[self._near_order(ids)] if near else ids)
        rows = len(self._blocks.facts.ids)
        self._closed = np.full(TILE_COLUMNS, np.inf, np.float32)
        """Limits that nothing exceeds: for columns that are not served."""
        # Left empty: pages that no candidate reaches are never taken.
        self._state = selection.State(
            np.full(rows, np.inf, np.float32),
            np.zeros(rows, np.int32),
            np.empty((rows, width), np.int32),
            np.empty((rows, width), np.float32),
            k,
            selection.full_error(vectors_ND.shape[1], LONGEST),
        )
        self._locks = [threading.Lock() for _ in range(self._blocks.count)]

    def score(self, pool: Threads, sample: NDArray[np.int64], advance: Advance) -> None:
        """Collect the candidates of every row of the group, from all texts."""
        scratch = self._scratch(pool)
        self._seed(pool, sample)

        def work(thread: int, pair: tuple[int, int]) -> None:
            self._tile(scratch[thread], pair[0], pair[1], self._blocks)

        pool.run(disjoint_pairs(self._blocks.count), work, lambda: advance(BLOCK**2))
        self._score_against(pool, scratch, self._outside(), advance)

    def score_new(self, pool: Threads, limits_n: NDArray[np.float32], first_new: int, advance: Advance) -> None:
        """Collect candidates from the texts from `first_new` on, of rows that begin with a limit each."""
        self._state.limits_S[: len(limits_n)] = limits_n
        self._score_against(pool, self._scratch(pool), np.arange(first_new, len(self._vectors_ND)), advance)

    def _scratch(self, pool: Threads) -> list[torch.Tensor]:
        return [self._coding.new_scores(TILE_ROWS, TILE_COLUMNS) for _ in range(pool.count)]

    def _score_against(self, pool: Threads, scratch: list[torch.Tensor], ids: NDArray[np.int64], advance: Advance) -> None:
        """Score texts that are none of the group's, a stripe at a time; they serve the rows only."""
        for start in range(0, len(ids), STRIPE * BLOCK):
            others = self._code(ids[start : start + STRIPE * BLOCK])
            tasks = ((row, column) for column in range(others.count) for row in range(self._blocks.count))

            def work(thread: int, pair: tuple[int, int], others: _Blocks = others) -> None:
                self._tile(scratch[thread], pair[0], pair[1], others)

            pool.run(tasks, work, lambda: advance(BLOCK**2))

    def finish(self, pool: Threads, piece: ShardRange, advance: Advance) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Exact neighbours of one piece of the group, and which of its rows are not settled."""
        ids_S = self._blocks.facts.ids
        rows_n = np.flatnonzero((ids_S >= piece.start) & (ids_S < piece.stop))
        ids_nK = np.empty((len(piece), self._k), np.int32)
        bits_nK = np.empty((len(piece), self._k), np.int16)
        failed_n = np.empty(len(piece), np.bool_)

        def work(_thread: int, first: int) -> None:
            rows = rows_n[first : first + _CHUNK]
            selection.finish_candidates(self._bits_ND, rows, ids_S, piece.start, self._state, ids_nK, bits_nK, failed_n)

        pool.run(range(0, len(piece), _CHUNK), work, lambda: advance(chunk_pairs(piece)))
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def finish_new(self, pool: Threads, stored: Neighbors) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Exact neighbours of the group's rows among those they had and the candidates; and which rows are not settled."""
        count = len(stored.ids_nK)
        ids_nK, bits_nK = np.empty((count, self._k), np.int32), np.empty((count, self._k), np.int16)
        failed_n = np.empty(count, np.bool_)

        def work(_thread: int, first: int) -> None:
            part = slice(first, min(first + _CHUNK, count))
            ids_n, old_nK = self._blocks.facts.ids[part], stored.ids_nK[part]
            selection.finish_new(self._bits_ND, ids_n, old_nK, self._part(part), ids_nK[part], bits_nK[part], failed_n[part])

        pool.run(range(0, count, _CHUNK), work)
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def _part(self, rows: slice) -> selection.State:
        limits, counts, ids, scores, k, error = self._state
        return selection.State(limits[rows], counts[rows], ids[rows], scores[rows], k, error)

    def _near_order(self, ids_n: NDArray[np.int64]) -> NDArray[np.int64]:
        """An order of some texts in which texts near one another follow one another, roughly."""
        pivots_QD = torch.from_numpy(self._vectors_ND[ids_n[:: max(1, len(ids_n) // _PIVOTS)]]).float()
        starts = range(0, len(ids_n), BLOCK)
        parts = (torch.from_numpy(self._vectors_ND[ids_n[start : start + BLOCK]]).float() for start in starts)
        nearest_n = torch.cat([(part_BD @ pivots_QD.T).argmax(dim=1) for part_BD in parts])
        order_n: NDArray[np.int64] = nearest_n.argsort(stable=True).numpy()
        return order_n

    def _code(self, ids: NDArray[np.int64]) -> _Blocks:
        filled = -(-len(ids) // BLOCK) * BLOCK
        codes_nP, found = self._coding.encode(self._vectors_ND[ids])
        codes_SP = torch.zeros(filled, codes_nP.shape[1], dtype=codes_nP.dtype)
        codes_SP[: len(ids)] = codes_nP
        facts = selection.Codes(np.full(filled, -1, np.int32), *(np.zeros(filled, np.float32) for _ in range(3)))
        facts.errors[len(ids) :] = -np.inf
        for whole, part in zip(facts, found, strict=True):
            whole[: len(ids)] = part
        facts.ids[: len(ids)] = ids
        return _Blocks(codes_SP, facts)

    def _outside(self) -> NDArray[np.int64]:
        inside = np.zeros(len(self._vectors_ND), np.bool_)
        for piece in self._group:
            inside[piece.start : piece.stop] = True
        return np.flatnonzero(~inside)

    def _seed(self, pool: Threads, sample: NDArray[np.int64]) -> None:
        """Give every row of the group its first limit: none where there are too few texts for a sample."""
        limits_S, ids_S = self._state.limits_S, self._blocks.facts.ids
        if not len(sample):
            limits_S[ids_S >= 0] = -np.inf
            return
        codes_MP, facts = self._coding.encode(self._vectors_ND[sample])
        expected = (self._k + 1) * len(sample) / len(self._vectors_ND)
        rank = min(int(np.ceil(expected + _SPREAD * np.sqrt(expected))) + 1, len(sample) // LANES)
        scratch = [self._coding.new_scores(_SEED_ROWS, len(sample)) for _ in range(pool.count)]

        def work(thread: int, start: int) -> None:
            codes_RP, rows = self._blocks.part(start, _SEED_ROWS)
            multiply(codes_RP, codes_MP, scratch[thread])
            flat = scratch[thread].numpy().reshape(-1)
            selection.seed_limits(flat, len(sample), facts.scales, rows, limits_S[start : start + _SEED_ROWS], rank)

        pool.run(range(0, len(limits_S), _SEED_ROWS), work)
        limits_S[ids_S < 0] = np.inf

    def _tile(self, scores: torch.Tensor, row_block: int, column_block: int, columns: _Blocks) -> None:
        """Score one pair of blocks; where both are the group's own, and not the same, the columns are served too."""
        mutual = columns is self._blocks and row_block != column_block
        locks = sorted({row_block, column_block}) if mutual else [row_block]
        flat = scores.numpy().reshape(-1)
        state = self._state
        with ExitStack() as held:
            for block in locks:
                # In one order everywhere, so that no two threads wait for each other.
                held.enter_context(self._locks[block])
            for start in range(row_block * BLOCK, (row_block + 1) * BLOCK, TILE_ROWS):
                codes_RP, rows = self._blocks.part(start, TILE_ROWS)
                for at in range(column_block * BLOCK, (column_block + 1) * BLOCK, TILE_COLUMNS):
                    codes_CP, facts = columns.part(at, TILE_COLUMNS)
                    limits_C = state.limits_S[at : at + TILE_COLUMNS] if mutual else self._closed
                    multiply(codes_RP, codes_CP, scores)
                    selection.scan_tile(self._bits_ND, flat, rows, start, facts, limits_C, at if mutual else -1, state)


def chunks(piece: ShardRange) -> int:
    """Tasks that a piece is re-ranked in."""
    return -(-len(piece) // _CHUNK)


def chunk_pairs(piece: ShardRange) -> int:
    """Return what each of them counts as, in pairs scored."""
    return len(piece) * _RERANKING_PAIRS // chunks(piece)


def disjoint_pairs(count: int) -> Iterator[tuple[int, int]]:
    """Yield all unordered pairs of 0..count-1, a number with itself included, so that pairs close by share no number.

    The pairs with i + j = r modulo `count` are disjoint: threads that work on neighbouring pairs do not wait for blocks.
    """
    for total in range(count):
        for one in range(count):
            other = (total - one) % count
            if one <= other:
                yield one, other
