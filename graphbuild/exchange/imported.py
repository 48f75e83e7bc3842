"""Edges from elsewhere (metadata, WordNet, human judgement) as a graph directory that `train` takes.

There are no embeddings and no sketch, so training needs --absent. Rows are never padded: every text keeps the K best of its
edges, and K is at most the smallest number of edges that a text has. What is cut, and all else left out, is counted.
Shape letters: N texts, E edges, K neighbours kept, n texts of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.imported_edges import Edges
from graphbuild.exchange.tables import ID, NAMED, read_frame, require_known
from graphbuild.store import schemas
from graphbuild.store.counts import count_captions, distinct_samples, write_counts
from graphbuild.store.digests import digest_file
from graphbuild.store.files import Receipt, finished, shard_ranges, write_arrow
from graphbuild.store.hashes import hash_strings
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest, stage_key, up_to_date
from graphbuild.store.stage import Made, run_stage, writing
from graphbuild.store.tables import ensure_shards
from graphbuild.system.answers import Answer, next_steps
from graphbuild.system.progress import progress

if TYPE_CHECKING:
    import polars as pl

METHOD = "import"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """Which files are imported, and how their edges are read."""

    texts: Path
    """Columns text, and id (any type; default: the row number); the rest is kept with the samples."""
    edges: Path
    """Columns src, dst (ids of texts), similarity in [-1, 1]."""
    samples: Path | None = None
    """Columns sample_id, id (of its text), and what else is to be kept; None: one sample a text, named by its id."""
    k: int | None = None
    """Neighbours kept; None: as many as the text with the fewest edges has."""
    symmetric: bool = False
    """Every edge counts both ways."""
    shard_size: int = schemas.SHARD_SIZE
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult(Answer):
    """What was written and counted."""

    graph_dir: Path
    texts: int
    k: int
    facts: dict[str, Any]
    already_done: bool

    def summary(self) -> str:
        """Return a few lines for people."""
        head = f"{self.graph_dir}: {self.texts:,} texts, {self.k:,} neighbours a text, no sketch (train with --absent)"
        if self.already_done:
            return f"{head}: already done, nothing to do"
        left_out = {
            "edges beyond k cut": "cut_edges",
            "repeated edges": "repeated_edges",
            "edges of a text with itself": "self_edges",
            "pairs of two similarities (the larger is taken)": "unequal_pairs",
        }
        counted = (f"{self.facts[key]:,} {name}" for name, key in left_out.items() if self.facts[key])
        return "\n".join([head, *counted, next_steps("graphbuild report", graph_dir=self.graph_dir)])


def import_graph(graph_dir: Path, config: ImportConfig) -> ImportResult:
    """Write a graph directory from a file of texts and one of edges (Parquet, CSV, TSV or JSON lines).

    Raises:
        SourceError: If a file cannot be read, a column is missing, an id is unknown or repeated, a similarity is not in
            [-1, 1], or a text has fewer edges than K; with figures and examples.
        OptionError: If the directory holds a graph of another kind, or was imported with other options.
    """
    files = {name: path for name in ("texts", "edges", "samples") if (path := getattr(config, name)) is not None}
    inputs = {name: _digest(path) for name, path in files.items()}
    with progress("import", None), writing(graph_dir) as manifest:
        return _import(graph_dir, manifest, config, inputs)


def _import(graph_dir: Path, manifest: Manifest, config: ImportConfig, inputs: dict[str, str]) -> ImportResult:
    if manifest.stages and manifest.dataset.get("name") != METHOD:
        raise OptionError(f"{graph_dir}: holds a graph that was not imported. Choose another --graph-dir.")
    options = {"method": METHOD, "k_asked": config.k, "symmetric": config.symmetric, "shard_size": config.shard_size}
    done = [up_to_date(manifest, graph_dir, "text", options, inputs, overwrite=config.overwrite), "knn" in manifest.stages]
    if all(done) and up_to_date(manifest, graph_dir, "knn", *_knn_key(manifest), overwrite=False):
        stage = manifest.stages["knn"]
        return _result(graph_dir, manifest, stage.config["k"], stage.facts, already_done=True)
    # All is read and checked before anything is written.
    texts, samples = _read_texts(config)
    edges = Edges(config.edges, texts, k=config.k, symmetric=config.symmetric)

    def write_texts(key: str) -> Made:
        manifest.dataset, manifest.encoder, manifest.shard_size = _dataset(config), {}, config.shard_size
        manifest.counts = {"samples": len(samples), "texts": len(texts)}
        return Made(_write_texts(graph_dir, texts, samples, config.shard_size, key))

    def write_edges(key: str) -> Made:
        facts = {**edges.facts, "texts": len(texts), "k": edges.k, "complete": edges.k == len(texts) - 1}
        names = {shard: schemas.part_name(schemas.KNN, shard.index) for shard in shard_ranges(len(texts), config.shard_size)}
        return Made(
            [
                finished(graph_dir, name, key=key) or write_arrow(graph_dir, name, edges.batch(shard), key=key)
                for shard, name in names.items()
            ],
            facts,
        )

    run_stage(graph_dir, manifest, "text", options, inputs, write_texts, overwrite=config.overwrite)
    build_lookup(graph_dir, manifest)
    knn_inputs = manifest.column_digests("text", [schemas.TEXT_ID, schemas.TEXT])
    knn_config = {"method": METHOD, "k": edges.k, "sketch_dim": 0, "shard_size": config.shard_size}
    # The edges decide the bytes, too.
    key = stage_key(knn_config, inputs)
    run_stage(graph_dir, manifest, "knn", knn_config, knn_inputs, write_edges, overwrite=config.overwrite, key=key)
    return _result(graph_dir, manifest, edges.k, manifest.stages["knn"].facts, already_done=False)


def _knn_key(manifest: Manifest) -> tuple[dict[str, Any], dict[str, str]]:
    return manifest.stages["knn"].config, manifest.column_digests("text", [schemas.TEXT_ID, schemas.TEXT])


def _result(graph_dir: Path, manifest: Manifest, k: int, facts: dict[str, Any], *, already_done: bool) -> ImportResult:
    return ImportResult(graph_dir=graph_dir, texts=manifest.counts["texts"], k=k, facts=facts, already_done=already_done)


def _dataset(config: ImportConfig) -> dict[str, Any]:
    named = (config.texts, config.edges, config.samples)
    return {"name": METHOD, "sources": [str(path.absolute()) for path in named if path is not None]}


def _digest(path: Path) -> str:
    if not path.is_file():
        raise SourceError(f"{path}: no such file.")
    return digest_file(path)


def _read_texts(config: ImportConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Texts with id (string) and text; samples with sample_id, text_id and kept columns."""
    import polars as pl

    frame = read_frame(config.texts, (schemas.TEXT,))
    if frame.is_empty():
        raise SourceError(f"{config.texts}: no row. A graph needs texts.")
    if ID not in frame.columns:
        frame = frame.with_columns(pl.int_range(pl.len()).alias(ID))
    frame = frame.with_columns(pl.col(ID).cast(pl.String), pl.col(schemas.TEXT).cast(pl.String))
    for name in (ID, schemas.TEXT):
        _require_once(config.texts, frame, name)
    numbered = frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias(schemas.TEXT_ID))
    if config.samples is None:
        samples = numbered.rename({ID: schemas.SAMPLE_ID}).drop(schemas.TEXT)
    else:
        given = read_frame(config.samples, (schemas.SAMPLE_ID, ID)).with_columns(pl.col(ID, schemas.SAMPLE_ID).cast(pl.String))
        samples = given.join(numbered.select(ID, schemas.TEXT_ID), on=ID, how="left", maintain_order="left").drop(ID)
        require_known(config.samples, given[ID], samples[schemas.TEXT_ID])
    fixed = schemas.SAMPLES_SCHEMA.names
    kept = [name for name in samples.columns if name not in fixed]
    return numbered.select(ID, schemas.TEXT, schemas.TEXT_ID), samples.select(schemas.SAMPLE_ID, schemas.TEXT_ID, *kept)


