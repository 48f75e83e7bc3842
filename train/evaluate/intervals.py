"""Means of several draws or seeds, and their 95 % confidence intervals by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

LEVEL = 0.95


def half_interval(error: float, degrees: float, *, level: float = LEVEL) -> float:
    """Return half the width of a confidence interval.

    Args:
        error: Standard error of the mean.
        degrees: Degrees of freedom of Student's distribution.
        level: Confidence.
    """
    # Loaded here: the command line knows the names of protocols without it.
    import scipy.stats

    return float(scipy.stats.t.ppf((1 + level) / 2, degrees)) * error


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and half the width of its 95 % interval; None where a single value says nothing of the spread."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, half_interval(error, len(values) - 1)


def drawn(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return a score of several draws: its mean as `name`, half its 95 % interval as `name_ci95`."""
    mean, half = mean_interval(values)
    return {name: mean} if half is None else {name: mean, f"{name}_ci95": half}
