"""CLIP: images against their captions, with a text tower that is trained beside the encoder.

Shape letters: B samples in a batch, b of them this process's, L tokens of a text at most, D width of the projection.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from graphbuild.store.arrays import Int64
from graphbuild.torch.gather import gather_rows
from graphbuild.torch.losses import LogitScale, clip_loss
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.encoders import Encoder
from train.model.text_tower import TextTower, open_tokens
from train.run.distributed import Ranks
from train.run.objectives.base import Loss, Needs, Outcome, autocast, register, split_of
from train.run.targets import draw
from train.run.watch import sphere_figures


class ClipModel(nn.Module):
    """An image encoder, a text tower, and the scale of their similarities."""

    def __init__(self, encoder: Encoder, text: TextTower) -> None:
        super().__init__()
        self.encoder, self.text, self.scale = encoder, text, LogitScale()

    def forward(self, views: Tensor, tokens_bL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return unit vectors of images and of texts, (b, D) each, and the scale."""
        return self.encoder(views), self.text(tokens_bL), self.scale()


class Captions(NamedTuple):
    """The texts of a batch."""

    ids_B: Tensor
    """Of every sample, on the device."""
    tokens_bL: Tensor
    """Of this process's samples."""


@register("clip", needs=Needs(views=1, graph="its captions and its tokenizer"))
class Clip:
    """Images against captions: one view, a text tower trained from scratch, a learned scale (docs/definitions.md, CLIP)."""

    def __init__(self, config: TrainConfig, data: TrainingData, encoder: Encoder, device: torch.device, ranks: Ranks) -> None:
        """Tokenise the graph's texts, and build the tower.

        Raises:
            OptionError: If the graph has no tokenizer.
        """
        assert data.graph is not None, "a graph is among its needs"
        assert data.joined is not None, "a graph is among its needs"
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
        """Return tokens of one caption an image and epoch."""
        texts = draw(self._joined, samples_B, self._config.seed, epoch)
        own = self._split.anchors
        tokens = self._tokens.batch(texts[own.start : own.stop])
        return Captions(*(item.to(self._device, non_blocking=True) for item in (torch.from_numpy(texts), tokens)))

    def loss(self, encode: nn.Module, views: Tensor, target: Captions) -> Outcome:
        """Take the loss of this process's images against all texts, and the reverse."""
        with autocast(self._config, views):
            images, texts, scale = encode(views, target.tokens_bL)
        all_images, all_texts = gather_rows(images), gather_rows(texts)
        soft = clip_loss(all_images, all_texts, scale, target.ids_B, self._split.anchors, tile=self._split.tile)
        return Outcome(Loss(soft.loss, soft.own_view_mass, soft.target_entropy, soft.kl), images.detach(), texts.detach())

    def read_ahead(self, samples_B: Int64, epoch: int) -> None:
        """Do nothing: everything is in memory."""

    def measures(self, target: Captions, outcome: Outcome, *, with_kl: bool) -> dict[str, Tensor | None]:
        """Measure how images, and their captions, lie on the sphere."""
        return {"hit_rate": None, "kl_to_dense": None, **sphere_figures(outcome.first_bD, outcome.second_bD)}
