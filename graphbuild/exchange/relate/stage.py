"""The `relate` command: metadata columns in; texts, samples and exact neighbours by their kernels out.

A text is what samples have in all kernel columns. The columns are stored with the samples, so the search, and whatever needs a
similarity later, reads the graph alone. Shape letters: S samples, N texts, K neighbours kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from graphbuild.embed.encoder import choose_precision
from graphbuild.embed.encoder_files import find_encoder
from graphbuild.errors import OptionError, SourceError, redact
from graphbuild.exchange.relate.config import RelateConfig, RelateResult
from graphbuild.exchange.relate.numbering import SampleIds, Texts
from graphbuild.exchange.relate.related import scan
from graphbuild.exchange.relate.source import Block, MetadataSource
from graphbuild.exchange.relate.spec import KernelSpec, parse_kernels
from graphbuild.exchange.relate.values import shown, values_of
from graphbuild.exchange.searched import SearchRequest
from graphbuild.store import schemas
from graphbuild.store.counts import count_captions, write_counts
from graphbuild.store.digests import digest_file
from graphbuild.store.files import Receipt, shard_ranges
from graphbuild.store.hashes import hash_strings
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest, up_to_date
from graphbuild.store.mixture import share_weights
from graphbuild.store.parts import Part, PartResult, in_common, require_no_parts, working_at
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.store.tables import ensure_shard, ensure_shards
from graphbuild.system.cluster import Workers
from graphbuild.system.progress import progress

METHOD = "relate"


def relate_columns(graph_dir: Path, config: RelateConfig) -> RelateResult:
    """Write the graph of the kernels of some columns.

    Raises:
        OptionError: If a kernel or weight is wrong, or the directory holds another graph.
        SourceError: If a file or column is missing or of the wrong type, a value is missing or out of range, or an id comes twice.
    """
    requested = Requested.read(graph_dir, config)
    with writing(graph_dir, check=lambda: require_no_parts(graph_dir, METHOD)) as manifest:
        return Relation(graph_dir, manifest, requested).run()


def relate_part(graph_dir: Path, config: RelateConfig, part: Part) -> PartResult:
    """Find the neighbours of a part's texts; the first part that comes writes texts, samples and what shards have in common.

    Raises:
        LockedError: If another process is at this part.
        UserError: As `relate_columns`.
    """
    if config.overwrite or config.workers or config.scheduler is not None:
        raise OptionError("--part does what is missing in one process. Leave out --overwrite, --workers and --scheduler.")
    requested = Requested.read(graph_dir, config)

    def look(manifest: Manifest) -> Relation | None:
        relation = Relation(graph_dir, manifest, requested)
        return relation if relation.is_prepared() else None

    relation = in_common(graph_dir, look, lambda manifest: Relation(graph_dir, manifest, requested).prepare())
    with working_at(graph_dir, METHOD, part):
        written, still_open = relation.search().run_part(part)
    return PartResult(graph_dir=graph_dir, stage=METHOD, part=str(part), written=written, open=still_open)


@dataclass(frozen=True, slots=True)
class Requested:
    """What is requested, read and checked."""

    config: RelateConfig
    specs: tuple[KernelSpec, ...]
    weights: tuple[float, ...]
    source: MetadataSource

    @classmethod
    def read(cls, graph_dir: Path, config: RelateConfig) -> Requested:
        """Read and check kernels, weights and the heads of all files.

        Raises:
            UserError: As `relate_columns`.
        """
        specs = parse_kernels(config.kernels)
        if config.weights and config.rule != "mean":
            raise OptionError(f"--weights are of the mean; --rule {config.rule} has none. Leave them out.")
        weights = share_weights(config.weights, len(specs), of="kernel")
        columns = tuple(dict.fromkeys((*(name for spec in specs for name in spec.columns), *config.keep_columns)))
        if clash := set(schemas.SAMPLES_SCHEMA.names).intersection(columns):
            raise OptionError(f"column {sorted(clash)[0]!r}: samples have a column of this name already. Rename it in the source.")
        text = [name for spec in specs if spec.kind in ("category", "taxonomy", "tags", "text") for name in spec.columns]
        return cls(config, specs, weights, MetadataSource(config.sources, columns, text, config.id_column, graph_dir))

    def numbered(self, texts: Texts) -> Iterator[tuple[Block, NDArray[np.int32]]]:
        """Yield blocks of rows, and the text of each row, which is entered.

        Raises:
            SourceError: If a value is missing or out of range, an id comes twice, or there is no row.
        """
        ids = SampleIds()
        with progress("reading columns", None, unit="rows") as meter:
            for block in self.source.blocks():
                ids.add(block)
                rows = [values_of(block.table, spec, block.where, block.first_row) for spec in self.specs]
                yield block, texts.number(list(zip(*rows, strict=True)))
                meter.advance(len(block.ids))
        if not texts.values:
            raise SourceError(f"{', '.join(self.config.sources)}: no rows. Name files that hold some with --source.")


class Relation:
    """One graph of metadata, and its stages."""

    def __init__(self, graph_dir: Path, manifest: Manifest, requested: Requested) -> None:
        """Take a graph of metadata, or a folder without one.

        Raises:
            OptionError: If it holds another graph.
        """
        if manifest.stages and manifest.dataset.get("name") != METHOD:
            raise OptionError(f"{graph_dir}: holds a graph that was not made by relate. Choose another --graph-dir.")
        self._graph_dir, self._manifest, self._requested, self._config = graph_dir, manifest, requested, requested.config
        self._specs, self._weights, self._source = requested.specs, requested.weights, requested.source
        self._text_config = {
            "method": METHOD,
            "columns": [[list(spec.columns), spec.kind] for spec in self._specs],
            "id_column": self._config.id_column,
            "keep_columns": list(self._config.keep_columns),
            "shard_size": self._config.shard_size,
        }
        self._text_inputs = {file.name: file.digest for file in self._source.files}

    def has_texts(self) -> bool:
        """Return whether the text stage is done with these options; others are an error, unless it is to be replaced."""
        config, inputs, overwrite = self._text_config, self._text_inputs, self._config.overwrite
        return up_to_date(self._manifest, self._graph_dir, "text", config, inputs, overwrite=overwrite)

    def is_prepared(self) -> bool:
        """Return whether parts can begin, or nothing is left to do."""
        if not self.has_texts():
            return False
        search = self.search()
        return search.is_done() or search.is_prepared()

    def prepare(self) -> None:
        """Make what parts begin with."""
        self._texts()
        search = self.search()
        if not search.is_done():
            search.prepare()

    def _texts(self) -> bool:
        config, inputs, overwrite = self._text_config, self._text_inputs, self._config.overwrite
        built = run_stage(self._graph_dir, self._manifest, "text", config, inputs, self._write_texts, overwrite=overwrite)
        return build_lookup(self._graph_dir, self._manifest) or built

    def run(self) -> RelateResult:
        """Do what is missing."""
        workers = Workers(count=self._config.workers, scheduler=self._config.scheduler)
        built = [self._texts(), self.search().run(overwrite=self._config.overwrite, workers=workers)]
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
        texts, parts = Texts(), []
        for block, numbers in self._requested.numbered(texts):
            fixed = [pa.array(block.ids, pa.string()), pa.array(hash_strings(block.ids)), pa.array(numbers)]
            schema = pa.schema([*schemas.SAMPLES_SCHEMA, *block.table.schema])
            parts.append(pa.table([*fixed, *block.table.columns], schema=schema))
        samples = pa.concat_tables(parts)
        self._manifest.dataset, self._manifest.encoder = self._describe(), {}
        self._manifest.shard_size = self._config.shard_size
        self._manifest.counts = {"samples": samples.num_rows, "texts": len(texts.values)}
        return Made(self._write_tables(texts, samples, key))

    def _write_tables(self, texts: Texts, samples: pa.Table, key: str) -> list[Receipt]:
        size = self._config.shard_size
        receipts = ensure_shards(self._graph_dir, schemas.SAMPLES, samples, size, key=key)
        shards = shard_ranges(len(texts.values), size)
        for shard in shards:
            values = texts.values[shard.start : shard.stop]
            strings = [self._shown(row) for row in values]
            ids = np.arange(shard.start, shard.stop, dtype=np.int32)
            # Of the values, because two of them may be shown alike.
            hashes = hash_strings(map(repr, values))
            table = pa.table([ids, pa.array(strings, pa.string()), hashes], schema=schemas.TEXTS_SCHEMA)
            receipts.append(ensure_shard(self._graph_dir, schemas.TEXTS, shard.index, table, key=key))
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

    def search(self) -> SearchRequest:
        """Make the search for neighbours; texts are there."""
        specs = settled(self._specs)
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
        # Workers may stand in another folder.
        taken = [asdict(replace(spec, detail=_absolute(spec))) for spec in specs]
        finder = partial(scan, str(self._graph_dir.absolute()), {**config, "kernels": taken})
        k, sketch_dim = self._config.k, self._config.sketch_dim
        return SearchRequest.read(self._graph_dir, self._manifest, config, inputs, finder, k=k, sketch_dim=sketch_dim)


def settled(specs: Sequence[KernelSpec]) -> list[KernelSpec]:
    """Return kernels with the precision of their encoders: which numbers one computes in decides its vectors, too."""
    return [replace(spec, precision=_precision(spec.detail)) if spec.kind == "text" else spec for spec in specs]


def _absolute(spec: KernelSpec) -> str:
    return str(Path(spec.detail).absolute()) if spec.kind == "taxonomy" else spec.detail


def _precision(encoder: str) -> str:
    return choose_precision(find_encoder(encoder), "auto")[0].precision


def _digest(path: Path) -> str:
    if not path.is_file():
        raise SourceError(f"{path}: no such taxonomy.")
    return digest_file(path)
