"""Progress on stderr: one bar on a terminal, a plain line now and then elsewhere, nothing for what is over at once.

A command names its `stages`; each piece of work is a `progress`, and shows which of the stages it is: 2/4. Pieces lie within
pieces (a report makes a partition): the innermost is shown. Where torchrun started several processes, the first of them speaks.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET_SECONDS = 2.0
"""Of work that is over before, nothing is shown on a terminal."""
LINE_SECONDS = 10.0
"""Between two lines, where there is no terminal."""


def is_main_process() -> bool:
    """Tell whether this is the process that speaks: of those that torchrun started, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Write one line on stderr, in the process that speaks."""
    if is_main_process():
        click.echo(message, err=True)


class _Screen:
    """The one bar of this process: it comes after two seconds, whether or not anything advances, and goes with the last work."""

    def __init__(self) -> None:
        self.plans: list[tuple[str, ...]] = []
        self.begun = 0.0
        """When the outermost plan began."""
        self._meters: list[Meter] = []
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def within(self, label: str) -> str:
        """Name a piece of work that no plan numbers after the one that it is a part of."""
        with self._lock:
            return f"{self._meters[-1].label}: {label}" if self._meters else label

    def enter(self, meter: Meter) -> None:
        with self._lock:
            self._meters.append(meter)
            self._turn_to(meter)
            if self._bar is None and self._timer is None:
                self._timer = threading.Timer(QUIET_SECONDS, self._begin)
                self._timer.daemon = True
                self._timer.start()

    def leave(self, meter: Meter) -> None:
        with self._lock:
            if meter in self._meters:
                self._meters.remove(meter)
            if self._meters:
                self._turn_to(self._meters[-1])
        self.rest()

    def rest(self) -> None:
        """Take the bar away where nothing is left to do; between the stages of a command it stays."""
        with self._lock:
            if self._meters or self.plans:
                return
            timer, self._timer = self._timer, None
            bar, self._bar = self._bar, None
        if timer is not None:
            timer.cancel()
        if bar is not None:
            bar.stop()

    def show(self, meter: Meter) -> None:
        # Without the lock: this is called for every step, and an outer piece of work is drawn when the inner one is over.
        if self._bar is not None and self._meters and self._meters[-1] is meter:
            self._bar.update(self._bar.task_ids[0], total=meter.total, completed=meter.done, count=meter.count(), note=meter.note)

    def _begin(self) -> None:
        with self._lock:
            self._timer = None
            if not self._meters:
                return
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task("", total=None, count="", note="")
            self._turn_to(self._meters[-1])
            self._bar.start()

    def _turn_to(self, meter: Meter) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.reset(task, total=meter.total, completed=meter.done, description=meter.label)
            self._bar.update(task, count=meter.count(), note=meter.note)


_SCREEN = _Screen()


class Meter:
    """Counts finished work; made by `progress`."""

    def __init__(self, label: str, total: int | None, unit: str, done: int) -> None:
        plan = _SCREEN.plans[-1] if _SCREEN.plans else ()
        self.label = f"{plan.index(label) + 1}/{len(plan)} {label}" if label in plan else _SCREEN.within(label)
        self.total, self._unit = total, unit
        self.done = self._first = done
        self.note = ""
        self._started = time.monotonic()
        self._next_line = self._started + LINE_SECONDS
        self._speaks = is_main_process()
        self._interactive = sys.stderr.isatty()
        if self._speaks and self._interactive:
            _SCREEN.enter(self)
        elif self._speaks and label in plan and self._started - _SCREEN.begun > LINE_SECONDS:
            click.echo(self.label, err=True)

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Add finished work, and say a few words about it (a loss, a rate); the last words stay until there are new ones."""
        self.done += amount
        self.note = self.note if note is None else note
        if not self._speaks:
            return
        if self._interactive:
            _SCREEN.show(self)
        elif (now := time.monotonic()) >= self._next_line:
            self._next_line = now + LINE_SECONDS
            click.echo(self._line(now), err=True)

    def reach(self, done: int, total: int) -> None:
        """Say how much is done, and of how much, where others count."""
        self.total = total
        self.advance(done - self.done)

    def count(self) -> str:
        """Return how much is done, in words; empty where nothing is counted."""
        if self.total is None and not self.done:
            return ""
        return f"{self.done:,}" + (f"/{self.total:,}" if self.total is not None else "") + f" {self._unit}"

    def _line(self, now: float) -> str:
        rate = (self.done - self._first) / max(now - self._started, 1e-9)
        left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total and rate else ""
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        return f"{self.label}: {self.count()}, {speed}/s{left}" + (f", {self.note}" if self.note else "")

    def close(self) -> None:
        """Take the bar away, where this was the last work."""
        if self._speaks and self._interactive:
            _SCREEN.leave(self)


@contextmanager
def progress(label: str, total: int | None, *, unit: str = "rows", done: int = 0) -> Iterator[Meter]:
    """Show progress of a piece of work; silent if it ends within two seconds.

    Args:
        label: What is being done, in a word or two; one of the command's stages is shown with its number.
        total: How much there is; None if that is not known.
        unit: What is counted.
        done: How much was done before (a resumed run).
    """
    meter = Meter(label, total, unit, done)
    try:
        yield meter
    finally:
        meter.close()


@contextmanager
def stages(*labels: str) -> Iterator[None]:
    """Number the pieces of work of a command, each by its label; one bar stays from the first to the last.

    Args:
        labels: Of the `progress` of each stage, in order. One that turns out to be done already is passed over.
    """
    if not _SCREEN.plans:
        _SCREEN.begun = time.monotonic()
    _SCREEN.plans.append(labels)
    try:
        yield
    finally:
        _SCREEN.plans.pop()
        _SCREEN.rest()
