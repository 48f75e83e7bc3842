"""A scene as a picture: a painted background, and the thing on it, smoothed by drawing three times as large.

Shade, size, place, angle and grain vary within a label, so that no pixel gives a label away. Everything is decided by
the scene and the random generator that is passed in.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from graphbuild.datasets.scenes.shapes import SHAPES, Paint, Points
from graphbuild.datasets.scenes.words import Scene

Canvas = NDArray[np.float32]
"""Shape (side, side, 3), values 0 to 255."""

SMOOTHING = 3
"""The picture is drawn this many times larger and averaged down."""

_RGB: dict[str, tuple[int, int, int]] = {
    "red": (206, 38, 42),
    "orange": (240, 130, 28),
    "yellow": (244, 208, 48),
    "green": (44, 148, 66),
    "blue": (38, 86, 200),
    "purple": (128, 58, 168),
    "pink": (244, 142, 180),
    "brown": (124, 78, 42),
    "white": (246, 244, 238),
    "black": (28, 28, 32),
}
_FIXED: dict[Paint, tuple[int, int, int]] = {
    "ink": (36, 36, 42),
    "cream": (250, 240, 208),
    "bark": (98, 66, 40),
    "glass": (196, 222, 236),
}
_MUTED = 0.7
"""Contrast of a background, so that it does not drown the thing before it."""
_RADIUS = {"small": 0.22, "medium": 0.29, "large": 0.37}
"""Half the thing's width, as a share of the picture's."""
_CENTRES = (0.33, 0.5, 0.67)


def render(scene: Scene, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a scene; RGB, shape (side, side, 3)."""
    wide = side * SMOOTHING
    canvas = BACKGROUND_PAINTERS[scene.background](wide, rng)
    canvas = _tint(rng) + _MUTED * (canvas - 128)
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    _paint_thing(image, scene, rng)
    picture = np.asarray(image.reduce(SMOOTHING), dtype=np.float32)
    picture = picture * rng.uniform(0.85, 1.12) + rng.normal(0.0, 6.0, picture.shape).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def encode_png(picture: NDArray[np.uint8]) -> bytes:
    """Return the picture as PNG bytes, without loss; the fast compression level, for noise hardly compresses."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _tint(rng: np.random.Generator) -> Canvas:
    """Middle grey with a random cast: a background is told by its pattern, not by its mean colour alone."""
    tint: Canvas = 128 + rng.normal(0.0, 14.0, 3).astype(np.float32)
    return tint


def _paint_thing(image: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    wide = image.width
    radius = wide * _RADIUS[scene.size] * rng.uniform(0.9, 1.1)
    row, column = scene.place
    centre = wide * (np.array([_CENTRES[column], _CENTRES[row]]) + rng.normal(0.0, 0.02, 2))
    transform = _turn(rng.normal(0.0, 9.0)) * radius * np.array([rng.uniform(0.9, 1.1), 1.0])
    if rng.random() < 0.5:
        transform = transform * np.array([-1.0, 1.0])
    main = np.array(_RGB[scene.attribute], dtype=np.float64) + rng.normal(0.0, 12.0, 3)
    pen = ImageDraw.Draw(image)
    placed = [(part.paint, part.points @ transform.T + centre) for part in SHAPES[scene.object]]
    edge = _ink(main * 0.55 if main.mean() > 60 else main * 0.3 + 90)
    for _, points in placed:
        # Drawn under all parts, so that only the silhouette is outlined: white on snow stays visible.
        pen.line(_flat(points, close=True), fill=edge, width=max(2, wide // 40), joint="curve")
    for paint, points in placed:
        pen.polygon(_flat(points), fill=_ink(_shade(paint, main)))


def _turn(degrees: float) -> NDArray[np.float64]:
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _shade(paint: Paint, main: NDArray[np.float64]) -> NDArray[np.float64]:
    if paint in _FIXED:
        return np.array(_FIXED[paint], dtype=np.float64)
    return {"main": main, "dark": main * 0.72, "light": main * 0.6 + 102}[paint]


def _ink(rgb: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = np.clip(rgb, 0, 255).astype(int).tolist()
    return red, green, blue


def _flat(points: Points, *, close: bool = False) -> list[tuple[float, float]]:
    listed = [(float(x), float(y)) for x, y in points]
    return [*listed, listed[0]] if close else listed


def _flood(wide: int, rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 10.0) -> Canvas:
    """A canvas of one colour, a little off its usual shade, with a slight slope of light."""
    colour = np.array(rgb, dtype=np.float32) + rng.normal(0.0, spread, 3).astype(np.float32)
    light = np.linspace(rng.uniform(-14, 14), rng.uniform(-14, 14), wide, dtype=np.float32)
    canvas: Canvas = np.broadcast_to(colour + light[:, None, None], (wide, wide, 3)).copy()
    return canvas


def _grid(wide: int) -> tuple[Canvas, Canvas]:
    """Row and column coordinates from 0 to 1, shapes (wide, 1) and (1, wide)."""
    steps = np.linspace(0, 1, wide, endpoint=False, dtype=np.float32)
    return steps[:, None], steps[None, :]


def _blobs(canvas: Canvas, rng: np.random.Generator, count: int, radius: tuple[float, float], rgb: tuple[int, int, int]) -> None:
    """Paint filled ellipses, twice as wide as high, at random places."""
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    wide = canvas.shape[0]
    for x, y, size in zip(rng.random(count) * wide, rng.random(count) * wide, rng.uniform(*radius, count) * wide, strict=True):
        pen.ellipse((x - size, y - size / 2, x + size, y + size / 2), fill=rgb)
    canvas[:] = np.asarray(image, dtype=np.float32)


def _sky(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (150, 198, 236))
    _blobs(canvas, rng, int(rng.integers(3, 7)), (0.08, 0.2), (240, 245, 250))
    return canvas


def _meadow(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (112, 172, 74))
    blades = rng.random((wide // 4 + 1, wide // 2 + 1)).astype(np.float32).repeat(4, 0).repeat(2, 1)[:wide, :wide]
    return canvas + (blades[:, :, None] - 0.5) * 90


def _sand(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (222, 196, 140))
    row, column = _grid(wide)
    dunes = np.sin(2 * np.pi * (rng.uniform(2, 3.5) * row + rng.uniform(-0.8, 0.8) * column + rng.random()))
    grain: Canvas = rng.normal(0.0, 14.0, (wide, wide, 1)).astype(np.float32) + dunes[:, :, None] * 12
    return canvas + grain


def _water(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (52, 128, 168))
    row, column = _grid(wide)
    swell = 0.18 * np.sin(2 * np.pi * (rng.uniform(1.5, 3) * column + rng.random()))
    waves = np.sin(2 * np.pi * (rng.uniform(5, 8) * row + swell + rng.random()))
    return canvas + np.where(waves > 0.6, 60.0, waves * 10)[:, :, None].astype(np.float32)


def _night(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (24, 28, 66), 6.0)
    count = int(rng.integers(14, 30))
    dot = max(2, wide // 36)
    for y, x in rng.integers(0, wide - dot, (count, 2)):
        canvas[y : y + dot, x : x + dot] = rng.uniform(190, 255)
    return canvas


def _bricks(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (168, 92, 74))
    height, length = wide / rng.uniform(6.5, 8.5), wide / rng.uniform(3.2, 4.2)
    rows = np.arange(wide) + rng.uniform(0, height)
    columns = np.arange(wide)[None, :] + np.where(np.floor(rows / height) % 2, length / 2, 0)[:, None] + rng.uniform(0, length)
    joint = max(1.5, wide / 40)
    canvas[(rows % height < joint)[:, None] | (columns % length < joint)] = (206, 196, 184)
    return canvas


def _checks(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (212, 208, 200))
    cell = wide / rng.uniform(5, 8)
    row, column = (np.floor((np.arange(wide) + rng.uniform(0, cell)) / cell) for _ in range(2))
    canvas[(row[:, None] + column[None, :]) % 2 == 1] -= rng.uniform(95, 125)
    return canvas


def _stripes(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (218, 206, 176))
    row, column = _grid(wide)
    angle = rng.uniform(0, np.pi)
    phase = rng.uniform(5, 8) * (np.cos(angle) * column + np.sin(angle) * row) + rng.random()
    canvas[phase % 1 < 0.5] = np.array((96, 134, 150)) + rng.normal(0, 14, 3)
    return canvas


def _snow(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (206, 214, 226), 6.0)
    _blobs(canvas, rng, int(rng.integers(25, 50)), (0.015, 0.035), (252, 253, 255))
    return canvas


def _dots(wide: int, rng: np.random.Generator) -> Canvas:
    canvas = _flood(wide, rng, (232, 190, 180))
    cell = wide / rng.uniform(4, 6)
    row, column = ((np.arange(wide) + rng.uniform(0, cell)) % cell - cell / 2 for _ in range(2))
    canvas[row[:, None] ** 2 + column[None, :] ** 2 < (cell * rng.uniform(0.26, 0.34)) ** 2] = (250, 246, 240)
    return canvas


BACKGROUND_PAINTERS: dict[str, Callable[[int, np.random.Generator], Canvas]] = {
    "sky": _sky,
    "meadow": _meadow,
    "sand": _sand,
    "water": _water,
    "night": _night,
    "bricks": _bricks,
    "checks": _checks,
    "stripes": _stripes,
    "snow": _snow,
    "dots": _dots,
}
"""What paints each label of `scenes_words.BACKGROUNDS`."""
