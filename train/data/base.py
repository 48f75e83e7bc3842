"""What every image source offers, and decoding one image.

Shape letters: H, W an image's own height and width; L the height and width at which images are held.
An image is held as an L x L square together with its H and W, so that crops are drawn in the geometry of the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from graphbuild.store.arrays import Int64, UInt8
from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb

Encoded = bytes | UInt8 | None
"""An image file's bytes, or pixels (H, W, 3), or None where the source holds nothing."""


@dataclass(frozen=True, slots=True)
class Labels:
    """One label of every sample."""

    codes: Int64
    """Index into `names`, or -1 where a sample has no label; shape (N,)."""
    names: tuple[str, ...]


class ImageSource(Protocol):
    """Images with ids and labels, read in any order. Reading is safe from several threads."""

    name: str
    """How messages call it."""
    sample_ids: Sequence[str]
    """One an image."""

    def __len__(self) -> int:
        """Images."""

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """Return the images as they are stored, in the order asked for."""

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return what is stored beside some images: labels, ids, captions; values that JSON can hold."""

    def label_columns(self) -> tuple[str, ...]:
        """Return what `labels` takes."""

    def labels(self, column: str) -> Labels:
        """Return one label of every sample.

        Raises:
            SourceError: If there is no such column; those that exist are named.
        """

    def class_ids(self) -> Sequence[str] | None:
        """Return each sample's class as a graph of classes names it (a WordNet id, a class name), where the source knows one."""


def decode(item: Encoded, size: int) -> tuple[UInt8, tuple[int, int]]:
    """Decode one image to RGB and resize it to a square, averaging over the pixels that fall together.

    Args:
        item: What `ImageSource.encoded` gave.
        size: L.

    Returns:
        Pixels (3, L, L), and the image's own (H, W), upright.

    Raises:
        UnreadablePicture: If it is empty, truncated, no image, or too large.
    """
    image = open_picture(item)
    width, height = image.size
    image = to_rgb(image, at_least=size)
    # A picture that was turned by its EXIF orientation lies otherwise than its header says.
    if (image.width < image.height) != (width < height):
        width, height = height, width
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return _channels_first(image), (height, width)


def decode_centre(item: Encoded, size: int) -> tuple[UInt8, tuple[int, int]]:
    """Decode one image to the centred square of a view, resampled once: torchvision's `Resize(S)` and `CenterCrop(S)`.

    A JPEG is decoded in full, because a quarter of it would be another picture: large ones take about twice as long as by `decode`.

    Args:
        item: What `ImageSource.encoded` gave.
        size: S.

    Returns:
        Pixels (3, S, S), and (S, S): the square is the whole of what is left.

    Raises:
        UnreadablePicture: If it is empty, truncated, no image, or too large.
    """
    image = to_rgb(open_picture(item))
    short = min(image.size)
    if short != size:
        wide, tall = (size if side == short else int(size * side / short) for side in image.size)
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return _channels_first(image.crop((left, top, left + size, top + size))), (size, size)


def _channels_first(image: Image.Image) -> UInt8:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def short_side(item: Encoded) -> int | None:
    """Return the smaller of an image's height and width, from its header; None if it cannot be read."""
    try:
        return min(open_picture(item).size)
    except UnreadablePicture:
        # Whatever is wrong with it is told when it is decoded.
        return None


def encode_labels(values: Sequence[object]) -> Labels:
    """Number the distinct values: in numerical order if all are integers, else in that of their text; null is -1."""
    distinct = {value for value in values if value is not None}
    numeric = all(isinstance(value, int) for value in distinct)
    ordered = sorted(distinct, key=(lambda value: value) if numeric else str)
    index = {value: code for code, value in enumerate(ordered)}
    codes = np.array([-1 if value is None else index[value] for value in values], dtype=np.int64)
    return Labels(codes, tuple(str(value) for value in ordered))
