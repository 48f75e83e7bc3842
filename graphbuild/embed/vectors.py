"""A graph of vectors that were made elsewhere: ids, texts and embeddings in, the stages of `embed` out. No encoder is run.

Shape letters: S samples, N texts, n of a block or shard, D vector width. Every sample is a text of its own, in the order of the
files, unless those of equal vectors are to be one. One shard and 8 bytes for each sample are held in memory; with --collapse 40,
and all texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.formats.vectors import NAME, find_vectors
from graphbuild.embed.config import EmbedConfig
from graphbuild.embed.sample_run import SampleRun, samples_table
from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.arrays import by_first_appearance
from graphbuild.store.counts import count_captions, write_counts
from graphbuild.store.digests import digest_json
from graphbuild.store.embeddings import embeddings_table
from graphbuild.store.files import Receipt, ShardRange, finished, shard_ranges
from graphbuild.store.hashes import hash_strings
from graphbuild.store.manifest import Manifest, stage_key
from graphbuild.store.parts import Part
from graphbuild.store.stage import Made, run_stage
from graphbuild.store.tables import ensure_shard, ensure_shards, read_parquet
from graphbuild.system.progress import progress

NOT_FOR_SAMPLES = (
    *("templates", "definitions", "replacements", "multi_caption", "images", "append", "skip_broken"),
    *("prompt", "truncate_dim", "trust_remote_code", "backend", "backend_file", "attention"),
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


class VectorRun(SampleRun):
    """One call of `build_embeddings` for vectors that exist."""

    def __init__(
        self, graph_dir: Path, config: EmbedConfig, manifest: Manifest, source: OpenSource, options: SourceOptions
    ) -> None:
        super().__init__(graph_dir, config, manifest, source)
        self._parts = find_vectors(options)
        self._digest = digest_json(source.digests)

    def _describe_vectors(self) -> dict[str, Any]:
        """What stands in the place of an encoder."""
        first = self._parts[0].vectors
        return {"name": NAME, "revision": None, "sha256": self._digest, "dim": first.width, "max_tokens": 0, "precision": "float16"}

    def _embed_options(self) -> tuple[dict[str, Any], dict[str, str]]:
        columns = {part.vectors.column for part in self._parts}
        config = {"vectors": self._digest, "columns": sorted(columns), "shard_size": self._config.shard_size}
        return config, self._manifest.text_digests()

    def embed(self) -> bool:
        """Write the vectors, normalised and then rounded to float16; returns whether anything was missing."""
        config, inputs = self._embed_options()

        def work(key: str) -> Made:
            self._manifest.encoder = self._describe_vectors()
            done = self._finished(key)
            made = self._write_embeddings(key, [shard for shard, receipt in done.items() if receipt is None])
            return Made([*made, *(receipt for receipt in done.values() if receipt is not None)])

        return run_stage(self._graph_dir, self._manifest, "embed", config, inputs, work, overwrite=self._config.overwrite)

    def embed_part(self, part: Part) -> tuple[int, int]:
        """Write the shards of a part; returns how many were written, and how many of all are still missing."""
        key = stage_key(*self._embed_options())
        own = [shard for shard, receipt in self._finished(key).items() if receipt is None and part.has(shard.index)]
        self._write_embeddings(key, own)
        return len(own), sum(receipt is None for receipt in self._finished(key).values())

    def _finished(self, key: str) -> dict[ShardRange, Receipt | None]:
        """All shards, each with its receipt where it is there."""
        shards = self._manifest.ranges("text", schemas.TEXTS)
        return {shard: finished(self._graph_dir, schemas.part_name(schemas.EMBEDDINGS, shard.index), key=key) for shard in shards}

    def _write_embeddings(self, key: str, shards: list[ShardRange]) -> list[Receipt]:
        dim, receipts, blocks = self._parts[0].vectors.width, [], self._kept_blocks(shards)
        rest_nD = np.empty((0, dim), np.float16)
        with progress("taking vectors", sum(map(len, shards)), unit="vectors") as meter:
            for shard in shards:
                vectors_nD, filled = np.empty((len(shard), dim), np.float16), 0
                while filled < len(shard):
                    block_nD = rest_nD if len(rest_nD) else next(blocks)
                    taken = min(len(block_nD), len(shard) - filled)
                    vectors_nD[filled : filled + taken], rest_nD = block_nD[:taken], block_nD[taken:]
                    filled += taken
                texts = read_parquet(self._graph_dir / schemas.part_name(schemas.TEXTS, shard.index))
                table = embeddings_table(texts, vectors_nD)
                receipts.append(ensure_shard(self._graph_dir, schemas.EMBEDDINGS, shard.index, table, key=key))
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
            samples = samples_table(table, own_n, pa.array(text_S[start:stop]))
            receipts.append(ensure_shard(self._graph_dir, schemas.SAMPLES, index, samples, key=key))
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
        whole = [range(sum(part.vectors.rows for part in self._parts))]
        digests = np.concatenate([_digests(block_nD) for _, block_nD in self._blocks(whole)])
        _, first_N, text_S = np.unique(digests, return_index=True, return_inverse=True)
        order_N, numbers_S = by_first_appearance(first_N, text_S)
        return first_N[order_N], numbers_S

    def _blocks(self, wanted: list[range]) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Vectors of ranges of samples, ascending: the first sample of a block, which lies within one of them, and (n, D)."""
        start = 0
        for part in self._parts:
            stop = start + part.vectors.rows
            inside = [range(max(span.start, start) - start, min(span.stop, stop) - start) for span in wanted]
            for row, block_nD in part.vectors.blocks([span for span in inside if span]):
                yield start + row, block_nD.astype(np.float16)
            start = stop

    def _kept_blocks(self, shards: list[ShardRange]) -> Iterator[NDArray[np.float16]]:
        """Vectors of the texts of some shards: of all samples, or of the first of those that are equal."""
        if not self._config.collapse:
            yield from (block_nD for _, block_nD in self._blocks([range(shard.start, shard.stop) for shard in shards]))
            return
        first_N = self._first_samples()
        spans = [range(int(first_N[shard.start]), int(first_N[shard.stop - 1]) + 1) for shard in shards]
        for start, block_nD in self._blocks(spans):
            yield block_nD[_between(first_N, start, start + len(block_nD))]

    def _first_samples(self) -> NDArray[np.int64]:
        """The first sample of each text, (N,), from the samples that were written: no vector is read for it."""
        names = [receipt.path for receipt in self._manifest.files("text", schemas.SAMPLES)]
        text_S = np.concatenate([read_parquet(self._graph_dir / name, [schemas.TEXT_ID])[schemas.TEXT_ID] for name in names])
        first_N: NDArray[np.int64] = np.unique(text_S, return_index=True)[1]
        return first_N


def _between(rows_N: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Of ascending rows, those from `start` to `stop`, counted from there."""
    return rows_N[np.searchsorted(rows_N, start) : np.searchsorted(rows_N, stop)] - start


def _digests(vectors_nD: NDArray[np.float16]) -> NDArray[np.void]:
    """Sixteen bytes for each vector, which are equal where vectors are; (n,)."""
    # Of minus zero, zero.
    rows_nD = np.ascontiguousarray(vectors_nD + np.float16(0))
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(row.tobytes()) for row in rows_nD), np.dtype("V16"))
