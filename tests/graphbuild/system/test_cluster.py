"""Running tasks on worker processes."""

from __future__ import annotations

import errno
import http.client
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import dask
import psutil
import pytest
from click.testing import CliRunner
from distributed import Client, Security, get_worker
from helpers_embed import embed, graphbuild, numbered_captions, shard_digests, write_captions
from helpers_graph import receipt_of

from graphbuild.cli import cli
from graphbuild.embed.encoder import load_encoder
from graphbuild.embed.encoder_files import find_encoder, missing_on_this_machine
from graphbuild.errors import ArtifactMismatch, ResourceError, SourceError
from graphbuild.store.files import Receipt
from graphbuild.store.manifest import Manifest
from graphbuild.system.cluster import TLS_VARIABLES, Workers, _run_one, run_tasks
from graphbuild.system.worker_checks import Expected, inspect_worker, versions

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
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder.parents[1]), str(folder.parent), str(folder)]))
    monkeypatch.syspath_prepend(str(folder))
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "test_cluster", module)
    for task in (square, fail, die_once, die_always, bad_encoder, visible_gpu, stale_once, rest, other_weights, own_scheduler):
        monkeypatch.setattr(task, "__module__", "test_cluster")


def run(task: Callable[..., object], calls: list[tuple[object, ...]], count: int, tmp_path: Path) -> list[object]:
    return list(run_tasks(task, calls, workers=Workers(count=count), shared=[tmp_path], report=lambda _: None))


def test_no_workers_means_this_process(tmp_path: Path) -> None:
    assert run(square, [(2,), (3,)], 0, tmp_path) == [(4, os.getpid()), (9, os.getpid())]


def own_scheduler(number: int, *, report: Report) -> str:
    return str(get_worker().scheduler.address)


@pytest.mark.parametrize("security", [None, Security.temporary()], ids=["no certificate", "another certificate"])
def test_local_workers_take_nothing_from_others_on_this_machine(tmp_path: Path, security: Security | None) -> None:
    results = run_tasks(own_scheduler, [(1,), (2,)], workers=Workers(count=2), shared=[tmp_path], report=lambda _: None)
    address = next(results)
    assert address.startswith("tls://127.0.0.1:")
    for asked in (address, address.replace("tls", "tcp")):
        with pytest.raises((OSError, RuntimeError, TypeError)):
            Client(asked, security=security, timeout=2, set_as_default=False)
    assert list(results) == [address]


def listening() -> set[int]:
    """Ports of this machine on which this process and its children listen."""
    here = psutil.Process()
    found = [one for process in (here, *here.children(recursive=True)) for one in process.net_connections("tcp")]
    assert all(one.laddr.ip == "127.0.0.1" for one in found if one.status == psutil.CONN_LISTEN)
    return {one.laddr.port for one in found if one.status == psutil.CONN_LISTEN}


def test_local_workers_show_nothing_by_http(tmp_path: Path) -> None:
    results = run_tasks(own_scheduler, [(1,), (2,)], workers=Workers(count=2), shared=[tmp_path], report=lambda _: None)
    next(results)
    ports = listening()
    assert ports
    for port in ports:
        for page in ("", "status", "info/main/workers.html", "metrics", "health", "json/counts.json"):
            # 404, or no HTTP at all.
            with pytest.raises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5)
    assert len(list(results)) == 1


def visible_gpu(number: int, *, report: Report) -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_local_workers_see_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    workers = Workers(count=2, gpus=2)
    calls = [(number,) for number in range(12)]
    seen = set(run_tasks(visible_gpu, calls, workers=workers, shared=[tmp_path], report=lambda _: None))
    assert seen == {"4", "7"}


def test_one_call_needs_no_other_process(tmp_path: Path) -> None:
    assert run(square, [(2,)], 2, tmp_path) == [(4, os.getpid())]


def test_a_task_whose_worker_dies_is_run_again(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "died"), number) for number in range(4)]
    assert sorted(map(str, run(die_once, calls, 2, tmp_path))) == ["0", "1", "2", "3"]


def stale_once(marker: str, number: int, *, report: Report) -> int:
    """Fail as a shared folder sometimes does, at the first call with this marker."""
    with suppress(FileExistsError):
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        raise OSError(errno.ESTALE, "Stale file handle")
    return number


