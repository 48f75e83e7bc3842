"""What an objective is: a model and the loss of a step, registered by its name.

Shape letters: B samples in a batch, b of them this process's, D width of the projection.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Int64
from graphbuild.torch.gather import gather
from graphbuild.torch.losses import tile_size
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.run.distributed import Ranks
from train.run.targets import Split


class Loss(NamedTuple):
    """A loss, and what is known of its target; None where that has no meaning."""

    loss: Tensor
    """A scalar with a gradient."""
    own_view_mass: Tensor | None = None
    target_entropy: Tensor | None = None
    kl: Tensor | None = None
    """KL(target || learned), nats."""


class Outcome(NamedTuple):
    """A loss, and the unit vectors that it was taken of, without their gradient."""

    soft: Loss
    first_bD: Tensor
    """One view of each of this process's samples."""
    second_bD: Tensor
    """The other view, or the text."""
    parts: dict[str, Tensor] = {}  # noqa: RUF012 - never changed
    """What the loss is made of, for the log."""
    heads: tuple[Outcome, ...] = ()
    """Those of several heads, in order."""


class Learner(Protocol):
    """A model and its loss."""

    module: nn.Module
    """Everything that is trained."""
    encoder: Encoder
    """The part of it that encodes images."""
    note: str
    """What a user should know about it, in one line; empty if nothing."""

    def target(self, samples_B: Int64, epoch: int) -> Any:
        """Return what the loss of a batch needs besides its images: of all samples, whichever process has which."""

    def loss(self, encode: nn.Module, views: Tensor, target: Any) -> Outcome:
        """Take the loss of this process's anchors; `encode` is `module`, perhaps wrapped."""

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read what the next batch needs; only a hint."""

    def measures(self, target: Any, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure a batch, over this process's samples; None where a figure has no meaning."""


Maker = Callable[[TrainConfig, TrainingData, Encoder, torch.device, Ranks], Learner]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What an objective takes, beside images."""

    views: int = 2
    """Of each image."""
    graph: str = ""
    """What a graph is for; empty where it can do without."""
    labels: bool = False
    """Whether images have classes: of a column, else those of equal texts."""
    queue: bool = False
    """Whether it compares with images of past batches where --queue asks for it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    make: Maker
    needs: Needs = field(default_factory=Needs)


_REGISTERED: dict[str, _Entry] = {}


def register(*names: str, needs: Needs = Needs()) -> Callable[[Any], Any]:
    """Make a learner known by the values of --objective."""

    def enter(make: Any) -> Any:
        _REGISTERED.update(dict.fromkeys(names, _Entry(make, needs)))
        return make

    return enter


def registered() -> dict[str, Needs]:
    """Return what each objective needs."""
    return {name: entry.needs for name, entry in _REGISTERED.items()}


def make_one(config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> Learner:
    """Make the learner of a configuration without heads.

    Raises:
        UserError: If the data lack what it needs.
    """
    entry = _REGISTERED[config.objective]
    if entry.needs.graph and (data.graph is None or data.joined is None):
        raise OptionError(f"{config.objective} needs a graph, for {entry.needs.graph}: name it with --graph-dir.")
    if entry.needs.labels and config.label_column is None and data.joined is None:
        raise OptionError(
            f"{config.objective} needs classes: name their column with --label-column, or a graph of equal texts with --graph-dir."
        )
    most = max(0, len(data.store) - config.batch_size)
    if entry.needs.queue and config.queue > most:
        raise OptionError(
            f"--queue {config.queue:,} is more than there are images beside a batch: {most:,} of {len(data.store):,} with "
            f"--batch-size {config.batch_size:,}. Lower it."
        )
    return entry.make(config, data, encoder, device, ranks)


def split_of(config: TrainConfig, ranks: Ranks) -> Split:
    """Return which anchors of a batch are this process's, and how many of them the loss takes at a time."""
    shared = gather if ranks.count > 1 else None
    return Split(ranks.part(config.batch_size), tile_size(config.loss_tile, config.batch_size + config.queue), shared)


def seed_of_batch(seed: int, samples_B: Int64, epoch: int) -> int:
    """Return a seed for what is drawn for a batch: the same in all processes, and in a run that goes on."""
    return zlib.crc32(np.array([seed, epoch, *samples_B], np.int64).tobytes())


def autocast(config: TrainConfig, views: Tensor) -> torch.autocast:
    """Return the context that the encoder computes in."""
    return torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")
