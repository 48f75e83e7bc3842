"""Work shared among threads: matrix products and numba kernels release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Task = TypeVar("Task")


class Threads:
    """A few threads, each of which computes with one core: they share no matrix product, and wait for no other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "knn", initializer=lambda: torch.set_num_threads(1))

    def run(
        self, tasks: Iterable[Task], work: Callable[[int, Task], None], done: Callable[[Task], None] = lambda _task: None
    ) -> None:
        """Call `work(thread number, task)` for every task; tasks start in order.

        Args:
            tasks: Taken one by one, by whichever thread is free.
            work: What to do. Calls for different tasks must not depend on each other.
            done: Called with each task, by one thread at a time, after it.

        Raises:
            BaseException: The first that a task raised, or that interrupted the wait; tasks not yet started are left out.
        """
        source = iter(tasks)
        lock = threading.Lock()
        stop = threading.Event()

        def loop(number: int) -> None:
            while not stop.is_set():
                with lock:
                    task = next(source, None)
                if task is None:
                    return
                work(number, task)
                with lock:
                    done(task)

        futures = [self._pool.submit(loop, number) for number in range(self.count)]
        try:
            for future in futures:
                future.result()
        finally:
            stop.set()

    def close(self) -> None:
        """End the threads, when what they do is done."""
        self._pool.shutdown()


@contextmanager
def threads(count: int | None = None) -> Iterator[Threads]:
    """Give a block of code its threads: as many as torch would use, unless told otherwise."""
    before = torch.get_num_threads()
    pool = Threads(count or before)
    try:
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(before)
