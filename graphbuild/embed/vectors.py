"""A graph of vectors that were made elsewhere: ids, texts and embeddings in, the stages of `embed` out. No encoder is run.

Shape letters: S samples, N texts, n of a block or shard, D vector width. Every sample is a text of its own, in the order of the
files, unless those of equal vectors are to be one. One shard and 8 bytes for each sample are held in memory; with --collapse 40,
and all texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.formats.vectors import NAME, find_vectors
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.index import build_index
from graphbuild.errors import OptionError, SourceError, redact
from graphbuild.store import schemas
from graphbuild.store.counts import count_captions, write_counts
from graphbuild.store.digests import digest_json
from graphbuild.store.embeddings import embeddings_table
from graphbuild.store.files import Receipt, ensure_parquet, shard_ranges
from graphbuild.store.hashes import hash_string, hash_strings
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import ensure_shards, read_parquet
from graphbuild.system.progress import progress

NOT_FOR_SAMPLES = (
    *("templates", "definitions", "replacements", "multi_caption", "images", "append", "skip_broken"),
    *("prompt", "truncate_dim", "trust_remote_code", "backend", "backend_file"),
)
"""What is asked of captions and their encoders alone."""


def require_vector_options(config: EmbedConfig) -> None:
    """Refuse options of captions and encoders where the vectors are there already, and --vector-column elsewhere.

    Raises:
        OptionError: Naming the option.
    """
    if config.dataset != NAME:
        if config.vector_column is not None:
            raise OptionError(
                f"--vector-column is for --dataset {NAME}; {config.dataset!r} is embedded by an encoder. Leave it out."
            )
        if config.collapse:
            raise OptionError(
                f"--collapse is for --dataset {NAME}; of {config.dataset!r}, equal texts are one anyhow. Leave it out."
            )
        return
    if config.on_duplicate == "first":
        raise OptionError(
            f"--on-duplicate first does not apply to --dataset {NAME}: each row is a vector. Give suffix, or leave it out."
        )
    default = EmbedConfig(dataset=NAME)
    for name in (*NOT_FOR_SAMPLES, "encoder", "precision"):
        if getattr(config, name) != getattr(default, name):
            raise OptionError(
                f"--{option_of(name)} does not apply to --dataset {NAME}: the vectors are taken as they are. Leave it out."
            )


def option_of(name: str) -> str:
    """Return what the command line calls a field of `EmbedConfig`, without its dashes."""
    return {"templates": "template", "replacements": "replace"}.get(name, name.replace("_", "-"))


class SampleRun(ABC):
    """One call of `build_embeddings` for samples that are texts of their own: its four stages."""

    def __init__(self, graph_dir: Path, config: EmbedConfig, manifest: Manifest, source: OpenSource) -> None:
        self._graph_dir, self._config, self._manifest, self._source = graph_dir, config, manifest, source

    @abstractmethod
    def embed(self) -> bool:
        """Write one vector a sample; returns whether anything was missing."""

    @abstractmethod
    def _describe_vectors(self) -> dict[str, Any]:
        """What made the vectors, for the manifest."""

    def text(self) -> bool:
        """Write texts, counts and samples: one text a sample, which is its caption, or its id."""
        inputs = {file.name: file.digest for file in self._source.files}
        config, overwrite = self._text_config(), self._config.overwrite
        return run_stage(self._graph_dir, self._manifest, "text", config, inputs, self._write_texts, overwrite=overwrite)

    def _text_config(self) -> dict[str, Any]:
        return {
            "dataset": self._config.dataset,
            **self._source.columns(),
            "shard_size": self._config.shard_size,
            **({"on_duplicate": self._config.on_duplicate} if self._config.on_duplicate else {}),
        }

    def _write_texts(self, key: str) -> Made:
        receipts: list[Receipt] = []
        hashes: list[NDArray[np.uint64]] = []
        sizes: list[int] = []
        for index, table in enumerate(self._shards()):
            start, count = sum(sizes), table.num_rows
            ids = pa.array(np.arange(start, start + count, dtype=np.int32))
            own_n = hash_strings(table[schemas.SAMPLE_ID].to_pylist())
            # Of the id: captions may repeat, and each vector keeps its own text.
            texts = pa.table([ids, table[schemas.TEXT], pa.array(own_n)], schema=schemas.TEXTS_SCHEMA)
            samples = _samples_table(table, own_n, ids)
            receipts += [self._write(schemas.TEXTS, index, texts, key), self._write(schemas.SAMPLES, index, samples, key)]
            sizes.append(count)
            hashes.append(own_n)
        self._require_distinct(np.concatenate(hashes))
        total = sum(sizes)
        ones_N = np.ones(total, np.int32)
        receipts += write_counts(self._graph_dir, sizes, ones_N, ones_N, key=key)
        self._describe(samples=total, texts=total)
        return Made(receipts)

    def _describe(self, *, samples: int, texts: int) -> None:
        self._manifest.dataset, self._manifest.encoder = self._describe_dataset(), self._describe_vectors()
        self._manifest.shard_size = self._config.shard_size
        counts = {"samples": samples, "captions": samples, "texts": texts, "duplicate_captions": samples - texts}
        self._manifest.counts = {**counts, **self._source.counts}

    def _shards(self) -> Iterator[pa.Table]:
        """Sample id, text and kept columns, a shard at a time."""
        size, pending = self._config.shard_size, None
        for batch in self._source.read():
            texts = pa.array([caption for (caption,) in batch.captions], pa.string())
            columns = [pa.array(batch.sample_ids, pa.string()), texts, *batch.kept.columns]
            table = pa.table(dict(zip([schemas.SAMPLE_ID, schemas.TEXT, *self._source.keep_schema.names], columns, strict=True)))
            pending = table if pending is None else pa.concat_tables([pending, table])
            while pending.num_rows >= size:
                yield pending.slice(0, size).combine_chunks()
                pending = pending.slice(size)
        if pending is not None and pending.num_rows:
            yield pending.combine_chunks()

    def _require_distinct(self, hashes_N: NDArray[np.uint64]) -> None:
        ordered = np.sort(hashes_N)
        twice = set(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist())
        if not twice:
            return
        places: dict[str, str] = {}
        # A second pass finds the places, because only hashes were kept.
        for batch in self._source.read():
            for row, sample_id in enumerate(batch.sample_ids):
                if hash_string(sample_id) in twice and sample_id in places:
                    raise SourceError(
                        f"sample id {sample_id!r} comes twice, at {places[sample_id]} and {batch.place(row)}. "
                        "Choose another --id-column, leave one of the rows out, or give --on-duplicate suffix."
                    )
                places |= {sample_id: batch.place(row)} if hash_string(sample_id) in twice else {}

    def _describe_dataset(self) -> dict[str, Any]:
        return {
            "name": self._config.dataset,
            "sources": [redact(source) for source in self._config.sources],
            "files": [asdict(file) for file in self._source.files],
            **self._source.columns(),
            "images": None,
        }

    def _write(self, folder: str, index: int, table: pa.Table, key: str) -> Receipt:
        return ensure_parquet(self._graph_dir, schemas.part_name(folder, index), table, key=key)

    def lookup(self) -> bool:
        """Write the table that finds samples by id."""
        with progress("sorting ids", None):
            return build_lookup(self._graph_dir, self._manifest)

    def index(self) -> bool:
        """Write the FAISS index of all vectors."""
        return build_index(self._graph_dir, self._manifest, overwrite=True)


def _samples_table(table: pa.Table, hashes_n: NDArray[np.uint64], texts: pa.Array) -> pa.Table:
    """A shard of samples: ids, their hashes, the text of each, and kept columns."""
    kept = table.drop_columns([schemas.SAMPLE_ID, schemas.TEXT])
    schema = pa.schema([*schemas.SAMPLES_SCHEMA, *kept.schema])
    return pa.table([table[schemas.SAMPLE_ID], pa.array(hashes_n), texts, *kept.columns], schema=schema)


class VectorRun(SampleRun):
    """One call of `build_embeddings` for vectors that exist."""

    def __init__(
        self, graph_dir: Path, config: EmbedConfig, manifest: Manifest, source: OpenSource, options: SourceOptions
    ) -> None:
        super().__init__(graph_dir, config, manifest, source)
        self._parts = find_vectors(options)
        self._digest = digest_json({file.name: file.digest for file in source.files})

    def _describe_vectors(self) -> dict[str, Any]:
        """What stands in the place of an encoder."""
        first = self._parts[0].vectors
        return {"name": NAME, "revision": None, "sha256": self._digest, "dim": first.width, "max_tokens": 0, "precision": "float16"}

    def embed(self) -> bool:
        """Write the vectors, normalised and then rounded to float16; returns whether anything was missing."""
        columns = [part.vectors.column for part in self._parts]
        config = {"vectors": self._digest, "columns": sorted(set(columns)), "shard_size": self._config.shard_size}
        inputs = self._manifest.column_digests("text", (schemas.TEXT_ID, schemas.TEXT, schemas.TEXT_HASH), folder=schemas.TEXTS)
        overwrite = self._config.overwrite

        def work(key: str) -> Made:
            self._manifest.encoder = self._describe_vectors()
            return Made(self._write_embeddings(key))

        return run_stage(self._graph_dir, self._manifest, "embed", config, inputs, work, overwrite=overwrite)

    def _write_embeddings(self, key: str) -> list[Receipt]:
        dim, receipts, blocks = self._parts[0].vectors.width, [], self._kept_blocks()
        rest_nD = np.empty((0, dim), np.float16)
        with progress("taking vectors", self._manifest.counts["texts"], unit="vectors") as meter:
            for shard in self._manifest.ranges("text", schemas.TEXTS):
                vectors_nD, filled = np.empty((len(shard), dim), np.float16), 0
                while filled < len(shard):
                    block_nD = rest_nD if len(rest_nD) else next(blocks)
                    taken = min(len(block_nD), len(shard) - filled)
                    vectors_nD[filled : filled + taken], rest_nD = block_nD[:taken], block_nD[taken:]
                    filled += taken
                texts = read_parquet(self._graph_dir / schemas.part_name(schemas.TEXTS, shard.index))
                receipts.append(self._write(schemas.EMBEDDINGS, shard.index, embeddings_table(texts, vectors_nD), key))
                meter.advance(len(shard))
        return receipts

    def _text_config(self) -> dict[str, Any]:
        return {**super()._text_config(), **({"collapse": True} if self._config.collapse else {})}

    def _write_texts(self, key: str) -> Made:
        return self._write_collapsed(key) if self._config.collapse else super()._write_texts(key)

    def _write_collapsed(self, key: str) -> Made:
        """Texts of the first sample of each vector, and all samples."""
        first_N, text_S = self._distinct()
        texts, hashes, receipts, start = [], [], [], 0
        for index, table in enumerate(self._shards()):
            stop = start + table.num_rows
            own_n = hash_strings(table[schemas.SAMPLE_ID].to_pylist())
            samples = _samples_table(table, own_n, pa.array(text_S[start:stop]))
            receipts.append(self._write(schemas.SAMPLES, index, samples, key))
            new = _between(first_N, start, stop)
            texts.append(pa.table([table[schemas.TEXT].take(pa.array(new)), own_n[new]], [schemas.TEXT, schemas.TEXT_HASH]))
            hashes.append(own_n)
            start = stop
        self._require_distinct(np.concatenate(hashes))
        ids, size = pa.array(np.arange(len(first_N), dtype=np.int32)), self._config.shard_size
        whole = pa.table([ids, *pa.concat_tables(texts).columns], schema=schemas.TEXTS_SCHEMA)
        receipts += ensure_shards(self._graph_dir, schemas.TEXTS, whole, size, key=key)
        counts_N = count_captions([text_S], len(first_N))
        receipts += write_counts(self._graph_dir, map(len, shard_ranges(len(first_N), size)), counts_N, counts_N, key=key)
        self._describe(samples=start, texts=len(first_N))
        return Made(receipts)

    def _distinct(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The first sample of each different vector, ascending, (N,), and the text of every sample, (S,)."""
        digests = np.concatenate([_digests(block_nD) for block_nD in self._blocks()])
        _, first_N, text_S = np.unique(digests, return_index=True, return_inverse=True)
        # By first appearance, as everywhere.
        place_N = np.empty(len(first_N), np.int32)
        place_N[np.argsort(first_N)] = np.arange(len(first_N), dtype=np.int32)
        return np.sort(first_N), place_N[text_S.reshape(-1)]

    def _blocks(self) -> Iterator[NDArray[np.float16]]:
        return (block_nD.astype(np.float16) for part in self._parts for block_nD in part.vectors.blocks())

    def _kept_blocks(self) -> Iterator[NDArray[np.float16]]:
        """Vectors of the texts: of all samples, or of the first of those that are equal."""
        if not self._config.collapse:
            yield from self._blocks()
            return
        first_N, start = self._distinct()[0], 0
        for block_nD in self._blocks():
            yield block_nD[_between(first_N, start, start + len(block_nD))]
            start += len(block_nD)


def _between(rows_N: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Of ascending rows, those from `start` to `stop`, counted from there."""
    return rows_N[np.searchsorted(rows_N, start) : np.searchsorted(rows_N, stop)] - start


def _digests(vectors_nD: NDArray[np.float16]) -> NDArray[np.void]:
    """Sixteen bytes for each vector, which are equal where vectors are; (n,)."""
    # Of minus zero, zero.
    rows_nD = np.ascontiguousarray(vectors_nD + np.float16(0))
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(row.tobytes()) for row in rows_nD), np.dtype("V16"))
