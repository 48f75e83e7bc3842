"""Target assembly against its peers: scipy's sub-matrix, and a dense GEMM from stored embeddings.

Shape letters: N texts, K neighbours stored, R sketch width, D embedding width, B samples in a batch.
Shards and embeddings are synthetic, of the format and size of real ones; batches are random.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from graphbuild import schemas, targets
from graphbuild.graph import Graph
from graphbuild.manifest import Manifest, Stage
from graphbuild.shards import Receipt, shard_ranges, write_arrow
from train.targets import assemble, target_weights

Ids = npt.NDArray[np.int64]
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is measured."""

    texts: int
    k: int
    sketch_dim: int
    dim: int
    batch_sizes: tuple[int, ...]
    repeats: int


SMALL = Size(texts=20_000, k=256, sketch_dim=64, dim=384, batch_sizes=(256, 1024), repeats=7)
FULL = Size(texts=1_000_000, k=256, sketch_dim=64, dim=384, batch_sizes=(256, 1024, 4096, 16_384), repeats=21)


def run(small: bool) -> str:
    """The table, with its conditions."""
    size = SMALL if small else FULL
    with tempfile.TemporaryDirectory(prefix="bench-targets-") as folder:
        graph = write_synthetic_graph(Path(folder), size)
        contenders = _contenders(graph, size)
        rows = [
            [f"{batch:,}", *(_milliseconds(call, size, batch) for _, call in contenders), _hit_rate(graph, batch)]
            for batch in size.batch_sizes
        ]
    header = ["B", *(name for name, _ in contenders), "stored neighbours per anchor"]
    lines = [
        f"N = {size.texts:,} texts, K = {size.k}, R = {size.sketch_dim}, D = {size.dim}; synthetic, random batches, files warm; "
        f"median of {size.repeats} batches, milliseconds; numba on one thread, torch and BLAS on {torch.get_num_threads()}",
        "| " + " | ".join(header) + " |",
        "|" + "---:|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def write_synthetic_graph(graph_dir: Path, size: Size) -> Graph:
    """Neighbour shards as the knn stage writes them, with random distinct neighbours, none of them the text itself."""
    rng = np.random.default_rng(0)
    schema = schemas.knn_schema(size.k, size.sketch_dim)
    files = {}
    for shard in shard_ranges(size.texts, schemas.SHARD_SIZE):
        columns = _columns(rng, np.arange(shard.start, shard.stop), size)
        arrays = [_array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
        receipt = write_arrow(graph_dir, schemas.part_name(schemas.KNN, shard.index), batch, key="synthetic")
        files[receipt.path] = receipt
    embedded = Receipt(path="embeddings/part-00000.parquet", digest="", rows=size.texts, bytes=0, key="synthetic")
    Manifest(
        stages={
            "embed": Stage(config={}, inputs={}, seconds=0.0, files={embedded.path: embedded}),
            "knn": Stage(config={}, inputs={}, seconds=0.0, files=files),
        }
    ).save(graph_dir)
    return Graph.open(graph_dir)


def _columns(rng: np.random.Generator, ids: Ids, size: Size) -> Iterator[npt.NDArray[Any]]:
    # Distances that add up to less than N: no neighbour comes twice, and none is the text itself.
    gaps = rng.integers(1, (size.texts - 1) // size.k + 1, (len(ids), size.k))
    yield ids.astype(np.int32)
    yield ((ids[:, None] + gaps.cumsum(axis=1)) % size.texts).astype(np.int32)
    yield np.sort(rng.uniform(0.3, 0.9, (len(ids), size.k)), axis=1)[:, ::-1].astype(np.float16)
    yield rng.integers(-127, 128, (len(ids), size.sketch_dim)).astype(np.int8)
    yield rng.uniform(0.001, 0.002, len(ids)).astype(np.float32)


def _array(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    flat = pa.array(values.reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _contenders(graph: Graph, size: Size) -> list[tuple[str, Callable[[Ids], object]]]:
    """Everything that makes a (B, B) matrix from text ids, by name."""
    found: list[tuple[str, Callable[[Ids], object]]] = [
        ("edges and sketch", lambda ids: targets.assemble(graph.rows(ids), ids)),
        ("edges only", lambda ids: targets.assemble(graph.rows(ids), ids, absent=0.0)),
        ("scipy sub-matrix", _scipy(graph)),
        ("dense GEMM, float16 vectors", _dense(size)),
        ("torch twin, cpu", lambda ids: _torch(graph, ids, "cpu")),
    ]
    if torch.cuda.is_available():
        found.append(("torch twin, cuda", lambda ids: _torch(graph, ids, "cuda")))
    found.append(("softmax alone", lambda ids: target_weights(torch.zeros(len(ids), len(ids)), 0.1)))
    return found


def _scipy(graph: Graph) -> Callable[[Ids], object]:
    from scipy import sparse

    rows = graph.rows(np.arange(graph.n_texts))
    starts = np.arange(graph.n_texts + 1, dtype=np.int64) * graph.k
    shape = (graph.n_texts, graph.n_texts)
    matrix = sparse.csr_array(
        (rows.similarities.reshape(-1).astype(np.float32), rows.neighbor_ids.reshape(-1), starts), shape=shape
    )

    def submatrix(ids: Ids) -> object:
        part = matrix[ids][:, ids]
        return part.maximum(part.T).toarray()

    return submatrix


def _dense(size: Size) -> Callable[[Ids], object]:
    vectors = np.random.default_rng(1).standard_normal((size.texts, size.dim), np.float32).astype(np.float16)
    return lambda ids: targets.dense(vectors[ids], ids)


def _torch(graph: Graph, ids: Ids, device: str) -> object:
    rows = graph.rows(ids)
    parts = (rows.neighbor_ids, rows.similarities, rows.sketch, rows.sketch_scale)
    neighbors, similarities, sketch, scale = (torch.from_numpy(part).to(device) for part in parts)
    found = assemble(neighbors, similarities, sketch, scale, torch.from_numpy(ids).to(device), absent=None)
    if device == "cuda":
        torch.cuda.synchronize()
    return found


def _batches(graph_size: int, batch: int, count: int) -> list[Ids]:
    rng = np.random.default_rng(batch)
    return [rng.choice(graph_size, batch, replace=False) for _ in range(count)]


def _milliseconds(call: Callable[[Ids], object], size: Size, batch: int) -> str:
    seconds = []
    for ids in _batches(size.texts, batch, _WARM_UP + size.repeats):
        began = time.perf_counter()
        call(ids)
        seconds.append(time.perf_counter() - began)
    return f"{1e3 * median(seconds[_WARM_UP:]):.2f}"


def _hit_rate(graph: Graph, batch: int) -> str:
    (ids,) = _batches(graph.n_texts, batch, 1)
    return f"{targets.hit_rate(targets.assemble(graph.rows(ids), ids)):.2f}"


@click.command()
@click.option("--full", is_flag=True, help="The sizes of RESULTS.md instead of small ones.")
def main(full: bool) -> None:
    """Print the table."""
    click.echo(run(small=not full))


if __name__ == "__main__":
    main()
