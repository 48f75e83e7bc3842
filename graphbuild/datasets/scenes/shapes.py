"""The things of `scenes` as polygons.

A shape is a list of parts, painted in order; a part is a paint and its outline's points in a box from -1 to 1, x to the
right and y down. Paints: `main` is the thing's colour, `dark` and `light` are shades of it, the others are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Paint = Literal["main", "dark", "light", "ink", "cream", "bark", "glass"]
Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Part:
    """One polygon; `points` has shape (n, 2)."""

    paint: Paint
    points: Points


def _polygon(paint: Paint, *points: tuple[float, float]) -> Part:
    return Part(paint, np.array(points, dtype=np.float64))


def _arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Points:
    """Points of an elliptical arc, in degrees, clockwise from the right as y points down."""
    count = max(8, int(abs(stop - start) / 360 * 28))
    angles = np.radians(np.linspace(start, stop, count, endpoint=abs(stop - start) < 360))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _ellipse(paint: Paint, x: float, y: float, rx: float, ry: float) -> Part:
    return Part(paint, _arc(x, y, rx, ry))


def _box(paint: Paint, left: float, top: float, right: float, bottom: float) -> Part:
    return _polygon(paint, (left, top), (right, top), (right, bottom), (left, bottom))


def _star() -> list[Part]:
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return [Part("main", np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))]


def _heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    return [Part("main", np.stack([x, y], axis=1))]


def _moon() -> list[Part]:
    outer = _arc(0.0, 0.0, 0.95, 0.95, 50, 310)
    inner = _arc(0.42, 0.0, 0.73, 0.73, 286, 74)
    return [Part("main", np.concatenate([outer, inner]))]


def _flower() -> list[Part]:
    angles = np.radians(np.arange(6) * 60)
    petals = [_ellipse("main", 0.56 * float(np.cos(a)), 0.56 * float(np.sin(a)), 0.4, 0.4) for a in angles]
    return [*petals, _ellipse("cream", 0, 0, 0.32, 0.32)]


def _umbrella() -> list[Part]:
    scallops = [(0.98, 0.1), (0.65, -0.08), (0.33, 0.1), (0.0, -0.08), (-0.33, 0.1), (-0.65, -0.08), (-0.98, 0.1)]
    canopy = np.concatenate([_arc(0, 0.1, 0.98, 0.98, 180, 360), np.array(scallops)])
    return [
        _box("ink", -0.06, 0.0, 0.06, 0.9),
        _polygon("ink", (-0.06, 0.9), (0.06, 0.9), (-0.1, 1.0), (-0.34, 0.94), (-0.34, 0.74), (-0.24, 0.74), (-0.22, 0.88)),
        Part("main", canopy),
    ]


def _mushroom() -> list[Part]:
    return [
        _polygon("cream", (-0.24, 0.0), (0.24, 0.0), (0.36, 0.95), (-0.36, 0.95)),
        Part("main", _arc(0, 0.12, 1.0, 1.02, 180, 360)),
        _ellipse("cream", -0.45, -0.25, 0.15, 0.15),
        _ellipse("cream", 0.1, -0.55, 0.17, 0.15),
        _ellipse("cream", 0.55, -0.15, 0.14, 0.13),
    ]


def _boat() -> list[Part]:
    return [
        _box("ink", -0.07, -0.95, 0.05, 0.4),
        _polygon("main", (-1.0, 0.38), (1.0, 0.38), (0.62, 0.92), (-0.66, 0.92)),
        _polygon("main", (0.1, -0.9), (0.88, 0.26), (0.1, 0.26)),
        _polygon("light", (-0.14, -0.7), (-0.14, 0.26), (-0.76, 0.26)),
    ]


SHAPES: dict[str, list[Part]] = {
    "circle": [_ellipse("main", 0, 0, 0.9, 0.9)],
    "square": [_box("main", -0.78, -0.78, 0.78, 0.78)],
    "triangle": [_polygon("main", (0, -0.95), (0.95, 0.75), (-0.95, 0.75))],
    "star": _star(),
    "heart": _heart(),
    "house": [
        _box("main", -0.72, -0.12, 0.72, 0.92),
        _polygon("dark", (0, -0.98), (0.98, -0.1), (-0.98, -0.1)),
        _box("cream", -0.16, 0.32, 0.2, 0.92),
        _box("glass", 0.34, 0.1, 0.6, 0.4),
    ],
    "tree": [
        _box("bark", -0.15, 0.55, 0.15, 1.0),
        _polygon("main", (0, -0.1), (0.82, 0.66), (-0.82, 0.66)),
        _polygon("main", (0, -0.55), (0.64, 0.2), (-0.64, 0.2)),
        _polygon("main", (0, -1.0), (0.46, -0.26), (-0.46, -0.26)),
    ],
    "fish": [
        _polygon("dark", (0.4, 0.0), (1.0, -0.55), (0.9, 0.0), (1.0, 0.55)),
        _polygon("dark", (-0.25, -0.35), (0.15, -0.75), (0.3, -0.3)),
        _ellipse("main", -0.22, 0.0, 0.76, 0.5),
        _ellipse("cream", -0.58, -0.12, 0.14, 0.14),
        _ellipse("ink", -0.6, -0.12, 0.07, 0.07),
    ],
    "car": [
        _polygon("main", (-0.5, -0.1), (-0.3, -0.58), (0.36, -0.58), (0.62, -0.1)),
        _polygon("glass", (-0.38, -0.1), (-0.22, -0.46), (0.3, -0.46), (0.48, -0.1)),
        _polygon("main", (-1.0, -0.1), (0.92, -0.1), (1.0, 0.1), (1.0, 0.42), (-1.0, 0.42)),
        _ellipse("ink", -0.55, 0.44, 0.25, 0.25),
        _ellipse("ink", 0.55, 0.44, 0.25, 0.25),
    ],
    "cup": [
        _ellipse("main", 0.58, 0.05, 0.38, 0.42),
        _ellipse("glass", 0.6, 0.05, 0.2, 0.23),
        _polygon("main", (-0.75, -0.65), (0.55, -0.65), (0.42, 0.8), (-0.6, 0.8)),
        _ellipse("dark", -0.1, -0.65, 0.65, 0.17),
    ],
    "flower": _flower(),
    "boat": _boat(),
    "moon": _moon(),
    "arrow": [_polygon("main", (-1, -0.27), (0.1, -0.27), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.27), (-1, 0.27))],
    "umbrella": _umbrella(),
    "mushroom": _mushroom(),
}
"""The parts of each thing of `scenes_words.OBJECTS`."""
