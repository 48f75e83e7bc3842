"""From images and options to classification tasks: training and test images, and their classes, numbered alike.

The training images are those that the run was trained on, and no others; test images that are among them are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.store.arrays import Int64
from graphbuild.store.hierarchy import Hierarchy, read_hierarchy
from graphbuild.store.manifest import Manifest
from graphbuild.system.progress import say
from train.config import TrainConfig
from train.data.base import ImageSource
from train.data.held_out import default_label_column
from train.evaluate.features import Features
from train.evaluate.images import Images, RunImages
from train.evaluate.options import EvalOptions
from train.evaluate.protocols.task import Labelled, Task

MOST_OVERLAP = 0.01
"""Share of the test images that may be among the training images; a few always may, as broken files are alike."""
_A_FEW = 3
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Classes:
    """One label column of both sets; -1 where an image has none."""

    train: Tensor
    test: Tensor
    names: tuple[str, ...]
    wnids: dict[int, str]
    held_out: Tensor
    """Whether each class is held out; one more entry, False, for the code -1."""


class EvalData:
    """Training and test images of an evaluation, with their labels."""

    def __init__(self, config: TrainConfig, options: EvalOptions) -> None:
        """Open both sets, read their labels, and compare them.

        Raises:
            OptionError: If images or labels have to be named, or the test images are the training images.
            SourceError: If images or label columns are missing.
        """
        run = RunImages(config)
        self.train = Images(run.train(options))
        self.test = Images(run.test(options))
        column = options.label_columns or (_require_column(config, self.train.source),)
        self.overlap = self._count_overlap(allow=options.allow_overlap)
        """Test images that are training images, too."""
        held_out = _read_held_out(options.held_out)
        sources = self.train.source, self.test.source
        self.columns = {name: _read_classes(name, *sources, held_out) for name in column}
        if held_out and not any(classes.held_out.any() for classes in self.columns.values()):
            raise SourceError(f"{options.held_out}: no class of {', '.join(column)} is listed. Its lines are class names.")
        self._groups: tuple[Tensor, Tensor] | None = None
        if options.superclass_column:
            self._groups = shared_labels(options.superclass_column, *sources)[:2]
        self._hierarchy: Hierarchy | None = read_hierarchy(Path(options.hierarchy)) if options.hierarchy else None

    def task(self, column: str, train: Features, test: Features, number: int, device: torch.device) -> Task:
        """Return the task of one label column, with the features of one encoder.

        Args:
            column: One of `columns`.
            train: Features of the training images.
            test: Features of the test images.
            number: Which of their encoders.
            device: Where the task is wanted.
        """
        classes = self.columns[column]
        known, unlabelled = self._labelled(classes.train, train, number, device, 0)
        queries, more = self._labelled(classes.test, test, number, device, 1)
        held = classes.held_out.to(device)
        some = bool(held.any())
        return Task(
            train=known.where(~held[known.labels]),
            test=queries.where(~held[queries.labels]),
            names=classes.names,
            unlabelled=unlabelled + more,
            held_out_train=known.where(held[known.labels]) if some else None,
            held_out_test=queries.where(held[queries.labels]) if some else None,
            wnids=classes.wnids,
            hierarchy=self._hierarchy,
        )

    def _labelled(self, codes: Tensor, found: Features, number: int, device: torch.device, which: int) -> tuple[Labelled, int]:
        labels = codes[found.rows]
        kept = labels >= 0
        groups = None if self._groups is None else self._groups[which][found.rows][kept].to(device)
        labelled = Labelled(found.by_encoder[number][kept].to(device), labels[kept].to(device), groups)
        return labelled, int((~kept).sum())

    def _count_overlap(self, *, allow: bool) -> int:
        """Count the test images that are training images: by their bytes, and by ids that mean the same image everywhere."""
        train, test = self.train.source, self.test.source
        same = np.isin(self.test.digests, self.train.digests) & (self.test.digests != 0)
        known = {name for name in train.sample_ids if "://" in name}
        if known:
            same |= np.fromiter((name in known for name in test.sample_ids), np.bool_, len(test))
        count = int(same.sum())
        if not count:
            return 0
        examples = ", ".join(test.sample_ids[row] for row in np.flatnonzero(same)[:_EXAMPLES])
        told = f"{test.name}: {count:,} of {len(test):,} images to classify are among those to learn from ({examples}"
        told += ", ...)" if count > _EXAMPLES else ")"
        if count > max(MOST_OVERLAP * len(test), _A_FEW) and not allow:
            raise OptionError(f"{told}: scores would say nothing. Name others with --data, or add --allow-overlap.")
        say(f"warning: {told}")
        return count


def shared_labels(column: str, train: ImageSource, test: ImageSource) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return the classes of both sets, numbered alike by their names, and the names; -1 where an image has none."""
    known, other = train.labels(column), test.labels(column)
    numbers = {name: code for code, name in enumerate(known.names)}
    for name in other.names:
        numbers.setdefault(name, len(numbers))
    # One more entry, because the code -1 of an image without a label picks the last.
    renumber = np.array([*(numbers[name] for name in other.names), -1], np.int64)
    return torch.from_numpy(known.codes), torch.from_numpy(renumber[other.codes]), tuple(numbers)


def _read_classes(column: str, train: ImageSource, test: ImageSource, held_out: frozenset[str]) -> Classes:
    known, other, names = shared_labels(column, train, test)
    mask = torch.tensor([*(name in held_out for name in names), False])
    wnids = _wnids(train, known.numpy()) | _wnids(test, other.numpy())
    return Classes(known, other, names, wnids, mask)


def _wnids(source: ImageSource, codes: Int64) -> dict[int, str]:
    """The WordNet id, or whatever a graph of classes would call it, of every class whose images agree on one."""
    ids = source.class_ids()
    if ids is None:
        return {}
    pairs = {(int(code), str(name)) for code, name in zip(codes, ids, strict=True) if code >= 0}
    found = dict(pairs)
    return found if len(found) == len(pairs) else {}


def _read_held_out(path: str | None) -> frozenset[str]:
    if path is None:
        return frozenset()
    try:
        return frozenset(line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read ({error}). --held-out takes a text file with a class a line.") from None


def _dataset(config: TrainConfig) -> Mapping[str, Any]:
    """What the run's graph says of its data set; nothing where the run has no graph, or it is gone."""
    try:
        return Manifest.load(Path(config.graph_dir)).dataset if config.graph_dir else {}
    except ArtifactError:
        return {}


def _require_column(config: TrainConfig, source: ImageSource) -> str:
    column = default_label_column(config, _dataset(config), source)
    if column is None:
        raise OptionError(
            f"{source.name}: which column holds the classes? Name it with --label-column: "
            f"{', '.join(source.label_columns()) or 'none exist'}."
        )
    return column
