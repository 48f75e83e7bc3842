"""Real captions through a Dask cluster of separate processes, of which one worker is killed on the way.

For each data set: `embed` and `knn` on the cluster, the worker that finished the first shard killed by signal 9 in either,
and `verify`; then, but for the larger ones, the same here, in one process, undisturbed: the files must be the same, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import pyarrow.parquet as pq

from graphbuild.store import schemas
from graphbuild.store.digests import digest_file
from graphbuild.store.files import Receipt, read_receipt, receipt_path

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared/data"
_MOST_COMPARED = 20_000
"""Captions that are embedded a second time, to compare with."""
_GRAPHBUILD = (sys.executable, "-c", "from graphbuild.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Work:
    """One data set, in shards small enough that there are several."""

    name: str
    embed: tuple[str, ...]
    shard_size: int
    compare: bool = True
    """Whether it is built here, too."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    name: str
    shards: int
    killed: int
    """Workers killed, in embed and knn together."""
    processes: int
    """That embedded a shard."""
    seconds: float
    same_bytes: bool | None
    """As of an undisturbed build here; None where there was none."""

    def row(self) -> str:
        """Return a line of the table."""
        same = {True: "same bytes", False: "OTHER BYTES", None: "verified"}[self.same_bytes]
        return f"| {self.name} | {self.shards} | {self.killed} | {self.processes} | {self.seconds:.0f} | {same} |"


def works(folder: Path, captions: int) -> list[Work]:
    """Return Flickr8k, the class texts of Tiny-ImageNet, and the first captions of the caption set."""
    first = folder / "captions.parquet"
    pq.write_table(pq.read_table(SHARED_DATA / "captions/captions.parquet", columns=["text"]).slice(0, captions), first)
    flickr = ("--source", str(SHARED_DATA / "flickr8k/flickr8k_96.parquet"), "--caption-column", "captions", "--id-column", "file")
    classes = ("--source", str(SHARED_DATA / "tiny_imagenet/val.parquet"), "--caption-column", "name", "--id-column", "file")
    return [
        Work("Tiny-ImageNet class texts", (*classes, "--template", "a photo of a {}"), 20),
        Work(f"first {captions:,} captions", ("--source", str(first)), 2_048, compare=captions <= _MOST_COMPARED),
        Work("Flickr8k", flickr, 4_096, compare=False),
    ]


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[str]:
    """Yield the address of a scheduler with so many worker processes, all of them started as a user would."""
    note = folder / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(note)]
    processes = [_start([sys.executable, "-m", "distributed.cli.dask_scheduler", *options])]
    try:
        while not note.exists():
            time.sleep(0.1)
        address: str = json.loads(note.read_text())["address"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
        for number in range(workers):
            processes.append(_start([*command, "--local-directory", str(folder / f"worker-{number}")]))
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run(work: Work, folder: Path, address: str) -> Outcome:
    """Run both ways, and compare."""
    there, here = folder / "there", folder / "here"
    build = ["embed", "--dataset", "parquet", *work.embed, "--shard-size", str(work.shard_size)]
    started = time.monotonic()
    killed = _disturbed([*build, "--graph-dir", str(there), "--scheduler", address], there, schemas.EMBEDDINGS)
    killed += _disturbed(["knn", "--k", "64", "--graph-dir", str(there), "--scheduler", address], there, schemas.KNN)
    seconds = time.monotonic() - started
    _graphbuild("verify", "--graph-dir", str(there))
    if work.compare:
        _graphbuild(*build, "--graph-dir", str(here), "--workers", "0")
        _graphbuild("knn", "--k", "64", "--graph-dir", str(here))
    receipts = _receipts(there, schemas.EMBEDDINGS)
    outcome = Outcome(
        work.name,
        len(receipts),
        killed,
        len({receipt.facts["pid"] for receipt in receipts}),
        seconds,
        _digests(there) == _digests(here) if work.compare else None,
    )
    shutil.rmtree(there)
    shutil.rmtree(here, ignore_errors=True)
    return outcome


def _graphbuild(*arguments: str) -> None:
    done = subprocess.run([*_GRAPHBUILD, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {done.stderr}")


def _receipts(graph_dir: Path, folder: str) -> list[Receipt]:
    """Of the shards of a folder that are finished by now."""
    paths = sorted((graph_dir / folder).glob("part-*"))
    found = (read_receipt(receipt_path(graph_dir, path.relative_to(graph_dir).as_posix())) for path in paths)
    return [receipt for receipt in found if receipt is not None]


def _disturbed(arguments: list[str], graph_dir: Path, folder: str) -> int:
    """Run a command, and kill the worker that finishes the first shard of a folder; the number of workers killed."""
    process = subprocess.Popen([*_GRAPHBUILD, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = 0
    while process.poll() is None and not killed:
        for receipt in _receipts(graph_dir, folder)[:1]:
            os.kill(receipt.facts["pid"], signal.SIGKILL)
            killed = 1
        time.sleep(0.02)
    _, said = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{' '.join(arguments)}: {said}")
    return killed


def _digests(graph_dir: Path) -> dict[str, str]:
    """Of every file that is no JSON: times and process ids differ."""
    return {
        path.relative_to(graph_dir).as_posix(): digest_file(path)
        for path in graph_dir.rglob("*")
        if path.is_file() and path.suffix != ".json"
    }


@click.command()
@click.option(
    "--captions", type=click.IntRange(min=1), default=20_000, show_default=True, help="Of the caption set, from its start."
)
@click.option("--json", "as_json", is_flag=True, help="Print each outcome as a line of JSON.")
def main(captions: int, as_json: bool) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary, cluster(Path(temporary), 2) as address:
        if not as_json:
            click.echo("| data | shards | workers killed | processes that embedded | s on the cluster | files |")
            click.echo("|---|---:|---:|---:|---:|---|")
        for work in works(Path(temporary), captions):
            outcome = run(work, Path(temporary), address)
            click.echo(json.dumps(asdict(outcome)) if as_json else outcome.row())


if __name__ == "__main__":
    main()
