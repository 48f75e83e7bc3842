"""From images and options to cases: which images are learned from and asked about, and their classes, numbered alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.graph import Graph
from train.config import TrainConfig
from train.data.base import ImageSource, Int64
from train.data.prepare import absolute, is_parquet
from train.data.sources import open_images, recorded_images
from train.evaluate.features import Features
from train.evaluate.options import EvalOptions
from train.evaluate.protocols.case import Case, Labelled
from train.evaluate.protocols.hierarchy import Hierarchy, read_hierarchy

_CIFAR = ("cifar10", "cifar100")


@dataclass(frozen=True, slots=True)
class Classes:
    """One label column of both sides; -1 where an image has none."""

    learned: Tensor
    asked: Tensor
    names: tuple[str, ...]
    wnids: dict[int, str]
    held_out: Tensor
    """Whether each class is held out; one more entry, False, for the code -1."""


class Sides:
    """The images to learn from and to classify, with their labels."""

    def __init__(self, config: TrainConfig, options: EvalOptions) -> None:
        """Open both and read the labels.

        Raises:
            OptionError: If images or labels have to be named.
            SourceError: If images or label columns are missing.
        """
        self.learned, self.asked = _train_source(config, options.train_data), _test_source(config, options.data)
        columns = options.label_columns or (_default_column(config, self.learned),)
        held_out = _read_held_out(options.held_out)
        self.columns = {column: _read_classes(column, self.learned, self.asked, held_out) for column in columns}
        if held_out and not any(classes.held_out.any() for classes in self.columns.values()):
            raise SourceError(f"{options.held_out}: no class of {', '.join(columns)} is listed. Its lines are class names.")
        self._groups: tuple[Tensor, Tensor] | None = None
        if options.superclass_column:
            self._groups = shared_labels(options.superclass_column, self.learned, self.asked)[:2]
        self._hierarchy: Hierarchy | None = read_hierarchy(Path(options.hierarchy)) if options.hierarchy else None

    def case(self, column: str, learned: Features, asked: Features, number: int, device: torch.device) -> Case:
        """One encoder, by its number among the features, on one column."""
        classes = self.columns[column]
        train, unlabelled = self._side(classes.learned, learned, number, device, 0)
        test, more = self._side(classes.asked, asked, number, device, 1)
        held = classes.held_out.to(device)
        some = bool(held.any())
        return Case(
            learned=train.where(~held[train.labels]),
            asked=test.where(~held[test.labels]),
            names=classes.names,
            unlabelled=unlabelled + more,
            held_learned=train.where(held[train.labels]) if some else None,
            held_asked=test.where(held[test.labels]) if some else None,
            wnids=classes.wnids,
            hierarchy=self._hierarchy,
        )

    def _side(self, codes: Tensor, found: Features, number: int, device: torch.device, which: int) -> tuple[Labelled, int]:
        labels = codes[found.rows]
        kept = labels >= 0
        groups = None if self._groups is None else self._groups[which][found.rows][kept].to(device)
        labelled = Labelled(found.by_encoder[number][kept].to(device), labels[kept].to(device), groups)
        return labelled, int((~kept).sum())


def shared_labels(column: str, train: ImageSource, test: ImageSource) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Classes of both sides, numbered alike by their names, and the names; -1 where an image has none."""
    known, asked = train.labels(column), test.labels(column)
    numbers = {name: code for code, name in enumerate(known.names)}
    for name in asked.names:
        numbers.setdefault(name, len(numbers))
    # One more entry, for the code -1 of an image without a label picks the last.
    renumber = np.array([*(numbers[name] for name in asked.names), -1], np.int64)
    return torch.from_numpy(known.codes), torch.from_numpy(renumber[asked.codes]), tuple(numbers)


def _read_classes(column: str, train: ImageSource, test: ImageSource, held_out: frozenset[str]) -> Classes:
    learned, asked, names = shared_labels(column, train, test)
    mask = torch.tensor([*(name in held_out for name in names), False])
    wnids = _wnids(train, learned.numpy()) | _wnids(test, asked.numpy())
    return Classes(learned, asked, names, wnids, mask)


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
    """What the run's graph records of its data set; nothing where the run has no graph."""
    return Graph.open(config.graph_dir).manifest.dataset if config.graph_dir else {}


def _train_source(config: TrainConfig, given: str | None) -> ImageSource:
    data = given or config.data
    if data is None:
        raise OptionError("the run does not record its images. Name images to learn from with --train-data.")
    return open_images(absolute(data), image_column=_image_column(config, data))


def _test_source(config: TrainConfig, given: str | None) -> ImageSource:
    own = config.data or ""
    if given is None and own.partition(":")[0] in _CIFAR:
        given = own
    if given is not None:
        return open_images(absolute(given), image_column=_image_column(config, given), validation=True)
    recorded = recorded_images(_dataset(config), Path(config.graph_dir), validation=True) if config.graph_dir else None
    if recorded is None:
        raise OptionError(f"no validation images are recorded for {own or 'this run'}. Name images to classify with --data.")
    # Ids are not needed here, and the validation files may lack their column.
    return open_images(**{name: value for name, value in recorded.items() if name != "id_column"})


def _image_column(config: TrainConfig, data: str) -> str | None:
    return config.image_column if is_parquet(data) else None


def _default_column(config: TrainConfig, source: ImageSource) -> str:
    exist: Sequence[str] = source.label_columns()
    if config.label_column in exist:
        return str(config.label_column)
    for column in ((_dataset(config).get("images") or {}).get("label_column"), "label"):
        if column in exist:
            return str(column)
    raise OptionError(
        f"{source.name}: which column holds the classes? Name it with --label-column: {', '.join(exist) or 'none exist'}."
    )
