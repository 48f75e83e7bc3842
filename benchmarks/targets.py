"""Target assembly against its peers: scipy's sub-matrix, a dense GEMM from stored embeddings, and encoding on the fly.

Shape letters: N texts, K neighbours stored, R sketch width, D embedding width, B samples in a batch.
Shards and embeddings are synthetic, of the format and size of real ones; batches are random, and every contender gets the
same ones. Captions are real where they are at hand.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import click
import numpy as np
import torch

from benchmarks.captions import read_captions
from benchmarks.memory import drop_pages
from benchmarks.synthetic_graph import GraphSize, write_synthetic_graph
from graphbuild.embed.encoder import choose_precision, load_encoder
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.store import schemas
from graphbuild.store.arrays import Int64
from graphbuild.store.choices import OnDevice
from graphbuild.store.graph import Graph
from graphbuild.store.verified import VERIFY_VARIABLE
from graphbuild.system.allocator import keep_freed_memory
from graphbuild.system.options import DEFAULT_ENCODER
from graphbuild.targets import assemble as targets
from graphbuild.torch.blocks import StoredTarget
from graphbuild.torch.rows import rows_to_device
from graphbuild.torch.soft_targets import SoftTargets
from graphbuild.torch.softmax import target_weights

Call = Callable[[Int64], object]
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is measured, and how often."""

    texts: int
    ks: tuple[int, ...]
    sketch_dim: int
    dim: int
    batch_sizes: tuple[int, ...]
    repeats: int
    encoded: tuple[int, ...]
    """Batch sizes at which captions are encoded on the fly: the slowest contender by far."""


SMALL = Size(texts=20_000, ks=(32, 256), sketch_dim=64, dim=384, batch_sizes=(256, 1024), repeats=7, encoded=(256,))
FULL = Size(
    texts=12_000_000,
    ks=(32, 64, 128, 256),
    sketch_dim=64,
    dim=384,
    batch_sizes=(256, 1024, 4096, 16_384),
    repeats=21,
    encoded=(256, 1024),
)


def run(small: bool, texts: int | None = None, ks: tuple[int, ...] = (), batch_sizes: tuple[int, ...] = ()) -> str:
    """Return the tables, one for each k, with their conditions; what is given takes the place of the size's own."""
    size = SMALL if small else FULL
    size = replace(size, ks=ks or size.ks, batch_sizes=batch_sizes or size.batch_sizes)
    count = texts or size.texts
    # As the trainer does.
    keep_freed_memory()
    # Synthetic graphs have no digests.
    os.environ[VERIFY_VARIABLE] = "0"
    batches = {batch: _batches(count, batch, _WARM_UP + size.repeats) for batch in size.batch_sizes}
    lines = [
        f"N = {count:,} texts, R = {size.sketch_dim}, D = {size.dim}; synthetic, random batches; median of {size.repeats} batches, "
        f"milliseconds; numba on one thread, torch and BLAS on {torch.get_num_threads()}, freed memory kept. Cold: pages of the "
        "files dropped before each batch, as far as the file system does so"
    ]
    for k in size.ks:
        lines += ["", *_table(count, k, size, batches)]
    return "\n".join([*lines, "", *_encoding(size)])


def _table(count: int, k: int, size: Size, batches: dict[int, list[Int64]]) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="bench-targets-") as folder:
        wanted = np.concatenate([ids for some in batches.values() for ids in some])
        shape = GraphSize(texts=count, k=k, sketch_dim=size.sketch_dim)
        graph = write_synthetic_graph(Path(folder), shape, wanted)
        contenders = _contenders(graph, size, np.unique(wanted))
        warm = {name: [_milliseconds(call, batches[batch]) for batch in size.batch_sizes] for name, call in contenders.items()}
        hits = [_hit_rate(graph, batches[batch][0]) for batch in size.batch_sizes]
        del contenders, graph
        cold = [_cold(Path(folder), batches[batch]) for batch in size.batch_sizes]
    header = ["B", *warm, "edges and sketch, cold", "stored neighbours per anchor"]
    rows = [
        [f"{batch:,}", *(times[at] for times in warm.values()), cold[at], hits[at]] for at, batch in enumerate(size.batch_sizes)
    ]
    table = [header, ["---:"] * len(header), *rows]
    return [f"K = {k}", *("| " + " | ".join(row) + " |" for row in table)]


def _contenders(graph: Graph, size: Size, wanted: Int64) -> dict[str, Call]:
    """Everything that makes a (B, B) matrix from text ids, by name."""
    found: dict[str, Call] = {
        "edges and sketch": lambda ids: targets.assemble(graph.rows(ids), ids),
        "edges only": lambda ids: targets.assemble(graph.rows(ids), ids, absent=0.0),
        "scipy sub-matrix": _scipy(graph, wanted),
        "dense GEMM, float16 vectors": _dense(graph.n_texts, size.dim, wanted),
        "torch twin, cpu": lambda ids: _torch_cpu(graph, ids),
    }
    if torch.cuda.is_available():
        found["torch twin, cuda, rows from files"] = _cuda(graph, "no")
        found["torch twin, cuda, graph on device"] = _cuda(graph, "yes")
    found["softmax alone"] = lambda ids: target_weights(torch.zeros(len(ids), len(ids)), 0.1)
    return found


