"""Cases for the protocols' tests: noisy points around one centre a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train.evaluate.protocols.task import Labelled, Task


def blobs(count: int, *, classes: int = 4, width: int = 12, spread: float = 0.8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy points around one centre a class; the centres do not depend on the seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def make_task(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, **more: Any) -> Task:
    """A task without superclasses."""
    names = tuple(f"class {code}" for code in range(int(max(labels.max(), truth.max() if len(truth) else 0)) + 1))
    return Task(Labelled(train, labels), Labelled(test, truth), names, **more)
