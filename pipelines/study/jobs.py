"""Several processes that make the runs of one study: each takes the next one that no other is at."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from pathlib import Path

import click

from graphbuild.errors import ResourceError
from graphbuild.store.locks import attempt
from graphbuild.system.cores import thread_shares
from graphbuild.system.process import run_cli
from train.run.signals import stop_signal

_LOOK_SECONDS = 1.0


def claim(run_dir: Path) -> AbstractContextManager[bool]:
    """Take a run for this process until the end of the block, or of the process; False if another one is at it."""
    return attempt(run_dir.with_name(f".{run_dir.name}.claim"), where=run_dir)


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
    number = failed = 0
    with stop_signal() as stop:
        try:
            with _environment(thread_shares(jobs)):
                for process in processes:
                    process.start()
            while not (number or failed) and (alive := [process for process in processes if process.is_alive()]):
                connection.wait([process.sentinel for process in alive], timeout=_LOOK_SECONDS)
                number, failed = stop(), _first_failure(processes)
            # One may have failed since it was last looked at.
            failed = failed or _first_failure(processes)
        finally:
            for process in processes:
                # Once each: a second signal would not wait for a checkpoint.
                if process.pid is not None and process.is_alive():
                    process.terminate()
            for process in processes:
                if process.pid is not None:
                    process.join()
    if number or failed > 0:
        raise click.exceptions.Exit(128 + number if number else failed)
    if failed:
        raise ResourceError(
            f"a process of --jobs {jobs} was ended by {signal.Signals(-failed).name}. What was finished is kept: run the same "
            "command again to go on, with fewer --jobs if memory ran out."
        )


def _first_failure(processes: list[SpawnProcess]) -> int:
    """An exit code other than 0, or 0."""
    return next((process.exitcode for process in processes if process.exitcode), 0)


def _as_command(work: Callable[[], None]) -> None:
    # The terminal's Ctrl-C is for the first process alone, which stops the others: a second signal would end them at once.
    os.setpgrp()
    threading.Thread(target=_follow_parent, daemon=True).start()
    run_cli(lambda **_: work(), debug_variable="TRAIN_DEBUG")


def _follow_parent() -> None:
    """Stop this process, as a signal does, when the one that started it is gone: killed, or without a terminal."""
    parent = parent_process()
    assert parent is not None, "started by run_jobs"
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What processes that are started meanwhile find."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
