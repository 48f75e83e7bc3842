"""Progress on stderr: a bar on a terminal, a plain line now and then elsewhere, nothing for what is over at once.

Where torchrun started several processes, the first of them speaks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_QUIET_SECONDS = 2.0
_LINE_SECONDS = 10.0


def is_main_process() -> bool:
    """Tell whether this is the process that speaks: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Write one line on stderr, in the process that speaks."""
    if is_main_process():
        click.echo(message, err=True)


class Meter:
    """Counts finished work; made by `progress`."""

    def __init__(self, label: str, total: int | None, unit: str, done: int) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = self._first = done
        self._note = ""
        self._started = time.monotonic()
        self._next_line = self._started + _LINE_SECONDS
        self._bar: Progress | None = None
        self._interactive = sys.stderr.isatty()
        self._speaks = is_main_process()

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add finished work, and say a few words about it (a loss, a rate); the last words stay until there are new ones."""
        self._done += amount
        self._note = self._note if note is None else note
        if not self._speaks:
            return
        now = time.monotonic()
        if self._interactive:
            self._draw(now)
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            click.echo(self._line(now), err=True)

    def _draw(self, now: float) -> None:
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
            self._bar.add_task(self._label, total=self._total, completed=self._done, note=self._note)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=self._done, note=self._note)

    def _line(self, now: float) -> str:
        of = f"/{self._total:,}" if self._total else ""
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = f", {(self._total - self._done) / rate:,.0f} s left" if self._total and rate else ""
        return f"{self._label}: {self._done:,}{of} {self._unit}, {rate:,.0f}/s{left}" + (f", {self._note}" if self._note else "")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int | None, *, unit: str = "rows", done: int = 0) -> Iterator[Meter]:
    """Show progress of a piece of work; silent if it ends within two seconds.

    Args:
        label: What is being done, in a word or two.
        total: How much there is; None if that is not known.
        unit: What is counted.
        done: How much was done before (a resumed run).
    """
    meter = Meter(label, total, unit, done)
    try:
        yield meter
    finally:
        meter.close()
