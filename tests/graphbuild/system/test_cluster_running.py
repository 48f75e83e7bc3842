"""Running tasks on a Dask cluster that is there already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client, Security
from helpers_cluster import Cluster, bad_encoder, die_once, fail, held_for_a_search, other_weights, rest, run, square, stale_once
from helpers_embed import embed, numbered_captions, shard_digests, write_captions
from helpers_graph import receipt_of

from graphbuild.cli import cli
from graphbuild.errors import ResourceError, SourceError
from graphbuild.exchange.relate.config import RelateConfig
from graphbuild.exchange.relate.stage import relate_columns
from graphbuild.store.files import Receipt
from graphbuild.store.manifest import Manifest
from graphbuild.system.cluster import TLS_VARIABLES, Workers, _run_one, run_tasks
from graphbuild.system.worker_checks import Expected, versions

pytestmark = pytest.mark.usefixtures("workers_find_the_tasks")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler of a test's own, without workers."""
    started = Cluster(tmp_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, workers_find_the_tasks: None) -> Iterator[str]:
    """The address of a scheduler with one worker, which no test ends."""
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.add_worker()
        started.wait()
        yield started.address
    finally:
        started.stop()


def test_unreachable_scheduler_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no Dask scheduler answers"):
        run(square, [(1,)], tmp_path, Workers(scheduler="tcp://127.0.0.1:1", connect=1))


def test_cluster_without_workers_is_one_clear_error(tmp_path: Path, cluster: Cluster) -> None:
    with pytest.raises(ResourceError, match="has no workers"):
        run(square, [(1,)], tmp_path, Workers(scheduler=cluster.address))


def test_running_cluster_gives_the_same_bytes(tmp_path: Path, worker: str) -> None:
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(40)})
    embed(tmp_path / "here", source, shard_size=10)
    embed(tmp_path / "there", source, shard_size=10, scheduler=worker)
    assert shard_digests(tmp_path / "here") == shard_digests(tmp_path / "there")
    assert os.getpid() not in Manifest.load(tmp_path / "there").stages["embed"].facts["pids"]


def test_task_that_meets_a_passing_trouble_of_a_shared_folder_is_run_again(tmp_path: Path, worker: str) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "stale"), number) for number in range(3)]
    assert sorted(map(str, run(stale_once, calls, tmp_path, Workers(scheduler=worker)))) == ["0", "1", "2"]


def test_an_error_of_a_task_comes_back_as_it_was(tmp_path: Path, worker: str) -> None:
    with pytest.raises(SourceError, match="number 1 is bad"):
        run(fail, [(1,), (1,)], tmp_path, Workers(scheduler=worker))


def test_worker_of_another_version_is_refused_before_work_starts(
    tmp_path: Path, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**versions(), "torch": "9.9"}
    monkeypatch.setattr("graphbuild.system.worker_checks.versions", lambda: here)
    with pytest.raises(ResourceError, match=rf"runs torch {version('torch').replace('+', '.')} \(here 9\.9\)"):
        run(square, [(1,)], tmp_path, Workers(scheduler=worker))
    assert list(tmp_path.glob(".probe*")) == []


def test_worker_that_fails_the_check_is_named_and_no_task_runs(tmp_path: Path, worker: str) -> None:
    calls: list[tuple[object, ...]] = [(str(tmp_path / "ran"), 1)]
    options = {"workers": Workers(scheduler=worker), "shared": [tmp_path], "report": lambda _: None, "check": bad_encoder}
    with pytest.raises(ResourceError, match=r"worker tcp://127\.0\.0\.1:\d+ has another encoder\."):
        list(run_tasks(die_once, calls, **options))  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


def test_a_check_that_ends_after_the_command_leaves_no_probe(tmp_path: Path, worker: str) -> None:
    expected = Expected(versions(), str(tmp_path / ".probe-1.tmp"), "1", (str(tmp_path),), None)
    Path(expected.probe).write_text("1")
    with Client(worker, set_as_default=False) as client:
        assert client.submit(_run_one, rest, (1,), expected).result() == 1
    assert list(tmp_path.glob(".probe-*")) == [Path(expected.probe)]


def test_a_worker_that_joins_late_with_other_weights_does_no_work(tmp_path: Path, cluster: Cluster) -> None:
    cluster.add_worker()
    cluster.wait()
    options = {
        "workers": Workers(scheduler=cluster.address),
        "shared": [tmp_path],
        "report": lambda _: None,
        "check": other_weights,
    }
    results = run_tasks(rest, [(number,) for number in range(2_000)], **options)  # type: ignore[arg-type]
    next(results)
    cluster.add_worker(OTHER_WEIGHTS="1")
    with pytest.raises(ResourceError, match=r"worker tcp://127\.0\.0\.1:\d+ has other weights\..*joined after the others"):
        list(results)
    assert list(tmp_path.glob(".probe*")) == []


def test_no_workers_left_is_said_and_work_goes_on_with_a_new_one(
    tmp_path: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add_worker()
    cluster.wait()

    def replace_the_dead() -> None:
        while not (tmp_path / "died").exists():
            time.sleep(0.05)
        time.sleep(1.5)
        cluster.add_worker()

    helper = threading.Thread(target=replace_the_dead)
    helper.start()
    workers = Workers(scheduler=cluster.address, patience=0.5)
    calls: list[tuple[object, ...]] = [(str(tmp_path / "died"), number) for number in range(3)]
    assert sorted(map(str, run(die_once, calls, tmp_path, workers))) == ["0", "1", "2"]
    helper.join()
    assert f"no worker at {cluster.address} for" in capsys.readouterr().err


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
            run(square, [(1,)], tmp_path, plain)
        missing = CliRunner().invoke(cli, [*ask, *shown[:-1], str(tmp_path / "none.pem")])
        assert "none.pem: no such file of certificates" in str(missing.exception)
        started.wait(security=made)
        taken = CliRunner().invoke(cli, [*ask, *shown])
        assert (taken.exit_code, taken.exception) == (0, None)
    finally:
        started.stop()
    assert os.getpid() not in Manifest.load(tmp_path / "g").stages["embed"].facts["pids"]
    assert not any(name in os.environ for name in TLS_VARIABLES.values())


def test_worker_that_stays_lets_go_of_the_columns_of_a_search(tmp_path: Path, worker: str) -> None:
    pq.write_table(pa.table({"year": list(range(60))}), tmp_path / "rows.parquet")
    config = RelateConfig(sources=(str(tmp_path / "rows.parquet"),), kernels=("year=number:5",), k=4, shard_size=20)
    relate_columns(tmp_path / "here", config)
    relate_columns(tmp_path / "there", replace(config, scheduler=worker))
    with Client(worker) as client:
        assert list(client.run(held_for_a_search).values()) == [0]
    here, there = (sorted((tmp_path / name / "knn").glob("part-*")) for name in ("here", "there"))
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


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
    cluster.wait(2)
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
