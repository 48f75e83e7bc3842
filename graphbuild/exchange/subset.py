"""The graph of some of a graph's samples, such as those whose images could be downloaded, without embedding again.

Shape letters: N texts of the origin, n texts of the subset, D vector width.
Texts are numbered anew, by first appearance among the samples kept; strings, hashes and vectors are copied. Memory: the
strings of the texts kept, and some forty bytes for each text and sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from graphbuild.embed.index import build_index
from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.sample_ids import read_ids
from graphbuild.store import schemas
from graphbuild.store.atomic import scratch_name
from graphbuild.store.counts import count_captions, count_samples, manifest_counts, write_counts
from graphbuild.store.digests import digest_file, digest_json
from graphbuild.store.embeddings import embedding_blocks, embeddings_table
from graphbuild.store.files import Receipt, ShardRange, copy_files, require_intact, shard_ranges
from graphbuild.store.images import recorded_for_copy
from graphbuild.store.lookup import SampleLookup, build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.store.tables import ensure_shard, read_parquet, with_text_ids
from graphbuild.store.verified import repair_by
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.progress import progress, stages

_EXAMPLES = 3
_REMEDY = repair_by("embed")


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetConfig:
    """Which samples are kept."""

    keep: Path
    """A file of sample ids: text, one a line; CSV; or Parquet, whose boolean column `keep`, if it has one, chooses the rows."""
    id_column: str | None = None
    """Of a CSV or Parquet file; None: sample_id, url or id, or the only column."""
    overwrite: bool = False
    """Replace a subset of other samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetResult(Answer):
    """How many samples and texts a subset kept, and which ids it did not find."""

    graph_dir: Path
    origin: Path
    counts: dict[str, int]
    requested: int
    """Different ids in the file."""
    unknown: int
    """Of these, ids that the graph does not have."""
    examples: tuple[str, ...]
    already_done: bool

    def summary(self) -> str:
        """Return a few lines for people."""
        done = ": already done, nothing to do" if self.already_done else ""
        lines = [
            f"{self.graph_dir}: {self.counts['samples']:,} samples and {self.counts['texts']:,} texts of {self.origin}{done}",
        ]
        if self.unknown:
            shown = ", ".join(repr(one) for one in self.examples)
            lines.append(f"{self.unknown:,} of {self.requested:,} ids are not in the graph, such as {shown}")
        return "\n".join([*lines, next_steps("graphbuild knn", graph_dir=self.graph_dir)])


def subset_graph(graph_dir: Path, out: Path, config: SubsetConfig) -> SubsetResult:
    """Write the graph of the samples kept, up to index.faiss.

    Args:
        graph_dir: The origin, whose embed stage is done.
        out: Where the subset goes.
        config: Which samples.

    Raises:
        ArtifactError: If the origin is not finished, or a file of it is missing or damaged.
        OptionError: If `out` holds another graph, and `overwrite` is not given.
        SourceError: If the ids cannot be read, or none is in the graph.
    """
    if out.resolve() == graph_dir.resolve():
        raise OptionError(f"--out {out}: is the graph itself. Choose another folder.")
    origin = Manifest.load(graph_dir)
    for stage in ("text", "lookup", "embed"):
        origin.require(stage, graph_dir)
    with stages("sorting ids", "copying embeddings", "indexing"):
        return _subset(graph_dir, out, config, origin)


def _subset(graph_dir: Path, out: Path, config: SubsetConfig, origin: Manifest) -> SubsetResult:
    ids = pa.chunked_array([read_ids(config.keep, config.id_column)]).unique()
    found = SampleLookup(graph_dir, origin).find(ids)
    if not len(found.sample_rows):
        raise SourceError(f"{config.keep}: none of its {len(ids):,} ids is in {graph_dir}. Is --id-column the right one?")
    unknown = np.flatnonzero(~found.known)
    with writing(out) as manifest:
        built = _Subset(graph_dir, origin, out, manifest, config, found.sample_rows).run()
    return SubsetResult(
        graph_dir=out,
        origin=graph_dir,
        counts=manifest.counts,
        requested=len(ids),
        unknown=len(unknown),
        examples=tuple(ids[int(row)].as_py() for row in unknown[:_EXAMPLES]),
        already_done=not built,
    )


