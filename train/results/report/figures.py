"""Figures of the report as HTML fragments: curves as inline SVG, matrices and pictures as embedded PNG.

Nothing here refers to anything outside the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from graphbuild.system.pages.charts import Line, chart, linear_axis

COLORS = 6
"""Colours of the style sheet; run number seven has that of the first again."""
_MAX_POINTS = 400
_CELL_PIXELS = 480
_PICTURE_PIXELS = 112


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    color: int
    """Number of the run, which decides its colour."""
    x: Sequence[float]
    y: Sequence[float]


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str) -> Markup | None:
    """Draw curves over one another; return None where no curve has a finite point."""
    thinned = [(curve, *_thin(curve)) for curve in curves]
    lines = [Line(curve.name, f"run-{curve.color % COLORS}", x.tolist(), y.tolist()) for curve, x, y in thinned if len(x)]
    if not lines:
        return None
    across, up = ([value for line in lines for value in getattr(line, side)] for side in ("x", "y"))
    return chart(linear_axis(x_label, min(across), max(across)), linear_axis(y_label, min(up), max(up)), lines=lines)


def matrix_image(matrix_NN: npt.NDArray[np.float32]) -> str:
    """Return a similarity matrix as a data URI: dark is dissimilar; the scale is `off_diagonal_range`."""
    from matplotlib import colormaps

    low, high = off_diagonal_range(matrix_NN)
    scaled = np.clip((matrix_NN - low) / max(high - low, 1e-9), 0, 1)
    pixels = (colormaps["viridis"](scaled)[:, :, :3] * 255).astype(np.uint8)
    # Whole pixels a cell, so that browsers that smooth images still show square cells.
    zoom = max(1, _CELL_PIXELS // len(matrix_NN))
    return _data_uri(pixels.repeat(zoom, 0).repeat(zoom, 1))


def off_diagonal_range(matrix_NN: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the 1st and 99th percentile of what is off the diagonal."""
    values = matrix_NN[~np.eye(len(matrix_NN), dtype=bool)]
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return float(low), float(high)


def picture(pixels_3HW: npt.NDArray[np.uint8]) -> str:
    """Return a picture as a data URI; a large one is made smaller, because a page has hundreds."""
    small = Image.fromarray(np.ascontiguousarray(pixels_3HW.transpose(1, 2, 0)))
    small.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
    return _data_uri(np.asarray(small))


def _data_uri(pixels_HW3: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HW3)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thin(curve: Curve) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """At most so many points: means of consecutive ones, or a long run would make a page of many megabytes."""
    x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) <= _MAX_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), _MAX_POINTS)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])
