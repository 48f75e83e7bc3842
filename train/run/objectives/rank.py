"""Rank-N-Contrast: nearer than whatever the graph calls farther; of its similarities only the order counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graphbuild.store.arrays import Int64
from graphbuild.torch.blocks import Target
from graphbuild.torch.gather import gather_views
from graphbuild.torch.order import rank_loss
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.run.distributed import Ranks
from train.run.objectives.base import Loss, Needs, Outcome, autocast, register, split_of
from train.run.targets import make_graph_target, measures
from train.run.watch import sphere_figures


@register("rank", needs=Needs(graph="the order of neighbours"))
class Rank:
    """Two views of each image, and the order of G."""

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Open the graph.

        Raises:
            OptionError: If absent pairs have no similarity.
        """
        self._config, self._split, self._tau = config, split_of(config, ranks), float(config.tau)
        self._maker = make_graph_target(config, data, device, self._split)
        self.module: nn.Module = encoder
        self.encoder, self.note = encoder, self._maker.note

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """Return G, by rows."""
        return self._maker.target(samples_B, epoch)

    def loss(self, encode: nn.Module, views: Tensor, target: Target) -> Outcome:
        """Take the loss of this process's views against those of all."""
        with autocast(self._config, views):
            own = encode(views)
        loss = rank_loss(gather_views(own), target, self._split.anchors, tile=self._split.tile, tau=self._tau)
        return Outcome(Loss(loss), *own.detach().chunk(2))

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Read the rows of the graph that a batch will need."""
        self._maker.read_ahead(samples_B, epoch)

    def measures(self, target: Target, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure stored neighbours per anchor, and how the two views lie on the sphere."""
        return {**measures(target, self._split, with_kl=False), **sphere_figures(outcome.first_bD, outcome.second_bD)}
