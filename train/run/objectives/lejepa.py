"""LeJEPA: partners near, and embeddings spread as an isotropic Gaussian."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphbuild.store.arrays import Int64
from graphbuild.torch.blocks import Target
from graphbuild.torch.without_negatives import Terms, draw_directions, lejepa_loss
from train.run.objectives.base import register, seed_of_batch
from train.run.objectives.pulled import Pulled


@register("lejepa")
class LeJEPA(Pulled):
    """The distance to partners, and how far the embeddings are from a Gaussian along random directions (arXiv 2511.08544)."""

    _seed = 0

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Return G, by rows; the directions of the step follow from the batch."""
        self._seed = seed_of_batch(self._config.seed, samples_B, epoch)
        return super().target(samples_B, epoch)

    def _terms(self, p_2bD: Tensor, y_2BD: Tensor, target: Target, place: dict[str, Any]) -> Terms:
        config = self._config
        directions = draw_directions(y_2BD.shape[1], config.lejepa_directions, seed=self._seed).to(y_2BD.device)
        return lejepa_loss(y_2BD, target, **place, directions_DM=directions, isotropy=config.lejepa_isotropy)
