"""What a float16 score proves about the exact similarity, as tables on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from graphbuild.knn.engines.scores import FLOAT16, make_bounds

LONGEST = 1.01
"""Length of a vector, at most; the stage refuses longer ones."""


class Certificate:
    """The error bound of scores that are summed in float32 and rounded to float16."""

    def __init__(self, dim: int, device: torch.device) -> None:
        bounds = make_bounds(FLOAT16, dim=dim, longest=LONGEST, cast=0.0)
        self.lowered = torch.from_numpy(bounds.lowered).to(device)
        """See `Bounds`; int16."""
        self._ceiling = torch.from_numpy(bounds.ceiling).to(device)

    def highest(self, scores_t: Tensor) -> Tensor:
        """Return the highest exact similarity that a float16 score, or any score below it, can stand for; float64."""
        magnitude_t = scores_t.abs()
        ceiling_t = self._ceiling[magnitude_t.view(torch.int16).long()]
        # The error of a negative score is that of its magnitude.
        return torch.where(scores_t < 0, ceiling_t - 2 * magnitude_t.double(), ceiling_t)

    def holds(self, scores_tC: Tensor, rows_tD: Tensor, columns_CD: Tensor) -> bool:
        """Return whether scores are within the bound of the exact similarities."""
        exact_tC = rows_tD.double() @ columns_CD.double().T
        error_tC = self.highest(scores_tC.abs()) - scores_tC.abs().double()
        return bool(((scores_tC.double() - exact_tC).abs() <= error_tC).all())
