"""The `embed` command: a data set in; texts, samples, embeddings and the FAISS index out.

Run again with equal options, it does nothing; killed, it goes on where it was. The stages are in `graphbuild.embed.stages`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from graphbuild.datasets.base import OpenSource, SourceOptions
from graphbuild.datasets.formats.files import is_url
from graphbuild.datasets.formats.hf import NAME as HF
from graphbuild.datasets.formats.pictures import PICTURE_FILES, find_pictures
from graphbuild.datasets.formats.vectors import NAME as VECTORS
from graphbuild.datasets.registry import NAMES, get_source
from graphbuild.datasets.templates import read_templates
from graphbuild.embed.attention import FLASH, Machine
from graphbuild.embed.config import EmbedConfig, EmbedResult
from graphbuild.embed.encoder import choose_precision, use_flash
from graphbuild.embed.encoder_files import BACKEND_FILES, EncoderSpec, find_encoder
from graphbuild.embed.fastest import FASTEST, choose_backend
from graphbuild.embed.image_files import find_image_encoder
from graphbuild.embed.images import IMAGES, ImageRun, require_image_options
from graphbuild.embed.index import build_index
from graphbuild.embed.sample_run import SampleRun
from graphbuild.embed.stages import EmbedRun
from graphbuild.embed.text.policy import describe_collapse
from graphbuild.embed.text.repeats import require_one_rule, settle_repeats
from graphbuild.embed.text.table import DEFAULT_TEMPLATE, Prompts, TextPolicy
from graphbuild.embed.text.unique import RepeatedIds
from graphbuild.embed.vectors import VectorRun, require_vector_options
from graphbuild.errors import OptionError, SourceError
from graphbuild.store import schemas
from graphbuild.store.images import Images, place_of, recorded
from graphbuild.store.lookup import build_lookup
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import require_no_parts
from graphbuild.store.stage import writing
from graphbuild.system.hub import short_name
from graphbuild.system.inputs import is_pattern
from graphbuild.system.progress import progress, stages

_PARTS = frozenset({"train", "val", "valid", "validation", "test", "data", "images", "shards"})
"""Names of folders and files that say nothing about which data they are."""
_LOOKED_FOR = 100
_OPENING = "opening source and encoder"
_CHECKED_EARLY = 100_000


def default_graph_dir(config: EmbedConfig) -> Path:
    """Return `graphs/<data set>`; for file formats `graphs/<stem of the source>`, with its folder if the stem says nothing."""
    name = config.dataset
    if config.sources and name == HF:
        return Path("graphs") / short_name(config.sources[0])
    if config.sources and get_source(config.dataset).info.named_by_source:
        source = Path(urlsplit(config.sources[0]).path if is_url(config.sources[0]) else config.sources[0])
        # A pattern names no data set, but the folder that it looks into does.
        while is_pattern(source.name):
            source = source.parent
        stem = source.name.split(".")[0] or source.name
        above = source.absolute().parent.name
        name = (f"{above}-{stem}" if stem.lower() in _PARTS and above else stem) or config.dataset
    return Path("graphs") / name


def build_embeddings(graph_dir: Path, config: EmbedConfig) -> EmbedResult:
    """Build, or complete, everything up to index.faiss.

    Raises:
        UserError: For bad input, options that contradict what is there, or a machine that cannot do it.
    """
    if config.append and config.overwrite:
        raise OptionError("--append adds to a graph, and --overwrite replaces it: give one of them.")
    of_vectors = "taking vectors" if config.dataset == VECTORS else "embedding"
    with (
        stages(_OPENING, "reading captions", "sorting ids", of_vectors, "indexing"),
        writing(graph_dir, check=lambda: require_no_parts(graph_dir, "embed")) as manifest,
    ):
        return _run(graph_dir, manifest, open_run(graph_dir, manifest, config))


def open_run(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> EmbedRun | SampleRun:
    """Find the encoder, if there is one, and open the source, with everything checked that can be before work begins.

    Raises:
        UserError: For bad input, or options that contradict what is there.
    """
    require_vector_options(config)
    require_one_rule(config.on_duplicate, multi_caption=config.multi_caption, append=config.append)
    require_image_options(config)
    _refuse_other_dataset(graph_dir, manifest, config)
    if config.embedded == IMAGES:
        return _open_images(graph_dir, manifest, config)
    if config.dataset == VECTORS:
        return VectorRun(graph_dir, config, manifest, _open_source(graph_dir, config), _source_options(config))
    with progress(_OPENING, None):
        return _open_captions(graph_dir, manifest, config)


def _open_captions(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> EmbedRun:
    prompts = Prompts.parse(read_templates(config.templates))
    spec = _find_encoder(config)
    source = _open_source(graph_dir, config)
    policy = TextPolicy.parse(config.replacements, defaults=source.replacements)
    if source.class_names and source.definitions is None and not prompts.templates:
        prompts = Prompts((DEFAULT_TEMPLATE,))
    if "text" not in manifest.stages:
        _look_at_first_samples(source, repeated=config.multi_caption or source.repeated_ids)
    return EmbedRun(graph_dir, config, manifest, source, policy, prompts, _settle_numbers(manifest, spec, config))


def _open_images(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> ImageRun:
    _refuse_own_columns(config)
    kind, options, column = config.dataset, _source_options(config), config.image_column
    if kind not in PICTURE_FILES:
        # Data sets of their own say where their pictures lie.
        source = get_source(config.dataset)
        source.prepare(options, graph_dir)
        images = source.open(options, graph_dir).images
        if images is None or images.kind not in PICTURE_FILES:
            where = f"are {images.kind} files" if images else "are nowhere that is recorded"
            raise OptionError(
                f"--from {IMAGES}: the pictures of data set {config.dataset!r} {where}. Give them as --dataset "
                f"{' or '.join(PICTURE_FILES)}."
            )
        kind, there = images.kind, images.at(graph_dir)
        options = replace(options, sources=(there.path,), id_column=options.id_column or there.id_column)
        column = column or there.image_column
    pictures, files, recorded_as = find_pictures(kind, options, column, graph_dir)
    source_of = OpenSource(
        files=files,
        read=lambda: (batch for _, batch, _ in pictures.read()),
        caption_column=options.caption_column,
        id_column=options.id_column,
        keep_schema=pictures.keep_schema,
        images=recorded_as,
    )
    spec = find_image_encoder(config.encoder, config.precision)
    return ImageRun(graph_dir, config, manifest, source_of, pictures, spec)


def _run(graph_dir: Path, manifest: Manifest, run: EmbedRun | SampleRun) -> EmbedResult:
    works: dict[str, Callable[[], bool]] = {
        "text": run.text,
        "lookup": lambda: sort_ids(graph_dir, manifest),
        "embed": run.embed,
        "index": lambda: build_index(graph_dir, manifest, overwrite=True),
    }
    built = [name for name, work in works.items() if work()]
    return EmbedResult(
        graph_dir=graph_dir,
        built=tuple(built),
        counts=manifest.counts,
        encoder=manifest.encoder,
        seconds={name: manifest.stages[name].seconds for name in works},
        repeated=describe_collapse(manifest.stages["text"].facts),
    )


def sort_ids(graph_dir: Path, manifest: Manifest) -> bool:
    """Build the look-up of samples by their ids; returns whether anything was to do."""
    with progress("sorting ids", None):
        return build_lookup(graph_dir, manifest)


def _look_at_first_samples(source: OpenSource, *, repeated: bool) -> None:
    """Read the beginning of a source for nothing but its errors, before an encoder is loaded and a folder is made.

    Raises:
        SourceError: If a row is broken, or a sample id comes twice.
    """
    ids, seen = RepeatedIds(source, allowed=repeated), 0
    for batch in source.read():
        ids.add(batch.sample_ids)
        seen += len(batch.sample_ids)
        if seen >= _CHECKED_EARLY:
            break
    ids.finish()


def _refuse_other_dataset(graph_dir: Path, manifest: Manifest, config: EmbedConfig) -> None:
    held = manifest.dataset.get("name")
    if held is not None and held != config.dataset and not config.overwrite:
        raise OptionError(
            f"{graph_dir}: holds a graph of data set {held!r}, not {config.dataset!r}. "
            "Add --overwrite to replace it, or choose another --graph-dir."
        )
    images, sources = recorded(manifest.dataset), manifest.dataset.get("sources")
    drawn_here = images is not None and not Path(images.path).is_absolute()
    if drawn_here and sources != list(config.sources) and not config.overwrite:
        raise OptionError(
            f"{graph_dir}: its pictures were made with --source {' '.join(sources or []) or '(none)'}, "
            f"not {' '.join(config.sources) or '(none)'}. Add --overwrite to replace them, or choose another --graph-dir."
        )


def _refuse_own_columns(config: EmbedConfig) -> None:
    if clash := set(schemas.SAMPLES_SCHEMA.names).intersection(config.keep_columns):
        raise OptionError(
            f"--keep-columns {sorted(clash)[0]}: samples have a column of this name already. Rename it in the source."
        )


def _open_source(graph_dir: Path, config: EmbedConfig) -> OpenSource:
    _refuse_own_columns(config)
    source = get_source(config.dataset)
    if config.definitions is not None and not source.info.by_wnid:
        having = " and ".join(name for name in NAMES if get_source(name).info.by_wnid)
        raise OptionError(f"--definitions: data set {config.dataset!r} names no classes by wnid, as {having} do. Leave it out.")
    options = _source_options(config)
    source.prepare(options, graph_dir)
    opened = source.open(options, graph_dir)
    if config.images is not None:
        opened = replace(opened, images=_place_images(opened, Path(config.images), graph_dir))
    return settle_repeats(opened, config.on_duplicate)


def _source_options(config: EmbedConfig) -> SourceOptions:
    return SourceOptions(
        sources=config.sources,
        caption_column=config.caption_column,
        id_column=config.id_column,
        keep_columns=tuple(dict.fromkeys(name.strip() for name in config.keep_columns)),
        definitions=config.definitions,
        columns=config.columns,
        skip_broken=config.skip_broken,
        vector_column=config.vector_column,
    )


def _place_images(source: OpenSource, folder: Path, graph_dir: Path) -> Images:
    """The folder that --images names.

    Raises:
        SourceError: If it is none, or holds none of the first samples.
    """
    if not folder.is_dir():
        raise SourceError(f"--images {folder}: no such folder.")
    ids = next((batch.sample_ids for batch in source.read() if batch.sample_ids), [])[:_LOOKED_FOR]
    if ids and not any((folder / sample_id).is_file() for sample_id in ids):
        raise SourceError(
            f"--images {folder}: none of the first {len(ids)} samples is a file in it, such as {ids[0]!r}. Sample ids are paths of "
            "pictures below the folder: name their column with --id-column."
        )
    return Images(kind="imagefolder", path=place_of(folder, graph_dir))


def _find_encoder(config: EmbedConfig) -> EncoderSpec:
    fastest = config.backend == FASTEST
    if fastest and (config.backend_file is not None or config.attention == FLASH):
        which = "--backend-file" if config.backend_file is not None else f"--attention {FLASH}"
        raise OptionError(f"--backend {FASTEST} measures what is there, and {which} names one. Leave one of them out.")
    beside = [config.backend_file] if config.backend_file else []
    beside = beside or [file for name, file in BACKEND_FILES.items() if fastest or name == config.backend]
    spec = find_encoder(config.encoder, trust=config.trust_remote_code, beside=beside)
    spec = spec.with_use(config.prompt, config.truncate_dim)
    return spec if fastest else spec.with_backend(config.backend, config.backend_file)


def _settle_numbers(manifest: Manifest, spec: EncoderSpec, config: EmbedConfig) -> tuple[EncoderSpec, float | None]:
    """The encoder with its precision and attention, and its lowest cosine to float32, where that was measured."""
    recorded = manifest.encoder if manifest.encoder and manifest.encoder.get("sha256") == spec.sha256 else {}
    # A graph that was begun at one precision is finished at it, on whatever machine; by one backend, and by one attention.
    if config.backend == FASTEST and not recorded:
        return choose_backend(spec, config.precision)
    if config.backend == FASTEST:
        spec = spec.with_backend(recorded.get("backend", "torch"), recorded.get("backend_file"))
    if config.precision == "auto" and recorded:
        spec, cosine = spec.with_precision(recorded["precision"]), recorded.get("cosine_to_float32")
    else:
        spec, cosine = choose_precision(spec, config.precision)
    if config.attention != FLASH:
        return spec, cosine
    if held := recorded.get("attention"):
        return replace(spec, attention=held), recorded["cosine_to_float32"]
    return use_flash(spec, Machine.here())
