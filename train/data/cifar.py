"""CIFAR-10 and CIFAR-100, in the folder layout of torchvision. Ids are `<split>/<index>`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import SourceError
from graphbuild.system.cifar import cifar_ids, load_cifar
from train.data.base import Encoded, Labels


class CifarImages:
    """One split of CIFAR-10 or CIFAR-100; 32 x 32 pixels."""

    def __init__(self, kind: str, root: Path, *, train: bool = True) -> None:
        """Load the split, downloading it only if it is missing.

        Raises:
            SourceError: If it is not there and cannot be downloaded, or is damaged.
        """
        self.name = f"{kind} in {root}"
        self._set = load_cifar(kind, root, train=train, download=True)
        self.sample_ids: Sequence[str] = cifar_ids(len(self._set.data), train=train)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the pixels (32, 32, 3) of some images."""
        return [self._set.data[index] for index in indices]

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the class names."""
        return [{"label": self._set.classes[self._set.targets[index]]} for index in indices]

    def label_columns(self) -> tuple[str, ...]:
        """Return the only column there is, `label`: the class."""
        return ("label",)

    def labels(self, column: str) -> Labels:
        """Return the classes, numbered as CIFAR numbers them.

        Raises:
            SourceError: If the column is not `label`.
        """
        if column != "label":
            raise SourceError(f"{self.name}: no label column {column!r}; CIFAR has one: label.")
        return Labels(np.asarray(self._set.targets, dtype=np.int64), tuple(self._set.classes))

    def class_ids(self) -> Sequence[str] | None:
        """Return the class names."""
        return [self._set.classes[code] for code in self._set.targets]
