"""Looking at a graph: memory and time of queries over all edges, `python -m benchmarks.query [--small] [--texts N]`.

The peer explodes the list columns of the same files with Polars. Rows are random, of the format and size of real ones.
Each query runs in a process of its own; memory is the most anonymous memory it held (mapped files are shared and do not
count), sampled every 5 ms, less what it held before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa

from graphbuild.store import schemas
from graphbuild.store.files import ShardRange, shard_ranges, write_arrow, write_parquet
from graphbuild.store.manifest import Manifest, Stage

_K = 256
_SMALL, _FULL = 131_072, 2_097_152
_TOP = 10


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    return measure(_SMALL if small else _FULL)


def measure(texts: int) -> str:
    """Return the table for so many texts."""
    with tempfile.TemporaryDirectory(prefix="bench-query-") as folder:
        _write_graph(Path(folder), texts)
        lines = [f"{texts:,} texts x {_K} edges; random rows", f"{'query':34} {'seconds':>8} {'MB':>8}"]
        for name in QUERIES:
            command = [sys.executable, "-m", "benchmarks.query", "--child", name, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines.append(f"{name:34} failed: {done.stderr.strip().splitlines()[-1][:60]}")
                continue
            found = json.loads(done.stdout)
            lines.append(f"{name:34} {found['seconds']:8.1f} {found['megabytes']:8,.0f}")
    return "\n".join(lines)


def _write_graph(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    schema = schemas.knn_schema(_K, 0)
    stages: dict[str, dict[str, Any]] = {"text": {}, "knn": {}}
    for shard in shard_ranges(count, schemas.SHARD_SIZE):
        ids = np.arange(shard.start, shard.stop, dtype=np.int32)
        texts = pa.table([ids, [f"text {i}" for i in ids], ids.astype(np.uint64)], schema=schemas.TEXTS_SCHEMA)
        ones = np.ones(len(ids), np.int32)
        counts = pa.table([ids, ones, ones], schema=schemas.COUNTS_SCHEMA)
        batch = pa.RecordBatch.from_arrays([pa.array(ids), *_lists(rng, shard, count, schema)], schema=schema)
        written = [
            write_parquet(folder, schemas.part_name(schemas.TEXTS, shard.index), texts, key="bench"),
            write_parquet(folder, schemas.part_name(schemas.COUNTS, shard.index), counts, key="bench"),
        ]
        sample_ids = [f"sample {i}" for i in ids]
        samples = pa.table([sample_ids, ids.astype(np.uint64), ids], schema=schemas.SAMPLES_SCHEMA)
        written.append(write_parquet(folder, schemas.part_name(schemas.SAMPLES, shard.index), samples, key="bench"))
        stages["text"] |= {receipt.path: receipt for receipt in written}
        receipt = write_arrow(folder, schemas.part_name(schemas.KNN, shard.index), batch, key="bench")
        stages["knn"][receipt.path] = receipt
    config = {"method": "import", "k": _K, "sketch_dim": 0}
    made = {name: Stage(config=config, inputs={}, seconds=0.0, files=files) for name, files in stages.items()}
    Manifest(dataset={"name": "bench"}, counts={"texts": count, "samples": count}, stages=made).save(folder)


def _lists(rng: np.random.Generator, shard: ShardRange, count: int, schema: pa.Schema) -> list[pa.Array]:
    ids = rng.integers(0, count, len(shard) * _K, dtype=np.int32)
    values = np.sort(rng.random((len(shard), _K), dtype=np.float32), axis=1)[:, ::-1].astype(np.float16)
    flat = (pa.array(ids), pa.array(values.reshape(-1)))
    kinds = (schema.field(schemas.NEIGHBOR_IDS).type, schema.field(schemas.SIMILARITIES).type)
    return [pa.FixedSizeListArray.from_arrays(column, type=kind) for column, kind in zip(flat, kinds, strict=True)]


def _hubs(folder: Path) -> None:
    import polars as pl

    import graphbuild

    graphbuild.open(folder).edges.group_by("dst").agg(pl.len()).top_k(_TOP, by="len").collect(engine="streaming")


def _hubs_exploded(folder: Path) -> None:
    import polars as pl

    edges = pl.scan_ipc(folder / "knn/*.arrow").select(dst=pl.col(schemas.NEIGHBOR_IDS)).explode("dst")
    edges.group_by("dst").agg(pl.len()).top_k(_TOP, by="len").collect(engine="streaming")


def _close_pairs(folder: Path) -> None:
    import polars as pl

    import graphbuild

    graphbuild.open(folder).edges.filter(pl.col("similarity") >= 0.9999).select(pl.len()).collect(engine="streaming")


def _health(folder: Path) -> None:
    import graphbuild

    graphbuild.open(folder).health(absent=0.0)


QUERIES: dict[str, Callable[[Path], None]] = {
    "hubs": _hubs,
    "hubs, exploded by Polars": _hubs_exploded,
    "pairs at or above 0.9999": _close_pairs,
    "health": _health,
}


def _child(name: str, folder: Path) -> dict[str, float]:
    """Run one query; its seconds and peak of anonymous memory."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], _anonymous())

    before = _anonymous()
    # A daemon, so that a query that fails ends the process.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    QUERIES[name](folder)
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    return {"seconds": seconds, "megabytes": (peak[0] - before) / 1e6}


def _anonymous() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@click.command()
@click.option("--small", is_flag=True, help="A small graph.")
@click.option("--texts", type=click.IntRange(min=1000), default=None, help="Texts of the graph.")
@click.option("--child", nargs=2, type=(str, click.Path(path_type=Path)), default=None, hidden=True, help="A query, in a graph.")
def main(small: bool, texts: int | None, child: tuple[str, Path] | None) -> None:
    """Print the table."""
    click.echo(json.dumps(_child(*child)) if child else measure(texts or (_SMALL if small else _FULL)))


if __name__ == "__main__":
    main()
