"""The knn stage: embedding shards in, neighbour shards out, one at a time, each with a receipt.

Shape letters: N texts, n texts of a shard, K neighbours kept, D vector width, R sketch width.
A run that was killed goes on with the shards that are missing, and ends with the same bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from graphbuild import schemas
from graphbuild.errors import ArtifactError
from graphbuild.knn import KnnConfig, KnnResult, sketch
from graphbuild.knn.engine import Neighbors, make_engine
from graphbuild.knn.memory import resolve_limit
from graphbuild.manifest import Manifest, Stage, stage_key, up_to_date
from graphbuild.progress import progress
from graphbuild.shards import Receipt, ShardRange, finished, remove_stale_temporaries, require_intact, shard_ranges, write_arrow
from graphbuild.vectors import load_embeddings

_AUTO_COMPLETE = 4096
_AUTO_K = 256
_LENGTH_TOLERANCE = 0.01
_CHECK_BLOCK = 65_536


def run_stage(graph_dir: Path, config: KnnConfig) -> KnnResult:
    """Do what `graphbuild.knn.build_knn` says."""
    started = time.perf_counter()
    manifest = Manifest.load(graph_dir)
    embedded = manifest.require("embed", graph_dir)
    count = sum(receipt.rows for receipt in embedded.files.values())
    k = stored_k(config.k, count)
    inputs = manifest.column_digests("embed", [schemas.TEXT_ID, schemas.EMBEDDING])
    if config.sketch_dim:
        inputs |= manifest.column_digests("text", [schemas.SAMPLE_COUNT])
    options = {"method": "exact", "k": k, "sketch_dim": config.sketch_dim, "shard_size": manifest.shard_size}
    limit = resolve_limit(config.memory_limit)
    if up_to_date(manifest, graph_dir, "knn", options, inputs, overwrite=config.overwrite):
        return _result(graph_dir, config, manifest.stages["knn"], count, already_done=True)
    if k < count - 1 and config.k == "auto":
        click.echo(f"k: {k} of {count - 1:,} other texts (auto)", err=True)
    elif isinstance(config.k, int) and config.k > k:
        click.echo(f"k: {config.k:,} asked, but there are only {k:,} other texts: all are stored", err=True)
    manifest.drop("knn")
    manifest.save(graph_dir)
    ranges = shard_ranges(count, manifest.shard_size)
    work = _Work(graph_dir, manifest, k, config.sketch_dim, limit, stage_key(options, inputs))
    receipts = work.run(ranges)
    recomputed = sum(receipt.facts["recomputed_rows"] for receipt in receipts)
    facts = {
        "k_asked": config.k,
        "k": k,
        "texts": count,
        "complete": k == count - 1,
        "recomputed_rows": recomputed,
        "certified_rows": count - recomputed,
        "precision": ", ".join(sorted({receipt.facts["precision"] for receipt in receipts})),
        "reused_shards": work.reused,
    }
    files = {receipt.path: receipt for receipt in receipts}
    stage = Stage(config=options, inputs=inputs, seconds=round(time.perf_counter() - started, 3), files=files, facts=facts)
    _remove_leftovers(graph_dir, files)
    manifest.stages["knn"] = stage
    manifest.save(graph_dir)
    return _result(graph_dir, config, stage, count, already_done=False)


def stored_k(asked: int | str, count: int) -> int:
    """Neighbours that are stored for each of `count` texts: never more than the other texts there are."""
    if asked == "auto":
        asked = count - 1 if count <= _AUTO_COMPLETE else _AUTO_K
    return count - 1 if asked == "all" else min(int(asked), count - 1)


class _Work:
    """One run: what the shards share, loaded once and only if a shard is missing."""

    def __init__(self, graph_dir: Path, manifest: Manifest, k: int, sketch_dim: int, limit: int, key: str) -> None:
        self._graph_dir, self._manifest = graph_dir, manifest
        self._k, self._sketch_dim, self._limit, self._key = k, sketch_dim, limit, key
        self.reused = 0

    def run(self, ranges: list[ShardRange]) -> list[Receipt]:
        """Receipts of all shards, those that were done before included."""
        done = {r.index: finished(self._graph_dir, schemas.part_name(schemas.KNN, r.index), key=self._key) for r in ranges}
        missing = [shard for shard in ranges if done[shard.index] is None]
        self.reused = len(ranges) - len(missing)
        if missing:
            folder = self._graph_dir / schemas.KNN
            folder.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(folder)
            done.update(self._search(missing))
        return [receipt for receipt in (done[shard.index] for shard in ranges) if receipt is not None]

    def _search(self, missing: list[ShardRange]) -> Iterator[tuple[int, Receipt]]:
        vectors_ND = load_embeddings(self._graph_dir)
        require_unit_vectors(vectors_ND, self._graph_dir)
        basis_DR = self._basis(vectors_ND) if self._sketch_dim else None
        engine = make_engine(vectors_ND, k=self._k, memory_limit=self._limit - vectors_ND.nbytes) if self._k else None
        results = engine.search(missing) if engine else map(_none, missing)
        for shard, found in zip(missing, results, strict=True):
            yield shard.index, self._write(shard, vectors_ND, basis_DR, found, engine.precision if engine else "none")

    def _basis(self, vectors_ND: NDArray[np.float16]) -> NDArray[np.float64]:
        weights = read_sample_counts(self._graph_dir, self._manifest, len(vectors_ND))
        ranges = shard_ranges(len(vectors_ND), self._manifest.shard_size)
        with progress("sketch", len(vectors_ND), unit="texts") as meter:

            def parts() -> Iterator[tuple[NDArray[np.float16], NDArray[np.int32]]]:
                for shard in ranges:
                    yield vectors_ND[shard.start : shard.stop], weights[shard.start : shard.stop]
                    meter.advance(len(shard))

            return sketch.sketch_basis(sketch.second_moments(parts(), vectors_ND.shape[1]), self._sketch_dim)

    def _write(
        self,
        shard: ShardRange,
        vectors_ND: NDArray[np.float16],
        basis_DR: NDArray[np.float64] | None,
        found: Neighbors,
        precision: str,
    ) -> Receipt:
        schema = schemas.knn_schema(self._k, self._sketch_dim)
        columns: list[pa.Array] = [
            pa.array(np.arange(shard.start, shard.stop, dtype=np.int32)),
            _fixed_size_list(found.ids_nK, schema.field(schemas.NEIGHBOR_IDS).type),
            _fixed_size_list(found.similarities_nK, schema.field(schemas.SIMILARITIES).type),
        ]
        if basis_DR is not None:
            codes_nR, scales_n = sketch.encode(vectors_ND[shard.start : shard.stop], basis_DR)
            columns += [_fixed_size_list(codes_nR, schema.field(schemas.SKETCH).type), pa.array(scales_n)]
        batch = pa.RecordBatch.from_arrays(columns, schema=schema)
        facts = {"recomputed_rows": found.recomputed, "precision": precision}
        return write_arrow(self._graph_dir, schemas.part_name(schemas.KNN, shard.index), batch, key=self._key, facts=facts)


def _none(shard: ShardRange) -> Neighbors:
    return Neighbors(np.empty((len(shard), 0), np.int32), np.empty((len(shard), 0), np.float16), 0)


def _fixed_size_list(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    rows, width = values.shape
    if width:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=kind)
    # from_arrays cannot tell how many lists of width 0 there are.
    return pa.array([[]] * rows, type=kind)


def require_unit_vectors(vectors_ND: NDArray[np.float16], graph_dir: Path) -> None:
    """Refuse what has no direction.

    Raises:
        ArtifactError: Naming the first text whose vector is zero, not finite, or not of length 1.
    """
    for start in range(0, len(vectors_ND), _CHECK_BLOCK):
        block_nD = vectors_ND[start : start + _CHECK_BLOCK].astype(np.float32)
        lengths_n = np.sqrt(np.einsum("nd,nd->n", block_nD, block_nD))
        bad = np.flatnonzero(~(np.abs(lengths_n - 1) <= _LENGTH_TOLERANCE))
        if len(bad):
            length = float(lengths_n[bad[0]])
            what = "is zero" if length == 0 else f"has length {length:.4g}, not 1" if np.isfinite(length) else "is not finite"
            raise ArtifactError(
                f"{graph_dir}: the embedding of text_id {start + int(bad[0])} {what}, so it has no neighbours "
                f"({len(bad):,} such in texts {start:,} to {start + len(block_nD) - 1:,}). "
                "Look at it with `graphbuild inspect --sql`, and embed again without it or with another encoder."
            )


def read_sample_counts(graph_dir: Path, manifest: Manifest, count: int) -> NDArray[np.int32]:
    """How many samples map onto each text; shape (N,).

    Raises:
        ArtifactError: If a counts file is missing or damaged, or the counts are not those of `count` texts.
    """
    files = manifest.require("text", graph_dir).files
    mine = {name: files[name] for name in sorted(files) if name.startswith(f"{schemas.COUNTS}/")}
    remedy = "Run `graphbuild embed` again with the same options."
    require_intact(graph_dir, mine, remedy=remedy)
    parts = [pq.read_table(graph_dir / name, columns=[schemas.SAMPLE_COUNT])[schemas.SAMPLE_COUNT].to_numpy() for name in mine]
    counts = np.concatenate(parts) if parts else np.empty(0, np.int32)
    if len(counts) != count:
        raise ArtifactError(f"{graph_dir}: sample counts of {len(counts):,} texts, but {count:,} embeddings. {remedy}")
    return counts


def _remove_leftovers(graph_dir: Path, files: dict[str, Receipt]) -> None:
    """Take away shards of an earlier graph of more texts or smaller shards; a reader that globs would meet them."""
    for path in (graph_dir / schemas.KNN).iterdir():
        name = f"{schemas.KNN}/{path.name.removesuffix('.json')}"
        if name not in files:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def _result(graph_dir: Path, config: KnnConfig, stage: Stage, count: int, *, already_done: bool) -> KnnResult:
    return KnnResult(
        graph_dir=graph_dir,
        texts=count,
        k=stage.facts["k"],
        k_asked=config.k,
        complete=stage.facts["complete"],
        sketch_dim=stage.config["sketch_dim"],
        seconds=stage.seconds,
        reused_shards=stage.facts["reused_shards"],
        shards=len(stage.files),
        recomputed_rows=stage.facts["recomputed_rows"],
        precision=stage.facts["precision"],
        already_done=already_done,
    )
