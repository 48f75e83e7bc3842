"""What a step trains, and its loss: two views against a soft target, or images against their captions (CLIP).

Shape letters: B samples in a batch, b of them this process's, L tokens of a text at most, D width of the projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from graphbuild.errors import OptionError
from graphbuild.torch.blocks import Target
from graphbuild.torch.gather import gather, gather_rows
from graphbuild.torch.losses import LogitScale, SoftLoss, clip_loss, tile_size
from graphbuild.torch.modules import two_view_loss
from train.config import TrainConfig
from train.data.base import Int64
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.model.text_tower import TextTower, open_tokens
from train.run.distributed import Ranks
from train.run.objectives import Split, draw, make_objective, measures
from train.run.watch import sphere_figures


class Outcome(NamedTuple):
    """A loss, and the unit vectors that it was taken of, without their gradient."""

    soft: SoftLoss
    first_bD: Tensor
    """One view of each of this process's samples."""
    second_bD: Tensor
    """The other view, or the text."""


class Learner(Protocol):
    """A model and its loss."""

    module: nn.Module
    """Everything that is trained."""
    encoder: Encoder
    """The part of it that encodes images."""
    views: int
    """Of each image."""
    note: str
    """What a user should know about it, in one line; empty if nothing."""

    def target(self, samples_B: Int64, epoch: int) -> Any:
        """What the loss of a batch needs besides its images: of all samples, whichever process has which."""

    def loss(self, encode: nn.Module, views: Tensor, target: Any) -> Outcome:
        """Take the loss of this process's anchors; `encode` is `module`, perhaps wrapped."""

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Begin to read what the next batch needs; only a hint."""

    def measures(self, target: Any, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure a batch, over this process's samples; None where a figure has no meaning."""


class Contrastive:
    """X-CLR, SimCLR and SupCon: two views of each image, one loss, three targets."""

    views = 2

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        self._config, self._split = config, split_of(config, ranks)
        self._objective = make_objective(config, data, device, self._split)
        self.module: nn.Module = encoder
        self.encoder, self.note = encoder, self._objective.note

    def target(self, samples_B: Int64, epoch: int) -> Target:
        """G, by rows."""
        return self._objective.target(samples_B, epoch)

    def loss(self, encode: nn.Module, views: Tensor, target: Target) -> Outcome:
        """Take the loss of this process's views against those of all."""
        with _autocast(self._config, views):
            own = encode(views)
        soft = two_view_loss(own, target, tau=self._config.tau, tau_s=self._config.tau_s, tile=self._split.tile)
        return Outcome(soft, *own.detach().chunk(2))

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Rows of the graph."""
        self._objective.read_ahead(samples_B, epoch)

    def measures(self, target: Target, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure stored neighbours per anchor, KL(dense || assembled), and how the two views lie on the sphere."""
        return {**measures(target, self._split, with_kl=with_kl), **sphere_figures(outcome.first_bD, outcome.second_bD)}


class ClipModel(nn.Module):
    """An image encoder, a text tower, and the scale of their similarities."""

    def __init__(self, encoder: Encoder, text: TextTower) -> None:
        super().__init__()
        self.encoder, self.text, self.scale = encoder, text, LogitScale()

    def forward(self, views: Tensor, tokens_bL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit vectors of images and of texts, (b, D) each, and the scale."""
        return self.encoder(views), self.text(tokens_bL), self.scale()


class Captions(NamedTuple):
    """The texts of a batch."""

    ids_B: Tensor
    """Of every sample, on the device."""
    tokens_bL: Tensor
    """Of this process's samples."""


class Clip:
    """Images against captions: one view, a text tower trained from scratch, a learned scale (docs/definitions.md, CLIP)."""

    views = 1

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Tokenise the graph's texts, and build the tower.

        Raises:
            OptionError: If there is no graph, or it has no tokenizer.
        """
        if data.graph is None or data.joined is None:
            raise OptionError("clip needs a graph, for its captions and its tokenizer: name it with --graph-dir.")
        self._config, self._joined, self._device = config, data.joined, device
        self._split = split_of(config, ranks)
        self._tokens, vocabulary = open_tokens(data.graph, config.text_length)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            tower = TextTower(
                vocabulary=vocabulary,
                length=config.text_length,
                width=config.text_width,
                layers=config.text_layers,
                out_dim=config.projector_dim,
            )
        self.encoder, self.text = encoder, tower.to(device)
        self.module: nn.Module = ClipModel(encoder, self.text).to(device)
        cut = self._tokens.cut / data.graph.n_texts
        self.note = f"{data.graph.n_texts:,} texts of up to {config.text_length} tokens ({cut:.1%} were cut)"

    def target(self, samples_B: Int64, epoch: int) -> Captions:
        """One caption an image and epoch."""
        texts = draw(self._joined, samples_B, self._config.seed, epoch)
        own = self._split.anchors
        tokens = self._tokens.batch(texts[own.start : own.stop])
        return Captions(*(item.to(self._device, non_blocking=True) for item in (torch.from_numpy(texts), tokens)))

    def loss(self, encode: nn.Module, views: Tensor, target: Captions) -> Outcome:
        """Take the loss of this process's images against all texts, and the reverse."""
        with _autocast(self._config, views):
            images, texts, scale = encode(views, target.tokens_bL)
        all_images, all_texts = gather_rows(images), gather_rows(texts)
        soft = clip_loss(all_images, all_texts, scale, target.ids_B, self._split.anchors, tile=self._split.tile)
        return Outcome(soft, images.detach(), texts.detach())

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Everything is in memory."""

    def measures(self, target: Captions, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure how images, and their captions, lie on the sphere."""
        return {"hit_rate": None, "kl_to_dense": None, **sphere_figures(outcome.first_bD, outcome.second_bD)}


def make_learner(config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> Learner:
    """The learner of a configuration.

    Raises:
        UserError: If the data lack what it needs.
    """
    kind = Clip if config.objective == "clip" else Contrastive
    return kind(config, data, encoder, device, ranks)


def split_of(config: TrainConfig, ranks: Ranks) -> Split:
    """Which anchors of a batch are this process's, and how many of them the loss takes at a time."""
    shared = gather if ranks.count > 1 else None
    return Split(ranks.part(config.batch_size), tile_size(config.loss_tile, config.batch_size), shared)


def _autocast(config: TrainConfig, views: Tensor) -> torch.autocast:
    return torch.autocast(views.device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")
