"""Running tasks on worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_embed import embed, graphbuild, numbered_captions, shard_digests, write_captions

from graphbuild.cluster import Workers, run_tasks
from graphbuild.errors import ResourceError, SourceError
from graphbuild.manifest import Manifest

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


@pytest.fixture(autouse=True)
def _workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parent
    # The clone first: tests/graphbuild must not be taken for the package.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parents[1]), str(folder)]))
    monkeypatch.syspath_prepend(str(folder))
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "test_cluster", module)
    for task in (square, fail, die_once, die_always):
        monkeypatch.setattr(task, "__module__", "test_cluster")


def run(task: Callable[..., object], calls: list[tuple[object, ...]], count: int, tmp_path: Path) -> list[object]:
    return list(run_tasks(task, calls, workers=Workers(count=count), shared=[tmp_path], report=lambda _: None))


def test_no_workers_means_this_process(tmp_path: Path) -> None:
    assert run(square, [(2,), (3,)], 0, tmp_path) == [(4, os.getpid()), (9, os.getpid())]


def test_one_call_needs_no_other_process(tmp_path: Path) -> None:
    assert run(square, [(2,)], 2, tmp_path) == [(4, os.getpid())]


def test_a_task_whose_worker_dies_is_run_again(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "died"), number) for number in range(4)]
    assert sorted(map(str, run(die_once, calls, 2, tmp_path))) == ["0", "1", "2", "3"]


@pytest.mark.faults
def test_workers_that_die_again_and_again_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="died again and again"):
        run(die_always, [(1,), (2,)], 2, tmp_path)


def test_an_error_of_a_task_comes_back_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="number 1 is bad"):
        run(fail, [(1,), (1,)], 2, tmp_path)


def test_unreachable_scheduler_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphbuild.cluster._CONNECT_SECONDS", 1)
    with pytest.raises(ResourceError, match="no Dask scheduler answers"):
        list(run_tasks(square, [(1,)], workers=Workers(scheduler="tcp://127.0.0.1:1"), shared=[tmp_path], report=lambda _: None))


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Address of a scheduler without workers, in a process of its own."""
    code = (
        "import asyncio\n"
        "from distributed import Scheduler\n"
        "async def main():\n"
        "    async with Scheduler(host='127.0.0.1', port=0, dashboard_address='127.0.0.1:0') as scheduler:\n"
        "        print(scheduler.address, flush=True)\n"
        "        await scheduler.finished()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def worker(scheduler: str, tmp_path: Path) -> Iterator[str]:
    """The same, with one worker."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-dashboard", "--local-directory", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield scheduler
    finally:
        process.terminate()
        process.wait()


def test_cluster_without_workers_is_one_clear_error(tmp_path: Path, scheduler: str) -> None:
    with pytest.raises(ResourceError, match="has no workers"):
        list(run_tasks(square, [(1,)], workers=Workers(scheduler=scheduler), shared=[tmp_path], report=lambda _: None))


def test_running_cluster_gives_the_same_bytes(tmp_path: Path, worker: str) -> None:
    from distributed import Client

    with Client(worker) as client:
        client.wait_for_workers(1, timeout=60)
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    embed(tmp_path / "here", source, shard_size=10)
    embed(tmp_path / "there", source, shard_size=10, scheduler=worker)
    assert shard_digests(tmp_path / "here") == shard_digests(tmp_path / "there")
    assert os.getpid() not in Manifest.load(tmp_path / "there").stages["embed"].facts["pids"]


def test_workers_write_nothing_to_stderr(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--shard-size", "10"]
    answer = graphbuild("embed", *options, "--graph-dir", tmp_path / "g")
    assert (answer.returncode, answer.stderr) == (0, "")
