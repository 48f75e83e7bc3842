"""`graphbuild embed --dataset vectors` at full size: time of each stage, and the memory that it takes.

`python -m benchmarks.vectors --out FOLDER` writes synthetic vectors in clip-retrieval's layout (`img_emb/*.npy` in float16 beside
`metadata/*.parquet`), or with `--layout parquet` as lists in Parquet files, a block at a time. Then it runs the command, looks at
its memory twenty times a second, and runs `graphbuild knn --dry-run` after it.
Shape letters: n vectors of a block, D vector width.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.__main__ import conditions
from benchmarks.knn import clustered_vectors
from graphbuild.store.schemas import MANIFEST_FILE
from graphbuild.system.options import FOLDER

_FILE_ROWS, _BLOCK = 100_000, 10_000
_STAGES = ("text", "lookup", "embed", "index")
_LOOK_SECONDS = 0.05
_COMMAND = "from graphbuild.cli import main; main()"


def write_vectors(folder: Path, count: int, dim: int, layout: Literal["npy", "parquet"]) -> None:
    """Write `count` vectors of width `dim` and their ids into files of 100,000, holding a block of 10,000."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, count, _FILE_ROWS)):
        rows = min(_FILE_ROWS, count - start)
        ids = pa.array([f"picture-{row:08d}" for row in range(start, start + rows)])
        if layout == "npy":
            path = folder / f"img_emb/img_emb_{number}.npy"
            vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, dim))
            for first, block_nD in _blocks(rows, dim, start):
                vectors[first : first + len(block_nD)] = block_nD
            vectors.flush()
            pq.write_table(pa.table({"image_path": ids}), folder / f"metadata/metadata_{number}.parquet")
            continue
        schema = pa.schema({"image_path": pa.string(), "embedding": pa.list_(pa.float16())})
        with pq.ParquetWriter(folder / f"img_emb/part-{number}.parquet", schema) as writer:
            for first, block_nD in _blocks(rows, dim, start):
                lists = pa.ListArray.from_arrays(
                    np.arange(0, block_nD.size + 1, dim, dtype=np.int32), pa.array(block_nD.reshape(-1))
                )
                writer.write_table(pa.table([ids.slice(first, len(block_nD)), lists], schema=schema))


def _blocks(rows: int, dim: int, start: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
    for first in range(0, rows, _BLOCK):
        yield first, clustered_vectors(min(_BLOCK, rows - first), dim, seed=(start + first) // _BLOCK)


def embed(folder: Path, graph_dir: Path) -> list[str]:
    """Run the command; a line for each stage, and one for the whole."""
    command = ("embed", "--dataset", "vectors", "--source", str(folder / "img_emb"), "--id-column", "image_path")
    log = graph_dir.with_suffix(".log")
    peaks = dict.fromkeys(_STAGES, (0, 0))
    started = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *command, "--graph-dir", str(graph_dir)], stderr=stream, stdout=stream
        )
        while process.poll() is None:
            done = _entered(graph_dir)
            stage = next((name for name in _STAGES if name not in done), _STAGES[-1])
            own, resident = _held(process.pid)
            peaks[stage] = max(peaks[stage][0], own), max(peaks[stage][1], resident)
            time.sleep(_LOOK_SECONDS)
    if process.returncode:
        raise click.ClickException(f"the command failed; see {log}")
    seconds = time.perf_counter() - started
    stages = _entered(graph_dir)
    lines = [f"{'stage':<10}{'s':>8}{'own memory, GB':>18}{'with mapped files, GB':>24}"]
    for name in _STAGES:
        own, resident = peaks[name]
        lines.append(f"{name:<10}{stages[name]:>8,.1f}{own / 1e9:>18.2f}{resident / 1e9:>24.2f}")
    own, resident = (max(one) for one in zip(*peaks.values(), strict=True))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines.append(f"{'command':<10}{seconds:>8,.1f}{own / 1e9:>18.2f}{resident / 1e9:>24.2f}")
    return [*lines, f"{used.ru_utime + used.ru_stime:,.0f} s of CPU"]


def _entered(graph_dir: Path) -> dict[str, float]:
    """Seconds of each stage that is in the manifest."""
    path = graph_dir / MANIFEST_FILE
    if not path.exists():
        return {}
    return {name: stage["seconds"] for name, stage in json.loads(path.read_text(encoding="utf-8"))["stages"].items()}


def _held(pid: int) -> tuple[int, int]:
    """Bytes that a process and its children hold: their own, and with pages of files."""
    own = resident = 0
    for one in (pid, *_children(pid)):
        try:
            status = Path(f"/proc/{one}/status").read_text(encoding="ascii")
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.endswith("kB")}
        own += sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
        resident += sizes.get("VmRSS", 0)
    return own, resident


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(one) for one in path.read_text(encoding="ascii").split()]
        except OSError:
            continue
        found += [*own, *(lower for one in own for lower in _children(one))]
    return found


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Where vectors and graph go.")
@click.option("--vectors", "count", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(1), default=768, show_default=True)
@click.option("--layout", type=click.Choice(["npy", "parquet"]), default="npy", show_default=True)
@click.option("--write-only", is_flag=True, help="Write the vectors, and run nothing.")
def main(out: Path, count: int, dim: int, layout: Literal["npy", "parquet"], write_only: bool) -> None:
    """Write what is missing, and print the table."""
    folder, graph_dir = out / f"{layout}-{count}x{dim}", out / f"graph-{layout}-{count}x{dim}"
    if not (folder / "written").exists():
        write_vectors(folder, count, dim, layout)
        (folder / "written").touch()
    if write_only:
        return
    if (graph_dir / MANIFEST_FILE).exists():
        raise click.ClickException(f"{graph_dir}: is there already. Remove it, for what is done would be passed over.")
    click.echo(f"{conditions()}; {count:,} vectors x {dim:,}, float16, {layout}")
    click.echo("\n".join(embed(folder, graph_dir)))
    dry = [sys.executable, "-c", _COMMAND, "knn", "--graph-dir", str(graph_dir), "--dry-run"]
    click.echo(subprocess.run(dry, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
