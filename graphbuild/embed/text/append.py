"""Appending sources to a graph: what is refused, and what the text stage must know of what is there.

Each call of `embed --append` is a segment. A segment begins new shards, so that those of earlier ones keep their bytes;
reading all sources at once, cut at the same files, gives the same shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from graphbuild.datasets.base import OpenSource, SourceFile
from graphbuild.embed.encoder_files import EncoderSpec
from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.store import schemas
from graphbuild.store.files import Receipt, require_intact
from graphbuild.store.manifest import Manifest, Stage, differences, stage_key
from graphbuild.store.tables import open_parquet, read_parquet

_FACT = "segments"
ALL_SOURCES = "Run `graphbuild embed` with all sources, in the order in which they came: it rebuilds this file."
"""What to do where a file of a graph that was appended to is lost."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The files of one call of `embed`, and the key of the shards that they begin."""

    files: tuple[str, ...]
    key: str


def segments_of(stage: Stage | None, config: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[Segment, ...]:
    """Return how a text stage over these inputs is cut: as it was when built by appending to it, else into one segment."""
    recorded = stage.facts.get(_FACT) if stage is not None and stage.inputs == inputs else None
    return _segments(recorded or [list(inputs)], config, inputs)


def _segments(names: Sequence[Sequence[str]], config: Mapping[str, Any], inputs: Mapping[str, str]) -> tuple[Segment, ...]:
    made: list[Segment] = []
    seen: dict[str, str] = {}
    for files in names:
        seen |= {name: inputs[name] for name in files}
        made.append(Segment(tuple(files), stage_key(config, seen)))
    return tuple(made)


def segment_facts(segments: Sequence[Segment]) -> dict[str, Any]:
    """Return what the manifest keeps of them; nothing where there is only one."""
    return {_FACT: [list(segment.files) for segment in segments]} if len(segments) > 1 else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExistingTexts:
    """The finished text stage of a graph that is appended to."""

    graph_dir: Path
    stage: Stage
    counts: dict[str, int]
    """Of the manifest, before."""

    def receipts(self, folder: str) -> dict[str, Receipt]:
        """Return the receipts of its shards in one folder, in order."""
        return {receipt.path: receipt for receipt in self.stage.in_folder(folder)}

    def tables(self, folder: str, columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Yield path and columns of each shard of a folder.

        Raises:
            ArtifactError: If one is missing or damaged.
        """
        for name, receipt in self.receipts(folder).items():
            require_intact(self.graph_dir, {name: receipt}, remedy=ALL_SOURCES)
            yield self.graph_dir / name, read_parquet(self.graph_dir / name, columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Addition:
    """Files that come to a graph."""

    held: ExistingTexts
    files: tuple[SourceFile, ...]
    """Those that are new; none if all were there."""
    known: frozenset[str]
    """Names of files of the source that the graph has already, which are left out."""
    segments: tuple[Segment, ...]

    @property
    def inputs(self) -> dict[str, str]:
        """Of the text stage, afterwards."""
        return {**self.held.stage.inputs, **{file.name: file.digest for file in self.files}}


def plan_addition(
    graph_dir: Path, manifest: Manifest, source: OpenSource, config: Mapping[str, Any], spec: EncoderSpec
) -> Addition:
    """Return what `embed --append` has to read.

    Args:
        graph_dir: The graph.
        manifest: Its manifest.
        source: The sources to append; files that the graph has, by their digest, are left out.
        config: Of the text stage, as asked for now.
        spec: The encoder, as asked for now.

    Raises:
        ArtifactError: If there is no graph to append to.
        OptionError: If options or encoder are not those that the graph was built with; the difference is named.
        SourceError: If a new file has the name of one that the graph has, or a kept column another type.
    """
    if "text" not in manifest.stages:
        raise ArtifactError(f"{graph_dir}: no graph to append to. Leave out --append: `graphbuild embed` builds one.")
    stage = manifest.stages["text"]
    encoder = {"encoder": spec.name, "sha256": spec.sha256, "precision": spec.precision}
    recorded = {"encoder": manifest.encoder["name"], **{name: manifest.encoder[name] for name in ("sha256", "precision")}}
    if changed := differences({**stage.config, **recorded}, {**config, **encoder}):
        raise OptionError(
            f"{graph_dir}: built with other options ({changed}), and what is appended must be read like the rest. "
            "Give the same options, or choose another --graph-dir."
        )
    known = {digest: name for name, digest in stage.inputs.items()}
    fresh = tuple(file for file in source.files if file.digest not in known)
    for file in fresh:
        if file.name in stage.inputs:
            raise SourceError(
                f"{file.name}: the graph has a file of this name already, with other content. Sample ids and errors name files: "
                "rename the new one."
            )
    held = ExistingTexts(graph_dir=graph_dir, stage=stage, counts=dict(manifest.counts))
    _require_same_columns(held, source.keep_schema)
    names = stage.facts.get(_FACT) or [list(stage.inputs)]
    inputs = {**stage.inputs, **{file.name: file.digest for file in fresh}}
    return Addition(
        held=held,
        files=fresh,
        known=frozenset(file.name for file in source.files if file.digest in known),
        segments=_segments([*names, [file.name for file in fresh]] if fresh else names, config, inputs),
    )


def _require_same_columns(held: ExistingTexts, keep_schema: pa.Schema) -> None:
    first = next(iter(held.receipts(schemas.SAMPLES)))
    with open_parquet(held.graph_dir / first) as file:
        stored = file.schema_arrow
    for field in keep_schema:
        if stored.field(field.name).type != field.type:
            raise SourceError(
                f"--keep-columns {field.name}: holds {field.type} here, but {stored.field(field.name).type} in the graph. "
                "Convert the new source."
            )
