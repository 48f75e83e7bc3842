"""Whether a run goes well: how its embeddings lie on the sphere, and its figures in TensorBoard.

Shape letters: b samples of this process, D width of the projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

COLLAPSED = 0.05
"""A spread below this is that of a net whose embeddings are nearly the same for all images."""
_MOST_ROWS = 2_048
"""Pairs are taken among so many samples: 16 MiB of distances."""
TENSORBOARD_FOLDER = "tensorboard"


def sphere_figures(first_bD: Tensor, second_bD: Tensor) -> dict[str, Tensor]:
    """Return how the unit vectors of a batch lie on the sphere; scalars.

    `spread`: the deviation of a coordinate over the batch times the root of D, mean over coordinates: 1 where the vectors lie
    evenly, 0 where all are the same (Chen and He, arXiv 2011.10566). `alignment`: mean squared distance of the two vectors of
    a sample, 0 to 4. `uniformity`: log of the mean of exp(-2 d^2) over pairs of different samples, from 0, all the same, down
    to about -4 (both Wang and Isola, arXiv 2005.10242).
    """
    first, second = first_bD[:_MOST_ROWS].float(), second_bD[:_MOST_ROWS].float()
    # Of unit vectors d^2 = 2 - 2 <x, y>. The pairs of a sample with itself count 1 each, and are taken out.
    exponentials = torch.exp(4 * (first @ first.T) - 4).sum() - torch.exp(4 * (first * first).sum(dim=1) - 4).sum()
    pairs = max(len(first) * (len(first) - 1), 1)
    return {
        "spread": first.std(dim=0, unbiased=False).mean() * first.shape[1] ** 0.5,
        "alignment": (first - second).square().sum(dim=1).mean(),
        "uniformity": (exponentials / pairs).log(),
    }


class Scalars:
    """Writes the lines of metrics.jsonl for TensorBoard, too."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """Open the event file; what an earlier session logged after `first_step` is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=first_step + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line; what has no meaning for the objective is left out."""
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
