"""What a search for exact neighbours offers.

Shape letters: N texts, n rows asked for, K neighbours kept, D vector width.
Ids are text ids, which are row numbers of the vectors. Nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphbuild.store.files import ShardRange


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The neighbours of some texts, best first."""

    ids_nK: NDArray[np.int32]
    similarities_nK: NDArray[np.float16]
    recomputed: int
    """Rows that the certificate did not settle, and that were computed again in another way."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the receipt says of how they were found."""


def join_parts(parts: Sequence[Neighbors]) -> Neighbors:
    """Return the neighbours of consecutive rows as one; all were found in the same way."""
    if len(parts) == 1:
        return parts[0]
    return Neighbors(
        np.concatenate([part.ids_nK for part in parts]),
        np.concatenate([part.similarities_nK for part in parts]),
        sum(part.recomputed for part in parts),
        parts[0].facts,
    )


Advance = Callable[[int], None]
"""Told, from any thread, of work that was finished, in pairs of texts."""


def ignore_progress(_pairs: int) -> None:
    """Do nothing with the progress: for a caller that shows none."""


class Engine(Protocol):
    """Finds exact neighbours among the vectors it was made for; what it finds does not depend on which engine it is."""

    @property
    def precision(self) -> str:
        """Number format of the scoring pass."""

    def pairs(self, ranges: Sequence[ShardRange]) -> int:
        """Return the number of pairs of texts that a search scores."""

    def work(self, ranges: Sequence[ShardRange]) -> int:
        """Return all that a search tells `advance`: pairs scored, and re-ranking as the pairs that could be scored meanwhile."""

    def search(self, ranges: Sequence[ShardRange], advance: Advance = ignore_progress) -> Iterator[Neighbors]:
        """Yield the neighbours of each range of texts, in turn."""
