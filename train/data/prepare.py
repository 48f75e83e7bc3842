"""From a configuration to the images of a run: source, graph, join, decoding. What is `auto` or unset is settled here."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import OptionError, SourceError
from graphbuild.store.arrays import Int64
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import find_graph_dir
from graphbuild.store.sketches import UNCORRECTED
from graphbuild.system import hub
from graphbuild.system.inputs import PARQUET, SHARDS, list_files, suffix_of
from graphbuild.system.progress import say
from train.config import TrainConfig
from train.config.options import CropFrom
from train.data.base import ImageSource, Labels, encode_labels
from train.data.budget import trained_mask
from train.data.crops import Crops
from train.data.join import Joined, Known, join_all
from train.data.prefetch import read_ahead
from train.data.repeats import miscounted, reading_rules
from train.data.sources import open_images, recorded_images
from train.data.store import CorruptImages, ImageBatch, ImageStore, choose_load_size, held_bytes
from train.data.subset import Subset
from train.data.tar import MappedIds

DATA_FIELDS = ("graph_dir", "more_graphs", "head", "data", "image_column", "id_column", "val_ids", "load_size", "crop_from")
"""Fields of a configuration that prepared data decide."""


@dataclass(frozen=True, slots=True)
class OpenData:
    """Images and graph that were found and fit together; nothing is decoded yet."""

    config: TrainConfig
    """With `DATA_FIELDS` settled."""
    source: ImageSource
    graph: Graph | None
    joined: Joined | None
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Samples of the source that have no image, by reason; none is 0."""
    known: Mapping[str, Known] = field(default_factory=dict)
    """All graphs of the run by their paths, as the configuration has them."""
    coverage: tuple[str, ...] = ()
    """What each of them knows of the images, for people."""

    def settle(self, config: TrainConfig) -> TrainConfig:
        """Return a configuration with what these data settle."""
        return replace(config, **{name: getattr(self.config, name) for name in DATA_FIELDS})


@dataclass(slots=True)
class TrainingData:
    """The images of a run, decoded or ready to be; sample i is row i of the store."""

    opened: OpenData
    store: ImageStore
    events: list[dict[str, Any]] = field(default_factory=list)
    """What was counted, for a run's log; grows while images are decoded."""

    @property
    def graph(self) -> Graph | None:
        """The graph, where the run has one."""
        return self.opened.graph

    @property
    def joined(self) -> Joined | None:
        """Texts of the samples, where the run has a graph."""
        return self.opened.joined

    def by_graph(self, graph_dir: str) -> TrainingData:
        """Return the same images with another graph of the run."""
        known = self.opened.known[graph_dir]
        return replace(self, opened=replace(self.opened, graph=known.graph, joined=known.joined))

    def batches(self, wanted: Iterator[tuple[Int64, Iterable[Int64], Crops | None]]) -> Iterator[ImageBatch]:
        """Yield the images of a sequence of batches; decoded in advance where they are not held in memory.

        Args:
            wanted: The samples of each batch, those to try in the places of what cannot be read, and the crops to cut.
        """
        images = (self.store.batch(rows, instead, crops) for rows, instead, crops in wanted)
        return images if self.store.cached else read_ahead(images)

    def labels(self, column: str) -> Labels:
        """Return one label of every sample, from the images' source, else from a column that the graph keeps of its samples.

        Raises:
            SourceError: If neither has such a column; those of both are named.
        """
        source, joined, graph = self.opened.source, self.joined, self.graph
        if column in source.label_columns():
            labels = source.labels(column)
            return labels if joined is None else Labels(labels.codes[joined.indices], labels.names)
        if graph is not None and joined is not None and column in graph.sample_columns:
            return encode_labels(graph.sample_column(column).take(joined.graph_rows).to_pylist())
        exist = [*source.label_columns(), *(graph.sample_columns if graph else ())]
        raise SourceError(f"{source.name}: no label column {column!r}; there are: {', '.join(exist) or 'none'}.")

    def fingerprint(self) -> str:
        """Return a digest of the samples in their order and of the graph's files: equal for two runs that see the same data."""
        hasher = hashlib.blake2b(digest_size=16)
        ids = self.opened.source.sample_ids
        indices = np.arange(len(ids)) if self.joined is None else self.joined.indices
        if isinstance(ids, MappedIds):
            hasher.update(ids.hashes()[indices].tobytes())
        else:
            hasher.update("\n".join(ids[index] for index in indices).encode())
        for known in self.opened.known.values():
            files = dict(known.graph.manifest.stages["knn"].files)
            if self.opened.config.similarity != "stored":
                files |= known.graph.manifest.require("rescore", known.graph.path).files
            hasher.update(json.dumps({name: receipt.digest for name, receipt in sorted(files.items())}).encode())
            if known.graph.correction != UNCORRECTED:
                hasher.update(json.dumps(known.graph.correction).encode())
        return hasher.hexdigest()

    def close(self) -> None:
        """End the decoding threads."""
        self.store.close()


