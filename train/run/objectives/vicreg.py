"""VICReg: partners near, every coordinate spread over the batch, no two alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphbuild.torch.blocks import Target
from graphbuild.torch.without_negatives import Terms, vicreg_loss
from train.run.objectives.base import register
from train.run.objectives.pulled import Pulled


@register("vicreg")
class VICReg(Pulled):
    """Invariance to partners, variance, covariance (arXiv 2105.04906)."""

    def _terms(self, p_2bD: Tensor, y_2BD: Tensor, target: Target, place: dict[str, Any]) -> Terms:
        config = self._config
        return vicreg_loss(
            y_2BD,
            target,
            **place,
            invariance=config.vicreg_invariance,
            variance=config.vicreg_variance,
            covariance=config.vicreg_covariance,
        )