def _require_once(path: Path, frame: pl.DataFrame, name: str) -> None:
    import polars as pl

    twice = frame.group_by(name, maintain_order=True).len().filter(pl.col("len") > 1)
    if len(twice):
        shown = ", ".join(repr(value) for value in twice[name].head(NAMED).to_list())
        raise SourceError(
            f"{path}: {len(twice):,} values of {name!r} come more than once ({shown}). Texts and ids are unique: "
            "map several samples onto one text with --samples."
        )


def _write_texts(graph_dir: Path, texts: pl.DataFrame, samples: pl.DataFrame, shard_size: int, key: str) -> list[Receipt]:
    """Shards of texts, counts and samples; their receipts."""
    # There is no encoder, so a text's hash is that of its characters and not of tokens.
    hashes = hash_strings(texts[schemas.TEXT])
    text_table = pa.table([texts[schemas.TEXT_ID].to_numpy(), texts[schemas.TEXT].to_list(), hashes], schema=schemas.TEXTS_SCHEMA)
    sample_ids = samples[schemas.SAMPLE_ID]
    fixed = pa.table(
        [sample_ids.to_list(), hash_strings(sample_ids), samples[schemas.TEXT_ID].to_numpy()], schema=schemas.SAMPLES_SCHEMA
    )
    sample_table = fixed
    for name in samples.columns[2:]:
        sample_table = sample_table.append_column(name, samples[name].to_arrow())
    receipts = ensure_shards(graph_dir, schemas.TEXTS, text_table, shard_size, key=key)
    receipts += ensure_shards(graph_dir, schemas.SAMPLES, sample_table, shard_size, key=key)
    captions_N = count_captions([fixed[schemas.TEXT_ID].to_numpy()], len(texts))
    rows = map(len, shard_ranges(len(texts), shard_size))
    return [*receipts, *write_counts(graph_dir, rows, distinct_samples(fixed, len(texts)), captions_N, key=key)]