def test_task_that_meets_a_passing_trouble_of_a_shared_folder_is_run_again(tmp_path: Path) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "stale"), number) for number in range(3)]
    assert sorted(map(str, run(stale_once, calls, 2, tmp_path))) == ["0", "1", "2"]


@pytest.mark.faults
def test_workers_that_die_again_and_again_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="died again and again"):
        run(die_always, [(1,), (2,)], 2, tmp_path)


def test_an_error_of_a_task_comes_back_as_it_was(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="number 1 is bad"):
        run(fail, [(1,), (1,)], 2, tmp_path)


def test_workers_that_die_while_they_start_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "dying.py").write_text("import os; os._exit(3)")
    with (
        dask.config.set({"distributed.worker.preload": [str(tmp_path / "dying.py")]}),
        pytest.raises(ResourceError, match=r"could not be started \(.*or with --workers 0"),
    ):
        run(square, [(1,), (2,)], 2, tmp_path)


def test_unreachable_scheduler_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no Dask scheduler answers"):
        list(
            run_tasks(
                square, [(1,)], workers=Workers(scheduler="tcp://127.0.0.1:1", connect=1), shared=[tmp_path], report=lambda _: None
            )
        )


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
        """Start a worker."""
        options = ["--no-dashboard", "--nthreads", "1", "--local-directory", str(self._folder), *more]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options]
        self._processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment}, **_QUIET))

    def stop(self) -> None:
        """End all of it."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait()
        if self.scheduler.stdout is not None:
            self.scheduler.stdout.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers."""
    started = Cluster(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def scheduler(cluster: Cluster) -> str:
    """Its address."""
    return cluster.address


@pytest.fixture
def worker(cluster: Cluster) -> str:
    """The same, with one worker."""
    cluster.add_worker()
    with Client(cluster.address) as client:
        client.wait_for_workers(1, timeout=60)
    return cluster.address


def test_cluster_without_workers_is_one_clear_error(tmp_path: Path, scheduler: str) -> None:
    with pytest.raises(ResourceError, match="has no workers"):
        list(run_tasks(square, [(1,)], workers=Workers(scheduler=scheduler), shared=[tmp_path], report=lambda _: None))


def test_running_cluster_gives_the_same_bytes(tmp_path: Path, worker: str) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    embed(tmp_path / "here", source, shard_size=10)
    embed(tmp_path / "there", source, shard_size=10, scheduler=worker)
    assert shard_digests(tmp_path / "here") == shard_digests(tmp_path / "there")
    assert os.getpid() not in Manifest.load(tmp_path / "there").stages["embed"].facts["pids"]


def test_a_cluster_with_tls_takes_a_command_with_its_certificates_and_no_other(tmp_path: Path) -> None:
    made = Security.temporary()
    contents = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
    files = [tmp_path / f"{name}.pem" for name in contents]
    for path, content in zip(files, contents.values(), strict=True):
        path.write_text(content)
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(12)})
    started = Cluster(tmp_path, *files)
    ask = ["embed", "--dataset", "parquet", "--source", source, "--encoder", "hashing:32", "--graph-dir", tmp_path / "g"]
    ask = [*map(str, ask), "--shard-size", "6", "--scheduler", started.address]
    shown = [option for pair in zip(("--tls-ca-file", "--tls-cert", "--tls-key"), map(str, files), strict=True) for option in pair]
    try:
        started.add_worker("--tls-ca-file", str(files[0]), "--tls-cert", str(files[1]), "--tls-key", str(files[2]))
        plain = Workers(scheduler=started.address, connect=5)
        with pytest.raises(ResourceError, match="takes --tls-ca-file, --tls-cert and --tls-key"):
            list(run_tasks(square, [(1,)], workers=plain, shared=[tmp_path], report=lambda _: None))
        missing = CliRunner().invoke(cli, [*ask, *shown[:-1], str(tmp_path / "none.pem")])
        assert "none.pem: no such file of certificates" in str(missing.exception)
        with Client(started.address, security=made) as client:
            client.wait_for_workers(1, timeout=60)
        taken = CliRunner().invoke(cli, [*ask, *shown])
        assert (taken.exit_code, taken.exception) == (0, None)
    finally:
        started.stop()
    assert os.getpid() not in Manifest.load(tmp_path / "g").stages["embed"].facts["pids"]
    assert not any(name in os.environ for name in TLS_VARIABLES.values())


