"""Charts as inline SVG that follows the page's colours: numbers in, markup out. No library, no script, nothing outside.

Coordinates are those of the viewBox; classes are styled by the page. Every string goes through Markup's escaping.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 480.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 12.0, 44.0


@dataclass(frozen=True, slots=True)
class Line:
    """A named line; `style` is a class of the page: `a`, `b`, `c`, with ` dashed` where it is a reference."""

    name: str
    style: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Band:
    """The area between two curves."""

    style: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """Range, ticks and scale of one axis."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 to 1."""
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(max(value, self.low) if self.log else value) - low) / ((high - low) or 1.0)


def linear_axis(label: str, low: float, high: float, *, percent: bool = False) -> Axis:
    """Return an axis with about five round ticks between two values; the range grows to hold them."""
    step = _round_step((high - low) / 4 or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    # A constant has a range, too: it lies on the line below.
    last += first == last
    values = [round(i * step, 10) for i in range(first, last + 1)]
    shown = [f"{value:.0%}" if percent else f"{value:g}" for value in values]
    return Axis(label=label, low=values[0], high=values[-1], ticks=list(zip(values, shown, strict=True)))


def log_axis(label: str, values: Sequence[float], marks: Sequence[float] | None = None) -> Axis:
    """Return an axis of decades (or the marks given) between the least and the largest value; all are positive."""
    low, high = min(values), max(values)
    if marks is None:
        marks = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    ticks = [(mark, f"{mark:,g}") for mark in marks if low * 0.999 <= mark <= high * 1.001]
    return Axis(label=label, low=low, high=max(high, low * 1.001), ticks=ticks, log=True)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)


def chart(x: Axis, y: Axis, *, lines: Sequence[Line] = (), bands: Sequence[Band] = (), bars: Sequence[Line] = ()) -> Markup:
    """Draw bands, bars and lines over one another, in this order, on a grid; return an SVG element.

    Args:
        x: The horizontal axis.
        y: The vertical axis.
        lines: Curves.
        bands: Areas behind them.
        bars: Each with len(x) = len(y) + 1: the limits of its bars.
    """
    title = f"{y.label} over {x.label}" + (f": {', '.join(one.name for one in (*bars, *lines))}" if lines or bars else "")
    parts = [_axes(x, y)]
    parts += [_area(x, y, band) for band in bands]
    parts += [_bars(x, y, bar) for bar in bars]
    parts += [_curve(x, y, line) for line in lines]
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" role="img"><title>{}</title>{}</svg>').format(
        _WIDTH, _HEIGHT, title, Markup("").join(parts)
    )


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return names beside their colours: (name, style)."""
    items = (Markup('<span><i class="key {}"></i>{}</span>').format(style, name) for name, style in entries)
    return Markup('<div class="legend">{}</div>').format(Markup("").join(items))


def _point(x: Axis, y: Axis, x_value: float, y_value: float) -> tuple[float, float]:
    across = _LEFT + x.place(x_value) * (_WIDTH - _LEFT - _RIGHT)
    return across, _HEIGHT - _BOTTOM - y.place(y_value) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(x: Axis, y: Axis) -> Markup:
    parts = []
    for value, text in y.ticks:
        _, height = _point(x, y, x.low, value)
        parts.append(
            Markup('<line class="rule" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, _WIDTH - _RIGHT, height, height
            )
        )
        parts.append(Markup('<text class="tick end" x="{:.1f}" y="{:.1f}">{}</text>').format(_LEFT - 6, height + 4, text))
    for value, text in x.ticks:
        across, _ = _point(x, y, value, y.low)
        parts.append(
            Markup('<text class="tick middle" x="{:.1f}" y="{:.1f}">{}</text>').format(across, _HEIGHT - _BOTTOM + 16, text)
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(Markup('<text class="tick middle" x="{:.1f}" y="{:.1f}">{}</text>').format(middle, _HEIGHT - 8, x.label))
    return Markup("").join(parts)


def _path(x: Axis, y: Axis, across: Sequence[float], up: Sequence[float]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in (_point(x, y, one, other) for one, other in zip(across, up, strict=True)))


def _curve(x: Axis, y: Axis, line: Line) -> Markup:
    if len(line.x) == 1:
        across, up = _point(x, y, line.x[0], line.y[0])
        return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(line.style, across, up)
    return Markup('<polyline class="line {}" points="{}"/>').format(line.style, _path(x, y, line.x, line.y))


def _area(x: Axis, y: Axis, band: Band) -> Markup:
    points = f"{_path(x, y, band.x, band.low)} {_path(x, y, band.x[::-1], band.high[::-1])}"
    return Markup('<polygon class="band {}" points="{}"/>').format(band.style, points)


def _bars(x: Axis, y: Axis, bar: Line) -> Markup:
    parts = []
    for left, right, height in zip(bar.x[:-1], bar.x[1:], bar.y, strict=True):
        (start, top), (end, bottom) = _point(x, y, left, height), _point(x, y, right, y.low)
        parts.append(
            Markup('<rect class="bar {}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                bar.style, start, top, max(end - start - 1, 0.5), max(bottom - top, 0)
            )
        )
    return Markup("").join(parts)
