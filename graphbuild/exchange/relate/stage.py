"""The `relate` command: metadata columns in; texts, samples and exact neighbours by their kernels out.

A text is what samples have in all kernel columns. The columns are stored with the samples, so the search, and whatever needs a
similarity later, reads the graph alone. Shape letters: S samples, N texts, K neighbours kept.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from graphbuild.embed.encoder import choose_precision
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.embed.shard import embed_texts
from graphbuild.embed.text.table import Prompts
from graphbuild.errors import OptionError, SourceError, redact
from graphbuild.exchange.relate.config import RelateConfig, RelateResult
from graphbuild.exchange.relate.kernels import Mean, Product, make_kernel
from graphbuild.exchange.relate.source import Block, MetadataSource
from graphbuild.exchange.relate.spec import KernelSpec, parse_kernels
from graphbuild.exchange.relate.values import shown, values_of
from graphbuild.exchange.searched import Scan, search_similarity
from graphbuild.knn.blockwise import Similarity
from graphbuild.store import schemas
from graphbuild.store.counts import count_captions, write_counts
from graphbuild.store.digests import digest_file
from graphbuild.store.files import Receipt, ensure_parquet, shard_ranges
from graphbuild.store.hashes import hash_strings
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.store.tables import ensure_shards, read_parquet
from graphbuild.system.progress import progress
from graphbuild.targets.mixture import share_weights

METHOD = "relate"
_RESERVED = frozenset({schemas.SAMPLE_ID, schemas.SAMPLE_HASH, schemas.TEXT_ID})


def relate_columns(graph_dir: Path, config: RelateConfig) -> RelateResult:
    """Write the graph of the kernels of some columns.

    Raises:
        OptionError: If a kernel or weight is wrong, or the directory holds another graph.
        SourceError: If a file or column is missing or of the wrong type, a value is missing or out of range, or an id comes twice.
    """
    specs = parse_kernels(config.kernels)
    if config.weights and config.rule != "mean":
        raise OptionError(f"--weights are of the mean; --rule {config.rule} has none. Leave them out.")
    weights = share_weights(config.weights, len(specs), of="kernel")
    columns = tuple(dict.fromkeys((*(name for spec in specs for name in spec.columns), *config.keep_columns)))
    if clash := _RESERVED.intersection(columns):
        raise OptionError(f"column {sorted(clash)[0]!r}: samples have a column of this name already. Rename it in the source.")
    text = [name for spec in specs if spec.kind in ("category", "taxonomy", "tags", "text") for name in spec.columns]
    source = MetadataSource(config.sources, columns, text, config.id_column, graph_dir)
    with writing(graph_dir) as manifest:
        if manifest.stages and manifest.dataset.get("name") != METHOD:
            raise OptionError(f"{graph_dir}: holds a graph that was not made by relate. Choose another --graph-dir.")
        return _Relation(graph_dir, manifest, config, specs, weights, source).run()


class _Relation:
    """One graph of metadata, and its stages."""

    def __init__(
        self,
        graph_dir: Path,
        manifest: Manifest,
        config: RelateConfig,
        specs: tuple[KernelSpec, ...],
        weights: tuple[float, ...],
        source: MetadataSource,
    ) -> None:
        self._graph_dir, self._manifest, self._config = graph_dir, manifest, config
        self._specs, self._weights, self._source = specs, weights, source

    def run(self) -> RelateResult:
        """Do what is missing."""
        read = [[list(spec.columns), spec.kind] for spec in self._specs]
        text = {
            "method": METHOD,
            "columns": read,
            "id_column": self._config.id_column,
            "keep_columns": list(self._config.keep_columns),
            "shard_size": self._config.shard_size,
        }
        inputs = {file.name: file.digest for file in self._source.files}
        overwrite = self._config.overwrite
        built = [
            run_stage(self._graph_dir, self._manifest, "text", text, inputs, self._write_texts, overwrite=overwrite),
            build_lookup(self._graph_dir, self._manifest),
            self._search(),
        ]
        stage = self._manifest.stages["knn"]
        return RelateResult(
            graph_dir=self._graph_dir,
            counts=self._manifest.counts,
            k=stage.config["k"],
            sketch_dim=stage.config["sketch_dim"],
            facts=stage.facts,
            already_done=not any(built),
        )

    def _write_texts(self, key: str) -> Made:
        texts, parts, ids = _Texts(), [], _Ids()
        with progress("reading columns", None, unit="rows") as meter:
            for block in self._source.blocks():
                ids.add(block)
                rows = [values_of(block.table, spec, block.where, block.first_row) for spec in self._specs]
                numbers = texts.number(list(zip(*rows, strict=True)))
                fixed = [pa.array(block.ids, pa.string()), pa.array(hash_strings(block.ids)), pa.array(numbers)]
                schema = pa.schema([*schemas.SAMPLES_SCHEMA, *block.table.schema])
                parts.append(pa.table([*fixed, *block.table.columns], schema=schema))
                meter.advance(len(block.ids))
        if not texts.values:
            raise SourceError(f"{', '.join(self._config.sources)}: no rows. Name files that hold some with --source.")
        samples = pa.concat_tables(parts)
        self._manifest.dataset, self._manifest.encoder = self._describe(), {}
        self._manifest.shard_size = self._config.shard_size
        self._manifest.counts = {"samples": samples.num_rows, "texts": len(texts.values)}
        return Made(self._write_tables(texts, samples, key))

    def _write_tables(self, texts: _Texts, samples: pa.Table, key: str) -> list[Receipt]:
        size = self._config.shard_size
        receipts = ensure_shards(self._graph_dir, schemas.SAMPLES, samples, size, key=key)
        shards = shard_ranges(len(texts.values), size)
        for shard in shards:
            values = texts.values[shard.start : shard.stop]
            strings = [self._shown(row) for row in values]
            ids = np.arange(shard.start, shard.stop, dtype=np.int32)
            # Of the values, because two of them may be shown alike.
            hashes = np.fromiter((xxhash.xxh3_64_intdigest(repr(row).encode()) for row in values), np.uint64, len(values))
            table = pa.table([ids, pa.array(strings, pa.string()), hashes], schema=schemas.TEXTS_SCHEMA)
            receipts.append(ensure_parquet(self._graph_dir, schemas.part_name(schemas.TEXTS, shard.index), table, key=key))
        counts_N = count_captions([samples[schemas.TEXT_ID].to_numpy()], len(texts.values))
        return receipts + write_counts(self._graph_dir, map(len, shards), counts_N, counts_N, key=key)

    def _shown(self, row: tuple[Any, ...]) -> str:
        """The text of a row of values."""
        return " · ".join(f"{spec.name} {shown(spec, value)}" for spec, value in zip(self._specs, row, strict=True))

    def _describe(self) -> dict[str, Any]:
        return {
            "name": METHOD,
            "sources": [redact(source) for source in self._config.sources],
            "files": [asdict(file) for file in self._source.files],
            "id_column": self._config.id_column,
            "keep_columns": self._source.schema.names,
            "images": self._source.images.record() if self._source.images else None,
        }

    def _search(self) -> bool:
        # Which numbers an encoder computes in decides its vectors, too.
        specs = [replace(spec, precision=_precision(spec.detail)) if spec.kind == "text" else spec for spec in self._specs]
        config = {
            "method": METHOD,
            "kernels": [asdict(spec) for spec in specs],
            "rule": self._config.rule,
            "weights": list(self._weights) if self._config.rule == "mean" else [],
        }
        columns = {schemas.TEXT_ID, *(name for spec in self._specs for name in spec.columns)}
        inputs = self._manifest.column_digests("text", columns, folder=schemas.SAMPLES)
        for place, spec in enumerate(self._specs):
            if spec.kind == "taxonomy":
                inputs[f"taxonomy of kernel {place + 1}"] = _digest(Path(spec.detail))
            if spec.kind == "text":
                inputs[f"encoder of kernel {place + 1}"] = find_encoder(spec.detail).sha256
        return search_similarity(
            self._graph_dir,
            self._manifest,
            config,
            inputs,
            lambda _k: Scan(related(self._graph_dir, self._manifest, config), self._manifest.counts["texts"]),
            k=self._config.k,
            sketch_dim=self._config.sketch_dim,
            overwrite=self._config.overwrite,
        )


class _Texts:
    """Distinct rows of values, by first appearance."""

    def __init__(self) -> None:
        self._places: dict[Hashable, int] = {}
        self.values: list[tuple[Any, ...]] = []

    def number(self, rows: list[tuple[Any, ...]]) -> NDArray[np.int32]:
        """Text ids of some rows; what is new gets the next ones."""
        places = np.empty(len(rows), np.int32)
        for at, row in enumerate(rows):
            places[at] = self._places.setdefault(row, len(self.values))
            if places[at] == len(self.values):
                self.values.append(row)
        return places


class _Ids:
    """Sample ids so far, and where each stood."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[str, int]] = {}

    def add(self, block: Block) -> None:
        """Enter those of a block.

        Raises:
            SourceError: If one came before; both places are named.
        """
        for row, sample_id in enumerate(block.ids, block.first_row):
            where, first = self._places.setdefault(sample_id, (block.where, row))
            if (where, first) != (block.where, row):
                raise SourceError(
                    f"sample id {sample_id!r} comes twice, in row {first:,} of {where} and row {row:,} of {block.where}. "
                    "Choose another --id-column, or leave one of the rows out."
                )


