"""Tasks for worker processes, in a module that these can import, and running Dask clusters."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from distributed import Client, Security, get_worker

from graphbuild.errors import SourceError
from graphbuild.system.cluster import Workers, run_tasks

Report = Callable[[int], None]


def square(number: int, *, report: Report) -> tuple[int, int]:
    report(1)
    return number * number, os.getpid()


def fail(number: int, *, report: Report) -> int:
    raise SourceError(f"number {number} is bad")


def die_once(marker: str, number: int, *, report: Report) -> int:
    """Kill the worker at the first call with this marker."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return number
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_always(number: int, *, report: Report) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def own_scheduler(number: int, *, report: Report) -> str:
    return str(get_worker().scheduler.address)


def visible_gpu(number: int, *, report: Report) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def stale_once(marker: str, number: int, *, report: Report) -> int:
    """Fail as a shared folder sometimes does, at the first call with this marker."""
    with suppress(FileExistsError):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        raise OSError(errno.ESTALE, "Stale file handle")
    return number


def bad_encoder() -> str | None:
    return "has another encoder."


def other_weights() -> str | None:
    return "has other weights." if os.environ.get("OTHER_WEIGHTS") else None


def rest(number: int, *, report: Report) -> int:
    time.sleep(0.1)
    return number


def held_for_a_search() -> int | None:
    """How many searches by kernels this process holds; None if it never made one."""
    module = sys.modules.get("graphbuild.exchange.searched")
    return None if module is None else int(module._open.cache_info().currsize)


def run(task: Callable[..., object], calls: list[tuple[object, ...]], folder: Path, workers: Workers) -> list[object]:
    """The results of all calls."""
    return list(run_tasks(task, calls, workers=workers, shared=[folder], report=lambda _: None))


SCHEDULER = """
import asyncio, sys
from distributed import Scheduler, Security
ca, cert, key = (sys.argv[1:] + [None] * 3)[:3]
tls = dict(tls_ca_file=ca, tls_scheduler_cert=cert, tls_scheduler_key=key, require_encryption=True)
secured = dict(protocol='tls://', security=Security(**tls)) if ca else {}
async def main():
    async with Scheduler(host='127.0.0.1', port=0, **secured, dashboard_address='127.0.0.1:0') as scheduler:
        print(scheduler.address, flush=True)
        await scheduler.finished()
asyncio.run(main())
"""
_QUIET = {"stderr": subprocess.DEVNULL, "text": True}


class Cluster:
    """A Dask scheduler, and what joins it, in processes of their own."""

    def __init__(self, folder: Path, *certificates: Path) -> None:
        self._folder = folder
        self.scheduler = subprocess.Popen(
            [sys.executable, "-c", SCHEDULER, *map(str, certificates)], stdout=subprocess.PIPE, **_QUIET
        )
        assert self.scheduler.stdout is not None
        self.address = self.scheduler.stdout.readline().strip()
        self._processes = [self.scheduler]

    def add_worker(self, *more: str, **environment: str) -> None:
        """Start a worker, in one process: nothing starts it again."""
        options = ["--no-dashboard", "--no-nanny", "--nthreads", "1", "--local-directory", str(self._folder), *more]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment}, **_QUIET))

    def wait(self, count: int = 1, security: Security | None = None) -> None:
        """Wait for so many workers."""
        with Client(self.address, security=security) as client:
            client.wait_for_workers(count, timeout=60)

    def stop(self) -> None:
        """End all of it."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait()
        if self.scheduler.stdout is not None:
            self.scheduler.stdout.close()
