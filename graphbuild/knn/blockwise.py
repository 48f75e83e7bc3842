"""Exact neighbours by any similarity that can be told for a tile of pairs: every pair is looked at, in float64.

Shape letters: N texts, n texts that are asked for, r rows and c columns of a tile, K neighbours kept, W candidates that a row has
room for, M landmarks. Held in memory are a tile for each thread and the neighbours of these texts. Ties go to the lower id.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from graphbuild.knn.engines.base import Advance, Neighbors, ignore_progress
from graphbuild.knn.engines.threads import threads

Rows: TypeAlias = slice | NDArray[np.integer]
"""Texts, by their ids."""
Tile: TypeAlias = NDArray[np.float64]
_ROWS, _COLUMNS = 128, 4096
"""Of a tile, so that what is made for it stays in a core's cache."""
_LANDMARKS = 1024


class Similarity(Protocol):
    """How similar texts are; the same both ways, at most 1, and 1 of a text with itself."""

    least: float
    """No pair is less similar."""

    def tile(self, rows: Rows, columns: Rows) -> Tile:
        """Return similarities of some texts with some others; (r, c), an array of its own."""


def nearest(
    similarity: Similarity, texts_n: NDArray[np.integer], count: int, k: int, advance: Advance = ignore_progress
) -> tuple[Neighbors, NDArray[np.float64]]:
    """Find the k most similar of `count` texts to each of some texts, and the similarity of the last of them, (n,), unrounded."""
    ids_nK, kept_nK = np.empty((len(texts_n), k), np.int32), np.empty((len(texts_n), k), np.float64)
    starts = range(0, len(texts_n), _ROWS)

    def work(_thread: int, start: int) -> None:
        rows = texts_n[start : start + _ROWS]
        found = _Best(rows, k)
        for first in range(0, count, _COLUMNS):
            found.offer(similarity.tile(rows, slice(first, min(first + _COLUMNS, count))), first)
        ids_nK[start : start + len(rows)], kept_nK[start : start + len(rows)] = found.finish()

    # One thread each: threads share the rows out, and would wait for each other's.
    with threads() as pool, threadpool_limits(1):
        pool.run(starts, work, done=lambda start: advance(len(texts_n[start : start + _ROWS]) * count))
    return as_stored(ids_nK, kept_nK), kept_nK.min(axis=1, initial=1.0)


def as_stored(ids_nK: NDArray[np.int32], similarities_nK: Tile) -> Neighbors:
    """Return neighbours in the order in which they are stored: by the similarity in float16, then by id."""
    rounded_nK = similarities_nK.astype(np.float16)
    order_nK = np.lexsort((ids_nK, -rounded_nK.astype(np.float32)))
    return Neighbors(np.take_along_axis(ids_nK, order_nK, 1), np.take_along_axis(rounded_nK, order_nK, 1), 0)


class _Best:
    """The k best of what some rows were offered, column by column."""

    def __init__(self, texts_r: NDArray[np.integer], k: int) -> None:
        self._texts_r, self._k, rows = texts_r, k, len(texts_r)
        width = 2 * k + 64
        self._ids_rW, self._kept_rW = np.empty((rows, width), np.int32), np.empty((rows, width), np.float64)
        self._filled_r, self._limits_r = np.zeros(rows, np.int64), np.full(rows, -np.inf)

    def offer(self, tile: Tile, first_column: int) -> None:
        """Look at the similarities of consecutive texts, which follow those that were looked at before."""
        own_r = self._texts_r - first_column
        _offer(
            np.ascontiguousarray(tile), own_r, first_column, self._k, self._limits_r, self._filled_r, self._ids_rW, self._kept_rW
        )

    def finish(self) -> tuple[NDArray[np.int32], Tile]:
        """Return ids and similarities, best first; (r, k) each."""
        _finish(self._k, self._filled_r, self._ids_rW, self._kept_rW)
        return self._ids_rW[:, : self._k], self._kept_rW[:, : self._k]


@njit(nogil=True, cache=True)
def _thin(k: int, filled: int, ids_W: NDArray[np.int32], kept_W: Tile) -> None:
    # Stable: of equal ones the earlier stay, which have the lower ids.
    order = np.argsort(-kept_W[:filled], kind="mergesort")[:k]
    ids, kept = ids_W[order], kept_W[order]
    ids_W[: len(order)], kept_W[: len(order)] = ids, kept


@njit(nogil=True, cache=True)
def _offer(
    tile_rc: Tile,
    own_r: NDArray[np.integer],
    first_column: int,
    k: int,
    limits_r: Tile,
    filled_r: NDArray[np.int64],
    ids_rW: NDArray[np.int32],
    kept_rW: Tile,
) -> None:
    """Keep what is above each row's limit; where a row has no more room, its k best stay, and the limit rises."""
    for row in range(tile_rc.shape[0]):
        limit, filled = limits_r[row], filled_r[row]
        for column in range(tile_rc.shape[1]):
            value = tile_rc[row, column]
            if value > limit and column != own_r[row]:
                ids_rW[row, filled], kept_rW[row, filled] = first_column + column, value
                filled += 1
                if filled == ids_rW.shape[1]:
                    _thin(k, filled, ids_rW[row], kept_rW[row])
                    filled, limit = k, kept_rW[row, k - 1]
        limits_r[row], filled_r[row] = limit, filled


@njit(nogil=True, cache=True)
def _finish(k: int, filled_r: NDArray[np.int64], ids_rW: NDArray[np.int32], kept_rW: Tile) -> None:
    for row in range(len(filled_r)):
        _thin(k, filled_r[row], ids_rW[row], kept_rW[row])


class Landmarks:
    """Some texts whose similarities with a text stand for it: features of any similarity, exact as far as they reach.

    Nyström's method (Williams and Seeger, NIPS 2000): the R leading eigenvectors of the landmarks' own similarities, scaled by
    the roots of their eigenvalues, make of these features vectors whose inner products approximate all similarities.
    """

    def __init__(self, similarity: Similarity, count: int) -> None:
        self._similarity = similarity
        self._ids_M = np.sort(np.random.default_rng(0).permutation(count)[:_LANDMARKS])

    def own(self) -> Tile:
        """Return similarities of the landmarks among themselves; (M, M)."""
        return self._similarity.tile(self._ids_M, self._ids_M)

    def features(self, ids_n: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return similarities of some texts with the landmarks; (n, M)."""
        features_nM = np.empty((len(ids_n), len(self._ids_M)), np.float16)
        for start in range(0, len(ids_n), _COLUMNS):
            rows = slice(start, start + _COLUMNS)
            features_nM[rows] = self._similarity.tile(ids_n[rows], self._ids_M)
        return features_nM
