"""What the protocols on ImageNet's thousand classes share: their numbers, and parts of folders of images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from graphbuild.errors import SourceError
from graphbuild.store.arrays import Int64
from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb
from train.data.base import Encoded, ImageSource
from train.data.subset import Subset
from train.evaluate.images import Images
from train.evaluate.protocols.task import Task

CLASSES = 1000

Answer = Callable[[Tensor], Tensor]
"""Features (n, F) to ImageNet's class numbers, (n,) on the CPU; -1 for a class that is none of them."""


@dataclass(frozen=True, slots=True)
class Found:
    """One encoder's features of a source."""

    rows: Int64
    """Of the source; those that can be read."""
    features: Tensor
    """(n, F)."""


class ImageNetSet(Protocol):
    """A protocol on ImageNet's classes that brings its own images, or its own labels of them."""

    sources: Mapping[str, Images]

    def scores(self, found: Mapping[str, Found], answer: Answer) -> dict[str, dict[str, float]]:
        """Return scores by data set and measure, from features of each source and a classifier of ImageNet's classes."""


def imagenet_answer(task: Task) -> Answer:
    """Return the linear probe of a task, answering with ImageNet's class numbers.

    Classes are known by their WordNet id, by ImageNet's simple name, or, where there are a thousand, by their number.

    Raises:
        SourceError: If fewer than two classes are known.
    """
    known = _numbers()
    numeric = {str(number): number for number in range(CLASSES)} if len(task.names) == CLASSES else {}
    found = [known.get(task.wnids.get(code, ""), known.get(name, numeric.get(name, -1))) for code, name in enumerate(task.names)]
    if sum(number >= 0 for number in found) < 2:
        raise SourceError(
            f"the classes to learn from ({', '.join(task.names[:3])}, ...) are none of ImageNet's. "
            "Name ImageNet's training images with --train-data, and their WordNet ids or names with --label-column."
        )
    by_code = torch.tensor(found)
    return lambda features: by_code[task.predict(features).cpu()]


@cache
def _numbers() -> Mapping[str, int]:
    """ImageNet's class numbers by WordNet id and by simple name."""
    # The list of classes that `graphbuild embed --dataset imagenet` reads: data, not code.
    text = files("graphbuild").joinpath("datasets/published/imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    return {row[column]: int(row["index"]) for column in ("simple_name", "wnid") for row in rows}


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Raises:
        SourceError: If it is missing or no JSON; `what` says which file was wanted.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. It is {what}.") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not JSON ({error}). It is {what}.") from None


class WithoutBorder(Subset):
    """Some images of a source, with a border cut off."""

    def __init__(self, source: ImageSource, indices: Int64, border: int) -> None:
        """Choose images.

        Args:
            source: All images.
            indices: Which; (n,).
            border: Width of what is cut off on each side, in pixels.
        """
        super().__init__(source, indices)
        self._border = border

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the pixels of some images."""
        return [_crop(item, self._border) for item in super().encoded(indices)]


def _crop(item: Encoded, border: int) -> Encoded:
    try:
        image = to_rgb(open_picture(item))
        return np.asarray(image.crop((border, border, image.width - border, image.height - border)))
    except UnreadablePicture:
        # Whatever is wrong with it is told, and counted, when it is decoded.
        return item
