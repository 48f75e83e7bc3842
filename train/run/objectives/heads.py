"""Several graphs, each with a projector of its own, on one backbone (after multi-level contrastive learning, arXiv 2502.02202).

Every head is the objective of the run by itself, with its own graph; the backbone is computed once, and the losses are summed by
weight. The first head's projector is the encoder's own; the others start as copies of it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from graphbuild.store.arrays import Int64
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder, head_of
from train.run.distributed import Ranks
from train.run.objectives.base import Learner, Outcome, autocast, make_one


class Branches(nn.Module):
    """A backbone, and what each head makes of its features."""

    def __init__(self, backbone: nn.Module, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self._names = [f"head_{name}" for name in heads]
        for name, module in zip(self._names, heads.values(), strict=True):
            self.add_module(name, module)

    def forward(self, views: Tensor) -> tuple[Any, ...]:
        """Return what the module of each head returns, in order."""
        features = self.backbone(views)
        return tuple(self.get_submodule(name)(features) for name in self._names)


class Heads:
    """One objective with several graphs."""

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Open every graph, and build its projector.

        Raises:
            UserError: If the data lack what the objective needs.
        """
        self._config, self._heads, self.encoder = config, config.heads, encoder
        self._learners: list[Learner] = []
        for head in self._heads:
            alone = replace(config, head=(), graph_dir=head.graph_dir)
            own = head_of(encoder, own=not self._learners)
            self._learners.append(make_one(alone, data.by_graph(head.graph_dir), own, device, ranks))
        named = zip(self._heads, self._learners, strict=True)
        self.module: nn.Module = Branches(encoder.backbone, {head.name: learner.module for head, learner in named})
        told = [f"head {head.name}, weight {head.weight:g}: {learner.note}" for head, learner in self._each()]
        self.note = "; ".join(told)

    def target(self, samples_B: Int64, epoch: int) -> tuple[Any, ...]:
        """Return what each head needs."""
        return tuple(learner.target(samples_B, epoch) for learner in self._learners)

    def loss(self, encode: nn.Module, views: Tensor, target: tuple[Any, ...]) -> Outcome:
        """Take the loss of each head, and their sum by weight; all else is that of the first."""
        with autocast(self._config, views):
            found = encode(views)
        outcomes = tuple(
            learner.loss(_Found(own), views, wanted) for learner, own, wanted in zip(self._learners, found, target, strict=True)
        )
        weighted = (head.weight * outcome.soft.loss for head, outcome in zip(self._heads, outcomes, strict=True))
        first = outcomes[0]
        return first._replace(soft=first.soft._replace(loss=reduce(torch.add, weighted)), heads=outcomes)

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Read what each head will need."""
        for learner in self._learners:
            learner.read_ahead(samples_B, epoch)

    def measures(self, target: tuple[Any, ...], outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure the first head as a run with no other, and every head by its name: `loss/NAME`, `hit_rate/NAME`, ..."""
        figures: dict[str, Tensor | None] = {}
        for (head, learner), wanted, own in zip(self._each(), target, outcome.heads, strict=True):
            measured = learner.measures(wanted, own, with_kl=with_kl)
            soft = own.soft._replace(loss=own.soft.loss.detach())
            figures = figures or dict(measured)
            figures |= {f"{name}/{head.name}": value for name, value in {**soft._asdict(), **measured}.items()}
        return figures

    def _each(self) -> list[tuple[Any, Learner]]:
        return list(zip(self._heads, self._learners, strict=True))


class _Found(nn.Module):
    """Stands for a module whose output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, _: Tensor) -> Any:
        """Return the output that is known."""
        return self._output


def make_learner(config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> Learner:
    """Make the learner of a configuration.

    Raises:
        UserError: If the data lack what it needs.
    """
    return (Heads if config.head else make_one)(config, data, encoder, device, ranks)
