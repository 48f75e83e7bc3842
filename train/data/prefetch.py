"""Reading ahead: a thread works on the next items while the caller works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

Item = TypeVar("Item")
_POLL_SECONDS = 0.1


class _End:
    """Tells the reader that there is no more, and why."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def read_ahead(items: Iterator[Item], *, depth: int = 2) -> Iterator[Item]:
    """Yield the same items in the same order, up to `depth` of them made in advance by one background thread.

    An error of the thread is raised where the item would have come. Closing the iterator ends the thread.
    """
    ready: queue.Queue[Item | _End] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_work, args=(items, ready, stop), name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _work(items: Iterator[Item], ready: queue.Queue[Item | _End], stop: threading.Event) -> None:
    end = _End(None)
    try:
        for item in items:
            if not _put(item, ready, stop):
                return
    except BaseException as error:
        end = _End(error)
    _put(end, ready, stop)


def _put(item: Item | _End, ready: queue.Queue[Item | _End], stop: threading.Event) -> bool:
    """Hand an item over; False if nobody wants it any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
