"""`graph.json`: what a graph directory holds, from what it was made, and which stages are done.

Only the client writes it, from receipts, and a stage enters itself last. A stage that is not in the manifest is not
done, whatever files lie about. Each save is a new generation: one that another command has written meanwhile is never replaced.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError, UserError
from graphbuild.store import schemas
from graphbuild.store.atomic import read_json, write_json
from graphbuild.store.digests import digest_json
from graphbuild.store.files import Receipt, ShardRange, damage

STAGES = ("text", "lookup", "embed", "index", "knn", "rescore", "partition")
"""In the order in which each reads the ones before it."""

COMMANDS = {
    "text": "embed",
    "lookup": "embed",
    "embed": "embed",
    "index": "embed",
    "knn": "knn",
    "rescore": "rescore",
    "partition": "partition",
}
"""What builds each stage."""
_MADE_FROM = {"text": STAGES[1:], "embed": ("index", "knn", "rescore", "partition"), "knn": ("rescore", "partition")}
"""Stages that read each one; the rest is read by none."""
_MAKERS = {"import": "`graphbuild import`", "relate": "`graphbuild relate`", "fused": "`graphbuild fuse`"}
"""Commands that write neighbours without embeddings, by the method of the knn stage."""
_FORMATS = (1, schemas.FORMAT_VERSION)
"""Formats that are read; in format 1 a receipt lies beside each file."""


@dataclass(kw_only=True, slots=True)
class Stage:
    """What the manifest records of a finished stage."""

    config: dict[str, Any]
    """The options that decide its bytes."""
    inputs: dict[str, str]
    """Digest of everything it read: source files, or the columns of earlier stages."""
    seconds: float
    files: dict[str, Receipt]
    facts: dict[str, Any] = field(default_factory=dict)
    """What it counted and measured."""

    def in_folder(self, folder: str | None) -> list[Receipt]:
        """Return the receipts of its files in one folder, or of all where None, in order of their names."""
        return [receipt for name, receipt in sorted(self.files.items()) if folder is None or name.startswith(f"{folder}/")]


@dataclass(kw_only=True, slots=True)
class Manifest:
    """The content of `graph.json`."""

    dataset: dict[str, Any] = field(default_factory=dict)
    """Name, source, columns, templates, and the image source where there is one."""
    encoder: dict[str, Any] = field(default_factory=dict)
    """Name, revision, weight sha256, dim, precision."""
    counts: dict[str, int] = field(default_factory=dict)
    """Samples, texts, and everything left out."""
    shard_size: int = schemas.SHARD_SIZE
    stages: dict[str, Stage] = field(default_factory=dict)
    superseded: dict[str, Stage] = field(default_factory=dict)
    """The knn stage as it was before texts were appended, until it is done again: its rows need only be compared with the rest."""
    generation: int = 0
    """How often it was saved; 0 before the first time."""
    format: int = schemas.FORMAT_VERSION
    """As it was read; it is written in the newest."""

    @classmethod
    def load(cls, graph_dir: Path) -> Manifest:
        """Read the manifest of a graph, `graph.json`.

        Raises:
            ArtifactError: If it is missing, not JSON, or not what was written.
            ArtifactMismatch: If another version of this program wrote it.
        """
        path = graph_dir / schemas.MANIFEST_FILE
        try:
            raw = read_json(path)
            version = raw["format"]
            if version not in _FORMATS:
                raise ArtifactMismatch(
                    f"{path}: written in format {version}, but this program reads formats 1 to {schemas.FORMAT_VERSION}. "
                    "Build the graph again with `graphbuild embed`, or use the version that made it."
                )
            if (claimed := raw.pop("digest", None)) is not None and claimed != digest_json(raw):
                raise ArtifactError(
                    f"{path}: has other content than was written (its digest differs). Put a copy back, or move it away and run "
                    "the same `graphbuild` commands again: what is finished is found by its receipts."
                )
            return cls(**{**raw, "stages": _stages(raw["stages"]), "superseded": _stages(raw.get("superseded", {}))})
        except FileNotFoundError:
            raise ArtifactError(f"{graph_dir}: no graph here (graph.json is missing). Run `graphbuild embed` first.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path}: not a graph manifest ({error}). Move it away, and run the same `graphbuild` commands again: "
                "what is finished is found by its receipts."
            ) from error

    @classmethod
    def load_or_new(cls, graph_dir: Path) -> Manifest:
        """Return the manifest, or an empty one where the directory holds none yet."""
        return cls.load(graph_dir) if (graph_dir / schemas.MANIFEST_FILE).exists() else cls()

    def save(self, graph_dir: Path) -> None:
        """Write `graph.json` atomically, as the next generation.

        Raises:
            ArtifactMismatch: If another command has written it since this one read it; its work is not lost.
        """
        path = graph_dir / schemas.MANIFEST_FILE
        held = Manifest.load(graph_dir).generation if path.exists() else 0
        if held != self.generation:
            raise ArtifactMismatch(
                f"{path}: another command changed it meanwhile (generation {self.generation} was read, and {held} is there). "
                "What both have finished is kept: run this command again."
            )
        self.generation, self.format = held + 1, schemas.FORMAT_VERSION
        # As it will be read back.
        content = json.loads(json.dumps(asdict(self)))
        write_json(path, {"format": content["format"], "digest": digest_json(content), **content})

    def require(self, stage: str, graph_dir: Path) -> Stage:
        """Return a finished stage.

        Raises:
            ArtifactError: If it is not done, with the command that does it.
        """
        if stage not in self.stages and self.without_vectors and stage in ("embed", "index"):
            raise ArtifactError(
                f"{graph_dir}: has no vectors, which this command needs: its neighbours are those of {self.maker}. "
                "Do this with a graph of text or of vectors."
            )
        if stage not in self.stages:
            raise ArtifactError(f"{graph_dir}: the {stage} stage is not finished. Run `graphbuild {COMMANDS[stage]}` first.")
        return self.stages[stage]

    @property
    def without_vectors(self) -> bool:
        """Whether it is a graph of edges or kernels, which is whole without embeddings."""
        return "knn" in self.stages and self.stages["knn"].config.get("method") in _MAKERS

    @property
    def maker(self) -> str:
        """The command that makes texts and neighbours of a graph without vectors."""
        return _MAKERS[self.stages["knn"].config["method"]]

    def files(self, stage: str, folder: str) -> list[Receipt]:
        """Return the receipts of the files that a finished stage has in one folder, in order of their names."""
        return self.stages[stage].in_folder(folder)

    def column_digests(self, stage: str, columns: Iterable[str], *, folder: str | None = None) -> dict[str, str]:
        """Return the digests of some columns of a stage's files: the inputs of a stage that reads only these.

        Args:
            stage: A finished stage.
            columns: Which columns.
            folder: Only files of this folder; None: of all.

        Returns:
            Digest of each `file:column`.
        """
        wanted = set(columns)
        receipts = self.stages[stage].in_folder(folder)
        return {
            f"{receipt.path}:{column}": digest
            for receipt in receipts
            for column, digest in sorted(receipt.columns.items())
            if column in wanted
        }

    def text_digests(self) -> dict[str, str]:
        """Return the digests of all columns of the texts: the inputs of a stage that makes a vector of each."""
        return self.column_digests("text", schemas.TEXTS_SCHEMA.names, folder=schemas.TEXTS)

    def ranges(self, stage: str, folder: str) -> list[ShardRange]:
        """Return the ids of each shard of a stage's folder: `shard_size`, but in the last one, and the last before an append."""
        rows = [receipt.rows for receipt in self.files(stage, folder)]
        stops = list(itertools.accumulate(rows))
        return [ShardRange(index, stop - count, stop) for index, (stop, count) in enumerate(zip(stops, rows, strict=True))]

    def drop(self, stage: str) -> None:
        """Forget a stage and those that were made from it, before its files change."""
        if stage == "text":
            self.superseded.clear()
        for name in (stage, *_MADE_FROM.get(stage, ())):
            self.stages.pop(name, None)


