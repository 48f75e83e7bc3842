"""ObjectNet: objects in unusual places, from unusual sides; the classes that ImageNet has, too.

Barbu et al. 2019 (NeurIPS). FOLDER/images/<class>/*.png, and FOLDER/mappings/ with folder_to_objectnet_label.json,
objectnet_to_imagenet_1k.json (names parted by semicolons), imagenet_to_label_2012_v2 (a name a line) and
pytorch_to_imagenet_2012_id.json. An image is right if the answer is any of its ImageNet classes. The publisher's images have
a red border that is to be cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from graphbuild.errors import SourceError
from train.data.imagefolder import FolderImages
from train.evaluate.images import Images
from train.evaluate.protocols.imagenet import Answer, Found, WithoutBorder, read_json
from train.run.scores import LINEAR_TOP1

_BORDER = 2
"""Pixels: the border is one wide, and resizing smears it over a second."""


class ObjectNet:
    """The protocol over the overlapping classes."""

    def __init__(self, folder: Path) -> None:
        """Read the maps and choose the images.

        Raises:
            SourceError: If a file is missing or damaged, or no folder is of an overlapping class.
        """
        classes = _read_classes(folder / "mappings")
        images = FolderImages(folder / "images")
        folders = images.class_ids()
        assert folders is not None
        chosen = np.array([place for place, name in enumerate(folders) if name in classes], dtype=np.int64)
        if not len(chosen):
            raise SourceError(f"{images.name}: no folder is of a class that ImageNet has, by the maps in {folder / 'mappings'}.")
        self.sources: Mapping[str, Images] = {"objectnet": Images(WithoutBorder(images, chosen, _BORDER))}
        self._right = [classes[folders[place]] for place in chosen]

    def scores(self, found: Mapping[str, Found], answer: Answer) -> dict[str, dict[str, float]]:
        """Return `linear_top1` and `images` under `objectnet`."""
        side = found["objectnet"]
        guesses = answer(side.features).tolist()
        right = [guess in self._right[row] for guess, row in zip(guesses, side.rows, strict=True)]
        return {"objectnet": {LINEAR_TOP1: sum(right) / len(right), "images": float(len(right))}}


def _read_classes(mappings: Path) -> dict[str, frozenset[int]]:
    """ImageNet's class numbers by folder, for the folders that have any."""
    what = "one of ObjectNet's mappings"
    labels = read_json(mappings / "folder_to_objectnet_label.json", what)
    names = read_json(mappings / "objectnet_to_imagenet_1k.json", what)
    numbers = read_json(mappings / "pytorch_to_imagenet_2012_id.json", what)
    path = mappings / "imagenet_to_label_2012_v2"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        raise SourceError(f"{path}: no such file. It is {what}.") from None
    by_line = {int(line): int(number) for number, line in numbers.items()}
    by_name = {name: by_line[line] for line, name in enumerate(lines) if line in by_line}
    found = {}
    for folder, label in labels.items():
        known = [name.strip() for name in names.get(label, "").split(";") if name.strip()]
        if missing := [name for name in known if name not in by_name]:
            raise SourceError(f"{mappings}: {missing[0]!r} is no line of {path.name}. Are the maps of one version?")
        if known:
            found[folder] = frozenset(by_name[name] for name in known)
    return found
