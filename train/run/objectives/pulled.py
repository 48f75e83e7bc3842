"""What VICReg, Barlow Twins, SimSiam and LeJEPA share: two views, embeddings of any length, and partners; no negatives.

Shape letters: B samples in a batch, b of them this process's, D width of the projection.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graphbuild.store.arrays import Int64
from graphbuild.torch.blocks import Target
from graphbuild.torch.gather import gather_views
from graphbuild.torch.without_negatives import Terms
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.run.distributed import Ranks
from train.run.objectives.base import Loss, Outcome, autocast, split_of
from train.run.targets import SimCLR, make_graph_target, measures
from train.run.temperature import settle_tau_s
from train.run.watch import sphere_figures


class Projections(nn.Module):
    """An encoder whose projections keep their length, and, where there is one, a predictor on top."""

    def __init__(self, encoder: Encoder, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Return projections, and predictions of their partners (without a predictor the same); (n, D) float32 each."""
        projected = self.encoder.projections(views)
        return projected, projected if self.predictor is None else self.predictor(projected).float()


class Pulled:
    """A loss of partners: a subclass says which."""

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Open the graph where partners are taken from it.

        Raises:
            UserError: If there is none.
        """
        config, told = settle_tau_s(config, data, device)
        self._config, self._split = config, split_of(config, ranks)
        by_graph = config.positives == "graph"
        self._maker = make_graph_target(config, data, device, self._split) if by_graph else SimCLR(device)
        self.module: nn.Module = Projections(encoder, self._predictor(encoder)).to(device)
        self.encoder, self.note = encoder, "; ".join(filter(None, (self._maker.note, told)))

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Return G, by rows."""
        return self._maker.target(samples_B, epoch)

    def loss(self, encode: nn.Module, views: Tensor, target: Target) -> Outcome:
        """Take the loss of this process's views and their partners."""
        with autocast(self._config, views):
            own, predicted = encode(views)
        place = {"anchors": self._split.anchors, "tile": self._split.tile, "tau_s": float(self._config.tau_s)}
        terms = self._terms(predicted, gather_views(own), target, place)
        first, second = functional.normalize(own.detach(), dim=1).chunk(2)
        return Outcome(Loss(terms.loss, terms.own_view_mass), first, second, terms.parts)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Read the rows of the graph that a batch will need."""
        self._maker.read_ahead(samples_B, epoch)

    def measures(self, target: Target, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure the target, the parts of the loss, and how the two views lie on the sphere."""
        found = measures(target, self._split, with_kl=with_kl)
        return {**found, **sphere_figures(outcome.first_bD, outcome.second_bD), **outcome.parts}

    def _predictor(self, encoder: Encoder) -> nn.Module | None:
        return None

    def _terms(self, p_2bD: Tensor, y_2BD: Tensor, target: Target, place: dict[str, Any]) -> Terms:
        raise NotImplementedError
