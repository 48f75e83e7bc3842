"""Several processes that make the runs of one study: each takes the next one that no other is at."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from pathlib import Path

import click

from graphbuild.errors import ResourceError, run_cli
from train.signals import stop_signal

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_LOOK_SECONDS = 1.0


@contextmanager
def claim(run_dir: Path) -> Iterator[bool]:
    """Take a run for this process until the end of the block, or of the process; False if another one is at it."""
    path = run_dir.with_name(f".{run_dir.name}.claim")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_jobs(work: Callable[[], None], jobs: int) -> None:
    """Do the same work in several processes, which share the cores; the first that fails, or a signal, stops all of them.

    Args:
        work: Can be pickled. A process that fails says why itself.
        jobs: Processes.

    Raises:
        click.exceptions.Exit: With the exit code of the process that failed, or of the signal.
        ResourceError: If a process was killed.
    """
    context = get_context("spawn")
    processes = [context.Process(target=_as_command, args=(work,)) for _ in range(jobs)]
    with stop_signal(deaf=True) as stop:
        with _threads_of_each(jobs):
            for process in processes:
                process.start()
        number = failed = 0
        while alive := [process for process in processes if process.is_alive()]:
            connection.wait([process.sentinel for process in alive], timeout=_LOOK_SECONDS)
            if not (number or failed):
                number, failed = stop(), next((process.exitcode for process in processes if process.exitcode), 0)
                for process in alive if number or failed else ():
                    process.terminate()
    if number or failed > 0:
        raise click.exceptions.Exit(128 + number if number else failed)
    if failed:
        raise ResourceError(
            f"a process of --jobs {jobs} was ended by {signal.Signals(-failed).name}. What was finished is kept: run the same "
            "command again to go on, with fewer --jobs if memory ran out."
        )


def _as_command(work: Callable[[], None]) -> None:
    run_cli(lambda **_: work(), debug_variable="TRAIN_DEBUG")


@contextmanager
def _threads_of_each(jobs: int) -> Iterator[None]:
    """What processes started meanwhile find in their environment: a share of the cores, unless the user has said how many."""
    mine = [name for name in _THREADS if name not in os.environ]
    share = max(1, len(os.sched_getaffinity(0)) // jobs)
    os.environ.update(dict.fromkeys(mine, str(share)))
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]
