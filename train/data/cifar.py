"""CIFAR-10 and CIFAR-100, in the folder layout of torchvision. Ids are `<split>/<index>`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import SourceError
from train.data.base import Encoded, Labels


class CifarImages:
    """One split of CIFAR-10 or CIFAR-100; 32 x 32 pixels."""

    def __init__(self, kind: str, root: Path, *, train: bool = True) -> None:
        """Load the split, downloading it only if it is missing.

        Raises:
            SourceError: If it is not there and cannot be downloaded, or is damaged.
        """
        self.name = f"{kind} in {root}"
        self._set = _load(kind, root, train)
        split = "train" if train else "test"
        self.sample_ids: Sequence[str] = [f"{split}/{index}" for index in range(len(self._set.data))]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Pixels (32, 32, 3) of some images."""
        return [self._set.data[index] for index in indices]

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The class names."""
        return [{"label": self._set.classes[self._set.targets[index]]} for index in indices]

    def label_columns(self) -> tuple[str, ...]:
        """`label`: the class."""
        return ("label",)

    def labels(self, column: str) -> Labels:
        """The classes, numbered as CIFAR numbers them.

        Raises:
            SourceError: If the column is not `label`.
        """
        if column != "label":
            raise SourceError(f"{self.name}: no label column {column!r}; CIFAR has one: label.")
        return Labels(np.asarray(self._set.targets, dtype=np.int64), tuple(self._set.classes))

    def class_ids(self) -> Sequence[str] | None:
        """The class names."""
        return [self._set.classes[code] for code in self._set.targets]


def _load(kind: str, root: Path, train: bool) -> Any:
    from torchvision import datasets

    loader = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
    try:
        return loader(str(root), train=train, download=False)
    except RuntimeError:
        pass
    try:
        return loader(str(root), train=train, download=True)
    # urllib, hashing and unpacking raise a dozen kinds of error here.
    except Exception as error:
        raise SourceError(
            f"{root}: no {kind} here, and it could not be downloaded ({error}). Unpack it there, or pass --data {kind}:FOLDER."
        ) from None
