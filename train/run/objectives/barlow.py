"""Barlow Twins: each coordinate tells what it tells of the partners, and what no other tells."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from graphbuild.torch.blocks import Target
from graphbuild.torch.without_negatives import Terms, barlow_loss
from train.run.objectives.base import register
from train.run.objectives.pulled import Pulled


@register("barlow")
class Barlow(Pulled):
    """The correlation of views with the means of their partners, brought to the identity (arXiv 2103.03230)."""

    def _terms(self, p_2bD: Tensor, y_2BD: Tensor, target: Target, place: dict[str, Any]) -> Terms:
        return barlow_loss(y_2BD, target, **place, redundancy=self._config.barlow_redundancy)
