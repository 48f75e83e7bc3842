"""Means of several draws or seeds, and their 95 % confidence intervals by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

LEVEL = 0.95
_GRID = 1 << 18


@cache
def t_quantile(degrees: int) -> float:
    """The t that lies above |T| with probability 0.95, T of Student's distribution with so many degrees of freedom.

    With t = sqrt(degrees) tan(a), the density of the angle is proportional to cos(a)^(degrees - 1) on [0, pi/2].
    """
    angles = np.linspace(0, math.pi / 2, _GRID)
    density = np.cos(angles) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(degrees) * math.tan(float(np.interp(LEVEL, below / below[-1], angles)))


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval; None where a single value says nothing of the spread."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))


def drawn(name: str, values: Sequence[float]) -> dict[str, float]:
    """A score of several draws: its mean as `name`, half its 95 % interval as `name_ci95`."""
    mean, half = mean_interval(values)
    return {name: mean} if half is None else {name: mean, f"{name}_ci95": half}
