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
from PIL import Image
from torch import Tensor

from graphbuild.errors import SourceError
from train.data.base import Encoded, ImageSource, Int64, Labels
from train.evaluate.protocols.case import Case

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


class ImageSet(Protocol):
    """A protocol that brings its own images, or its own labels of them."""

    sources: Mapping[str, ImageSource]

    def scores(self, found: Mapping[str, Found], answer: Answer) -> dict[str, dict[str, float]]:
        """Scores by data set and measure, from features of each source and a classifier of ImageNet's classes."""


def imagenet_answer(case: Case) -> Answer:
    """The linear probe of a case, answering with ImageNet's class numbers.

    Classes are known by their WordNet id, by ImageNet's simple name, or, where there are a thousand, by their number.

    Raises:
        SourceError: If fewer than two classes are known.
    """
    known = _numbers()
    numeric = {str(number): number for number in range(CLASSES)} if len(case.names) == CLASSES else {}
    found = [known.get(case.wnids.get(code, ""), known.get(name, numeric.get(name, -1))) for code, name in enumerate(case.names)]
    if sum(number >= 0 for number in found) < 2:
        raise SourceError(
            f"the classes to learn from ({', '.join(case.names[:3])}, ...) are none of ImageNet's. "
            "Name ImageNet's training images with --train-data, and their WordNet ids or names with --label-column."
        )
    by_code = torch.tensor(found)
    return lambda features: by_code[case.predict(features).cpu()]


@cache
def _numbers() -> Mapping[str, int]:
    """ImageNet's class numbers by WordNet id and by simple name."""
    # The list of classes that `graphbuild embed --dataset imagenet` reads: data, not code.
    text = files("graphbuild").joinpath("datasets/published/imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    return {row[column]: int(row["index"]) for column in ("simple_name", "wnid") for row in rows}


def read_json(path: Path, what: str) -> Any:
    """A JSON file.

    Raises:
        SourceError: If it is missing or no JSON; `what` says which file was wanted.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file. It is {what}.") from None
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}). It is {what}.") from None


class Chosen:
    """Some images of a source, with a border cut off."""

    def __init__(self, source: ImageSource, indices: Int64, *, border: int = 0) -> None:
        self.name, self._source, self._indices, self._border = source.name, source, indices, border
        self.sample_ids: Sequence[str] = [source.sample_ids[index] for index in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """The images, as pixels where a border is cut off."""
        items = self._source.encoded(self._indices[list(indices)].tolist())
        return [_crop(item, self._border) for item in items] if self._border else items

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """What is stored beside them."""
        return self._source.metas(self._indices[list(indices)].tolist())

    def label_columns(self) -> tuple[str, ...]:
        """Those of the source."""
        return self._source.label_columns()

    def labels(self, column: str) -> Labels:
        """Those of the chosen images."""
        labels = self._source.labels(column)
        return Labels(labels.codes[self._indices], labels.names)

    def class_ids(self) -> Sequence[str] | None:
        """Those of the chosen images."""
        ids = self._source.class_ids()
        return None if ids is None else [ids[index] for index in self._indices]


def _crop(item: Encoded, border: int) -> Encoded:
    try:
        image = Image.open(io.BytesIO(item)).convert("RGB") if isinstance(item, bytes) else Image.fromarray(np.asarray(item))
        return np.asarray(image.crop((border, border, image.width - border, image.height - border)))
    except Exception:
        # Whatever is wrong with it is told, and counted, when it is decoded.
        return item
