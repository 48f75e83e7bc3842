"""Builds that are killed, starved of disk, or damaged at random points: the next run mends exactly that, to the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import dask
import distributed
import psutil
import pytest
from helpers_embed import embed, numbered_captions, write_captions
from helpers_forked import run_program

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.digests import digest_file


def run_trials(tmp_path: Path, how: str, *numbers: int | str) -> list[dict[str, Any]]:
    """What became of the trials of a server of its own."""
    done = run_program("from faults_server import main; main()", tmp_path / "faults", how, *numbers, timeout=3600)
    assert done.returncode == 0, f"{how} {numbers}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


QUICK = ("embed", "knn", "append", "extend", "partition", "replace", "renew", "scenes", "import", "reimport", "subset", "adopt")
"""Commands that are struck in the default suite; those of training take seconds each."""


def enumerate_calls(tmp_path: Path, points: int, capsys: pytest.CaptureFixture[str], commands: Sequence[str] = ()) -> None:
    """Strike commands before their file-changing calls; the next run ends with the same bytes, and nothing is left."""
    trials = run_trials(tmp_path, "enumerate", points, *commands)
    kinds = Counter(f"{trial['stage']} {trial['fault']}" for trial in trials if trial["struck"])
    with capsys.disabled():
        click.echo(f"\nfaults: {len(trials)} calls, struck: {dict(sorted(kinds.items()))}")
    problems = [f"{trial}" for trial in trials if trial["problem"]]
    assert not problems, "\n".join(problems)
    assert len({trial["stage"] for trial in trials}) == (len(commands) or 38)


def test_commands_struck_at_some_of_their_file_calls_end_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enumerate_calls(tmp_path, 2, capsys, QUICK)


@pytest.mark.slow
def test_every_command_struck_at_twenty_of_its_file_calls_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enumerate_calls(tmp_path, 20, capsys)


@pytest.mark.faults
def test_every_command_struck_at_every_file_call_ends_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enumerate_calls(tmp_path, 0, capsys)


def strike(tmp_path: Path, first: int, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Run trials of consecutive seeds; each can be repeated by its seed."""
    trials = run_trials(tmp_path, "random", first, count)
    kinds = Counter(f"{trial['stage']} {trial['fault']}" for trial in trials if trial["struck"])
    with capsys.disabled():
        click.echo(f"\nfaults: seeds {first} to {first + count - 1}; struck: {dict(sorted(kinds.items()))}")
    problems = [f"{trial}" for trial in trials if trial["problem"]]
    assert not problems, "\n".join(problems)
    assert len(trials) == count
    assert sum(kinds.values()) >= count // 2


@pytest.mark.slow
def test_twenty_builds_struck_at_drawn_points_end_with_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strike(tmp_path, 0, 20, capsys)


@pytest.mark.faults
def test_hundreds_of_builds_struck_at_random_points_end_with_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(1_000_000)))
    strike(tmp_path, first, 200, capsys)


SLOW_FINISH = """
import functools, time
from graphbuild.store import files as shards
def slow(write, *arguments, **options):
    time.sleep(0.1)
    return write(*arguments, **options)
# A worker may load this more than once.
if not isinstance(shards.write_file, functools.partial):
    shards.write_file = functools.partial(slow, shards.write_file)
"""


def kill_a_worker(shards: Path, after: int, rng: random.Random, stop: threading.Event) -> None:
    """Kill some worker process of this one, once so many shards are there."""
    while not stop.is_set():
        if len(list(shards.glob("part-*"))) >= after:
            # A process may be gone by the time it is asked.
            with suppress(psutil.Error, ProcessLookupError):
                children = psutil.Process().children(recursive=True)
                workers = sorted(child.pid for child in children if "spawn_main" in " ".join(child.cmdline()))
                if workers:
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    return
        time.sleep(0.01)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in folder.glob("part-*")}


@pytest.mark.faults
@pytest.mark.parametrize("trial", range(12))
def test_worker_killed_at_a_random_point_costs_no_run(tmp_path: Path, trial: int, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("FAULT_SEED", random.SystemRandom().randrange(1_000_000)))
    with capsys.disabled():
        click.echo(f"faults: trial {trial}, seed {seed}")
    rng = random.Random(seed)
    stage = ("embed", "knn")[trial % 2]
    (tmp_path / "slow_finish.py").write_text(SLOW_FINISH)
    source = write_captions(tmp_path / "a.parquet", {"caption": numbered_captions(60)})
    for name in ("whole", "struck"):
        if stage == "knn" or name == "whole":
            embed(tmp_path / name, source, shard_size=9)
    folder = tmp_path / "struck" / ("embeddings" if stage == "embed" else "knn")
    stop = threading.Event()
    # Importing it sets its defaults; `set` would take them away again, had they come later.
    assert distributed.__version__
    killer = threading.Thread(target=kill_a_worker, args=(folder, rng.randrange(1, 6), rng, stop))
    killer.start()
    try:
        with dask.config.set({"distributed.worker.preload": [str(tmp_path / "slow_finish.py")]}):
            if stage == "embed":
                embed(tmp_path / "struck", source, shard_size=9, workers=2)
            else:
                build_knn(tmp_path / "struck", KnnConfig(k=10, device="cpu", workers=2))
    finally:
        stop.set()
        killer.join()
    if stage == "knn":
        build_knn(tmp_path / "whole", KnnConfig(k=10, device="cpu"))
    shards = {name: digests(tmp_path / name / folder.name) for name in ("whole", "struck")}
    assert shards["whole"] == shards["struck"]
    assert len(shards["whole"]) == 7
