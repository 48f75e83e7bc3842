"""Runs independent tasks: in this process, on worker processes of this machine, or on a running Dask cluster.

The only file that knows dask. Tasks write files and return receipts, so that nothing large travels, and a task that is
run twice (because its worker died) does no harm.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from graphbuild.errors import ResourceError, UserError, one_line
from graphbuild.system.cores import thread_shares
from graphbuild.system.worker_checks import Check, Expected, check_workers, expectations, inspect_worker

_PROGRESS_TOPIC = "graphbuild-progress"
_LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.worker",
    "distributed.nanny",
    "distributed.scheduler",
    "distributed.core",
    "tornado",
    "asyncio",
)
_RETRIES = 2
_PASSING = frozenset({errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EAGAIN, errno.EBUSY})
"""Troubles of a shared file system that may be over when a task is run again, perhaps elsewhere."""
TLS_VARIABLES = {
    "tls_ca_file": "DASK_DISTRIBUTED__COMM__TLS__CA_FILE",
    "tls_client_cert": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT",
    "tls_client_key": "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY",
}
"""Where Dask, and this program, look for the certificates by which a running cluster knows its clients."""
_GPUS_VARIABLE = "GRAPHBUILD_GPUS"
_VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"
_ONE_AT_A_TIME = threading.Lock()
"""A task uses all cores of its process; a worker started with several threads would run as many side by side."""

_PASSED: set[str] = set()
"""Runs whose check this worker process has passed."""

Report = Callable[[int], None]
Task = Callable[..., Any]
"""Called as task(*arguments, report=report) with a function that is told of finished work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Which processes run the tasks: this one, its own workers, or those of a Dask cluster."""

    count: int = 0
    """Worker processes on this machine; 0 is this process."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, which takes precedence."""
    gpus: int = 0
    """GPUs that the processes on this machine share out, each seeing one alone; 0 leaves that as it is."""
    connect: float = 20.0
    """Seconds that a running scheduler has to answer."""
    patience: float = 60.0
    """Seconds without any worker of a running cluster after which that is said."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error that is the task's own, and not its worker's: running it again elsewhere would not help."""

    error: Exception


def run_tasks(
    task: Task,
    calls: Sequence[tuple[Any, ...]],
    *,
    workers: Workers,
    shared: Sequence[Path],
    report: Report,
    check: Check | None = None,
    release: Callable[[], object] | None = None,
) -> Iterator[Any]:
    """Run `task(*arguments, report=...)` for each tuple of arguments; results come as they are ready.

    Args:
        task: A function of a module, which the workers can import.
        calls: Arguments of each call; they must be small, because they travel.
        workers: Where to run. One call alone runs here, unless a scheduler is named: more processes cannot help.
        shared: Folders that every worker must see; checked on a running cluster. The first one must be writable.
        report: Told how much work was finished, from any thread.
        check: Run on every worker of a running cluster before work starts, and in every process before its first task:
            workers that join later are checked like the rest.
        release: Run in every process that worked, once the work is over: workers of a running cluster outlive it, and would keep
            what tasks hold for each other.

    Raises:
        UserError: What a task raised.
        ResourceError: If a scheduler or its workers cannot be reached, lack what is needed, or die repeatedly.
    """
    count = min(workers.count, len(calls))
    if workers.scheduler is None and count <= 1:
        try:
            for arguments in calls:
                yield task(*arguments, report=report)
        finally:
            if release is not None:
                release()
        return
    with _client(count, workers) as client:
        client.subscribe_topic(_PROGRESS_TOPIC, lambda event: report(int(event[1])))
        if workers.scheduler is None:
            yield from _gather(client, task, calls, None)
            return
        with expectations(shared, check) as expected, _watched(client, workers):
            check_workers(client, workers.scheduler, expected)
            try:
                yield from _gather(client, task, calls, expected)
            finally:
                if release is not None:
                    # Where the scheduler is gone, its workers go as well.
                    with suppress(Exception):
                        client.run(release, on_error="ignore")


