"""ImageNet-Real: the validation images with labels that people reassessed; any of an image's labels is right.

Beyer et al. 2020, "Are we done with ImageNet?" (arXiv 2006.07159). The file is real.json of
google-research/reassessed-imagenet: a list of 50,000 lists of class numbers, in the order of ILSVRC2012_val_00000001 to
ILSVRC2012_val_00050000. Images without a label are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from graphbuild.errors import SourceError
from train.evaluate.images import Images
from train.evaluate.protocols.imagenet import Answer, Found, read_json
from train.run.scores import LINEAR_TOP1

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


class ImageNetReal:
    """The protocol over ImageNet's validation images."""

    def __init__(self, val: Images, labels: Path) -> None:
        """Read the labels and the images' numbers.

        Raises:
            SourceError: If the file is not real.json, or the images' ids do not tell their numbers.
        """
        self.sources: Mapping[str, Images] = {"val": val}
        stored = read_json(labels, "real.json of google-research/reassessed-imagenet")
        if not isinstance(stored, list) or not all(isinstance(item, list) for item in stored):
            raise SourceError(f"{labels}: not a list of lists of class numbers, as real.json is.")
        numbers = [_NUMBER.search(sample_id) for sample_id in val.source.sample_ids]
        if not all(numbers) or any(match and not 0 < int(match[1]) <= len(stored) for match in numbers):
            raise SourceError(
                f"{val.source.name}: ids such as {val.source.sample_ids[0]!r} do not tell which image of ImageNet's validation set "
                "it is (ILSVRC2012_val_00000001 and so on). Name these images with --data."
            )
        self._labels = [frozenset(stored[int(match[1]) - 1]) for match in numbers if match]

    def scores(self, found: Mapping[str, Found], answer: Answer) -> dict[str, dict[str, float]]:
        """Return `linear_top1` and `n_test` under `imagenet-real`."""
        guesses = answer(found["val"].features).tolist()
        labels = [self._labels[row] for row in found["val"].rows]
        right = [guess in known for guess, known in zip(guesses, labels, strict=True) if known]
        if not right:
            raise SourceError("imagenet-real: none of the images to classify has a label.")
        return {"imagenet-real": {LINEAR_TOP1: sum(right) / len(right), "images": float(len(right))}}
