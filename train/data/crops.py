"""Crops cut from pictures as they are stored, and resized after that: torchvision's RandomResizedCrop, where pictures are decoded.

Shape letters: n pictures, V views of each, S height and width of a view; H, W a picture's own height and width, upright.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from graphbuild.store.arrays import UInt8
from graphbuild.system.pictures import open_picture, to_rgb, upright_size
from train.data.augment import seeded
from train.data.base import Encoded
from train.data.resampling import centre_boxes, random_boxes

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels of the picture."""
_SHRINKS = 2
"""A JPEG may be decoded smaller while every crop stays so many times as high and wide as a view."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Which crops the pictures of one batch get: each picture draws from a generator of its own, whichever thread decodes it."""

    size: int
    """S."""
    views: int
    """V."""
    smallest: float
    """Smallest share of a picture's area that a crop keeps."""
    centred: bool
    """Whether nothing is drawn, and the largest centred square is taken."""
    place: tuple[int, ...]
    """Seed, epoch, step and process: what the drawing follows from, beside a picture's place in the batch."""

    def boxes(self, position: int, height: int, width: int) -> list[Box]:
        """Return the boxes of one picture, V of them.

        Args:
            position: Its place in the batch.
            height: H.
            width: W.
        """
        sizes = torch.tensor([[height, width]]).expand(self.views, 2)
        if self.centred:
            drawn = centre_boxes(sizes).floor()
        else:
            # Never 0: zeros at the end of a seed are as if they were not there.
            drawn = random_boxes(sizes, seeded(*self.place, position + 1), scale=(self.smallest, 1.0))
        return [(top, left, tall, wide) for top, left, tall, wide in drawn.int().tolist()]

    def decode(self, item: Encoded, position: int) -> tuple[UInt8, tuple[int, int]]:
        """Return the crops of one picture, uint8 (V, 3, S, S), and its (H, W).

        Args:
            item: What `ImageSource.encoded` gave.
            position: Its place in the batch.

        Raises:
            UnreadablePicture: If it is empty, truncated, no image, or too large.
        """
        return decode_crops(item, lambda height, width: self.boxes(position, height, width), self.size)


def decode_crops(item: Encoded, choose: Callable[[int, int], Sequence[Box]], size: int) -> tuple[UInt8, tuple[int, int]]:
    """Decode one picture, and cut and resize its crops: bilinear and antialiased, as torchvision resizes pictures of Pillow.

    A JPEG that is large for all its crops is decoded at a half, a quarter or an eighth, which differs from torchvision's by a
    grey level or so; all others are equal to it.

    Args:
        item: What `ImageSource.encoded` gave.
        choose: Boxes for an H and W.
        size: S.

    Returns:
        Crops, uint8 (V, 3, S, S), and the picture's (H, W).

    Raises:
        UnreadablePicture: If it is empty, truncated, no image, or too large.
    """
    image = open_picture(item)
    height, width = upright_size(image)
    boxes = choose(height, width)
    smallest = min(min(tall, wide) for _, _, tall, wide in boxes)
    # Decoded to at least this, the smallest crop is still `_SHRINKS` times a view; beyond the picture's own size: as it is.
    image = to_rgb(image, at_least=-(-min(height, width) * _SHRINKS * size // smallest))
    views = [_cut(image, box, (height, width), size) for box in boxes]
    return np.stack([np.asarray(view).transpose(2, 0, 1) for view in views]), (height, width)


def _cut(image: Image.Image, box: Box, shape: tuple[int, int], size: int) -> Image.Image:
    top, left, tall, wide = box
    right, bottom = left + wide, top + tall
    if (image.height, image.width) == shape:
        return image.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)
    down, across = image.height / shape[0], image.width / shape[1]
    inside = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=inside)
