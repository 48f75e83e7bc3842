"""How long a run has trained, and what shares of the time went where."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds of training, and the shares of its parts since the last line."""

    def __init__(self) -> None:
        self.before = 0.0
        """Seconds of earlier sessions."""
        self._began = self._mark = time.perf_counter()
        self._parts: dict[str, float] = {}

    def start(self) -> None:
        """Begin to count the seconds of a session."""
        self._began = self._mark = time.perf_counter()
        self._parts = {}

    def total(self) -> float:
        """Return the seconds of all sessions."""
        return self.before + time.perf_counter() - self._began

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a part of a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - began

    def lap(self, images: int) -> dict[str, float]:
        """Return rate and shares since the last lap, which ends here."""
        now = time.perf_counter()
        span = max(now - self._mark, 1e-9)
        shares = {name: self._parts.get(name, 0.0) / span for name in ("wait", "augment", "target")}
        self._mark, self._parts = now, {}
        return {
            "images_per_s": images / span,
            "data_wait_share": shares["wait"],
            "augment_share": shares["augment"],
            "target_share": shares["target"],
        }
