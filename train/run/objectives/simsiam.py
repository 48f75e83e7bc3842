"""SimSiam: a predictor says the partners of a view, which take no gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.torch.blocks import Target
from graphbuild.torch.without_negatives import Terms, simsiam_loss
from train.model.encoders import Encoder
from train.run.objectives.base import register
from train.run.objectives.pulled import Pulled


@register("simsiam")
class SimSiam(Pulled):
    """The cosine of predictions with partners (arXiv 2011.10566); the predictor is trained, and is in the checkpoints."""

    def _predictor(self, encoder: Encoder) -> nn.Module | None:
        hidden, width = self._config.predictor_hidden, encoder.projector_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._config.seed)
            return nn.Sequential(
                nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width)
            )

    def _terms(self, p_2bD: Tensor, y_2BD: Tensor, target: Target, place: dict[str, Any]) -> Terms:
        return simsiam_loss(p_2bD, y_2BD, target, **place)
