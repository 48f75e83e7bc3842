"""SIGTERM, as schedulers send it, SIGHUP and Ctrl-C, as a number that a loop asks for between its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signal(*, ignore_second: bool = False) -> Iterator[Callable[[], int]]:
    """Turn SIGTERM, SIGHUP and SIGINT into a number that the loop asks for; 0 before. A second signal acts as if none were caught.

    Args:
        ignore_second: Take no notice of a second signal: a terminal and torchrun both send one, and torchrun kills in the end.
    """
    received = 0
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    if handlers[signal.SIGHUP] is signal.SIG_IGN:
        # As nohup sets it: the run goes on when the terminal is gone.
        del handlers[signal.SIGHUP]

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = number
        if not ignore_second:
            restore()

    for number in handlers:
        signal.signal(number, note)
    try:
        yield lambda: received
    finally:
        restore()
