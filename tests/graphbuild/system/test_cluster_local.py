"""Running tasks on worker processes of this machine."""

from __future__ import annotations

import asyncio
import http.client
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Security
from distributed.core import connect
from helpers_cluster import die_always, die_once, own_scheduler, run, square, visible_gpu
from helpers_embed import graphbuild, numbered_captions, write_captions

from graphbuild.errors import ResourceError
from graphbuild.system.cluster import Workers, run_tasks

pytestmark = pytest.mark.usefixtures("workers_find_the_tasks")
TWO = Workers(count=2)


def test_no_workers_means_this_process(tmp_path: Path) -> None:
    assert run(square, [(2,), (3,)], tmp_path, Workers(count=0)) == [(4, os.getpid()), (9, os.getpid())]


def test_one_call_needs_no_other_process(tmp_path: Path) -> None:
    assert run(square, [(2,)], tmp_path, TWO) == [(4, os.getpid())]


def test_local_workers_see_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    calls: list[tuple[object, ...]] = [(number,) for number in range(12)]
    assert set(run(visible_gpu, calls, tmp_path, Workers(count=2, gpus=2))) == {"4", "7"}


def test_a_task_whose_worker_dies_is_run_again(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "died"), number) for number in range(4)]
    assert sorted(map(str, run(die_once, calls, tmp_path, TWO))) == ["0", "1", "2", "3"]


@pytest.mark.faults
def test_workers_that_die_again_and_again_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="died again and again"):
        run(die_always, [(1,), (2,)], tmp_path, TWO)


def test_workers_that_die_while_they_start_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os; os._exit(3)")
    with (
        dask.config.set({"distributed.worker.preload": [str(tmp_path / "dying.py")]}),
        pytest.raises(ResourceError, match=r"could not be started \(.*or with --workers 0"),
    ):
        run(square, [(1,), (2,)], tmp_path, TWO)


def test_workers_write_nothing_to_stderr(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--shard-size", "10", "--workers", "2"]
    answer = graphbuild("embed", *options, "--graph-dir", tmp_path / "g")
    # On a slow machine this process tells how far it is; workers tell nothing.
    said = [line for line in answer.stderr.splitlines() if not line.startswith("embedding: ")]
    assert (answer.returncode, said) == (0, [])


@pytest.fixture(scope="module")
def at_work(tmp_path_factory: pytest.TempPathFactory, workers_find_the_tasks: None) -> Iterator[str]:
    """The address of two workers that have given one of two results."""
    folder = tmp_path_factory.mktemp("local")
    results = run_tasks(own_scheduler, [(1,), (2,)], workers=TWO, shared=[folder], report=lambda _: None)
    address = next(results)
    yield address
    assert list(results) == [address]


async def knock(address: str, security: Security | None) -> None:
    arguments = {} if security is None else security.get_connection_args("client")
    await (await connect(address, timeout=2, **arguments)).close()


@pytest.mark.parametrize("security", [None, Security.temporary()], ids=["no certificate", "another certificate"])
def test_local_workers_take_nothing_from_others_on_this_machine(at_work: str, security: Security | None) -> None:
    assert at_work.startswith("tls://127.0.0.1:")
    for asked in (at_work, at_work.replace("tls", "tcp")):
        with pytest.raises((OSError, RuntimeError, TypeError)):
            asyncio.run(knock(asked, security))


def listening() -> set[int]:
    """Ports of this machine on which this process and its children listen."""
    here = psutil.Process()
    found = [one for process in (here, *here.children(recursive=True)) for one in process.net_connections("tcp")]
    assert all(one.laddr.ip == "127.0.0.1" for one in found if one.status == psutil.CONN_LISTEN)
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def test_local_workers_show_nothing_by_http(at_work: str) -> None:
    ports = listening()
    assert ports
    for port in ports:
        for page in ("", "status", "info/main/workers.html", "metrics", "health", "json/counts.json"):
            # 404, or no HTTP at all.
            with pytest.raises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5)
