"""Work that goes on in a thread of its own while its results are looked at."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
_WAITING = 1
"""Results that wait to be taken, beside the one that is ready next; the work stops there."""
_LOOK = 0.1
"""Seconds after which a thread that waits for room looks whether it is still wanted."""


@dataclass(frozen=True, slots=True)
class _End:
    """There is no more: because that was all, or because of an error."""

    error: BaseException | None


class _Stopped(BaseException):
    """Nobody wants the rest."""


class _Ahead(Generic[Item]):
    def __init__(self, source: Iterator[Item]) -> None:
        self._source = source
        self._results: queue.Queue[Item | _End] = queue.Queue(_WAITING)
        self._stop = threading.Event()

    def results(self) -> Iterator[Item]:
        thread = threading.Thread(target=self._work, name="knn-ahead", daemon=True)
        thread.start()
        try:
            while not isinstance(item := self._results.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            self._stop.set()
            thread.join()

    def _work(self) -> None:
        try:
            for item in self._source:
                self._put(item)
            self._put(_End(None))
        except _Stopped:
            pass
        # Whatever it is, it is raised where the results are taken.
        except BaseException as error:
            self._put_last(_End(error))

    def _put(self, item: Item | _End) -> None:
        while not self._stop.is_set():
            try:
                self._results.put(item, timeout=_LOOK)
            except queue.Full:
                continue
            return
        raise _Stopped

    def _put_last(self, end: _End) -> None:
        with suppress(_Stopped):
            self._put(end)


def ahead(source: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of an iterator, which is run in a thread, some items ahead; what it raises is raised here."""
    return _Ahead(source).results()
