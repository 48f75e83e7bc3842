"""Row-block search: each block of rows against all texts in float32, then exact re-ranking of the candidates.

Shape letters: N texts, n rows of a block, T columns of a tile, M candidates a row, K neighbours kept, D vector width.
For small sets of vectors, for nearly complete graphs, and for the rows that the tile engine cannot settle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.base import Advance, Neighbors, ignore_progress
from graphbuild.knn.engines.scores import FLOAT32, score_error
from graphbuild.knn.engines.threads import Threads, threads
from graphbuild.knn.kernels import exact
from graphbuild.store.files import ShardRange

_MARGIN = 32
"""Candidates beyond K: with fewer, more rows fail their certificate; with more, re-ranking takes longer."""
_TILE = 4096
_BLOCK = 4096
_SMALLEST_BLOCK = 64
_CHUNK = 256
"""Rows that a thread re-ranks at a time."""


class RowBlockEngine:
    """Scores row blocks in float32, whatever the machine; memory does not grow with the rows asked for."""

    precision = "float32"

    def __init__(self, vectors_ND: NDArray[np.float16], *, k: int, memory_limit: int) -> None:
        """Prepare for searches.

        Args:
            vectors_ND: Unit vectors, C order; may be a memory map.
            k: Neighbours a text, 1 to N-1.
            memory_limit: Bytes to stay within, the vectors and the results not counted.

        Raises:
            ResourceError: If even the smallest block takes more.
        """
        count, dim = vectors_ND.shape
        self._vectors_ND = vectors_ND
        self._bits_ND = vectors_ND.view(np.int16)
        self._k = k
        self._kept = min(k + 1 + _MARGIN, count)
        fixed, per_row = _footprint(count, dim, k)
        self._block = min(_BLOCK, (memory_limit - fixed) // per_row)
        if self._block < min(_SMALLEST_BLOCK, count):
            needed = self.required_memory(count, dim, k)
            raise ResourceError(
                f"the search needs at least {needed / 1e6:,.0f} MB, and the memory limit leaves "
                f"{max(memory_limit, 0) / 1e6:,.0f} MB. Raise --memory-limit, or lower --k."
            )

    @staticmethod
    def required_memory(count: int, dim: int, k: int) -> int:
        """Return the least memory limit, in bytes."""
        fixed, per_row = _footprint(count, dim, k)
        return fixed + per_row * min(_SMALLEST_BLOCK, count)

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Return the number of pairs of texts that a search scores: each row against all."""
        return sum(map(len, ranges)) * len(self._vectors_ND)

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return all that a search tells `advance`; re-ranking is a part of each row."""
        return self.pairs(ranges)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = ignore_progress) -> Iterator[Neighbors]:
        """Yield the neighbours of each range of texts, in turn."""
        for one in ranges:
            yield self.search_rows(np.arange(one.start, one.stop), advance)

    def search_rows(self, rows_n: NDArray[np.int64], advance: Advance = ignore_progress) -> Neighbors:
        """Return the neighbours of some texts, in the order given."""
        ids_nK = np.empty((len(rows_n), self._k), np.int32)
        bits_nK = np.empty((len(rows_n), self._k), np.int16)
        recomputed = 0
        with threads() as pool:
            for first in range(0, len(rows_n), self._block):
                part = slice(first, first + self._block)
                recomputed += self._search_block(pool, rows_n[part], ids_nK[part], bits_nK[part])
                advance(len(rows_n[part]) * len(self._vectors_ND))
        return Neighbors(ids_nK, bits_nK.view(np.float16), recomputed)

    def _search_block(self, pool: Threads, rows_n: NDArray[np.int64], ids_nK: NDArray[np.int32], bits_nK: NDArray[np.int16]) -> int:
        candidates_nM, dropped_n = self._candidates(pool, rows_n)
        kth_n = np.empty(len(rows_n))

        def finish(_thread: int, part: slice) -> None:
            exact.finish_rows(self._bits_ND, rows_n[part], candidates_nM[part], ids_nK[part], bits_nK[part], kth_n[part])

        pool.run([slice(first, first + _CHUNK) for first in range(0, len(rows_n), _CHUNK)], finish)
        # Nothing that was dropped can reach the K-th place: by its score, and the most that a score can be wrong.
        magnitude_n = np.abs(dropped_n)
        error_n = score_error(magnitude_n, FLOAT32, dim=self._vectors_ND.shape[1], longest=1.01, cast=0.0)
        failed = np.flatnonzero(dropped_n + error_n >= kth_n) if self._kept < len(self._bits_ND) else np.empty(0, np.int64)

        def again(_thread: int, row: int) -> None:
            one = slice(row, row + 1)
            exact.brute_rows(self._bits_ND, rows_n[one], ids_nK[one], bits_nK[one])

        pool.run(failed.tolist(), again)
        return len(failed)

    def _candidates(self, pool: Threads, rows_n: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The M best texts of each row by float32 score, and the best score that any other has at most."""
        rows_nD = torch.from_numpy(self._vectors_ND[rows_n]).float()
        count = len(self._vectors_ND)
        # Wider the fewer rows there are: a few that are searched again are done in one tile.
        width = min(count, _TILE * max(1, self._block // len(rows_n)))
        best_nM = torch.empty((len(rows_n), 0))
        ids_nM = torch.empty((len(rows_n), 0), dtype=torch.int32)
        for left in range(0, count, width):
            right = min(left + width, count)
            joined = torch.empty(len(rows_n), best_nM.shape[1] + right - left)
            joined[:, : best_nM.shape[1]] = best_nM
            self._score(pool, rows_nD, left, joined[:, best_nM.shape[1] :])
            best_nM, places_nM = joined.topk(min(self._kept, joined.shape[1]), dim=1, sorted=False)
            columns = torch.arange(left, right, dtype=torch.int32).expand(len(rows_n), -1)
            ids_nM = torch.cat([ids_nM, columns], dim=1).gather(1, places_nM)
        return ids_nM.numpy(), best_nM.amin(dim=1).double().numpy()

    def _score(self, pool: Threads, rows_nD: torch.Tensor, left: int, scores_nT: torch.Tensor) -> None:
        """Score rows against texts from `left` on, in float32."""
        step = _TILE // pool.count

        def work(_thread: int, start: int) -> None:
            stop = min(start + step, scores_nT.shape[1])
            columns_tD = torch.from_numpy(self._vectors_ND[left + start : left + stop]).float()
            scores_nT[:, start:stop] = rows_nD @ columns_tD.T

        pool.run(range(0, scores_nT.shape[1], step), work)


def _footprint(count: int, dim: int, k: int) -> tuple[int, int]:
    """Bytes that are taken whatever the block, and bytes a row of the block."""
    kept = min(k + 1 + _MARGIN, count)
    return 8 * _TILE * dim, 4 * _TILE + 24 * (kept + _TILE) + 4 * dim + 32 * kept
