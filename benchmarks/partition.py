"""Chunks of neighbours: time, memory and neighbours per anchor, by the size of the graph and of the chunks.

Shape letters: N texts, K neighbours stored, C samples a chunk.
The graph is synthetic: texts in clusters of 1,000 under shuffled ids, half of a text's neighbours from its cluster, half from
anywhere. Its memory accesses are as scattered as those of captions; its neighbours per anchor mean nothing beyond it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.synthetic_graph import to_array
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, ShardRange, shard_ranges, write_arrow, write_parquet
from graphbuild.store.manifest import Manifest, Stage
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import build_partition

_CLUSTER = 1000
_CHILD = "from benchmarks.partition import measure; import sys; measure(*sys.argv[1:])"


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    sizes, k = ((20_000, 60_000), 64) if small else ((250_000, 500_000, 1_000_000), 256)
    lines = [
        f"K = {k}, synthetic clusters of {_CLUSTER:,}; one thread; memory is the peak of a process that does nothing else, "
        "with the pages of the mapped graph in it",
        "| N | C | seconds | peak memory, MB | graph, MB | neighbours per anchor | at random |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for texts in sizes:
        with tempfile.TemporaryDirectory(prefix="bench-partition-") as folder:
            write_clustered_graph(Path(folder), texts, k)
            for chunk in (8, 32, 128):
                # A process of its own, for peak memory never falls.
                command = [sys.executable, "-c", _CHILD, folder, str(chunk)]
                lines.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    return "\n".join(lines)


def measure(folder: str, chunk: str) -> None:
    """Partition a graph in this process, and print its line of the table."""
    # Along one rank first, so that compiling is not counted.
    build_partition(Path(folder), PartitionConfig(chunk=int(chunk), neighbor_ranks="1:1"))
    result = build_partition(Path(folder), PartitionConfig(chunk=int(chunk)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    graph = sum(path.stat().st_size for path in (Path(folder) / schemas.KNN).glob("*.arrow")) / 1e6
    facts = result.facts
    cells = (f"{result.samples:,}", chunk, f"{facts['seconds']:.1f}", f"{peak:,.0f}", f"{graph:,.0f}")
    found = (f"{facts['neighbors_per_anchor']:.2f}", f"{facts['neighbors_per_anchor_random']:.2g}")
    click.echo("| " + " | ".join((*cells, *found)) + " |")


def write_clustered_graph(graph_dir: Path, texts: int, k: int) -> None:
    """Write neighbour shards and a samples table of one sample a text."""
    rng = np.random.default_rng(0)
    places = rng.permutation(texts)
    id_at = np.argsort(places).astype(np.int32)
    schema = schemas.knn_schema(k, 0)
    knn, samples = {}, {}
    for shard in shard_ranges(texts, schemas.SHARD_SIZE):
        arrays = [
            to_array(values, field.type) for values, field in zip(_columns(rng, shard, places, id_at, k), schema, strict=True)
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        receipt = write_arrow(graph_dir, schemas.part_name(schemas.KNN, shard.index), batch, key="synthetic")
        knn[receipt.path] = receipt
        ids = np.arange(shard.start, shard.stop)
        columns = [pa.array(ids.astype(str)), pa.array(ids.astype(np.uint64)), pa.array(ids.astype(np.int32))]
        table = pa.table(columns, schema=schemas.SAMPLES_SCHEMA)
        receipt = write_parquet(graph_dir, schemas.part_name(schemas.SAMPLES, shard.index), table, key="synthetic")
        samples[receipt.path] = receipt
    embedded = Receipt(path="embeddings/part-00000.parquet", digest="", rows=texts, bytes=0, key="synthetic")
    files = {"text": samples, "embed": {embedded.path: embedded}, "knn": knn}
    Manifest(stages={name: Stage(config={}, inputs={}, seconds=0.0, files=some) for name, some in files.items()}).save(graph_dir)


def _columns(
    rng: np.random.Generator, shard: ShardRange, places: npt.NDArray[np.int64], id_at: npt.NDArray[np.int32], k: int
) -> Iterator[npt.NDArray[Any]]:
    ids = np.arange(shard.start, shard.stop)
    place = places[ids][:, None]
    start = place // _CLUSTER * _CLUSTER
    # Even gaps below 2 * width / k, so that none comes twice and none is the text itself.
    near, far = k // 2, k - k // 2
    inside = start + (place - start + rng.integers(1, _CLUSTER // near, (len(ids), near)).cumsum(axis=1)) % _CLUSTER
    outside = place + _CLUSTER + rng.integers(1, (len(places) - 2 * _CLUSTER) // far, (len(ids), far)).cumsum(axis=1)
    neighbors = np.concatenate([np.minimum(inside, len(places) - 1), outside % len(places)], axis=1)
    yield ids.astype(np.int32)
    yield id_at[neighbors]
    yield np.tile(np.linspace(0.9, 0.3, k), (len(ids), 1)).astype(np.float16)


@click.command()
@click.option("--full", is_flag=True, help="The sizes of RESULTS.md instead of small ones.")
def main(full: bool) -> None:
    """Print the table."""
    click.echo(run(small=not full))


if __name__ == "__main__":
    main()
