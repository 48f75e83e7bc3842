"""Whether two arms differ: the 95 % interval of the difference of their means, paired by seed where they share seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from train.evaluate.intervals import mean_interval, t_quantile


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of one arm less that of another."""

    mean: float
    half: float | None
    """Half the 95 % interval; None where single runs say nothing of the spread."""
    paired: bool
    """Whether runs of equal seeds were set against each other."""

    @property
    def significant(self) -> bool | None:
        """Whether the interval leaves out zero; None where there is no interval."""
        return None if self.half is None else abs(self.mean) > self.half


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Compare two arms, each a score by seed.

    Where they share at least two seeds, Student's t on the differences of these seeds; else Welch's.
    """
    shared = sorted(set(one) & set(other))
    if len(shared) > 1 or (shared and len(one) == len(other) == 1):
        mean, half = mean_interval([one[seed] - other[seed] for seed in shared])
        return Difference(mean, half, True)
    return _welch(list(one.values()), list(other.values()))


def _welch(one: list[float], other: list[float]) -> Difference:
    gap = math.fsum(one) / len(one) - math.fsum(other) / len(other)
    if min(len(one), len(other)) < 2:
        return Difference(gap, None, False)
    errors = [_variance(values) / len(values) for values in (one, other)]
    if not sum(errors):
        return Difference(gap, 0.0, False)
    parts = [error**2 / (len(values) - 1) for error, values in zip(errors, (one, other), strict=True)]
    # Rounded down, which makes the interval wider.
    degrees = max(1, int(sum(errors) ** 2 / sum(parts)))
    return Difference(gap, t_quantile(degrees) * math.sqrt(sum(errors)), False)


def _variance(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
