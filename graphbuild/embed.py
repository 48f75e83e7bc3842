"""The `embed` command: a data set in; texts, samples, embeddings and the FAISS index out.

One shard of texts is one task. Workers write shards and their receipts; only the client writes the manifest, and each
stage enters itself last. Run again with equal options, it does nothing; killed, it goes on where it was.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from graphbuild import schemas
from graphbuild.append import Addition, Segment, plan_addition, segments_of
from graphbuild.cluster import Workers, run_tasks
from graphbuild.datasets import get_source
from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.templates import read_templates
from graphbuild.embed_shards import embed_shard, first_texts
from graphbuild.embed_workers import choose_workers
from graphbuild.encoder import choose_precision, load_encoder
from graphbuild.encoder_files import EncoderSpec, find_encoder, missing_on_this_machine
from graphbuild.errors import OptionError
from graphbuild.index import build_index
from graphbuild.lookup import build_lookup
from graphbuild.manifest import Manifest, Stage, stage_key, up_to_date
from graphbuild.policy import NOTES, describe_collapse
from graphbuild.progress import progress
from graphbuild.samples import TextOutcome, TextWork, write_texts
from graphbuild.shards import Receipt, finished, remove_strays
from graphbuild.text import DEFAULT_TEMPLATE, Prompts, TextPolicy

_FILE_SOURCES = ("parquet", "csv", "tsv", "jsonl", "lines", "img2dataset", "imagefolder")
_RESERVED = frozenset({schemas.SAMPLE_ID, schemas.SAMPLE_HASH, schemas.TEXT_ID})


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig:
    """What is embedded and how; what decides the bytes enters the manifest."""

    dataset: str
    """A name that `graphbuild datasets` lists."""
    sources: tuple[str, ...] = ()
    """Files, folders or globs."""
    caption_column: str | None = None
    """None: a usual name, if there is just one."""
    id_column: str | None = None
    """None: `<file>:<row>`, or the data set's own ids."""
    keep_columns: tuple[str, ...] = ()
    """Source columns copied into samples."""
    templates: tuple[str, ...] = ()
    """Prompts for class names; several are averaged."""
    replacements: tuple[str, ...] = ()
    """`OLD=NEW`, applied to every caption."""
    multi_caption: bool = False
    """Rows that share a sample id are captions of one sample."""
    encoder: str = "all-MiniLM-L6-v2"
    """A Sentence Transformer's name or folder, or `hashing:<width>` for tests."""
    precision: str = "auto"
    """float32, bfloat16, float16, or auto."""
    shard_size: int = schemas.SHARD_SIZE
    """Texts a shard, and rows a shard of samples."""
    workers: int | None = None
    """Worker processes on this machine; 0 works in this process; None takes what a calibration finds fastest."""
    scheduler: str | None = None
    """Address of a running Dask scheduler."""
    overwrite: bool = False
    """Build again what was built with other options or from other input."""
    append: bool = False
    """Add the sources to a graph that is there; only texts that are new are embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedResult:
    """What a graph directory holds after `embed`."""

    graph_dir: Path
    built: tuple[str, ...]
    """Stages that were (re)built; none if everything was there."""
    counts: dict[str, int]
    encoder: dict[str, Any]
    seconds: dict[str, float]
    repeated: str | None = None
    """How often captions repeat, and what that saves, in a line."""

    def summary(self) -> str:
        """A few lines for people."""
        counts = self.counts
        done = f"built: {', '.join(self.built)}" if self.built else "nothing to do: it was built with these options already"
        lines = [
            f"{self.graph_dir}: {done}",
            f"{counts['samples']:,} samples, {counts['captions']:,} captions, {counts['texts']:,} texts",
            f"encoder {self.encoder['name']}, {self.encoder['dim']} wide, {self.encoder['precision']}",
        ]
        noted = {
            **NOTES,
            "failed_downloads": "rows whose picture was not downloaded, left out",
            "truncated_captions": f"captions longer than the encoder reads ({self.encoder['max_tokens']} tokens), cut",
        }
        lines += [f"{counts[name]:,} {words}" for name, words in noted.items() if counts.get(name)]
        return "\n".join([*lines, *([self.repeated] if self.repeated else [])])

    def to_json(self) -> dict[str, Any]:
        """The same, for scripts."""
        return {**asdict(self), "graph_dir": str(self.graph_dir), "built": list(self.built)}


def default_graph_dir(config: EmbedConfig) -> Path:
    """`graphs/<data set>`, or for file formats `graphs/<stem of the source>`."""
    name = config.dataset
    if config.dataset in _FILE_SOURCES and config.sources:
        source = Path(config.sources[0])
        # A glob names no data set, but the folder that it looks into does.
        name = (source.parent.name if any(sign in source.name for sign in "*?[") else source.stem) or config.dataset
    return Path("graphs") / name


def build_embeddings(graph_dir: Path, config: EmbedConfig) -> EmbedResult:
    """Build, or complete, everything up to index.faiss.

    Raises:
        UserError: For bad input, options that contradict what is there, or a machine that cannot do it.
    """
    if graph_dir.exists() and not graph_dir.is_dir():
        raise OptionError(f"{graph_dir}: is a file. Choose another --graph-dir.")
    if config.append and config.overwrite:
        raise OptionError("--append adds to a graph, and --overwrite replaces it: give one of them.")
    manifest = Manifest.load_or_new(graph_dir)
    _refuse_other_dataset(graph_dir, manifest, config)
    prompts = Prompts.parse(read_templates(config.templates))
    spec = find_encoder(config.encoder)
    source = _open_source(graph_dir, config)
    policy = TextPolicy.parse(config.replacements, defaults=source.replacements)
    if source.class_names and not prompts.templates:
        prompts = Prompts((DEFAULT_TEMPLATE,))
    graph_dir.mkdir(parents=True, exist_ok=True)
    run = _Run(graph_dir, config, manifest, source, policy, prompts, _settle_precision(manifest, spec, config.precision))
    built = [
        name for name, build in (("text", run.text), ("lookup", run.lookup), ("embed", run.embed), ("index", run.index)) if build()
    ]
    return EmbedResult(
        graph_dir=graph_dir,
        built=tuple(built),
        counts=manifest.counts,
        encoder=manifest.encoder,
        seconds={name: manifest.stages[name].seconds for name in ("text", "lookup", "embed", "index")},
        repeated=describe_collapse(manifest.stages["text"].facts),
    )


def _refuse_other_dataset(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> None:
    held = manifest.dataset.get("name")
    if held is not None and held != config.dataset and not config.overwrite:
        raise OptionError(
            f"{graph_dir}: holds a graph of data set {held!r}, not {config.dataset!r}. "
            "Add --overwrite to replace it, or choose another --graph-dir."
        )
    images, sources = manifest.dataset.get("images"), manifest.dataset.get("sources")
    drawn_here = images is not None and not Path(images["path"]).is_absolute()
    if drawn_here and sources != list(config.sources) and not config.overwrite:
        raise OptionError(
            f"{graph_dir}: its pictures were made with --source {' '.join(sources or []) or '(none)'}, "
            f"not {' '.join(config.sources) or '(none)'}. Add --overwrite to replace them, or choose another --graph-dir."
        )


def _open_source(graph_dir: Path, config: EmbedConfig) -> OpenSource:
    if clash := _RESERVED.intersection(config.keep_columns):
        raise OptionError(
            f"--keep-columns {sorted(clash)[0]}: samples have a column of this name already. Rename it in the source."
        )
    source = get_source(config.dataset)
    keep = tuple(dict.fromkeys(name.strip() for name in config.keep_columns))
    options = SourceOptions(
        sources=config.sources,
        caption_column=config.caption_column,
        id_column=config.id_column,
        keep_columns=keep,
    )
    source.prepare(options, graph_dir)
    return source.open(options, graph_dir)


def _settle_precision(manifest: Manifest, spec: EncoderSpec, requested: str) -> tuple[EncoderSpec, float | None]:
    recorded = manifest.encoder
    if requested == "auto" and recorded and recorded.get("sha256") == spec.sha256:
        # A graph that was begun at one precision is finished at it, on whatever machine.
        return spec.with_precision(recorded["precision"]), recorded.get("cosine_to_float32")
    return choose_precision(spec, requested)


class _Run:
    """One call of `build_embeddings`: its four stages."""

    def __init__(
        self,
        graph_dir: Path,
        config: EmbedConfig,
        manifest: Manifest,
        source: OpenSource,
        policy: TextPolicy,
        prompts: Prompts,
        precision: tuple[EncoderSpec, float | None],
    ) -> None:
        self._graph_dir, self._config, self._manifest = graph_dir, config, manifest
        self._source, self._policy, self._prompts = source, policy, prompts
        self._spec, self._cosine = precision

    def text(self) -> bool:
        """Texts, counts and samples."""
        config, inputs = self._text_config(), {file.name: file.digest for file in self._source.files}
        if self._config.append:
            return self._append_text(config)
        if up_to_date(self._manifest, self._graph_dir, "text", config, inputs, overwrite=self._config.overwrite):
            return False
        segments = segments_of(self._manifest.stages.get("text"), config, inputs)
        self._forget_if_changed("text", config, inputs)
        started = time.monotonic()
        outcome = self._write_texts(segments)
        self._manifest.dataset = self._describe_dataset()
        self._manifest.counts = outcome.counts
        self._manifest.shard_size = self._config.shard_size
        seconds = time.monotonic() - started
        self._enter("text", Stage(config=config, inputs=inputs, seconds=seconds, files=outcome.receipts, facts=outcome.facts))
        return True

    def _write_texts(self, segments: tuple[Segment, ...], addition: Addition | None = None) -> TextOutcome:
        encoder = load_encoder(self._spec)
        work = TextWork(
            policy=self._policy,
            prompts=self._prompts,
            multi_caption=self._config.multi_caption or self._source.repeated_ids,
            shard_size=self._config.shard_size,
            segments=segments,
            held=addition.held if addition else None,
            known=addition.known if addition else frozenset(),
        )
        with progress("reading captions", None, unit="samples") as meter:
            outcome = write_texts(self._graph_dir, self._source, encoder, work, meter.advance)
        shutil.rmtree(self._graph_dir / schemas.TOKENIZER, ignore_errors=True)
        encoder.save_tokenizer(self._graph_dir / schemas.TOKENIZER)
        self._manifest.encoder = self._describe_encoder()
        return outcome

    def _append_text(self, config: Mapping[str, Any]) -> bool:
        """Texts, counts and samples of new files; nothing of what is there is touched before the new shards are finished."""
        addition = plan_addition(self._graph_dir, self._manifest, self._source, config, self._spec)
        if not addition.files:
            click.echo(f"{self._graph_dir}: holds these sources already", err=True)
            return False
        started = time.monotonic()
        outcome = self._write_texts(addition.segments, addition)
        before, described = self._manifest.dataset, self._describe_dataset()
        new = {file.name for file in addition.files}
        self._manifest.dataset = {
            **before,
            "sources": [*before["sources"], *described["sources"]],
            "files": [*before["files"], *(file for file in described["files"] if file["name"] in new)],
            # A manifest names one place of pictures; `train run --data` names several.
            "images": None,
        }
        self._manifest.counts = outcome.counts
        superseded = {name: self._manifest.stages[name] for name in ("knn",) if name in self._manifest.stages}
        stage = Stage(
            config=dict(config),
            inputs=addition.inputs,
            seconds=time.monotonic() - started,
            files=outcome.receipts,
            facts=outcome.facts,
        )
        self._enter("text", stage, superseded or dict(self._manifest.superseded))
        return True

    def _text_config(self) -> dict[str, Any]:
        return {
            "dataset": self._config.dataset,
            "caption_column": self._source.caption_column,
            "id_column": self._source.id_column,
            "keep_columns": self._source.keep_schema.names,
            "templates": list(self._prompts.templates),
            "replacements": [list(pair) for pair in self._policy.replacements],
            "multi_caption": self._config.multi_caption,
            "encoder": self._spec.name,
            "tokenizer": self._spec.files_digest,
            "shard_size": self._config.shard_size,
        }

    def _describe_dataset(self) -> dict[str, Any]:
        return {
            "name": self._config.dataset,
            "sources": list(self._config.sources),
            "files": [asdict(file) for file in self._source.files],
            "caption_column": self._source.caption_column,
            "id_column": self._source.id_column,
            "keep_columns": self._source.keep_schema.names,
            "templates": list(self._prompts.templates),
            "replacements": [list(pair) for pair in self._policy.replacements],
            "multi_caption": self._config.multi_caption,
            "images": self._source.images,
        }

    def _describe_encoder(self) -> dict[str, Any]:
        encoder = load_encoder(self._spec)
        return {
            "name": self._spec.name,
            "revision": self._spec.revision,
            "sha256": self._spec.sha256,
            "dim": encoder.dim,
            "max_tokens": encoder.max_tokens,
            "precision": self._spec.precision,
            "cosine_to_float32": self._cosine,
        }

    def embed(self) -> bool:
        """One vector per text."""
        config = {**self._spec.identity(), "templates": list(self._prompts.templates), "shard_size": self._config.shard_size}
        inputs = self._manifest.column_digests("text", (schemas.TEXT_ID, schemas.TEXT, schemas.TEXT_HASH))
        inputs = {name: digest for name, digest in inputs.items() if name.startswith(f"{schemas.TEXTS}/")}
        if up_to_date(self._manifest, self._graph_dir, "embed", config, inputs, overwrite=self._config.overwrite):
            return False
        self._forget_if_changed("embed", config, inputs)
        started = time.monotonic()
        receipts = self._embed_shards(config, inputs)
        self._manifest.encoder = self._describe_encoder()
        pids = sorted({receipt.facts["pid"] for receipt in receipts.values()})
        stage = Stage(config=config, inputs=inputs, seconds=time.monotonic() - started, files=receipts, facts={"pids": pids})
        self._enter("embed", stage)
        return True

    def _embed_shards(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Receipt]:
        """A shard depends on its own texts alone: those that come later change nothing about it."""
        names = {
            schemas.part_name(schemas.EMBEDDINGS, shard.index): schemas.part_name(schemas.TEXTS, shard.index)
            for shard in self._manifest.ranges("text", schemas.TEXTS)
        }
        keys = {
            name: stage_key(config, {column: digest for column, digest in inputs.items() if column.startswith(f"{texts}:")})
            for name, texts in names.items()
        }
        done = {name: finished(self._graph_dir, name, key=key) for name, key in keys.items()}
        receipts = {name: receipt for name, receipt in done.items() if receipt is not None}
        root = str(self._graph_dir.absolute())
        calls = [(root, index, self._spec, self._prompts, keys[name]) for index, name in enumerate(names) if name not in receipts]
        texts = self._manifest.counts["texts"] - sum(receipt.rows for receipt in receipts.values())
        folders, check = [self._graph_dir.absolute()], partial(missing_on_this_machine, self._spec)
        workers = self._workers([index for _, index, *_ in calls], texts)
        with progress("embedding", texts, unit="texts") as meter:
            run = partial(run_tasks, workers=workers, shared=folders, report=meter.advance, check=check)
            for receipt in run(embed_shard, calls) if calls else ():
                receipts[receipt.path] = receipt
        return dict(sorted(receipts.items()))

    def _workers(self, shards: list[int], left: int) -> Workers:
        """Where shards of texts are embedded: as asked, else as a calibration finds fastest."""
        if self._config.workers is not None or self._config.scheduler is not None or len(shards) < 2:
            return Workers(count=self._config.workers or 0, scheduler=self._config.scheduler)
        first = self._graph_dir / schemas.part_name(schemas.TEXTS, shards[0])
        choice = choose_workers(self._spec, first_texts(first), left=left, tasks=len(shards))
        if choice.rates:
            click.echo(choice.summary(), err=True)
        return Workers(count=choice.count, gpus=choice.gpus)

    def lookup(self) -> bool:
        """Samples by id."""
        return build_lookup(self._graph_dir, self._manifest)

    def index(self) -> bool:
        """The FAISS index of all vectors."""
        return build_index(self._graph_dir, self._manifest, overwrite=True)

    def _forget_if_changed(self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Before files of a stage change, it and what was made from it leave the manifest; a mere repair changes nothing."""
        done = self._manifest.stages.get(name)
        if done is not None and stage_key(done.config, done.inputs) != stage_key(config, inputs):
            self._manifest.drop(name)
            self._manifest.save(self._graph_dir)

    def _enter(self, name: str, stage: Stage, superseded: Mapping[str, Stage] | None = None) -> None:
        """Put a finished stage into the manifest; what was made from other bytes of it leaves, or is noted as superseded."""
        before = self._manifest.stages.get(name)
        if before is None or _columns(before) != _columns(stage):
            self._manifest.drop(name)
        self._manifest.stages[name] = stage
        if superseded is not None:
            self._manifest.superseded = dict(superseded)
        for folder in {path.split("/")[0] for path in stage.files}:
            remove_strays(self._graph_dir, folder, stage.files)
        self._manifest.save(self._graph_dir)


def _columns(stage: Stage) -> dict[str, dict[str, str]]:
    return {name: receipt.columns for name, receipt in stage.files.items()}