def _stages(raw: dict[str, Any]) -> dict[str, Stage]:
    return {
        name: Stage(**{**stage, "files": {path: Receipt(**receipt) for path, receipt in stage["files"].items()}})
        for name, stage in raw.items()
    }


def up_to_date(
    manifest: Manifest,
    graph_dir: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    overwrite: bool,
    remedy: str = "",
) -> bool:
    """Return whether a stage is done with these options and inputs, and all its files are intact.

    False means: do it (what is intact need not be made again). `remedy` is what else may help where the input is another.

    Raises:
        OptionError: If it is done with other options, and `overwrite` is not given.
        ArtifactMismatch: If it is done from other inputs, and `overwrite` is not given.
    """
    done = manifest.stages.get(stage)
    if done is None:
        return False
    if (changed := differences(done.config, config)) and not overwrite:
        raise OptionError(
            f"{graph_dir}: the {stage} stage was built with other options ({changed}). "
            "Add --overwrite to build it again, or choose another --graph-dir."
        )
    if (moved := differences(done.inputs, inputs)) and not overwrite:
        raise ArtifactMismatch(
            f"{graph_dir}: the {stage} stage was built from other input ({moved}). "
            f"Add --overwrite to build it again, {remedy}or choose another --graph-dir."
        )
    return not changed and not moved and not any(damage(graph_dir, receipt) for receipt in done.files.values())


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, limit: int = 3) -> str:
    """Return `k: 256 -> 128, ...` for the entries that differ; empty where none does."""
    # Through JSON, because what was read back holds lists where tuples were written.
    before, after = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    shown = [f"{key}: {_short(before.get(key))} -> {_short(after.get(key))}" for key in keys[:limit]]
    return ", ".join(shown) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def stage_key(config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the digest of all that a stage's bytes depend on; the `key` of its receipts."""
    return digest_json({"format": schemas.CONTENT_VERSION, "config": config, "inputs": inputs})


def find_graph_dir(given: Path | None) -> Path:
    """Return the graph directory: as given, else `$GRAPHBUILD_DIR`, else the only graph under `graphs/`.

    Raises:
        UserError: If there is none, or more than one to choose from (they are listed).
    """
    if given is not None:
        return given
    if variable := os.environ.get("GRAPHBUILD_DIR"):
        return Path(variable)
    found = sorted(path.parent for path in Path("graphs").glob(f"*/{schemas.MANIFEST_FILE}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError("no graph under graphs/. Run `graphbuild embed` first, or name one with --graph-dir.")
    listed = ", ".join(str(path) for path in found)
    raise UserError(f"several graphs under graphs/ ({listed}). Choose one with --graph-dir.")
