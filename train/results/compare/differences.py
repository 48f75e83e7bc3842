"""Whether two arms differ: Student's t on the difference of their means, paired by seed where they share seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train.evaluate.intervals import LEVEL, half_interval

ALPHA = 1 - LEVEL
"""A difference is significant if its p value, corrected or not, is smaller."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of one arm less that of another."""

    mean: float
    error: float | None
    """Its standard error; None where single runs say nothing of the spread."""
    degrees: float
    """Degrees of freedom of Student's distribution."""
    paired: bool
    """Whether runs of equal seeds were set against each other."""

    @property
    def half(self) -> float | None:
        """Return half the 95 % interval; None where there is none."""
        return None if self.error is None else half_interval(self.error, self.degrees)

    @property
    def p(self) -> float | None:
        """Return the two-sided p value of a difference of zero; None where there is no interval."""
        if self.error is None:
            return None
        if not self.error:
            return 0.0 if self.mean else 1.0
        import scipy.stats

        return float(2 * scipy.stats.t.sf(abs(self.mean) / self.error, self.degrees))

    @property
    def significant(self) -> bool | None:
        """Tell whether the 95 % interval leaves out zero; None where there is no interval."""
        return None if self.half is None else abs(self.mean) > self.half

    def equivalent(self, bound: float) -> bool | None:
        """Tell whether the difference lies within a bound, by two one-sided tests at 5 % (Schuirmann 1987).

        That is the same as the 90 % interval lying within (-bound, bound). None where there is no interval.
        """
        if self.error is None:
            return None
        return abs(self.mean) + half_interval(self.error, self.degrees, level=1 - 2 * ALPHA) < bound


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Compare two arms, each a score by seed.

    Where they share at least two seeds, Student's t on the differences of these seeds; else Welch's.
    """
    shared = sorted(set(one) & set(other))
    if len(shared) > 1 or (shared and len(one) == len(other) == 1):
        gaps = np.array([one[seed] - other[seed] for seed in shared])
        return Difference(float(gaps.mean()), _standard_error(gaps), len(gaps) - 1, True)
    return _welch(np.array(list(one.values())), np.array(list(other.values())))


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Correct p values of one family of tests by Holm's step-down method (1979).

    Returns:
        Adjusted p values in the order given; those below a level are significant at it, over the whole family.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(1, factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def _welch(one: np.ndarray, other: np.ndarray) -> Difference:
    gap = float(one.mean() - other.mean())
    errors = _standard_error(one), _standard_error(other)
    if errors[0] is None or errors[1] is None:
        return Difference(gap, None, 0, False)
    squares = [error**2 for error in errors if error is not None]
    parts = sum(square**2 / (len(values) - 1) for square, values in zip(squares, (one, other), strict=True))
    # The Welch-Satterthwaite equation; without any spread there is nothing to take degrees of.
    degrees = sum(squares) ** 2 / parts if parts else 1.0
    return Difference(gap, math.sqrt(sum(squares)), degrees, False)


def _standard_error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
