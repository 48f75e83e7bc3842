"""Graphs whose samples are texts of their own, each with its vector: the stages that given vectors and pictures have in common.

Shape letters: n samples of a shard, N texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.datasets.base import OpenSource
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import SourceError, redact
from graphbuild.store import schemas
from graphbuild.store.counts import manifest_counts, write_counts
from graphbuild.store.files import Receipt
from graphbuild.store.hashes import hash_string, hash_strings
from graphbuild.store.manifest import Manifest, up_to_date
from graphbuild.store.parts import Part
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import ensure_shard


class SampleRun(ABC):
    """One call of `build_embeddings` for samples that are texts of their own: its stages of texts and of vectors."""

    def __init__(self, graph_dir: Path, config: EmbedConfig, manifest: Manifest, source: OpenSource) -> None:
        self._graph_dir, self._config, self._manifest, self._source = graph_dir, config, manifest, source

    @abstractmethod
    def embed(self) -> bool:
        """Write one vector a sample; returns whether anything was missing."""

    @abstractmethod
    def embed_part(self, part: Part) -> tuple[int, int]:
        """Write the shards of a part; returns how many were written, and how many of all are still missing."""

    @abstractmethod
    def _describe_vectors(self) -> dict[str, Any]:
        """What made the vectors, for the manifest."""

    def text(self) -> bool:
        """Write texts, counts and samples: one text a sample, which is its caption, or its id."""
        config, inputs, overwrite = self._text_config(), self._source.digests, self._config.overwrite
        return run_stage(self._graph_dir, self._manifest, "text", config, inputs, self._write_texts, overwrite=overwrite)

    def has_text(self) -> bool:
        """Return whether the texts are there, made with these options from these files."""
        return up_to_date(self._manifest, self._graph_dir, "text", self._text_config(), self._source.digests, overwrite=False)

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
            samples = samples_table(table, own_n, ids)
            shards = ((schemas.TEXTS, texts), (schemas.SAMPLES, samples))
            receipts += [ensure_shard(self._graph_dir, folder, index, rows, key=key) for folder, rows in shards]
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
        self._manifest.counts = {**manifest_counts(samples=samples, captions=samples, texts=texts), **self._source.counts}

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


def samples_table(table: pa.Table, hashes_n: NDArray[np.uint64], texts: pa.Array) -> pa.Table:
    """A shard of samples: ids, their hashes, the text of each, and kept columns."""
    kept = table.drop_columns([schemas.SAMPLE_ID, schemas.TEXT])
    schema = pa.schema([*schemas.SAMPLES_SCHEMA, *kept.schema])
    return pa.table([table[schemas.SAMPLE_ID], pa.array(hashes_n), texts, *kept.columns], schema=schema)
