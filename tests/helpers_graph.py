"""Small graph directories, written by the schemas and without graphbuild's stages, so that tests need no encoder.

Shape letters: N texts, D vector width. Import it as `from helpers_graph import write_graph`: the tests folder is on
pytest's path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild.store import schemas
from graphbuild.store.files import RECORDS, Receipt, read_receipt, receipt_path, shard_ranges, write_parquet
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest, Stage, stage_key


def unit_rows(vectors_ND: NDArray[np.floating]) -> NDArray[np.float16]:
    """Rows scaled to length 1 and rounded to float16, as the embed stage stores them; zero rows stay zero."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    return (wide_ND / np.where(lengths_N > 0, lengths_N, 1)).astype(np.float16)


def clustered_vectors(count: int, dim: int, *, clusters: int = 20, spread: float = 0.6, seed: int = 0) -> NDArray[np.float16]:
    """Unit vectors around random centres: similarities as uneven as those of real captions."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    return unit_rows(centres[rng.integers(clusters, size=count)] + spread * rng.standard_normal((count, dim)))


def write_graph(
    graph_dir: Path,
    vectors_ND: NDArray[np.float16],
    *,
    texts: Sequence[str] | None = None,
    samples: Sequence[tuple[str, int]] | None = None,
    shard_size: int = schemas.SHARD_SIZE,
    sample_counts: Sequence[int] | None = None,
    encoder: str = "test-encoder",
) -> Manifest:
    """Write texts, counts, samples and embeddings of a graph whose embed stage is done, without an index.

    Args:
        graph_dir: Where to; made if it is missing.
        vectors_ND: Stored as they are: pass them through `unit_rows` unless the test is about bad ones.
        texts: N texts; `text 0`, `text 1`, ... by default.
        samples: (sample_id, text_id) in order; one per text by default, or `sample_counts` per text.
        shard_size: Texts a shard; samples are cut alike.
        sample_counts: How many samples each text has, where `samples` is not given.
        encoder: Its name in the manifest; text hashes do not depend on it.

    Returns:
        The manifest, as saved.
    """
    count, dim = vectors_ND.shape
    texts = list(texts) if texts is not None else [f"text {i}" for i in range(count)]
    if samples is None:
        per_text = sample_counts if sample_counts is not None else [1] * count
        samples = [(f"sample-{i}-{j}", i) for i, n in enumerate(per_text) for j in range(n)]
    hashes = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)
    captions, distinct = (
        np.bincount([text_id for _, text_id in pairs], minlength=count).astype(np.int32) for pairs in (samples, set(samples))
    )
    key = stage_key({"test": True}, {})
    text_files: list[Receipt] = []
    embedding_files: list[Receipt] = []
    for shard in shard_ranges(count, shard_size):
        rows = slice(shard.start, shard.stop)
        ids = pa.array(np.arange(shard.start, shard.stop, dtype=np.int32))
        text_table = pa.table([ids, pa.array(texts[rows]), pa.array(hashes[rows])], schema=schemas.TEXTS_SCHEMA)
        text_files.append(_write(graph_dir, schemas.TEXTS, shard.index, text_table, key))
        counts_table = pa.table([ids, pa.array(distinct[rows]), pa.array(captions[rows])], schema=schemas.COUNTS_SCHEMA)
        text_files.append(_write(graph_dir, schemas.COUNTS, shard.index, counts_table, key))
        schema = schemas.embeddings_schema(dim)
        flat = pa.array(np.ascontiguousarray(vectors_ND[rows]).reshape(-1))
        matrix = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(schemas.EMBEDDING).type)
        embedding_files.append(
            _write(graph_dir, schemas.EMBEDDINGS, shard.index, pa.table([ids, pa.array(hashes[rows]), matrix], schema=schema), key)
        )
    for shard in shard_ranges(len(samples), shard_size):
        part = samples[shard.start : shard.stop]
        table = pa.table(
            [
                pa.array([sample_id for sample_id, _ in part]),
                pa.array([xxhash.xxh3_64_intdigest(sample_id.encode()) for sample_id, _ in part], pa.uint64()),
                pa.array([text_id for _, text_id in part], pa.int32()),
            ],
            schema=schemas.SAMPLES_SCHEMA,
        )
        text_files.append(_write(graph_dir, schemas.SAMPLES, shard.index, table, key))
    manifest = Manifest(
        dataset={"name": "test"},
        encoder={"name": encoder, "dim": dim},
        counts={"samples": len({sample_id for sample_id, _ in samples}), "texts": count},
        shard_size=shard_size,
        generation=Manifest.load_or_new(graph_dir).generation,
        stages={
            "text": Stage(config={}, inputs={}, seconds=0.1, files={r.path: r for r in text_files}),
            "embed": Stage(config={}, inputs={}, seconds=0.2, files={r.path: r for r in embedding_files}),
        },
    )
    build_lookup(graph_dir, manifest)
    return manifest


def receipt_of(path: Path) -> Receipt | None:
    """The stored receipt of a shard, by the path of the shard."""
    graph_dir = path.parents[1]
    return read_receipt(receipt_path(graph_dir, path.relative_to(graph_dir).as_posix()))


def file_times(graph_dir: Path) -> dict[Path, int]:
    """When each file of a graph was last written."""
    return {path: path.stat().st_mtime_ns for path in graph_dir.rglob("*") if path.is_file()}


def _write(graph_dir: Path, folder: str, index: int, table: pa.Table, key: str) -> Receipt:
    return write_parquet(graph_dir, schemas.part_name(folder, index), table, key=key)


def brute_force(
    vectors: NDArray[np.float16], k: int, rows: NDArray[np.integer] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """The k nearest of all vectors, or of some rows, in float64: ids and float16 similarities, in the order that is stored."""
    wide = vectors.astype(np.float64)
    rows = np.arange(len(wide)) if rows is None else rows
    exact = wide[rows] @ wide.T
    exact[np.arange(len(rows)), rows] = -np.inf
    ids = np.stack([_best(row, k) for row in exact])
    rounded = np.take_along_axis(exact, ids, 1).astype(np.float16)
    order = np.lexsort((ids, -rounded.astype(np.float64)))
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rounded, order, 1)


def _best(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Places of the k largest, the first of those that are equal; sorting all of a row takes ten times as long."""
    reached = np.flatnonzero(values >= np.partition(values, -k)[-k])
    return reached[np.argsort(-values[reached], kind="stable")[:k]]


def to_old_layout(graph_dir: Path) -> None:
    """Make of a graph what a program of format 1 would have left: receipts beside their files, none for the tokenizer."""
    receipts = graph_dir / RECORDS / "receipts"
    for path in receipts.rglob("*.json"):
        if path.parent.name != "tokenizer":
            path.rename(graph_dir / path.relative_to(receipts))
    shutil.rmtree(graph_dir / RECORDS)
    manifest = json.loads((graph_dir / "graph.json").read_text())
    del manifest["digest"]
    manifest["format"] = 1
    del manifest["generation"]
    files = manifest["stages"]["text"]["files"]
    manifest["stages"]["text"]["files"] = {name: files[name] for name in files if not name.startswith("tokenizer")}
    (graph_dir / "graph.json").write_text(json.dumps(manifest))
