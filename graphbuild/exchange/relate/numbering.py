"""Numbers of texts by the values of their rows, and sample ids that must come once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphbuild.errors import SourceError
from graphbuild.exchange.relate.source import Block


class Texts:
    """Distinct rows of values, by first appearance."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}
        self.values: list[tuple[Any, ...]] = []

    def number(self, rows: list[tuple[Any, ...]]) -> NDArray[np.int32]:
        """Return text ids of some rows; what is new gets the next ones."""
        places = np.empty(len(rows), np.int32)
        for at, row in enumerate(rows):
            places[at] = self._places.setdefault(row, len(self.values))
            if places[at] == len(self.values):
                self.values.append(row)
        return places


class SampleIds:
    """Sample ids so far, and where each stood."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, int]] = {}

    def add(self, block: Block) -> None:
        """Enter those of a block.

        Raises:
            SourceError: If one came before; both places are named.
        """
        for row, sample_id in enumerate(block.ids, block.first_row):
            where, first = self._places.setdefault(sample_id, (block.where, row))
            if (where, first) != (block.where, row):
                raise SourceError(
                    f"sample id {sample_id!r} comes twice, in row {first:,} of {where} and row {row:,} of {block.where}. "
                    "Choose another --id-column, or leave one of the rows out."
                )
