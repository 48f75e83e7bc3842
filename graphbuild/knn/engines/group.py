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
from graphbuild.knn.kernels import selection, settling
from graphbuild.knn.kernels.halves import LANES
from graphbuild.store.files import ShardRange

BLOCK = 1024
TILE_ROWS, TILE_COLUMNS = 512, 256
"""A tile's scores (half a megabyte) and its texts' vectors stay in a core's second-level cache until they are selected from."""
_SEED_ROWS = 64
_SPREAD = 3.5
"""Standard deviations by which a sample's rank is put lower, so that few rows start from too high a limit."""
STRIPE = 8
"""Blocks of texts outside the group that are coded at a time."""
_SUPER = 4
"""Blocks on each side of what a thread scores at a time: their vectors and candidates stay in the third-level cache."""
_MARKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the texts after which limits are raised."""
_CHUNK = 512
"""Rows that a thread re-ranks at a time."""
RERANKING_PAIRS = 15_000
"""What re-ranking a row counts as in the work of a search: about the pairs scored in the same time."""


_Part = tuple[torch.Tensor, selection.Codes]
"""The codes of some rows, and what scoring takes beside them."""


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Texts in whole blocks, as codes; the last block is filled up with zeros."""

    ids_S: NDArray[np.int32]
    rows: list[_Part]
    """As rows of tiles: `TILE_ROWS` each."""
    columns: list[_Part]
    """As columns of tiles: `TILE_COLUMNS` each."""

    @property
    def count(self) -> int:
        return len(self.ids_S) // BLOCK


