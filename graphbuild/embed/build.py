"""The `embed` command: a data set in; texts, samples, embeddings and the FAISS index out.

Run again with equal options, it does nothing; killed, it goes on where it was. The stages are in `embed_stages`.
"""

from __future__ import annotations

from pathlib import Path

from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.registry import get_source
from graphbuild.datasets.templates import read_templates
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.embed.encoder import choose_precision
from graphbuild.embed.encoder_files import EncoderSpec, find_encoder
from graphbuild.embed.stages import EmbedRun
from graphbuild.embed.text.policy import describe_collapse
from graphbuild.embed.text.table import DEFAULT_TEMPLATE, Prompts, TextPolicy
from graphbuild.errors import OptionError
from graphbuild.store import schemas
from graphbuild.store.manifest import Manifest
from graphbuild.store.stage import writing

_FILE_SOURCES = ("parquet", "csv", "tsv", "jsonl", "lines", "img2dataset", "imagefolder")
_WITH_WNIDS = ("imagefolder", "imagenet")
_RESERVED = frozenset({schemas.SAMPLE_ID, schemas.SAMPLE_HASH, schemas.TEXT_ID})


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
    if config.append and config.overwrite:
        raise OptionError("--append adds to a graph, and --overwrite replaces it: give one of them.")
    with writing(graph_dir) as manifest:
        return _build(graph_dir, manifest, config)


def _build(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> EmbedResult:
    _refuse_other_dataset(graph_dir, manifest, config)
    prompts = Prompts.parse(read_templates(config.templates))
    spec = find_encoder(config.encoder)
    source = _open_source(graph_dir, config)
    policy = TextPolicy.parse(config.replacements, defaults=source.replacements)
    if source.class_names and source.definitions is None and not prompts.templates:
        prompts = Prompts((DEFAULT_TEMPLATE,))
    run = EmbedRun(graph_dir, config, manifest, source, policy, prompts, _settle_precision(manifest, spec, config.precision))
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
    if config.definitions is not None and config.dataset not in _WITH_WNIDS:
        raise OptionError(
            f"--definitions: data set {config.dataset!r} names no classes by wnid, as {' and '.join(_WITH_WNIDS)} do. Leave it out."
        )
    source = get_source(config.dataset)
    keep = tuple(dict.fromkeys(name.strip() for name in config.keep_columns))
    options = SourceOptions(
        sources=config.sources,
        caption_column=config.caption_column,
        id_column=config.id_column,
        keep_columns=keep,
        definitions=config.definitions,
    )
    source.prepare(options, graph_dir)
    return source.open(options, graph_dir)


def _settle_precision(manifest: Manifest, spec: EncoderSpec, requested: str) -> tuple[EncoderSpec, float | None]:
    recorded = manifest.encoder
    if requested == "auto" and recorded and recorded.get("sha256") == spec.sha256:
        # A graph that was begun at one precision is finished at it, on whatever machine.
        return spec.with_precision(recorded["precision"]), recorded.get("cosine_to_float32")
    return choose_precision(spec, requested)