def test_worker_of_another_version_is_refused_before_work_starts(
    tmp_path: Path, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**versions(), "torch": "9.9"}
    monkeypatch.setattr("graphbuild.system.worker_checks.versions", lambda: here)
    with pytest.raises(ResourceError, match=rf"runs torch {version('torch').replace('+', '.')} \(here 9\.9\)"):
        list(run_tasks(square, [(1,)], workers=Workers(scheduler=worker), shared=[tmp_path], report=lambda _: None))
    assert list(tmp_path.glob(".probe*")) == []


def test_encoder_that_differs_on_a_worker_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "modules.json").write_text("[]")
    spec = find_encoder(str(folder))
    assert missing_on_this_machine(spec) is None
    (folder / "modules.json").write_text("[ ]")
    assert "has another encoder at" in str(missing_on_this_machine(spec))
    (folder / "model.safetensors").write_bytes(b"others")
    assert f"here {spec.sha256[:12]}" in str(missing_on_this_machine(spec))
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "modules.json").unlink()
    folder.rmdir()
    assert "has no encoder at" in str(missing_on_this_machine(spec))


def bad_encoder() -> str | None:
    return "has another encoder."


def test_worker_that_fails_the_check_is_named_and_no_task_runs(tmp_path: Path, worker: str) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "ran"), 1)]
    options = {"workers": Workers(scheduler=worker), "shared": [tmp_path], "report": lambda _: None, "check": bad_encoder}
    with pytest.raises(ResourceError, match=r"worker tcp://127\.0\.0\.1:\d+ has another encoder\."):
        list(run_tasks(die_once, calls, **options))  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


def other_weights() -> str | None:
    return "has other weights." if os.environ.get("OTHER_WEIGHTS") else None


def rest(number: int, *, report: Report) -> int:
    time.sleep(0.1)
    return number


def test_a_worker_that_joins_late_with_other_weights_does_no_work(tmp_path: Path, cluster: Cluster, worker: str) -> None:
    options = {"workers": Workers(scheduler=worker), "shared": [tmp_path], "report": lambda _: None, "check": other_weights}
    results = run_tasks(rest, [(number,) for number in range(2_000)], **options)  # type: ignore[arg-type]
    next(results)
    cluster.add_worker(OTHER_WEIGHTS="1")
    with pytest.raises(ResourceError, match=r"worker tcp://127\.0\.0\.1:\d+ has other weights\..*joined after the others"):
        list(results)
    assert list(tmp_path.glob(".probe*")) == []


def test_a_check_that_ends_after_the_command_leaves_no_probe(tmp_path: Path, worker: str) -> None:
    expected = Expected(versions(), str(tmp_path / ".probe-1.tmp"), "1", (str(tmp_path),), None)
    Path(expected.probe).write_text("1")
    with Client(worker, set_as_default=False) as client:
        assert client.submit(_run_one, rest, (1,), expected).result() == 1
    assert list(tmp_path.glob(".probe-*")) == [Path(expected.probe)]


def test_no_workers_left_is_said_and_work_goes_on_with_a_new_one(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add_worker("--no-nanny")
    with Client(cluster.address) as client:
        client.wait_for_workers(1, timeout=60)

    def replace_the_dead() -> None:
        while not (tmp_path / "died").exists():
            time.sleep(0.05)
        time.sleep(1.5)
        cluster.add_worker()

    helper = threading.Thread(target=replace_the_dead)
    helper.start()
    workers = Workers(scheduler=cluster.address, patience=0.5)
    calls = [(str(tmp_path / "died"), number) for number in range(3)]
    assert sorted(run_tasks(die_once, calls, workers=workers, shared=[tmp_path], report=lambda _: None)) == [0, 1, 2]
    helper.join()
    assert f"no worker at {cluster.address} for" in capsys.readouterr().err


def test_receipts_say_where_and_with_what_vectors_were_made(tmp_path: Path) -> None:
    embed(tmp_path / "g", write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(3)}))
    stage = Manifest.load(tmp_path / "g").stages["embed"]
    facts = next(iter(stage.files.values())).facts
    assert (facts["host"], facts["weights"], facts["versions"]) == (platform.node(), stage.config["sha256"], versions())