class GroupSearch:
    """The search for the neighbours of one group of texts, among all texts."""

    def __init__(
        self,
        pool: Threads,
        vectors_ND: NDArray[np.float16],
        group: list[ShardRange],
        k: int,
        width: int,
        coding: Coding,
        *,
        shuffle: bool = True,
    ) -> None:
        """Code the texts of a group.

        Args:
            pool: Does the work.
            vectors_ND: All vectors.
            group: The texts.
            k: Neighbours a text.
            width: Candidates that a row has room for.
            coding: How vectors are shortened.
            shuffle: Take texts in random order. Then those that a row of a group of all texts has met are a sample of all, by
                which limits are raised.
        """
        self._vectors_ND, self._group, self._k, self._coding = vectors_ND, group, k, coding
        self._bits_ND = vectors_ND.view(np.int16)
        ids = np.concatenate([np.arange(piece.start, piece.stop) for piece in group])
        self._blocks = self._code(pool, _shuffled(ids) if shuffle else ids)
        self._met = 0
        """Texts that every row has met."""
        self._sampled = shuffle and len(ids) == len(vectors_ND)
        """Whether they are a random sample of all texts. Those of a shard are not: they may be one another's neighbours."""
        self._closed = np.full(TILE_COLUMNS, np.inf, np.float32)
        """Limits that nothing exceeds: for columns that are not served."""
        limits_S = np.full(len(self._blocks.ids_S), np.inf, np.float32)
        self._state = selection.new_state(limits_S, width, k, selection.full_error(vectors_ND.shape[1], LONGEST))
        self._locks = [threading.Lock() for _ in range(self._blocks.count)]

    def score(self, pool: Threads, sample: NDArray[np.int64], advance: Advance) -> None:
        """Collect the candidates of every row of the group, from all texts."""
        scratch = self._scratch(pool)
        self._seed(pool, sample)

        def work(thread: int, pairs: list[tuple[int, int]]) -> None:
            for row, column in pairs:
                self._tile(scratch[thread], row, column, self._blocks)

        for tasks, met in rounds(self._blocks.count, pool.count):
            pool.run(tasks, work, lambda pairs: advance(len(pairs) * BLOCK**2))
            self._raise_limits(pool, met * BLOCK)
        self._score_against(pool, scratch, _shuffled(self._outside()), advance)

    def score_new(self, pool: Threads, limits_n: NDArray[np.float32], first_new: int, advance: Advance) -> None:
        """Collect candidates from the texts from `first_new` on, of rows that begin with a limit each."""
        self._state.limits_S[: len(limits_n)] = limits_n
        self._score_against(pool, self._scratch(pool), np.arange(first_new, len(self._vectors_ND)), advance)

    def _scratch(self, pool: Threads) -> list[torch.Tensor]:
        return [self._coding.new_scores(TILE_ROWS, TILE_COLUMNS) for _ in range(pool.count)]

    def _score_against(self, pool: Threads, scratch: list[torch.Tensor], ids: NDArray[np.int64], advance: Advance) -> None:
        """Score texts that are none of the group's, a stripe at a time; they serve the rows only."""
        for start in range(0, len(ids), STRIPE * BLOCK):
            others = self._code(pool, ids[start : start + STRIPE * BLOCK])
            tasks = ((row, column) for column in range(others.count) for row in range(self._blocks.count))

            def work(thread: int, pair: tuple[int, int], others: _Blocks = others) -> None:
                self._tile(scratch[thread], pair[0], pair[1], others)

            pool.run(tasks, work, lambda _pair: advance(BLOCK**2))

    def _raise_limits(self, pool: Threads, met: int) -> None:
        """Raise limits by the candidates so far, where the texts that rows have met pass a mark."""
        before, self._met = self._met, self._met + met
        total = len(self._vectors_ND)
        if self._sampled and any(before < mark * total <= self._met for mark in _MARKS):
            rank = min(rank_among(self._k + 1, min(1.0, self._met / total)), self._k + 1)
            starts = range(0, len(self._state.limits_S), BLOCK)
            pool.run(starts, lambda _thread, start: selection.raise_limits(self._state, start, start + BLOCK, rank))

    def finish(self, pool: Threads, piece: ShardRange, advance: Advance) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Return the exact neighbours of one piece of the group, and which of its rows are not settled."""
        ids_S = self._blocks.ids_S
        rows_n = np.flatnonzero((ids_S >= piece.start) & (ids_S < piece.stop))
        ids_nK = np.empty((len(piece), self._k), np.int32)
        bits_nK = np.empty((len(piece), self._k), np.int16)
        failed_n = np.empty(len(piece), np.bool_)

        def work(_thread: int, first: int) -> None:
            rows = rows_n[first : first + _CHUNK]
            settling.finish_candidates(self._bits_ND, rows, ids_S, piece.start, self._state, ids_nK, bits_nK, failed_n)

        pool.run(range(0, len(piece), _CHUNK), work, lambda _first: advance(chunk_pairs(piece)))
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def finish_new(self, pool: Threads, stored: Neighbors) -> tuple[Neighbors, NDArray[np.bool_]]:
        """Return the exact neighbours of the group's rows among theirs and the candidates, and which rows are not settled."""
        count = len(stored.ids_nK)
        ids_nK, bits_nK = np.empty((count, self._k), np.int32), np.empty((count, self._k), np.int16)
        failed_n = np.empty(count, np.bool_)

        def work(_thread: int, first: int) -> None:
            part = slice(first, min(first + _CHUNK, count))
            ids_n, old_nK = self._blocks.ids_S[part], stored.ids_nK[part]
            settling.finish_new(self._bits_ND, ids_n, old_nK, self._part(part), ids_nK[part], bits_nK[part], failed_n[part])

        pool.run(range(0, count, _CHUNK), work)
        return Neighbors(ids_nK, bits_nK.view(np.float16), 0), failed_n

    def _part(self, rows: slice) -> selection.State:
        limits, counts, ids, scores, k, error = self._state
        return selection.State(limits[rows], counts[rows], ids[rows], scores[rows], k, error)

    def _code(self, pool: Threads, ids: NDArray[np.int64]) -> _Blocks:
        filled = -(-len(ids) // BLOCK) * BLOCK
        codes_SP, facts = self._coding.empty(np.zeros((filled, self._vectors_ND.shape[1]), np.float16))
        facts.ids[: len(ids)] = ids

        def work(_thread: int, start: int) -> None:
            part = selection.some(facts, slice(start, start + BLOCK))
            own = ids[start : start + BLOCK]
            self._vectors_ND.take(own, axis=0, out=part.bits[: len(own)].view(np.float16), mode="clip")
            self._coding.fill(codes_SP[start : start + BLOCK], part)

        pool.run(range(0, filled, BLOCK), work)
        facts.errors[len(ids) :] = -np.inf
        rows, columns = (
            [(codes_SP[at : at + size], selection.some(facts, slice(at, at + size))) for at in range(0, filled, size)]
            for size in (TILE_ROWS, TILE_COLUMNS)
        )
        return _Blocks(facts.ids, rows, columns)

    def _outside(self) -> NDArray[np.int64]:
        inside = np.zeros(len(self._vectors_ND), np.bool_)
        for piece in self._group:
            inside[piece.start : piece.stop] = True
        return np.flatnonzero(~inside)

    def _seed(self, pool: Threads, sample: NDArray[np.int64]) -> None:
        """Give every row of the group its first limit: none where there are too few texts for a sample."""
        limits_S, ids_S = self._state.limits_S, self._blocks.ids_S
        if not len(sample):
            limits_S[ids_S >= 0] = -np.inf
            return
        codes_MP, facts = self._coding.encode(self._vectors_ND[sample])
        rank = min(rank_among(self._k + 1, len(sample) / len(self._vectors_ND)), len(sample) // LANES)
        scratch = [self._coding.new_scores(_SEED_ROWS, len(sample)) for _ in range(pool.count)]

        def work(thread: int, start: int) -> None:
            codes_RP, rows = self._blocks.rows[start // TILE_ROWS]
            for at in range(0, TILE_ROWS, _SEED_ROWS):
                multiply(codes_RP[at : at + _SEED_ROWS], codes_MP, scratch[thread])
                flat, limits_R = scratch[thread].numpy().reshape(-1), limits_S[start + at : start + at + _SEED_ROWS]
                selection.seed_limits(flat, len(sample), facts.scales, rows.scales[at : at + _SEED_ROWS], limits_R, rank)

        pool.run(range(0, len(limits_S), TILE_ROWS), work)
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
            for i in _tiles_of(row_block, TILE_ROWS):
                codes_RP, rows = self._blocks.rows[i]
                for j in _tiles_of(column_block, TILE_COLUMNS):
                    codes_CP, facts = columns.columns[j]
                    at = j * TILE_COLUMNS
                    limits_C = state.limits_S[at : at + TILE_COLUMNS] if mutual else self._closed
                    multiply(codes_RP, codes_CP, scores)
                    selection.scan_tile(flat, rows, i * TILE_ROWS, facts, limits_C, at if mutual else -1, state)


def _tiles_of(block: int, size: int) -> range:
    """Which tiles of so many texts are those of a block."""
    return range(block * BLOCK // size, (block + 1) * BLOCK // size)


def chunks(piece: ShardRange) -> int:
    """Return the tasks that a piece is re-ranked in."""
    return -(-len(piece) // _CHUNK)


def chunk_pairs(piece: ShardRange) -> int:
    """Return what each of them counts as, in pairs scored."""
    return len(piece) * RERANKING_PAIRS // chunks(piece)


def rank_among(count: int, share: float) -> int:
    """Return how many of `count` texts are hardly ever exceeded by those of them that a random `share` of all texts has."""
    expected = count * share
    return int(np.ceil(expected + _SPREAD * np.sqrt(expected))) + 1


def rounds(count: int, threads: int) -> Iterator[tuple[list[list[tuple[int, int]]], int]]:
    """Yield tasks that meet all unordered pairs of `count` blocks once, a block with itself included, in rounds.

    A task is the pairs of two runs of blocks. Runs i and j with i + j = r modulo their number are the tasks of round r: they
    share no block, so that threads do not wait for one another, and after it every block has met as many blocks.

    Yields:
        The tasks of a round, and how many blocks each block meets in it, at least.
    """
    size = max(1, min(_SUPER, count // (4 * threads)))
    runs = [range(start, min(start + size, count)) for start in range(0, count, size)]
    for total in range(len(runs)):
        pairs = ((one, (total - one) % len(runs)) for one in range(len(runs)))
        tasks = [[(i, j) for j in runs[other] for i in runs[one] if i <= j] for one, other in pairs if one <= other]
        yield tasks, min(size, count - total * size)


def _shuffled(ids_n: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(ids_n)
