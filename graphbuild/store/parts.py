"""Parts of a stage that machines do without a scheduler: part I of N takes every N-th shard, and only a last, whole call
enters the stage. Parts write shards and receipts alone, so they need no writer's lock; each part has a lock of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from graphbuild.errors import OptionError
from graphbuild.store.cache import writable
from graphbuild.store.files import RECORDS
from graphbuild.store.locks import LockedError, attempt, exclusive
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import writer_lock, writing

_FOLDER = "parts"
_LOOKS, _SECONDS = 5, 0.05
"""How often, and after how long again, a part looks whether somebody writes."""
_WAIT_SECONDS = 2.0
"""Between looks at whether what parts have in common is there."""
_Ready = TypeVar("_Ready")


@dataclass(frozen=True, slots=True)
class Part:
    """One of several equal shares of a stage's shards."""

    number: int
    """From 1 to `of`."""
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part of the command line, `I/N`.

        Raises:
            OptionError: If it is no such pair, or I is not from 1 to N.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal()):
            raise OptionError(f"--part {text}: give I/N, such as 1/8.")
        if not 1 <= int(number) <= int(of):
            raise OptionError(f"--part {text}: parts of {int(of):,} run from 1/{of} to {of}/{of}.")
        return cls(int(number), int(of))

    def has(self, shard: int) -> bool:
        """Return whether a shard belongs to it."""
        return shard % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartResult:
    """What one part did."""

    graph_dir: Path
    stage: str
    part: str
    written: int
    """Shards that it wrote."""
    open: int
    """Shards of the stage that are still missing, of other parts."""

    def summary(self) -> str:
        """Return a line for people."""
        rest = (
            f"{self.open:,} of other parts are open" if self.open else f"none is open: run `graphbuild {self.stage}` without --part"
        )
        return f"{self.graph_dir}: part {self.part} of {self.stage} wrote {self.written:,} shard(s), {rest}"

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        return {**asdict(self), "graph_dir": str(self.graph_dir)}


@contextmanager
def working_at(graph_dir: Path, stage: str, part: Part) -> Iterator[None]:
    """Hold a part, as the only process, until the block ends.

    Raises:
        LockedError: If another one is at it, or a whole command is at work in the graph; it is named.
    """
    path = graph_dir / RECORDS / _FOLDER / f"{stage}-{part.number}-of-{part.of}"
    advice = f"Part {part} of {stage} is taken: give this machine another one."
    with exclusive(path, where=graph_dir, advice=advice):
        # In this order, because a writer looks for parts once it has its lock: one of the two sees the other.
        _require_no_writer(graph_dir)
        yield


def _require_no_writer(graph_dir: Path) -> None:
    lock = writer_lock(graph_dir)
    for _ in range(_LOOKS):
        with attempt(lock, where=graph_dir) as free:
            if free:
                return
        # Other parts look, too, each for a moment.
        time.sleep(_SECONDS)
    with exclusive(lock, where=graph_dir, advice="Wait until it has ended: parts run beside nothing but parts."):
        pass


def in_common(graph_dir: Path, look: Callable[[Manifest], _Ready | None], make: Callable[[Manifest], object]) -> _Ready:
    """Return what a part of a stage works with, once the texts are there: the first one that comes makes them, the others wait.

    Args:
        graph_dir: The graph.
        look: Returns what a part works with, or None where the texts are not there yet.
        make: Makes them, as the graph's only writer.
    """
    said = False
    while (found := look(Manifest.load_or_new(graph_dir))) is None:
        try:
            with writing(graph_dir) as manifest:
                make(manifest)
        except LockedError as error:
            if not said:
                click.echo(f"waiting for the texts: {error}", err=True)
            said = True
            time.sleep(_WAIT_SECONDS)
    return found


def require_no_parts(graph_dir: Path, stage: str) -> None:
    """Check that no process works on a part of a stage, because a whole call removes what unfinished writers left.

    Raises:
        LockedError: If somebody is.
    """
    folder = graph_dir / RECORDS / _FOLDER
    # In a folder that cannot be written, nobody works.
    for path in sorted(folder.glob(f"{stage}-*-of-*")) if writable(folder) else ():
        if path.suffix:
            continue
        with exclusive(path, where=graph_dir, advice=f"Wait until all parts of {stage} have ended."):
            pass
