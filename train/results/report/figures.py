"""Figures of the report as HTML fragments: curves as inline SVG, matrices and pictures as embedded PNG.

Curves take their colours from the page's style sheet, so that they follow its light and dark theme. Nothing here refers
to anything outside the page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

_SIZE_INCHES = (5.0, 2.9)
_INK = "#010203"
"""Stands for the page's text colour until the figure is in the page."""
_GRID = "#010204"
_MAX_POINTS = 400
_CELL_PIXELS = 480


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    color: int
    """Number of the run's colour in the style sheet, --run-0 and so on."""
    x: Sequence[float]
    y: Sequence[float]


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str) -> Markup | None:
    """Draw curves over one another; None where no curve has a finite point."""
    # Loaded here: a second of import that only reports need.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = [curve for curve in curves if np.isfinite(np.asarray(curve.y, dtype=float)).any()]
    if not drawn:
        return None
    # Any: the keys are spelled out in matplotlib's types, some of them only in its newest ones.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": y_label, "font.size": 10, "text.parse_math": False}
    style |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "text.color"), _INK)
    with rc_context(style):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        axes.patch.set_visible(False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=_GRID, linewidth=0.6)
        for curve in drawn:
            x, y = _thin(curve)
            axes.plot(x, y, color=_run_color(curve.color), linewidth=1.8, marker="o" if len(x) == 1 else "")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.margins(x=0.01)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_page(buffer.getvalue(), f"{y_label} over {x_label}: {', '.join(curve.name for curve in drawn)}")


def matrix_image(matrix_NN: npt.NDArray[np.float32]) -> str:
    """A similarity matrix as a data URI: dark is dissimilar; the scale is `off_diagonal_range`."""
    from matplotlib import colormaps

    low, high = off_diagonal_range(matrix_NN)
    scaled = np.clip((matrix_NN - low) / max(high - low, 1e-9), 0, 1)
    pixels = (colormaps["viridis"](scaled)[:, :, :3] * 255).astype(np.uint8)
    # Whole pixels a cell, so that browsers that smooth images still show square cells.
    zoom = max(1, _CELL_PIXELS // len(matrix_NN))
    return _data_uri(pixels.repeat(zoom, 0).repeat(zoom, 1))


def off_diagonal_range(matrix_NN: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The 1st and 99th percentile of what is off the diagonal."""
    values = matrix_NN[~np.eye(len(matrix_NN), dtype=bool)]
    low, high = np.percentile(values, [1, 99]) if values.size else (0.0, 1.0)
    return float(low), float(high)


def picture(pixels_3HW: npt.NDArray[np.uint8]) -> str:
    """A picture as a data URI."""
    return _data_uri(pixels_3HW.transpose(1, 2, 0))


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


def _run_color(number: int) -> str:
    return f"#0102{16 + number:02x}"


def _for_page(svg: str, title: str) -> Markup:
    """Strip what only a file of its own needs (it names outside addresses), and hand the colours to the style sheet."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    # The page's own font is used: measured text would be drawn in one that the reader may lack.
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    body = body.replace(_INK, "currentColor").replace(_GRID, "var(--rule)")
    body = re.sub(r"#0102([1-9a-f][0-9a-f])", lambda match: f"var(--run-{int(match[1], 16) - 16})", body)
    head, rest = body.split(">", 1)
    return Markup("{}{}{}").format(Markup(head + ' role="img">'), Markup("<title>{}</title>").format(title), Markup(rest))
