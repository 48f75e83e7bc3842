"""Runs independent tasks: in this process, on worker processes of this machine, or on a running Dask cluster.

The only file that knows dask. Tasks write files and return receipts, so that nothing large travels, and a task that is
run twice (because its worker died) does no harm.
"""

from __future__ import annotations

import logging
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graphbuild import __version__
from graphbuild.errors import ResourceError, UserError

_PROGRESS_TOPIC = "graphbuild-progress"
_LOGGERS = (
    "distributed",
    "distributed.worker",
    "distributed.nanny",
    "distributed.scheduler",
    "distributed.core",
    "tornado",
    "asyncio",
)
_CONNECT_SECONDS = 20

Report = Callable[[int], None]
Task = Callable[..., Any]
"""Called as task(*arguments, report=report) with a function that is told of finished work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Where tasks run."""

    count: int = 0
    """Worker processes on this machine; 0 is this process."""
    scheduler: str | None = None
    """Address of a running Dask scheduler, which takes precedence."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error that is the task's own, and not its worker's: running it again elsewhere would not help."""

    error: Exception


def run_tasks(
    task: Task, calls: Sequence[tuple[Any, ...]], *, workers: Workers, shared: Sequence[Path], report: Report
) -> Iterator[Any]:
    """Run `task(*arguments, report=...)` for each tuple of arguments; results come as they are ready.

    Args:
        task: A function of a module, which the workers can import.
        calls: Arguments of each call; they must be small, for they travel.
        workers: Where to run. One call alone runs here, unless a scheduler is named: more processes cannot help.
        shared: Folders that every worker must see; checked on a running cluster. The first one must be writable.
        report: Told how much work was finished, from any thread.

    Raises:
        UserError: What a task raised.
        ResourceError: If a scheduler or its workers cannot be reached, lack what is needed, or die repeatedly.
    """
    count = min(workers.count, len(calls))
    if workers.scheduler is None and count <= 1:
        for arguments in calls:
            yield task(*arguments, report=report)
        return
    with _client(count, workers.scheduler) as client:
        if workers.scheduler is not None:
            _check_cluster(client, workers.scheduler, shared)
        client.subscribe_topic(_PROGRESS_TOPIC, lambda event: report(int(event[1])))
        yield from _gather(client, task, calls)


def _gather(client: Any, task: Task, calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    import distributed

    # Dask annotates parts of its interface only.
    dask: Any = distributed

    futures = [client.submit(_run_one, task, arguments, pure=False) for arguments in calls]
    try:
        for future in dask.as_completed(futures):
            result = future.result()
            if isinstance(result, _Failure):
                raise result.error
            yield result
    except dask.KilledWorker:
        raise ResourceError(
            "worker processes died again and again at the same work, most likely for lack of memory. What was finished is kept: "
            "run the same command again with fewer --workers."
        ) from None
    finally:
        client.cancel(futures)


def _run_one(task: Task, arguments: tuple[Any, ...]) -> Any:
    from distributed import get_worker

    worker = get_worker()
    try:
        return task(*arguments, report=lambda amount: worker.log_event(_PROGRESS_TOPIC, amount))
    except (UserError, OSError) as error:
        return _Failure(error)


@contextmanager
def _client(count: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    import distributed

    dask_distributed: Any = distributed

    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet = {"logging": dict.fromkeys(_LOGGERS, "critical"), "distributed.scheduler.allowed-failures": 3}
    with dask.config.set(quiet):
        if scheduler is not None:
            with _connect(dask_distributed.Client, scheduler) as client:
                yield client
            return
        try:
            cluster = dask_distributed.LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                # Some free port: a second command on this machine would otherwise warn of the first one's.
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
                env=_worker_environment(count),
            )
        except OSError as error:
            raise ResourceError(f"worker processes could not be started ({error}). Use --workers 0.") from error
        with cluster, dask_distributed.Client(cluster) as client:
            yield client


def _connect(client_class: Any, scheduler: str) -> Any:
    try:
        return client_class(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ResourceError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error}). Check the address.") from None


def _worker_environment(count: int) -> dict[str, str]:
    """Each worker's share of the cores, for every library that starts threads; dask itself sets only some of them."""
    threads = str(max(1, _cores() // count))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    quiet = {"DASK_LOGGING__DISTRIBUTED": "critical", "PYTHONWARNINGS": "ignore"}
    return {**dict.fromkeys(names, threads), **quiet}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_cluster(client: Any, scheduler: str, shared: Sequence[Path]) -> None:
    """Every worker must see the folders, and run the same versions."""
    probe = shared[0] / f".probe-{uuid.uuid4().hex}.tmp"
    probe.touch()
    try:
        found = client.run(_look_around, str(probe), [str(path) for path in shared])
    finally:
        probe.unlink(missing_ok=True)
    if not found:
        raise ResourceError(f"--scheduler {scheduler}: this cluster has no workers. Start some with `dask worker {scheduler}`.")
    here = _look_around(str(probe), [])["versions"]
    for address, answer in found.items():
        if answer["missing"]:
            raise ResourceError(
                f"worker {address} does not see {answer['missing'][0]}. The graph directory must lie on a file system that all "
                "workers share, under the same absolute path: give --graph-dir there."
            )
        if answer["versions"] != here:
            raise ResourceError(f"worker {address} runs {answer['versions']}, but here it is {here}. Install the same on both.")


def _look_around(probe: str, shared: list[str]) -> dict[str, Any]:
    """What a worker sees; runs there."""
    return {
        "missing": [path for path in ([probe] if shared else []) + shared if not Path(path).exists()],
        "versions": {
            "graphbuild": __version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{package: version(package) for package in ("torch", "pyarrow", "sentence-transformers")},
        },
    }
