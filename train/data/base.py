"""What every image source offers, and decoding one image.

Shape letters: H, W an image's own height and width; L the height and width at which images are held.
An image is held as an L x L square together with its H and W, so that crops are drawn in the geometry of the original.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

Encoded = bytes | UInt8 | None
"""An image file's bytes, or pixels (H, W, 3), or None where the source holds nothing."""


@dataclass(frozen=True, slots=True)
class Labels:
    """One label of every sample."""

    codes: Int64
    """Index into `names`, or -1 where a sample has no label; shape (N,)."""
    names: tuple[str, ...]


class UnreadableImage(Exception):
    """An image that cannot be decoded; its text says why."""


class ImageSource(Protocol):
    """Images with ids and labels, read in any order. Reading is safe from several threads."""

    name: str
    """How messages call it."""
    sample_ids: Sequence[str]
    """One an image."""

    def __len__(self) -> int:
        """Images."""

    def encoded(self, indices: Sequence[int]) -> list[Encoded]:
        """The images as they are stored, in the order asked for."""

    def metas(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """What is stored beside some images: labels, ids, captions; values that JSON can hold."""

    def label_columns(self) -> tuple[str, ...]:
        """What `labels` takes."""

    def labels(self, column: str) -> Labels:
        """One label of every sample.

        Raises:
            SourceError: If there is no such column; those that exist are named.
        """

    def class_ids(self) -> Sequence[str] | None:
        """Each sample's class as a graph of classes names it (a WordNet id, a class name), where the source knows one."""


def decode(item: Encoded, size: int) -> tuple[UInt8, tuple[int, int]]:
    """Decode one image to RGB and resize it to a square, averaging over the pixels that fall together.

    Args:
        item: What `ImageSource.encoded` gave.
        size: L.

    Returns:
        Pixels (3, L, L), and the image's own (H, W).

    Raises:
        UnreadableImage: If it is empty, truncated, or no image.
    """
    if item is None or (isinstance(item, bytes) and not item):
        raise UnreadableImage("holds no bytes")
    try:
        image = Image.open(io.BytesIO(item)) if isinstance(item, bytes) else Image.fromarray(item)
        width, height = image.size
        # JPEG decodes at a half, a quarter or an eighth for almost nothing; never below the size wanted.
        image.draft("RGB", (size, size))
        image = image if image.mode == "RGB" else _to_rgb(image)
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise UnreadableImage("no image of a known format") from None
    # Pillow raises OSError, ValueError, SyntaxError, struct.error and others on damaged bytes.
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), (height, width)


def _to_rgb(image: Image.Image) -> Image.Image:
    # 16-bit grayscale must be scaled: Pillow's own conversion clips everything above 255 to white.
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    # A palette with transparency converts to RGBA first, or its transparent colour is arbitrary.
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def short_side(item: Encoded) -> int | None:
    """The smaller of an image's height and width, from its header; None if it cannot be read."""
    try:
        if isinstance(item, bytes):
            return min(Image.open(io.BytesIO(item)).size)
        return None if item is None else min(item.shape[:2])
    except Exception:
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
