"""X-CLR, SimCLR and SupCon: two views of each image, one loss, three targets, and six ways to weigh the denominator.

Shape letters: B samples in a batch, b of them this process's, D width of the projection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from graphbuild.store.arrays import Int64
from graphbuild.torch.blocks import Target
from graphbuild.torch.gather import gather_views
from graphbuild.torch.losses import LogitScale
from graphbuild.torch.modules import two_view_loss
from graphbuild.torch.repulsion import ByGraph, Decoupled, Hard, Mixed, Repulsion
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.run.distributed import Ranks
from train.run.objectives.base import Loss, Needs, Outcome, autocast, register, seed_of_batch, split_of
from train.run.objectives.queue import Queue
from train.run.targets import TargetMaker, make_graph_target, make_target, measures
from train.run.temperature import settle_tau_s
from train.run.watch import sphere_figures


class ContrastiveTarget(NamedTuple):
    """Whom the samples of a batch are drawn to, and whom they are pushed from."""

    positives: Target
    repulsion: Repulsion | None
    samples_B: Int64


class Views(nn.Module):
    """An encoder, the scale of its similarities where that is learned, and a queue of past views where there is one."""

    def __init__(self, encoder: Encoder, scale: LogitScale | None, queue: Queue | None) -> None:
        super().__init__()
        self.encoder, self.scale, self.queue = encoder, scale, queue

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return unit vectors, (n, D), and what their cosines are multiplied with."""
        return self.encoder(views), None if self.scale is None else self.scale()


@register("xclr", needs=Needs(graph="its target", queue=True))
@register("simclr", needs=Needs(queue=True))
@register("supcon", needs=Needs(labels=True, queue=True))
class Contrastive:
    """The soft cross-entropy of a target, with weights in the denominator."""

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Open the targets.

        Raises:
            UserError: If the data lack what they need.
        """
        config, told = settle_tau_s(config, data, device)
        self._config, self._split = config, split_of(config, ranks)
        # Every process knows the samples of a queue, and looks up the rows of all columns itself.
        self._split = replace(self._split, gather=None) if config.queue else self._split
        self._positives = make_target(config, data, device, self._split)
        self._repelled: TargetMaker | None = None
        shaped = bool(config.own_weight) or config.min_similarity is not None
        if config.negatives == "graph" and (config.objective != "xclr" or shaped):
            # What the texts say, before the options of the target.
            plain = replace(config, own_weight=0.0, min_similarity=None, kl_every=0)
            self._repelled = make_graph_target(plain, data, device, self._split)
        scale = LogitScale().to(device) if config.tau == "learned" else None
        self._queue = Queue(config.queue, config.projector_dim, device) if config.queue else None
        self._plain = scale is None and self._queue is None
        self.module: nn.Module = encoder if self._plain else Views(encoder, scale, self._queue)
        self.encoder, self.note = encoder, "; ".join(filter(None, (self._positives.note, told)))

    def target(self, samples_B: Int64, epoch: int) -> ContrastiveTarget:
        """Return G, by rows, and the weights; the samples of a queue come after those of the batch."""
        columns = samples_B if self._queue is None else self._queue.with_batch(samples_B)
        return ContrastiveTarget(self._positives.target(columns, epoch), self._repulsion(columns, epoch), samples_B)

    def loss(self, encode: nn.Module, views: Tensor, target: ContrastiveTarget) -> Outcome:
        """Take the loss of this process's views against those of all."""
        config, parts = self._config, {}
        with autocast(config, views):
            own, scale = (encode(views), None) if self._plain else encode(views)
        past = None if self._queue is None else self._queue.views()
        if scale is None:
            z, tau = own, float(config.tau)
        else:
            # The product of two vectors has the scale once.
            z, tau, parts["tau"] = own * scale.sqrt(), 1.0, 1 / scale.detach()
            past = None if past is None else past * scale.sqrt()
        place: dict[str, Any] = {"tau_s": float(config.tau_s), "tile": self._split.tile}
        soft = two_view_loss(z, target.positives, tau=tau, **place, repulsion=target.repulsion, past_2QD=past)
        if self._queue is not None:
            self._queue.push(gather_views(own.detach()), target.samples_B)
        # With weights the loss is no cross-entropy.
        kl = soft.kl if target.repulsion is None else None
        first, second = own.detach().chunk(2)
        return Outcome(Loss(soft.loss, soft.own_view_mass, soft.target_entropy, kl), first, second, parts)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Read the rows of the graph that a batch will need."""
        for maker in (self._positives, self._repelled):
            if maker is not None:
                maker.read_ahead(samples_B, epoch)

    def measures(self, target: ContrastiveTarget, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure stored neighbours per anchor, KL(dense || assembled), and how the two views lie on the sphere."""
        found = measures(target.positives, self._split, with_kl=with_kl)
        return {**found, **sphere_figures(outcome.first_bD, outcome.second_bD), **outcome.parts}

    def _repulsion(self, samples_B: Int64, epoch: int) -> Repulsion | None:
        config = self._config
        if config.negatives == "hard":
            return Hard(config.beta, config.prior)
        if config.negatives == "graph":
            return ByGraph(self._repelled.target(samples_B, epoch) if self._repelled else None)
        if config.negatives == "mixed":
            return Mixed(config.hardest, config.mixtures, seed_of_batch(config.seed, samples_B, epoch))
        if config.negatives == "uniform":
            return None
        return Decoupled(config.dclw_sigma if config.negatives == "decoupled-weighted" else None)
