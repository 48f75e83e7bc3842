"""SimCLR as it is usually written, to measure ours against: images one at a time in loader processes, torchvision's
transforms, a 2B x 2B matrix and cross-entropy. With lightly's transforms and loss where it is installed.

The net, its projector, the optimiser, the arithmetic and the images, held in memory, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from graphbuild.system.backbones import MEAN, STD
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.model.optimizers import build_optimizer
from train.run.trainer import build_model

PLAIN, LIGHTLY = "plain loop", "lightly"
Loss = Callable[[Tensor, Tensor], Tensor]
Views = Callable[[Image.Image], Any]


class _Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Two views of one picture."""

    def __init__(self, data: TrainingData, views: Views) -> None:
        pixels = data.store.batch(np.arange(len(data.store))).pixels
        self._pictures = [Image.fromarray(item.permute(1, 2, 0).cpu().numpy()) for item in pixels]
        self._views = views

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        first, second = self._views(self._pictures[index])
        return first, second


def contestants(config: TrainConfig) -> dict[str, tuple[Views, Loss]]:
    """Return the usual ways that can be run here."""
    found: dict[str, tuple[Views, Loss]] = {
        PLAIN: (_views(config), lambda first, second: nt_xent(first, second, float(config.tau)))
    }
    try:
        from lightly.loss import NTXentLoss
        from lightly.transforms import SimCLRTransform
    except ImportError:
        return found
    return {**found, LIGHTLY: (SimCLRTransform(input_size=config.image_size), NTXentLoss(temperature=float(config.tau)))}


def steps(config: TrainConfig, data: TrainingData, views: Views, loss_of: Loss) -> Iterator[None]:
    """Train without end, a step at a time."""
    device = torch.device(config.device)
    loader = DataLoader(
        _Pictures(data, views),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    model = build_model(config, device).train()
    optimizer = build_optimizer(config, model, device)
    while True:
        for first, second in loader:
            pictures = torch.cat([first, second]).to(device, non_blocking=True, memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
                z = model(pictures)
            loss = loss_of(*z.chunk(2))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield


def nt_xent(first_BD: Tensor, second_BD: Tensor, tau: float) -> Tensor:
    """Return NT-Xent of unit vectors, as most tutorials have it; a scalar."""
    z = torch.cat([first_BD, second_BD])
    logits = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(first_BD)))


def _views(config: TrainConfig) -> Views:
    """SimCLR's recipe with the strengths of `train.data.augment`, a picture at a time."""
    from torchvision.transforms import v2

    one = v2.Compose(
        [
            v2.RandomResizedCrop(config.image_size, scale=(config.crop_min, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return _Twice(one)


class _Twice:
    """Two views by one transform; a class, so that loader processes can be sent it."""

    def __init__(self, one: Any) -> None:
        self._one = one

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        return self._one(picture), self._one(picture)