@contextmanager
def _watched(client: Any, workers: Workers) -> Iterator[None]:
    """While work goes on: say so where there has been no worker for a while, instead of waiting in silence."""
    ended = threading.Event()

    def watch() -> None:
        seen = time.monotonic()
        while not ended.wait(min(5.0, workers.patience)):
            with suppress(Exception):
                # Where the scheduler is gone, the work itself ends with an error.
                if client.nthreads():
                    seen = time.monotonic()
                elif time.monotonic() - seen >= workers.patience:
                    click.echo(
                        f"no worker at {workers.scheduler} for {time.monotonic() - seen:.0f} s: waiting. Start some with "
                        f"`dask worker --nthreads 1 {workers.scheduler}`, or stop this command: what was finished is kept.",
                        err=True,
                    )
                    seen = time.monotonic()

    thread = threading.Thread(target=watch, name="workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _gather(client: Any, task: Task, calls: Sequence[tuple[Any, ...]], expected: Expected | None) -> Iterator[Any]:
    import distributed

    # Dask annotates parts of its interface only.
    dask: Any = distributed

    futures = [client.submit(_run_one, task, arguments, expected, pure=False, retries=_RETRIES) for arguments in calls]
    try:
        for future in dask.as_completed(futures):
            result = future.result()
            if isinstance(result, _Failure):
                raise result.error
            yield result
    except (dask.CancelledError, dask.comm.CommClosedError) as error:
        # The scheduler was killed or restarted: it knows nothing of this work any more.
        raise ResourceError(
            f"the Dask scheduler went away ({type(error).__name__}). What was finished is kept: start it and its workers, and run "
            "the same command again."
        ) from None
    except dask.KilledWorker:
        raise ResourceError(
            "worker processes died again and again at the same work, most likely for lack of memory. What was finished is kept: "
            "run the same command again with fewer --workers."
        ) from None
    finally:
        # Where the scheduler is gone there is nothing to take back.
        with suppress(OSError, TimeoutError):
            client.cancel(futures)


def _run_one(task: Task, arguments: tuple[Any, ...], expected: Expected | None) -> Any:
    from distributed import get_worker

    worker = get_worker()
    _take_own_gpu(worker.name)
    try:
        with _ONE_AT_A_TIME:
            if expected is not None and expected.token not in _PASSED:
                # Who works is who is checked: this process may have joined after the others were.
                problem, written = inspect_worker(expected)
                # The client may have ended by now, and removed the probes of all others: nobody else would remove this one.
                Path(written).unlink(missing_ok=True)
                if problem:
                    late = "(It joined after the others were checked; what was finished is kept.)"
                    return _Failure(ResourceError(f"worker {worker.address} {problem} {late}"))
                _PASSED.add(expected.token)
            return task(*arguments, report=lambda amount: worker.log_event(_PROGRESS_TOPIC, amount))
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise
        return _Failure(error)


@contextmanager
def _client(count: int, workers: Workers) -> Iterator[Any]:
    import dask
    import distributed

    dask_distributed: Any = distributed

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet = {
        "logging": dict.fromkeys(_LOGGERS, "critical"),
        "distributed.scheduler.allowed-failures": 3,
        # Its pages ask for no certificate: any user of this machine would see tasks, logs and paths.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }
    with dask.config.set(quiet):
        if workers.scheduler is not None:
            with _connect(dask_distributed, workers.scheduler, workers.connect) as client:
                yield client
            return
        with _start(dask_distributed, count, workers.gpus) as cluster, dask_distributed.Client(cluster) as client:
            yield client


def _start(dask_distributed: Any, count: int, gpus: int) -> Any:
    """Start worker processes on this machine."""
    try:
        return dask_distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            # Whoever reaches the port could run code as this user: only holders of a key that lives in these processes can.
            protocol="tls://",
            security=dask_distributed.Security.temporary(),
            # Some free port, and nothing on it: a second command on this machine would otherwise warn of the first one's.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            env=_worker_environment(count, gpus),
        )
    # A worker that dies while it starts is a RuntimeError of Dask's.
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"worker processes could not be started ({error}). Run the same command again, or with --workers 0."
        ) from error


def _connect(dask_distributed: Any, scheduler: str, seconds: float) -> Any:
    files = {name: path for name, variable in TLS_VARIABLES.items() if (path := os.environ.get(variable))}
    if missing := [path for path in files.values() if not Path(path).is_file()]:
        raise ResourceError(f"{missing[0]}: no such file of certificates. Check --tls-ca-file, --tls-cert and --tls-key.")
    security = dask_distributed.Security(require_encryption=True, **files) if files else None
    try:
        return dask_distributed.Client(scheduler, security=security, timeout=seconds)
    # Dask says with a RuntimeError or TypeError that an address and the certificates do not go together.
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        secured = " A tls:// address takes --tls-ca-file, --tls-cert and --tls-key, and no other address does."
        raise ResourceError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({one_line(str(error))}). Check the address."
            f"{secured if files or scheduler.startswith('tls:') else ''}"
        ) from None


def _worker_environment(count: int, gpus: int) -> dict[str, str]:
    """Each worker's share of the cores, for every library that starts threads; dask itself sets only some of them."""
    quiet = {
        "DASK_LOGGING__DISTRIBUTED": "critical",
        "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
        "PYTHONWARNINGS": "ignore",
    }
    return {**thread_shares(count), **quiet, _GPUS_VARIABLE: str(gpus)}


def _take_own_gpu(name: Any) -> None:
    """Show a local worker its GPU alone, before torch looks; workers are numbered."""
    if gpus := int(os.environ.get(_GPUS_VARIABLE, "0")):
        visible = (os.environ.get(_VISIBLE_VARIABLE) or ",".join(map(str, range(gpus)))).split(",")
        if len(visible) > 1:
            os.environ[_VISIBLE_VARIABLE] = visible[int(name) % len(visible)]
