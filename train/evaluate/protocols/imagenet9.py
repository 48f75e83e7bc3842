"""ImageNet-9, the backgrounds challenge: what is left of accuracy when the background belongs to another class.

Xiao et al. 2020, "Noise or Signal" (arXiv 2006.09994), MadryLab/backgrounds_challenge. Folders
FOLDER/<variant>/val/<nn_class>/*.JPEG; in_to_in9.json maps ImageNet's class numbers to the nine classes. An answer outside
them is wrong. The background gap is the accuracy on mixed_same less that on mixed_rand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from graphbuild.errors import SourceError
from train.data.base import ImageSource
from train.data.imagefolder import FolderImages
from train.evaluate.images import Images
from train.evaluate.protocols.imagenet import CLASSES, Answer, Found, read_json

VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "only_bg_b", "only_bg_t", "no_fg")
_NEEDED = VARIANTS[:3]
_MAP = "in_to_in9.json"
_CLASS = re.compile(r"(\d+)_")


class ImageNet9:
    """The protocol over the challenge's folders; those that are not needed may be missing."""

    def __init__(self, folder: Path, class_map: Path | None = None) -> None:
        """Find the images and the map of classes.

        Raises:
            SourceError: If a folder or the map is missing, or a class folder is not numbered.
        """
        found = {name: folder / name / "val" for name in VARIANTS if name in _NEEDED or (folder / name / "val").is_dir()}
        self.sources: Mapping[str, Images] = {name: Images(FolderImages(path)) for name, path in found.items()}
        path = class_map or next((p for p in (folder / _MAP, folder.parent / _MAP) if p.exists()), folder / _MAP)
        stored = read_json(path, f"{_MAP} of MadryLab/backgrounds_challenge; --in9-map names it elsewhere")
        self._group = torch.full((CLASSES + 1,), -1)
        for number, group in stored.items():
            self._group[int(number)] = int(group)
        # The last entry, which -1 picks, stays -1: an answer that is no class of ImageNet.
        self._labels = {name: _numbers(images.source) for name, images in self.sources.items()}

    def scores(self, found: Mapping[str, Found], answer: Answer) -> dict[str, dict[str, float]]:
        """Return the accuracy of each variant and `background_gap` under `imagenet-9`."""
        scores = {}
        for name, side in found.items():
            truth = self._labels[name][torch.from_numpy(side.rows)]
            scores[name] = float((self._group[answer(side.features)] == truth).double().mean())
        return {"imagenet-9": {**scores, "background_gap": scores["mixed_same"] - scores["mixed_rand"]}}


def _numbers(source: ImageSource) -> torch.Tensor:
    labels = source.labels("label")
    matches = [_CLASS.match(name) for name in labels.names]
    if not all(matches) or (labels.codes < 0).any():
        raise SourceError(f"{source.name}: class folders are to be numbered as the challenge's are: 00_dog, 01_bird, ...")
    return torch.tensor([int(match[1]) for match in matches if match])[torch.from_numpy(labels.codes)]