class _Subset:
    """One subset: what is kept, how texts are numbered anew, and the stages."""

    def __init__(
        self, graph_dir: Path, origin: Manifest, out: Path, manifest: Manifest, config: SubsetConfig, rows: NDArray[np.int64]
    ) -> None:
        self._graph_dir, self._origin, self._out, self._config = graph_dir, origin, out, config
        self._kept = np.zeros(origin.ranges("text", schemas.SAMPLES)[-1].stop, np.bool_)
        self._kept[rows] = True
        # Of the shards, which have digests of their columns, and not of the tokenizer.
        receipts = [receipt for stage in ("text", "embed") for receipt in origin.stages[stage].in_folder(None) if receipt.columns]
        files = {receipt.path: receipt.digest for receipt in receipts}
        # Of the rows kept, and not of the file: ids that are unknown or come twice change nothing.
        self._inputs = {"origin": digest_json(files), "rows": digest_json(np.packbits(self._kept).tobytes().hex())}
        self._manifest = manifest
        self.new_ids, self.old_ids = self._number()

    def _number(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The new id of each old text, -1 where it is left out; and the old id of each new one."""
        new_N = np.full(self._origin.ranges("text", schemas.TEXTS)[-1].stop, -1, np.int32)
        olds: list[NDArray[np.int32]] = []
        count = 0
        for _, table in self._samples([schemas.TEXT_ID]):
            texts, first = np.unique(table[schemas.TEXT_ID].to_numpy(), return_index=True)
            fresh = texts[np.argsort(first)]
            fresh = fresh[new_N[fresh] < 0]
            new_N[fresh] = np.arange(count, count + len(fresh))
            olds.append(fresh)
            count += len(fresh)
        return new_N, np.concatenate(olds)

    def _samples(self, columns: Sequence[str] | None = None) -> Iterator[tuple[ShardRange, pa.Table]]:
        """The rows kept of each shard of the origin's samples."""
        for shard in self._origin.ranges("text", schemas.SAMPLES):
            kept = self._kept[shard.start : shard.stop]
            yield shard, self._read(schemas.SAMPLES, shard, columns).filter(pa.array(kept))

    def _read(self, folder: str, shard: ShardRange, columns: Sequence[str] | None = None) -> pa.Table:
        name = schemas.part_name(folder, shard.index)
        require_intact(self._graph_dir, {name: self._origin.stages["text"].files[name]}, remedy=_REMEDY)
        return read_parquet(self._graph_dir / name, columns)

    def run(self) -> bool:
        """Do what is missing; returns whether anything was."""
        with progress("sorting ids", None):
            built = [self._text(), build_lookup(self._out, self._manifest)]
        built.append(self._embed())
        return any([*built, build_index(self._out, self._manifest, overwrite=True)])

    def _text(self) -> bool:
        config, overwrite = {"method": "subset"}, self._config.overwrite
        return run_stage(self._out, self._manifest, "text", config, self._inputs, self._write_texts, overwrite=overwrite)

    def _write_texts(self, key: str) -> Made:
        samples, hashes = self._write_samples(key)
        texts = self._kept_texts()
        receipts = list(samples)
        shards = shard_ranges(len(self.old_ids), self._origin.shard_size)
        for shard in shards:
            ids = pa.array(np.arange(shard.start, shard.stop, dtype=np.int32))
            part = texts.slice(shard.start, len(shard)).combine_chunks()
            columns = [ids, part[schemas.TEXT].cast(pa.string()), part[schemas.TEXT_HASH]]
            receipts.append(
                ensure_shard(self._out, schemas.TEXTS, shard.index, pa.table(columns, schema=schemas.TEXTS_SCHEMA), key=key)
            )
        self._manifest.dataset, self._manifest.encoder = self._dataset(), dict(self._origin.encoder)
        self._manifest.shard_size = self._origin.shard_size
        captions = sum(receipt.rows for receipt in samples)
        captions_N = count_captions(
            (self.new_ids[table[schemas.TEXT_ID].to_numpy()] for _, table in self._samples([schemas.TEXT_ID])), len(self.old_ids)
        )
        samples_N = captions_N
        if hashes < captions:
            samples_N = count_samples((self._out / receipt.path for receipt in samples), len(self.old_ids))
        receipts += write_counts(self._out, map(len, shards), samples_N, captions_N, key=key)
        self._manifest.counts = manifest_counts(samples=hashes, captions=captions, texts=len(self.old_ids))
        receipts += copy_files(self._out, schemas.TOKENIZER, self._graph_dir / schemas.TOKENIZER)
        return Made(receipts)

    def _write_samples(self, key: str) -> tuple[list[Receipt], int]:
        """Receipts, and the number of different sample ids."""
        size = self._origin.shard_size
        receipts: list[Receipt] = []
        hashes: list[NDArray[np.uint64]] = []
        pending: pa.Table | None = None
        for shard, table in self._samples():
            hashes.append(table[schemas.SAMPLE_HASH].to_numpy())
            table = with_text_ids(table, self.new_ids[table[schemas.TEXT_ID].to_numpy()])
            pending = table if pending is None else pa.concat_tables([pending, table])
            last = shard.stop == len(self._kept)
            while pending.num_rows >= size or (last and pending.num_rows):
                receipts.append(
                    ensure_shard(self._out, schemas.SAMPLES, len(receipts), pending.slice(0, size).combine_chunks(), key=key)
                )
                pending = pending.slice(size)
        return receipts, len(np.unique(np.concatenate(hashes)))

    def _kept_texts(self) -> pa.Table:
        """Strings and hashes of the texts kept, in their new order."""
        parts = []
        for shard in self._origin.ranges("text", schemas.TEXTS):
            table = self._read(schemas.TEXTS, shard, [schemas.TEXT, schemas.TEXT_HASH])
            # large_string, because all strings together may exceed 2 GB.
            table = table.set_column(0, schemas.TEXT, table[schemas.TEXT].cast(pa.large_string()))
            parts.append(table.filter(pa.array(self.new_ids[shard.start : shard.stop] >= 0)))
        # They stand in their old order: sorting the old ids tells which is which.
        place = np.empty(len(self.old_ids), np.int64)
        place[np.argsort(self.old_ids)] = np.arange(len(self.old_ids))
        return pa.concat_tables(parts).combine_chunks().take(pa.array(place))

    def _embed(self) -> bool:
        inputs = self._manifest.text_digests()
        config, overwrite = self._origin.stages["embed"].config, self._config.overwrite
        return run_stage(self._out, self._manifest, "embed", config, inputs, self._write_embeddings, overwrite=overwrite)

    def _write_embeddings(self, key: str) -> Made:
        count, dim = len(self.old_ids), int(self._origin.encoder["dim"])
        receipts = []
        with scratch_name(self._out, "vectors") as path:
            vectors_nD = np.memmap(path, np.float16, "w+", shape=(count, dim))
            with progress("copying embeddings", len(self.new_ids), unit="texts") as meter:
                for block in embedding_blocks(self._graph_dir, manifest=self._origin):
                    new_B = self.new_ids[block.ids_n]
                    vectors_nD[new_B[new_B >= 0]] = block.vectors_nD[new_B >= 0]
                    meter.advance(len(block.ids_n))
            for shard in shard_ranges(count, self._origin.shard_size):
                texts = read_parquet(self._out / schemas.part_name(schemas.TEXTS, shard.index))
                table = embeddings_table(texts, np.array(vectors_nD[shard.start : shard.stop]))
                receipts.append(ensure_shard(self._out, schemas.EMBEDDINGS, shard.index, table, key=key))
            del vectors_nD
        return Made(receipts)

    def _dataset(self) -> dict[str, Any]:
        held = self._origin.dataset
        there = recorded_for_copy(held, self._graph_dir)
        kept = {"file": str(self._config.keep), "digest": digest_file(self._config.keep), "rows": int(self._kept.sum())}
        origin = {"graph_dir": str(self._graph_dir.absolute()), "digest": self._inputs["origin"], "counts": self._origin.counts}
        return {**held, "images": there, "origin": origin, "keep": kept}
