"""MIT-States: which attribute, and which object, a picture shows; probes on frozen features.

Isola et al. 2015; used by X-CLR (arXiv 2407.18134). FOLDER/images/<attribute object>/*.jpg; folders of the attribute "adj"
have none and are left out. With FOLDER/compositional-split/{train,test}_pairs.txt, the pairs of the test set are none of the
training set; without, the images are divided at random into two halves, as X-CLR has it. A test image is left out where its
attribute, or its object, is none of the training set's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from graphbuild.errors import SourceError
from graphbuild.store.arrays import Bool
from train.data.base import encode_labels
from train.data.imagefolder import FolderImages
from train.data.subset import Subset
from train.evaluate.images import Images
from train.evaluate.protocols.imagenet import Found
from train.evaluate.protocols.scores import describe, knn_scores, linear_scores
from train.evaluate.protocols.task import Labelled, Task

_NO_ATTRIBUTE = "adj"
_SPLIT = "compositional-split"


class MitStates:
    """The protocol over the pictures' folders."""

    def __init__(self, folder: Path) -> None:
        """Find the pictures and split them.

        Raises:
            SourceError: If folders are not named by attribute and object, or the split leaves a side empty.
        """
        images = FolderImages(folder / "images")
        names = [name.rsplit("/", 1)[0] for name in images.sample_ids]
        pairs = [tuple(name.split(" ", 1)) for name in names]
        if odd := [name for name, pair in zip(names, pairs, strict=True) if len(pair) != 2]:
            raise SourceError(f"{images.name}: the folder {odd[0]!r} is not named by attribute and object, as 'ripe apple' is.")
        kept = np.array([place for place, pair in enumerate(pairs) if pair[0] != _NO_ATTRIBUTE], dtype=np.int64)
        self.sources: Mapping[str, Images] = {"mit-states": Images(Subset(images, kept))}
        known = [pairs[place] for place in kept]
        self._is_test = _split(folder / _SPLIT, known)
        if self._is_test.all() or not self._is_test.any():
            raise SourceError(f"{folder}: the split leaves no picture to learn from, or none to classify.")
        self._labels = {"attribute": encode_labels([pair[0] for pair in known]), "object": encode_labels([p[1] for p in known])}

    def scores(self, found: Mapping[str, Found]) -> dict[str, dict[str, float]]:
        """Return kNN and linear probe under `mit-states attribute` and `mit-states object`."""
        side = found["mit-states"]
        device = side.features.device
        is_test = torch.from_numpy(self._is_test[side.rows]).to(device)
        scores = {}
        for name, labels in self._labels.items():
            pictures = Labelled(side.features, torch.from_numpy(labels.codes[side.rows]).to(device))
            known = torch.isin(pictures.labels, pictures.labels[~is_test])
            task = Task(pictures.where(~is_test), pictures.where(is_test & known), labels.names)
            scores[f"mit-states {name}"] = {**describe(task), **knn_scores(task), **linear_scores(task)}
        return scores


def _split(folder: Path, pairs: list[tuple[str, ...]]) -> Bool:
    """Whether each picture belongs to the test set."""
    if (folder / "test_pairs.txt").exists():
        lines = (folder / "test_pairs.txt").read_text(encoding="utf-8").splitlines()
        of_test = {tuple(line.split()) for line in lines if line.strip()}
        return np.array([pair in of_test for pair in pairs])
    is_test = np.zeros(len(pairs), np.bool_)
    is_test[np.random.default_rng(0).permutation(len(pairs))[: len(pairs) // 2]] = True
    return is_test
