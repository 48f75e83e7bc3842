"""Opening pictures: formats, orientation, transparency, depth, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from graphbuild.system import pictures
from graphbuild.system.pictures import UnreadablePicture, open_picture, to_rgb

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
RAMP = np.tile(np.linspace(0, 1, 64), (32, 1))


def stored(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def read(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(to_rgb(open_picture(content)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_picture_of_every_format_is_read(form: str) -> None:
    if form not in Image.SAVE and form not in (Image.init() and Image.SAVE):
        pytest.skip(f"this Pillow writes no {form}")
    found = read(stored(Image.fromarray(PIXELS), form))
    assert found.shape == PIXELS.shape
    assert np.abs(found.mean() - PIXELS.mean()) < 6


@pytest.mark.parametrize("form", ["EPS", "PPM", "ICO", "TGA"])
def test_other_formats_of_pillow_are_not_opened(form: str) -> None:
    with pytest.raises(UnreadablePicture, match="no image of a known format"):
        open_picture(stored(Image.fromarray(PIXELS), form))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_stand_as_their_orientation_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    content = stored(Image.fromarray(PIXELS), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(read(content), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 4), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
        content = stored(image, "PNG")
    else:
        content = stored(Image.new(mode, (4, 4), 0), "PNG", transparency=0 if mode == "P" else (0, 0, 0))
    assert (read(content) == 255).all()


def test_half_transparent_black_on_white_is_grey() -> None:
    assert (np.abs(read(stored(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).astype(int) - 127) <= 1).all()


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ((RAMP * 65535).astype(np.uint16), "PNG"),
        ((RAMP * 65535).astype(np.uint16), "TIFF"),
        ((RAMP * 65535).astype(np.int32), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
    ],
)
def test_a_grey_ramp_of_any_depth_is_a_grey_ramp(values: NDArray[Any], form: str) -> None:
    found = read(stored(Image.fromarray(values), form))
    assert np.abs(found[..., 0] - RAMP * 255).max() < 1.01


@pytest.mark.parametrize("values", [RAMP * 2, RAMP - 1, RAMP * np.nan, RAMP * 255])
def test_floats_without_a_known_white_are_refused(values: NDArray[Any]) -> None:
    with pytest.raises(UnreadablePicture, match="grey values from"):
        read(stored(Image.fromarray(values.astype(np.float32)), "TIFF"))


def test_a_picture_beyond_the_limit_of_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = stored(Image.fromarray(PIXELS), "PNG")
    monkeypatch.setattr(pictures, "MOST_PIXELS", PIXELS.shape[0] * PIXELS.shape[1] - 1)
    with pytest.raises(UnreadablePicture, match="40 x 24 pixels, more than 959"):
        open_picture(content)


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_what_is_no_picture_is_told(content: bytes | None) -> None:
    with pytest.raises(UnreadablePicture):
        open_picture(content)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_truncated_picture_is_told(form: str) -> None:
    content = stored(Image.fromarray(PIXELS), form)
    with pytest.raises(UnreadablePicture):
        read(content[: len(content) // 2])
