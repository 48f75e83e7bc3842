"""Opening pictures, for every caller: which formats, how large, which way up, and what becomes of transparency and depth.

Pictures come from anywhere: only formats that Pillow decodes by itself are opened (an EPS would start Ghostscript), and none
that would take gigabytes.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from graphbuild.system.inputs import PICTURE_FORMATS

FORMATS = tuple(PICTURE_FORMATS)
"""What is opened; of moving pictures, the first frame."""
MOST_PIXELS = 1 << 27
"""134 million: 400 MB as RGB."""
_ORIENTATION = 0x0112
_UPRIGHT = 1
_SIDEWAYS = (5, 6, 7, 8)
_DEEPEST = 0xFFFF

# What is too large is refused here, by our own limit.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadablePicture(Exception):
    """A picture that cannot be used; its text says why."""


def open_picture(content: bytes | npt.NDArray[np.uint8] | None) -> Image.Image:
    """Open a picture by its header; its pixels are decoded by `to_rgb`.

    Args:
        content: A file's bytes, or pixels (H, W, 3), or None where there is nothing.

    Raises:
        UnreadablePicture: If it is empty, of no known format, or larger than `MOST_PIXELS`.
    """
    if content is None or (isinstance(content, bytes) and not content):
        raise UnreadablePicture("holds no bytes")
    try:
        if isinstance(content, bytes):
            Image.init()
            image: Image.Image = Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])
        else:
            image = Image.fromarray(content)
    except UnidentifiedImageError:
        raise UnreadablePicture("no image of a known format") from None
    # Pillow raises OSError, ValueError, SyntaxError, struct.error and others on damaged bytes.
    except Exception as error:
        raise UnreadablePicture(str(error) or type(error).__name__) from error
    if image.width * image.height > MOST_PIXELS:
        raise UnreadablePicture(f"{image.width:,} x {image.height:,} pixels, more than {MOST_PIXELS:,} in all")
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return height and width of a picture as `to_rgb` turns it, from its header.

    Args:
        image: What `open_picture` returned.

    Raises:
        UnreadablePicture: If its EXIF data are damaged.
    """
    try:
        sideways = image.getexif().get(_ORIENTATION, _UPRIGHT) in _SIDEWAYS
    # Pillow raises SyntaxError, struct.error and others on damaged EXIF data.
    except Exception as error:
        raise UnreadablePicture(str(error) or type(error).__name__) from error
    return (image.width, image.height) if sideways else (image.height, image.width)


def to_rgb(image: Image.Image, *, at_least: int | None = None) -> Image.Image:
    """Decode a picture: upright as its EXIF orientation says, laid on white where it is transparent, RGB with 8 bits.

    Greyscale of 16 bits is scaled to 8; of 32-bit integers the range 0 to 65,535 is, and of floats 0 to 1: others have no white
    that is known.

    Args:
        image: What `open_picture` returned.
        at_least: A size below which neither height nor width is wanted: a JPEG larger than twice that is decoded at a half, a
            quarter or an eighth, which costs almost nothing. None: as it is stored.

    Raises:
        UnreadablePicture: If it is truncated or damaged, or its grey values are of no known range.
    """
    try:
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        image = image.convert("RGB")
        # Truncated files are told now, also where nothing was converted.
        image.load()
    except UnreadablePicture:
        raise
    except Exception as error:
        raise UnreadablePicture(str(error) or type(error).__name__) from error
    return image


def _eight_bits(values: npt.NDArray[np.generic], mode: str) -> npt.NDArray[np.uint8]:
    """Grey values of more than 8 bits, scaled; Pillow's own conversion clips everything above 255 to white."""
    low, high = float(values.min()), float(values.max())
    most = 1 if mode == "F" else _DEEPEST
    # Written so that NaN is outside, too.
    if not (low >= 0 and high <= most):
        kind = "floats" if mode == "F" else "integers"
        raise UnreadablePicture(f"grey values from {low:g} to {high:g}: only {kind} from 0 to {most:,} are known")
    if mode == "F":
        return np.round(values.astype(np.float64) * 255).astype(np.uint8)
    return (values.astype(np.int64) >> 8).astype(np.uint8)
