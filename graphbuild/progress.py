"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing for what is over at once."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_QUIET_SECONDS = 2.0
_LINE_SECONDS = 10.0


class Meter:
    """Counts finished work; made by `progress`."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._note = ""
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_SECONDS
        self._bar: Progress | None = None
        self._interactive = sys.stderr.isatty()

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Add finished work, and say a few words about it (a loss, a rate)."""
        self._done += amount
        now = time.monotonic()
        if self._interactive:
            self._draw(now, note)
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            click.echo(self._line(now, note), err=True)

    def _draw(self, now: float, note: str) -> None:
        if self._bar is None:
            if now - self._started < _QUIET_SECONDS:
                return
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self._label, total=self._total, note=note)
            self._bar.start()
        task = self._bar.task_ids[0]
        self._note = note or self._note
        self._bar.update(task, completed=self._done, note=self._note)

    def _line(self, now: float, note: str) -> str:
        of = f"/{self._total:,}" if self._total else ""
        rate = self._done / max(now - self._started, 1e-9)
        left = f", {(self._total - self._done) / rate:,.0f} s left" if self._total and rate else ""
        return f"{self._label}: {self._done:,}{of} {self._unit}, {rate:,.0f}/s{left}" + (f", {note}" if note else "")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int | None, *, unit: str = "rows") -> Iterator[Meter]:
    """Show progress of a piece of work; silent if it ends within two seconds.

    Args:
        label: What is being done, in a word or two.
        total: How much there is; None if that is not known.
        unit: What is counted.
    """
    meter = Meter(label, total, unit)
    try:
        yield meter
    finally:
        meter.close()
