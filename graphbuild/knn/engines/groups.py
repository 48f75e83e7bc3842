"""Groups of texts that the tile engine searches for together: as many as fit the memory, and what each costs.

Shape letters: N texts, B texts of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphbuild.knn.engines.group import BLOCK, chunk_pairs, chunks
from graphbuild.store.files import ShardRange


@dataclass(frozen=True, slots=True)
class Groups:
    """How ranges of texts are cut into groups."""

    count: int
    """N."""
    rows: int
    """Texts of a group, at most; a multiple of B."""

    def split(self, ranges: Sequence[ShardRange]) -> Iterator[list[ShardRange]]:
        """Yield pieces of ranges, as many as fit at a time; `index` is that of the range among `ranges`."""
        group: list[ShardRange] = []
        room = self.rows
        for index, one in enumerate(ranges):
            start = one.start
            while start < one.stop:
                # A range is cut only where it does not fit a whole group.
                if group and one.stop - start > room:
                    yield group
                    group, room = [], self.rows
                stop = min(one.stop, start + room)
                group.append(ShardRange(index, start, stop))
                room -= stop - start
                start = stop
        if group:
            yield group

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Return how many pairs a search scores, in whole tiles: those within a group serve both of their sides."""
        tiles = 0
        for group in self.split(ranges):
            rows = sum(map(len, group))
            own, others = _blocks(rows), _blocks(self.count - rows)
            tiles += own * (own + 1) // 2 + own * others
        return tiles * BLOCK**2

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return the pairs of a search, and its re-ranking as the pairs that could be scored meanwhile."""
        pieces = [piece for group in self.split(ranges) for piece in group]
        return self.pairs(ranges) + sum(chunks(piece) * chunk_pairs(piece) for piece in pieces)

    def extension_pairs(self, ranges: Sequence[ShardRange], first_new: int) -> int:
        """Return how many pairs are scored to compare ranges with the texts from `first_new` on, in whole tiles."""
        return sum(map(_blocks, map(len, ranges))) * _blocks(self.count - first_new) * BLOCK**2


def _blocks(count: int) -> int:
    return -(-count // BLOCK)