def test_an_encoder_is_compared_with_its_digest_when_it_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "modules.json").write_text("[]")
    spec = find_encoder(str(folder))
    (folder / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(ArtifactMismatch, match=rf"has another encoder at {folder}.*here {spec.sha256[:12]}"):
        load_encoder(spec)


def looked(folder: Path, **changes: object) -> str | None:
    """What a worker would say of a folder that the client has probed."""
    probe = folder / ".probe-1.tmp"
    expected = {"versions": {}, "probe": str(probe), "token": "1", "shared": (str(folder),), "check": None, **changes}
    return inspect_worker(Expected(**expected))[0]  # type: ignore[arg-type]


def test_folder_that_is_missing_or_another_on_a_worker_is_named(tmp_path: Path) -> None:
    assert "sees another" in str(looked(tmp_path))
    (tmp_path / ".probe-1.tmp").write_text("1")
    assert looked(tmp_path) is None
    assert "sees another" in str(looked(tmp_path, token="2"))
    assert f"does not see {tmp_path}/gone" in str(looked(tmp_path, shared=(f"{tmp_path}/gone",)))
    assert "runs graphbuild" in str(looked(tmp_path, versions={"graphbuild": "0"}))


def test_workers_write_nothing_to_stderr(tmp_path: Path) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--shard-size", "10", "--workers", "2"]
    answer = graphbuild("embed", *options, "--graph-dir", tmp_path / "g")
    # On a slow machine this process tells how far it is; workers tell nothing.
    said = [line for line in answer.stderr.splitlines() if not line.startswith("embedding: ")]
    assert (answer.returncode, said) == (0, [])


SLOW_WORKER = """
import time
from graphbuild.embed import hashing
encode = hashing.HashingEncoder.encode
def slow(self, tokens, report=lambda _: None):
    time.sleep(0.2)
    return encode(self, tokens, report)
hashing.HashingEncoder.encode = slow
"""


@pytest.mark.faults
@pytest.mark.parametrize("victim", ["worker", "scheduler"])
def test_killed_worker_costs_a_task_and_killed_scheduler_a_second_run(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    (tmp_path / "slow_worker.py").write_text(SLOW_WORKER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", '["slow_worker"]')
    for _ in range(2):
        cluster.add_worker()
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(100)})
    embed(tmp_path / "whole", source, shard_size=5)
    options = ["--dataset", "parquet", "--source", source, "--encoder", "hashing:16", "--shard-size", "5"]
    command = ["embed", *options, "--graph-dir", tmp_path / "g", "--scheduler", cluster.address]
    with Client(cluster.address) as client:
        client.wait_for_workers(2, timeout=60)
    entry = [sys.executable, "-c", "from graphbuild.cli import main; main()", *map(str, command)]
    process = subprocess.Popen(entry, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    receipts: list[Receipt] = []
    while process.poll() is None and not receipts:
        shards = sorted((tmp_path / "g/embeddings").glob("part-*.parquet"))
        receipts = [receipt for path in shards if (receipt := receipt_of(path)) is not None]
        time.sleep(0.01)
    os.kill(receipts[0].facts["pid"] if victim == "worker" else cluster.scheduler.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    if victim == "scheduler":
        # On a slow machine the client tells how far it is.
        errors = [line for line in said.splitlines() if not line.startswith("embedding: ")]
        assert (process.returncode, len(errors)) == (1, 1), said
        assert "the Dask scheduler went away" in errors[0]
        embed(tmp_path / "g", source, shard_size=5)
    else:
        assert process.returncode == 0, said
        pids = Manifest.load(tmp_path / "g").stages["embed"].facts["pids"]
        assert receipts[0].facts["pid"] in pids
        assert len(pids) >= 2
    assert shard_digests(tmp_path / "g") == shard_digests(tmp_path / "whole")
