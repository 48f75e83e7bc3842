"""Sample ids that come more than once: which samples stay, and under which ids. `embed` and `train` count them alike.

Shape letters: S samples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

OnDuplicate = Literal["error", "first", "suffix"]
ON_DUPLICATE: tuple[OnDuplicate, ...] = ("error", "first", "suffix")
"""Repeated ids are refused, or only the first sample of each stays, or the others are told apart by their number."""


def occurrences(hashes_S: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many samples before each one have its id; (S,).

    Args:
        hashes_S: Hashes of the ids of all samples, in order; (S,).
    """
    order = np.argsort(hashes_S, kind="stable")
    ordered = hashes_S[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(ordered))
    before_S = np.empty(len(ordered), np.int64)
    before_S[order] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return before_S


def numbered(sample_id: str, before: int) -> str:
    """Return the id of a sample that so many of the same id come before: `a`, `a#2`, `a#3`."""
    return f"{sample_id}#{before + 1}" if before else sample_id