def open_data(config: TrainConfig) -> OpenData:
    """Find images and graph, join them, and settle what the configuration leaves open about them.

    Raises:
        SourceError: If the images cannot be found or read.
        OptionError: If neither --data nor the graph says where the images are.
        ArtifactError: If the graph is not finished, or damaged.
        ArtifactMismatch: If the graph is of another data set.
    """
    graphs = _open_graphs(config)
    graph = graphs[0] if graphs else None
    arguments = _image_arguments(config, graph)
    every = open_images(**arguments)
    left_out = {reason: count for reason, count in getattr(every, "skipped", {}).items() if count}
    trained = trained_mask(every, config, graph.manifest.dataset if graph else {})
    if graph is not None and (unclear := miscounted(every, graph)).any():
        trained = ~unclear if trained is None else trained & ~unclear
        left_out["images whose id has more captions than images"] = int(unclear.sum())
    source = every if trained is None else Subset(every, np.flatnonzero(trained))
    known, coverage = join_all(source, graphs, allow_missing=config.allow_missing) if graphs else ([], [])
    joined = known[0].joined if known else None
    if joined is not None:
        say(f"{source.name}: {joined.summary()}; {sum(left_out.values()):,} samples left out")
    if len(graphs) > 1:
        say("\n".join(coverage))
    load_size = config.load_size or choose_load_size(source, config.image_size)
    fits = held_bytes(len(source if joined is None else joined.indices), load_size) <= config.cache_gb * 1e9
    by_size: CropFrom = "held" if fits else "original"
    settled = replace(
        config,
        graph_dir=str(graph.path) if graph else None,
        more_graphs=tuple(_resolved(path) for path in config.more_graphs),
        head=tuple(str(replace(head, graph_dir=_resolved(head.graph_dir))) for head in config.heads),
        data=arguments["data"],
        image_column=getattr(every, "image_column", None),
        id_column=getattr(every, "id_column", None),
        val_ids=str(Path(config.val_ids).absolute()) if config.val_ids else None,
        load_size=load_size,
        crop_from=by_size if config.crop_from == "auto" else config.crop_from,
    )
    by_path = {str(item.graph.path): item for item in known}
    return OpenData(settled, source, graph, joined, left_out, by_path, tuple(coverage))


def load_data(opened: OpenData) -> TrainingData:
    """Decode the images, or prepare to.

    Raises:
        SourceError: If too many cannot be read, or none can.
    """
    config, events = opened.config, []
    if opened.left_out:
        counts = {reason.replace(" ", "_"): count for reason, count in opened.left_out.items()}
        events.append(event("samples_left_out", **counts))
    if len(opened.coverage) > 1:
        events.append(event("coverage", graphs=list(opened.coverage)))
    if opened.joined is not None and opened.joined.unknown:
        events.append(event("unknown_images", count=opened.joined.unknown, examples=list(opened.joined.examples)))
    corrupt = CorruptImages(
        opened.source.name,
        config.max_corrupt,
        lambda sample_id, reason: events.append(event("corrupt_image", sample_id=sample_id, reason=reason)),
    )
    store = ImageStore(
        opened.source,
        size=config.load_size,
        corrupt=corrupt,
        indices=None if opened.joined is None else opened.joined.indices,
        workers=config.workers,
        cache_bytes=0 if config.crop_from == "original" else int(config.cache_gb * 1e9),
    )
    if not store.cached and (note := getattr(opened.source, "random_order_note", "")):
        say(f"warning: {note}")
    if not store.readable.any():
        raise SourceError(f"{opened.source.name}: none of the {len(store):,} images can be read. Check --data and --image-column.")
    return TrainingData(opened, store, events)


def prepare(config: TrainConfig) -> TrainingData:
    """Open and decode the images of a configuration; several runs may share them.

    Raises:
        UserError: If images or graph are missing, damaged or of different data sets.
    """
    return load_data(open_data(config))


def event(kind: str, **facts: Any) -> dict[str, Any]:
    """Return one line of `events.jsonl`."""
    return {"time": round(time.time(), 3), "event": kind, **facts}


def _open_graphs(config: TrainConfig) -> list[Graph]:
    """Open all graphs of a run, each once, that of the images first."""
    if config.graphs:
        return [Graph.open(Path(path)) for path in dict.fromkeys(map(_resolved, config.graphs))]
    # Simclr and supcon take a graph where it is named, or to find the images; the others cannot do without.
    if config.uses_graph or config.objective == "clip" or config.batches == "neighbors" or config.data is None:
        return [Graph.open(find_graph_dir(None).resolve())]
    return []


def _resolved(path: str) -> str:
    return str(Path(path).resolve())


def _image_arguments(config: TrainConfig, graph: Graph | None) -> dict[str, Any]:
    recorded = recorded_images(graph.manifest.dataset, graph.path) if graph else None
    if config.data is None:
        if recorded is None:
            where = graph.path if graph else "the graph"
            raise OptionError(f"{where} does not record where its images are. Name them with --data.")
        arguments = recorded
    else:
        # The graph's id column is part of its sample ids, whichever copy of the images is read.
        columns = {"id_column": graph.manifest.dataset.get("id_column")} if graph and is_parquet(config.data) else {}
        rules = reading_rules(graph.manifest.dataset) if graph else {}
        arguments = {"data": absolute(config.data), **columns, **rules}
    given = {"image_column": config.image_column, "id_column": config.id_column}
    return {**arguments, **{name: value for name, value in given.items() if value is not None}}


def is_parquet(data: str) -> bool:
    """Return whether `--data` names files with columns: Parquet, or those of Hugging Face data."""
    if data.startswith(hub.PREFIX):
        return True
    if not Path(data).is_dir():
        return suffix_of(data) in PARQUET
    # Beside shards lie Parquet files that hold no images.
    return bool(list_files(data, PARQUET).paths) and not list_files(data, SHARDS).paths


def absolute(data: str) -> str:
    """Return `--data` with an absolute path, so that a run's configuration holds anywhere."""
    kind, _, folder = data.partition(":")
    if kind in ("cifar10", "cifar100"):
        return f"{kind}:{Path(folder or 'data').absolute()}"
    if data.startswith(hub.PREFIX):
        name, _ = hub.divide(folder)
        # What is no folder is a name on the hub.
        return f"{hub.PREFIX}{Path(folder).absolute()}" if Path(name).exists() else data
    return str(Path(data).absolute())