def _scipy(graph: Graph, wanted: Int64) -> Call:
    """scipy's sub-matrix, of an N x N matrix that holds only the rows that are asked for: others cost it nothing."""
    from scipy import sparse

    counts = np.zeros(graph.n_texts + 1, np.int64)
    counts[wanted + 1] = graph.k
    rows = graph.rows(wanted)
    values = rows.similarities.reshape(-1).astype(np.float32)
    matrix = sparse.csr_array((values, rows.neighbor_ids.reshape(-1), counts.cumsum()), shape=(graph.n_texts, graph.n_texts))

    def submatrix(ids: Int64) -> object:
        part = matrix[ids][:, ids]
        return part.maximum(part.T).toarray()

    return submatrix


def _dense(texts: int, dim: int, wanted: Int64) -> Call:
    # Zeros take no memory until they are written.
    vectors = np.zeros((texts, dim), np.float16)
    for start in range(0, len(wanted), 1 << 16):
        some = wanted[start : start + (1 << 16)]
        vectors[some] = np.random.default_rng(start).standard_normal((len(some), dim), np.float32)
    return lambda ids: targets.dense(vectors[ids], ids)


def _cuda(graph: Graph, graph_on_device: OnDevice) -> Call:
    targets_of = SoftTargets(graph.path, device="cuda", graph_on_device=graph_on_device)

    def assemble_and_wait(ids: Int64) -> object:
        found = targets_of.of_texts(torch.from_numpy(ids)).rows(0, len(ids))
        torch.cuda.synchronize()
        return found

    return assemble_and_wait


def _torch_cpu(graph: Graph, ids: Int64) -> object:
    rows = rows_to_device(graph.rows(ids), torch.device("cpu"))
    return StoredTarget(rows, torch.from_numpy(ids), absent=None).rows(0, len(ids))


def _encoding(size: Size) -> list[str]:
    """Captions through the encoder, then a GEMM: what a batch costs where nothing is stored."""
    spec, _ = choose_precision(find_encoder(DEFAULT_ENCODER), "auto")
    encoder = load_encoder(spec)
    captions, origin = read_captions(4 * max(size.encoded))
    lines = [f"encoding {origin} on the fly ({spec.precision}) and a GEMM", "| B | milliseconds |", "|---:|---:|"]
    for batch in size.encoded:
        seconds = []
        for start in range(0, 4 * batch, batch):
            began = time.perf_counter()
            vectors = encoder.encode(encoder.tokenize(captions[start : start + batch])[0]).astype(np.float16)
            targets.dense(vectors, np.arange(batch))
            seconds.append(time.perf_counter() - began)
        lines.append(f"| {batch:,} | {1e3 * median(seconds[1:]):,.0f} |")
    return lines


def _batches(texts: int, batch: int, count: int) -> list[Int64]:
    rng = np.random.default_rng(batch)
    if texts < 8 * batch:
        return [rng.permutation(texts)[:batch] for _ in range(count)]
    # Distinct without a permutation of millions: twice as many are drawn, and each is kept once.
    return [rng.permutation(np.unique(rng.integers(0, texts, 2 * batch)))[:batch] for _ in range(count)]


def _milliseconds(call: Call, batches: list[Int64]) -> str:
    seconds = []
    for ids in batches:
        began = time.perf_counter()
        call(ids)
        seconds.append(time.perf_counter() - began)
    return f"{1e3 * median(seconds[_WARM_UP:]):.2f}"


def _cold(graph_dir: Path, batches: list[Int64]) -> str:
    """Rows and assembly right after the files' pages were dropped; opening the graph is not counted."""
    seconds = []
    for ids in batches[:_WARM_UP]:
        # Pages that are mapped are not dropped, so the graph of the turn before must be gone.
        gc.collect()
        for path in (graph_dir / schemas.KNN).glob("*.arrow"):
            drop_pages(path)
        graph = Graph.open(graph_dir)
        began = time.perf_counter()
        targets.assemble(graph.rows(ids), ids)
        seconds.append(time.perf_counter() - began)
        del graph
    return f"{1e3 * median(seconds):.2f}"


def _hit_rate(graph: Graph, ids: Int64) -> str:
    return f"{targets.hit_rate(targets.assemble(graph.rows(ids), ids)):.3g}"


@click.command()
@click.option("--full", is_flag=True, help="The sizes of RESULTS.md instead of small ones.")
@click.option("--texts", type=click.IntRange(min=1000), default=None, help="N, in place of that of the size.")
@click.option("--k", "ks", type=click.IntRange(min=1), multiple=True, help="Neighbours stored; repeatable.")
@click.option("--batch-size", "batch_sizes", type=click.IntRange(min=2), multiple=True, help="B; repeatable.")
def main(full: bool, texts: int | None, ks: tuple[int, ...], batch_sizes: tuple[int, ...]) -> None:
    """Print the tables."""
    click.echo(run(small=not full, texts=texts, ks=ks, batch_sizes=batch_sizes))


if __name__ == "__main__":
    main()
