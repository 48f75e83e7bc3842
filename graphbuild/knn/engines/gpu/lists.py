"""What rows have listed so far, and what is asked of the code that fills and reads these lists.

Shape letters: n rows of a group, t rows and C columns of a tile, M texts of a sample, W candidates a row has room for,
K neighbours kept.

Scores are float16, seen as int16 codes wherever they are ordered: non-negative ones order alike, negative ones below these.
Limits are codes of at least 0. Candidates are positions (`vectors`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from graphbuild.knn.engines.gpu.vectors import Vectors, padded


@dataclass(slots=True)
class Lists:
    """The candidates of a group of rows."""

    limits_n: Tensor
    """Code of the score that a candidate must exceed; only rises, so whatever was turned away scored at most this."""
    counts_n: Tensor
    """Candidates entered since the last thinning; more than W where some were lost for want of room."""
    ids_nW: Tensor
    codes_nW: Tensor
    spilled_n: Tensor
    """1 where candidates above the limit were lost: only another search can tell."""

    @classmethod
    def empty(cls, rows: int, width: int, device: torch.device) -> Lists:
        """Return lists of no candidates, and limits of 0; padded, because kernels look at limits in whole words."""
        made = padded(rows)
        return cls(
            torch.zeros(made, dtype=torch.int16, device=device),
            torch.zeros(made, dtype=torch.int32, device=device),
            torch.empty((rows, width), dtype=torch.int32, device=device),
            torch.empty((rows, width), dtype=torch.int16, device=device),
            torch.zeros(rows, dtype=torch.int8, device=device),
        )

    @staticmethod
    def row_bytes(width: int) -> int:
        """Return the bytes that a row takes."""
        return 6 * width + 7


@dataclass(slots=True)
class Columns:
    """Texts that a panel of rows is scored against."""

    vectors_CD: Tensor
    """Padded: rows beyond the positions are zeros."""
    positions_C: Tensor
    at: int | None
    """The row of the group that the first column is, where the columns are to list the rows, too."""


@dataclass(slots=True)
class Best:
    """The K best of some rows' candidates."""

    texts_tK: Tensor
    """Text ids, by float16 similarity, then by id; int32."""
    similarities_tK: Tensor
    kth_t: Tensor
    """The exact K-th similarity, float64; minus infinity where a row has fewer than K candidates."""


class Steps(Protocol):
    """The steps of a search that touch every score or candidate."""

    name: str

    def first_limits(self, scores_tM: Tensor, rank: int) -> Tensor:
        """Return the codes one step below the `rank`-th largest of each row's scores, at least 0; (t,)."""

    def enter(self, scores_tC: Tensor, lists: Lists, top: int, positions_t: Tensor, columns: Columns) -> None:
        """Enter each score of a tile that exceeds its row's limit, and each that exceeds its column's where these list, too.

        Args:
            scores_tC: float16; a row of the tile may be followed by others' scores.
            lists: Of the group.
            top: The row of the group that the tile's first row is.
            positions_t: Positions of the rows.
            columns: What was scored.
        """

    def raise_limits(self, lists: Lists, rows: slice, rank: int, lowered: Tensor | None) -> None:
        """Raise limits by the `rank`-th best candidate, and drop what does not exceed them.

        Args:
            lists: Of the group.
            rows: Which of its rows.
            rank: In a random sample, as `limits` has it; or K + 1.
            lowered: `Bounds.lowered`, for a rank of K + 1: what it turns away is certainly not among the K best.
        """

    def best(self, vectors: Vectors, own_t: Tensor, ids_tW: Tensor, counts_t: Tensor, k: int) -> Best:
        """Score candidates exactly, and keep the K best of each row; the row itself, wherever it is listed, is left out.

        Args:
            vectors: All.
            own_t: Position of each row.
            ids_tW: Candidates' positions.
            counts_t: How many each row has, at most W.
            k: K.
        """
