"""What a protocol on labelled images is given: one encoder's features of them and their classes.

Shape letters: N rows of one set, F feature width, C classes. A protocol is a function from a `Task` to scores by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from graphbuild.errors import SourceError
from graphbuild.store.hierarchy import Hierarchy
from train.evaluate.protocols.linear import LinearProbe, fit_probe


@dataclass(frozen=True, slots=True)
class Labelled:
    """Features with their classes, every row of which has one."""

    features: Tensor
    """(N, F)."""
    labels: Tensor
    """Codes into the task's `names`; (N,)."""
    groups: Tensor | None = None
    """Superclass of each row, -1 where it has none; (N,)."""

    def __len__(self) -> int:
        return len(self.features)

    def where(self, mask: Tensor) -> Labelled:
        """Return some of the rows."""
        return Labelled(self.features[mask], self.labels[mask], None if self.groups is None else self.groups[mask])


@dataclass(frozen=True)
class Task:
    """One encoder on one label column; training and test rows number the classes alike."""

    train: Labelled
    """What may be learned from, held-out classes excepted."""
    test: Labelled
    """What is to be classified, held-out classes excepted."""
    names: tuple[str, ...]
    """Of the classes, by code."""
    unlabelled: int = 0
    """Training and test rows that were left out for want of a class."""
    held_out_train: Labelled | None = None
    held_out_test: Labelled | None = None
    """Rows of the held-out classes; None where no class is held out."""
    wnids: dict[int, str] = field(default_factory=dict)
    """WordNet id by code, where the images' source knows it."""
    hierarchy: Hierarchy | None = None

    @cached_property
    def classes(self) -> tuple[Tensor, Tensor]:
        """Codes of the classes that can be learned, and the training rows' places among them; (C,) and (N,)."""
        if not len(self.train) or not len(self.test):
            raise SourceError(
                f"nothing to evaluate: {len(self.train):,} labelled images to learn from, {len(self.test):,} to classify."
            )
        seen, places = torch.unique(self.train.labels, return_inverse=True)
        return seen, places

    @cached_property
    def probe(self) -> LinearProbe:
        """The linear probe on all that may be learned from; fitted once for all protocols."""
        seen, places = self.classes
        return fit_probe(self.train.features, places, classes=len(seen))

    def predict(self, features: Tensor) -> Tensor:
        """Return the linear probe's answer; codes."""
        return self.classes[0][self.probe.predict(features)]

    @cached_property
    def answers(self) -> Tensor:
        """The linear probe's answer to each test row; codes."""
        return self.predict(self.test.features)


def block_rows(columns: int) -> int:
    """Return how many rows of float32 scores against so many columns are computed at a time: 256 MiB of them."""
    return max(1, (256 << 20) // (4 * columns))


def accuracy(guess: Tensor, truth: Tensor) -> float:
    """Share of equal entries."""
    return float((guess == truth).double().mean())


def draw_per_class(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw the rows of `count` random samples of every class, of all where a class has fewer; equal for equal labels and seed.

    Args:
        labels: Classes on the CPU or a device; (N,).
        count: Samples a class.
        seed: Decides which.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    # A stable sort by class keeps the random order within each class; the first `count` of each are taken.
    by_class = order[torch.sort(labels[order], stable=True).indices]
    ordered = labels[by_class]
    starts = torch.searchsorted(ordered, ordered)
    return by_class[torch.arange(len(labels), device=labels.device) - starts < count]