def related(graph_dir: Path, manifest: Manifest, config: dict[str, Any]) -> Similarity:
    """Return the similarity by which a graph of metadata was made, from its stored columns.

    Args:
        graph_dir: A graph whose text stage is done.
        manifest: Its manifest.
        config: Of its knn stage.

    Raises:
        ArtifactError: If a shard of samples cannot be read.
        SourceError: If a taxonomy or encoder is not there any more.
    """
    specs = [KernelSpec(**{**held, "columns": tuple(held["columns"])}) for held in config["kernels"]]
    columns = list(dict.fromkeys(name for spec in specs for name in spec.columns))
    shards = manifest.files("text", schemas.SAMPLES)
    samples = pa.concat_tables([read_parquet(graph_dir / one.path, [schemas.TEXT_ID, *columns]) for one in shards])
    texts_S = samples[schemas.TEXT_ID].to_numpy()
    _, first_N = np.unique(texts_S, return_index=True)
    rows = samples.select(columns).take(pa.array(first_N))
    counts_N = np.bincount(texts_S).astype(np.int64)
    parts = [make_kernel(spec, values_of(rows, spec, str(graph_dir)), counts_N, _embed) for spec in specs]
    if len(parts) == 1:
        return parts[0]
    return Product(parts) if config["rule"] == "product" else Mean(parts, config["weights"])


def _embed(encoder: str, precision: str, texts: list[str]) -> NDArray[np.float16]:
    with progress("embedding", len(texts), unit="texts") as meter:
        return embed_texts(find_encoder(encoder).with_precision(precision), Prompts(), texts, meter.advance)


def _precision(encoder: str) -> str:
    return choose_precision(find_encoder(encoder), "auto")[0].precision


def _digest(path: Path) -> str:
    if not path.is_file():
        raise SourceError(f"{path}: no such taxonomy.")
    return digest_file(path)
