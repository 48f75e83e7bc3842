"""The FAISS index at full size: built from simulated embeddings, then asked for the nearest of some of them.

Shape letters: N texts, n of a shard, D vector width.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from benchmarks.knn import clustered_vectors
from benchmarks.memory import drop_pages, reset_peak, status
from graphbuild.embed.index import build_index
from graphbuild.embed.nearest import VectorIndex
from graphbuild.store import schemas
from graphbuild.store.files import shard_ranges, write_parquet
from graphbuild.store.manifest import Manifest, Stage

_DIM = 384
_ASKED = 200


def run(rows: int, folder: Path | None = None) -> str:
    """Measure, in one line: building, its peak memory, opening, and milliseconds a query."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        graph_dir = Path(name)
        manifest = _embedded(graph_dir, rows)
        before = reset_peak()
        started = time.perf_counter()
        cpu = time.process_time()
        build_index(graph_dir, manifest, overwrite=False)
        built, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = status("VmHWM")
        size = (graph_dir / schemas.INDEX_FILE).stat().st_size
        path, queries_qD = graph_dir / schemas.INDEX_FILE, clustered_vectors(_ASKED, _DIM)
        started = time.perf_counter()
        search = VectorIndex(path)
        opened = time.perf_counter() - started
        warm = [_milliseconds(search, query_D) for _ in range(2) for query_D in queries_qD][_ASKED:]
        del search
        drop_pages(path)
        search = VectorIndex(path)
        cold = [_milliseconds(search, query_D) for query_D in queries_qD]
        config = manifest.stages["index"].config
    return (
        f"{rows:,} vectors x {_DIM}: index ({config['kind']}, {config['lists']:,} lists) built in {built:,.0f} s "
        f"({cpu:,.0f} s of CPU), {size / 1e9:.2f} GB, peak resident memory {peak / 1e9:.2f} GB, of which {before / 1e9:.2f} GB "
        f"before; opened in {1e3 * opened:,.0f} ms, then {median(warm):.1f} ms a query (median of {_ASKED}, the slowest "
        f"{max(warm):.0f} ms), {median(cold):.1f} ms (the slowest {max(cold):,.0f} ms) with the file out of the page cache at first"
    )


def _milliseconds(search: VectorIndex, query_D: np.ndarray) -> float:
    started = time.perf_counter()
    search.nearest(query_D, 10)
    return 1e3 * (time.perf_counter() - started)


def _embedded(graph_dir: Path, rows: int) -> Manifest:
    """A graph of embeddings alone, in the real format."""
    schema = schemas.embeddings_schema(_DIM)
    files = {}
    for shard in shard_ranges(rows, schemas.SHARD_SIZE):
        ids = np.arange(shard.start, shard.stop, dtype=np.int32)
        flat = pa.array(clustered_vectors(len(shard), _DIM, seed=shard.index).reshape(-1))
        matrix = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(schemas.EMBEDDING).type)
        table = pa.table([pa.array(ids), pa.array(ids.astype(np.uint64)), matrix], schema=schema)
        receipt = write_parquet(graph_dir, schemas.part_name(schemas.EMBEDDINGS, shard.index), table, key="")
        files[receipt.path] = receipt
    manifest = Manifest(
        encoder={"dim": _DIM}, stages={"embed": Stage(config={}, inputs={}, seconds=0, files=files)}, shard_size=schemas.SHARD_SIZE
    )
    manifest.save(graph_dir)
    return manifest
