"""Samples found by id at full size: the look-up is built from a simulated samples table, then asked for random ids."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.memory import reset_peak, status
from graphbuild.store import schemas
from graphbuild.store.files import shard_ranges, write_parquet
from graphbuild.store.hashes import hash_strings
from graphbuild.store.lookup import SampleLookup, build_lookup
from graphbuild.store.manifest import Manifest, Stage

_ASKED = 1_000_000
_ALONE = 10_000


def run(rows: int, folder: Path | None = None) -> str:
    """Measure, in one line: building, and microseconds an id, asked for together and one by one."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        graph_dir = Path(name)
        manifest = Manifest(stages={"text": Stage(config={}, inputs={}, seconds=0, files={})})
        for shard in shard_ranges(rows, schemas.SHARD_SIZE):
            ids = [_url(row) for row in range(shard.start, shard.stop)]
            texts = np.arange(shard.start, shard.stop, dtype=np.int32)
            table = pa.table([pa.array(ids), pa.array(hash_strings(ids)), pa.array(texts)], schema=schemas.SAMPLES_SCHEMA)
            receipt = write_parquet(graph_dir, schemas.part_name(schemas.SAMPLES, shard.index), table, key="")
            manifest.stages["text"].files[receipt.path] = receipt
        before = reset_peak()
        started = time.perf_counter()
        build_lookup(graph_dir, manifest)
        built = time.perf_counter() - started
        peak = status("VmHWM")
        lookup = SampleLookup(graph_dir, manifest)
        asked = [_url(row) for row in np.random.default_rng(0).integers(rows, size=min(_ASKED, rows)).tolist()]
        # Compiles, and warms the page cache as the first epoch does.
        lookup.find(asked)
        together, alone = _seconds(lookup, [asked]), _seconds(lookup, [[one] for one in asked[:_ALONE]])
        written = sum(receipt.bytes for receipt in manifest.stages["lookup"].files.values())
    return (
        f"{rows:,} sample ids like URLs: look-up built in {built:,.1f} s, {written / 1e9:.2f} GB, peak resident memory "
        f"{peak / 1e9:.2f} GB, of which {before / 1e9:.2f} GB before; found: {1e6 * together / len(asked):.2f} us an id "
        f"({len(asked):,} together), {1e6 * alone / _ALONE:.0f} us (one call each)"
    )


def _seconds(lookup: SampleLookup, calls: list[list[str]]) -> float:
    started = time.perf_counter()
    for ids in calls:
        lookup.find(ids)
    return time.perf_counter() - started


def _url(row: int) -> str:
    return f"https://images.example.org/{row % 997:03d}/{row:09d}.jpg"
