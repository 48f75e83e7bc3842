"""Row-block search: each block of rows against all texts in float32, then exact re-ranking of the candidates.

Shape letters: N texts, n rows of a block, T columns of a tile, M candidates a row, K neighbours kept, D vector width.
Ids are text ids, which are row numbers of the vectors. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn import exact

_MARGIN = 32
"""Candidates beyond K: with fewer, more rows fail their certificate; with more, re-ranking takes longer."""
_TILE = 4096
_BLOCK = 4096
_SMALLEST_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The neighbours of consecutive texts, best first."""

    ids_nK: NDArray[np.int32]
    similarities_nK: NDArray[np.float16]
    recomputed: int
    """Rows that the certificate did not settle, computed again in float64."""


class Engine(Protocol):
    """Finds exact neighbours among the vectors it was made for."""

    precision: str
    """Number format of the scoring pass."""

    def search(self, start: int, stop: int, advance: Callable[[int], None]) -> Neighbors:
        """Neighbours of texts `start` to `stop` (exclusive); `advance` is told of finished rows."""


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
        per_row = 4 * _TILE + 24 * (self._kept + _TILE) + 4 * dim + 32 * self._kept
        self._block = min(_BLOCK, (memory_limit - 8 * _TILE * dim) // per_row)
        if self._block < min(_SMALLEST_BLOCK, count):
            needed = per_row * _SMALLEST_BLOCK + 8 * _TILE * dim
            raise ResourceError(
                f"the search needs at least {needed / 1e6:,.0f} MB, and the memory limit leaves {memory_limit / 1e6:,.0f} MB. "
                "Raise --memory-limit, or lower --k."
            )

    def search(self, start: int, stop: int, advance: Callable[[int], None]) -> Neighbors:
        """Neighbours of texts `start` to `stop` (exclusive); `advance` is told of finished rows."""
        ids_nK = np.empty((stop - start, self._k), np.int32)
        bits_nK = np.empty((stop - start, self._k), np.int16)
        recomputed = 0
        for first in range(start, stop, self._block):
            last = min(first + self._block, stop)
            rows = slice(first - start, last - start)
            recomputed += self._search_block(first, last, ids_nK[rows], bits_nK[rows])
            advance(last - first)
        return Neighbors(ids_nK, bits_nK.view(np.float16), recomputed)

    def _search_block(self, first: int, last: int, ids_nK: NDArray[np.int32], bits_nK: NDArray[np.int16]) -> int:
        rows_n = np.arange(first, last)
        candidates_nM, dropped_n = self._candidates(first, last)
        kth_n = np.empty(len(rows_n))
        exact.finish_rows(self._bits_ND, rows_n, candidates_nM, ids_nK, bits_nK, kth_n)
        # Nothing that was dropped can reach the K-th place: by its score, and the most that a score can be wrong.
        failed = np.flatnonzero(dropped_n + score_error(self._vectors_ND.shape[1]) >= kth_n)
        if len(failed):
            again_ids, again_bits = ids_nK[failed], bits_nK[failed]
            exact.brute_rows(self._bits_ND, rows_n[failed], again_ids, again_bits)
            ids_nK[failed], bits_nK[failed] = again_ids, again_bits
        return len(failed)

    def _candidates(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """The M best texts of each row by float32 score, and the best score that any other has at most."""
        rows_nD = torch.from_numpy(self._vectors_ND[first:last].astype(np.float32))
        count = len(self._vectors_ND)
        best_nM = torch.empty((last - first, 0))
        ids_nM = torch.empty((last - first, 0), dtype=torch.int32)
        for left in range(0, count, _TILE):
            right = min(left + _TILE, count)
            scores_nT = rows_nD @ torch.from_numpy(self._vectors_ND[left:right].astype(np.float32)).T
            joined = torch.cat([best_nM, scores_nT], dim=1)
            best_nM, places_nM = joined.topk(min(self._kept, joined.shape[1]), dim=1, sorted=False)
            columns = torch.arange(left, right, dtype=torch.int32).expand(last - first, -1)
            ids_nM = torch.cat([ids_nM, columns], dim=1).gather(1, places_nM)
        dropped_n = best_nM.amin(dim=1) if self._kept < count else torch.full((last - first,), -np.inf)
        return ids_nM.numpy(), dropped_n.double().numpy()


def score_error(dim: int) -> float:
    """Most that a float32 score of unit vectors of width D can be wrong.

    The inputs are exact, so only the accumulation counts: D u / (1 - D u) |x| |y| with u = 2^-24 (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1), for lengths up to 1.01.
    """
    unit = 2.0**-24
    return 1.01**2 * dim * unit / (1 - dim * unit)
