"""Tile search: scores of shortened vectors, a limit per row to select by, each tile serving rows and columns.

Shape letters: N texts, S rows of the state, B rows of a block, D vector width, K neighbours kept, W candidates a row has
room for.

Rows are taken in groups as large as memory allows. Within a group every pair is scored once, and serves both texts; the
rest of the texts serve the group's rows only. Limits start from a random sample of the texts. Candidates are re-ranked
exactly; rows that their certificate does not settle are searched by `rowblocks`. So the result is a function of the
vectors alone: of no coding, group, number of threads, or order of tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.base import Advance, Neighbors, ignore_progress, join_parts
from graphbuild.knn.engines.coding import FORMATS, Coding
from graphbuild.knn.engines.group import BLOCK, STRIPE, TILE_ROWS, GroupSearch
from graphbuild.knn.engines.groups import Groups
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.threads import threads
from graphbuild.knn.engines.widths import choose_coding
from graphbuild.knn.kernels.halves import LANES
from graphbuild.store.files import ShardRange

_SAMPLE = 2048
_SAMPLE_SHARE = 16
"""The sample is at most a sixteenth of the texts."""
_ROOM = 1.7
"""Candidates that a row has room for, to each neighbour: with less, rows are thinned more often."""
_FALLBACK_SHARE = 4
"""Of the memory, a quarter is for searching unsettled rows again."""


class TileEngine:
    """The fast engine for many texts."""

    def __init__(self, vectors_ND: NDArray[np.float16], *, k: int, memory_limit: int, precision: str | Coding = "auto") -> None:
        """Prepare for searches.

        Args:
            vectors_ND: Unit vectors, C order; may be a memory map.
            k: Neighbours a text, 1 to N-1.
            memory_limit: Bytes to stay within, the vectors and one range's results not counted.
            precision: A coding; or a number format, for all coordinates in it; `auto` measures which coding is the fastest
                here and for these vectors, at the first search.

        Raises:
            ResourceError: If the limit leaves no room for a group of rows.
        """
        count, dim = vectors_ND.shape
        self._vectors_ND = vectors_ND
        self._k = k
        self._precision = precision
        self._sample = _sample_size(count)
        self._width = _width(k)
        self.groups = plan_groups(count, dim, k, memory_limit)
        """How texts are searched for together."""
        self._fallback = RowBlockEngine(vectors_ND, k=k, memory_limit=memory_limit // _FALLBACK_SHARE)

    @staticmethod
    def required_memory(count: int, dim: int, k: int) -> int:
        """Return the least memory limit, in bytes."""
        fixed, per_row = _footprint(count, dim, k)
        scoring = (fixed + per_row * BLOCK) * _FALLBACK_SHARE // (_FALLBACK_SHARE - 1) + _FALLBACK_SHARE
        return max(scoring, RowBlockEngine.required_memory(count, dim, k) * _FALLBACK_SHARE)

    @cached_property
    def coding(self) -> Coding:
        """How vectors are shortened for the scoring pass."""
        if isinstance(self._precision, Coding):
            return self._precision
        if self._precision in FORMATS:
            return Coding(self._precision)
        return choose_coding(self._vectors_ND, self._k).coding

    @property
    def precision(self) -> str:
        """Number format and width of the scoring pass."""
        return self.coding.name(self._vectors_ND.shape[1])

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Return the number of pairs of texts that a search scores, in whole tiles."""
        return self.groups.pairs(ranges)

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return all that a search tells `advance`."""
        return self.groups.work(ranges)

    def search(self, ranges: Sequence[ShardRange], advance: Advance = ignore_progress) -> Iterator[Neighbors]:
        """Yield the neighbours of each range of texts, in turn; as many texts as fit the memory limit are scored together."""
        parts: list[Neighbors] = []
        with threads() as pool:
            for group in self.groups.split(ranges):
                search = GroupSearch(pool, self._vectors_ND, group, self._k, self._width, self.coding)
                search.score(pool, self._sample_ids(), advance)
                for piece in group:
                    parts.append(self._settle(piece, *search.finish(pool, piece, advance)))
                    if piece.stop == ranges[piece.index].stop:
                        yield join_parts(parts)
                        parts = []
                # Before the next group's state is made.
                del search

    def extend(self, one: ShardRange, stored: Neighbors, first_new: int, advance: Advance = ignore_progress) -> Neighbors:
        """Return the neighbours of a range of texts, from those among the texts before `first_new`, where the range lies.

        Args:
            one: The range.
            stored: Its neighbours among the older texts, K each, as a search found them.
            first_new: The first text that they were not compared with.
            advance: Told of pairs that were scored.
        """
        parts: list[Neighbors] = []
        with threads() as pool:
            for (piece,) in self.groups.split([one]):
                rows = slice(piece.start - one.start, piece.stop - one.start)
                held = Neighbors(stored.ids_nK[rows], stored.similarities_nK[rows], 0)
                search = GroupSearch(pool, self._vectors_ND, [piece], self._k, self._width, self.coding, shuffle=False)
                search.score_new(pool, _limits_of(held.similarities_nK[:, -1]), first_new, advance)
                parts.append(self._settle(piece, *search.finish_new(pool, held)))
                del search
        return join_parts(parts)

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


def plan_groups(count: int, dim: int, k: int, memory_limit: int) -> Groups:
    """Return the groups that a search of N vectors of width D works with.

    Raises:
        ResourceError: If the limit leaves no room for a group of rows.
    """
    fixed, per_row = _footprint(count, dim, k)
    rows = (memory_limit - memory_limit // _FALLBACK_SHARE - fixed) // per_row // BLOCK * BLOCK
    if rows < BLOCK:
        needed = TileEngine.required_memory(count, dim, k)
        raise ResourceError(
            f"the search needs at least {needed / 1e6:,.0f} MB, and the memory limit leaves "
            f"{max(memory_limit, 0) / 1e6:,.0f} MB. Raise --memory-limit, or lower --k."
        )
    return Groups(count, rows)


def _sample_size(count: int) -> int:
    return min(_SAMPLE, count // _SAMPLE_SHARE) // LANES * LANES


def _width(k: int) -> int:
    return int(_ROOM * (k + 1)) + 64


def _limits_of(kth_n: NDArray[np.float16]) -> NDArray[np.float32]:
    """A limit for each row, surely below its exact K-th similarity, which is stored rounded to float16."""
    below_n = np.nextafter(kth_n, np.float16(-2)).astype(np.float32)
    return below_n - np.float32(1e-5)


def _footprint(count: int, dim: int, k: int) -> tuple[int, int]:
    """Bytes that are taken whatever the group of rows, and bytes a row of the group; for the widest codes."""
    sample = _sample_size(count)
    scratch = torch.get_num_threads() * 4 * TILE_ROWS * max(BLOCK, sample)
    stripe = STRIPE * BLOCK * dim * 24
    # Nine bytes a text to tell those outside the group.
    return scratch + sample * dim * 4 + stripe + 9 * count, _width(k) * 8 + dim * 6 + 32
