"""The learning rate of every step: linear warm-up, then half a cosine to zero (SGDR without restarts, arXiv 1608.03983)."""

from __future__ import annotations

import math
from dataclasses import dataclass

_MOST_WARMUP = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates of a run whose length is known."""

    peak: float
    total_steps: int
    warmup_steps: int

    @classmethod
    def for_run(cls, peak: float, *, total_steps: int, steps_per_epoch: int, warmup_epochs: float) -> Schedule:
        """Warm up for some epochs, but for a tenth of the run at most."""
        return cls(peak, total_steps, min(round(warmup_epochs * steps_per_epoch), int(total_steps * _MOST_WARMUP)))

    def at(self, step: int) -> float:
        """Return the learning rate of step 0 to total_steps - 1; never 0, so that no step is without effect."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        return self.peak * 0.5 * (1 + math.cos(math.pi * done))
