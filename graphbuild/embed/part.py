"""One part of the embed stage: every N-th shard of vectors, for arrays of jobs without a scheduler.

The first part that comes makes the texts, and the others wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from graphbuild.embed.build import open_run, sort_ids
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import OptionError
from graphbuild.store.manifest import Manifest
from graphbuild.store.parts import Part, PartResult, in_common, working_at


class Run(Protocol):
    """What a part asks of a run: of texts, pictures or vectors."""

    def has_text(self) -> bool:
        """Return whether the texts are there."""

    def text(self) -> bool:
        """Write the texts; returns whether anything was missing."""

    def embed_part(self, part: Part) -> tuple[int, int]:
        """Write the shards of a part; returns how many were written, and how many of all are still missing."""


def build_embeddings_part(graph_dir: Path, config: EmbedConfig, part: Part) -> PartResult:
    """Write a part's shards of vectors, of texts, pictures or given ones; the manifest is left alone once the texts are there.

    Raises:
        LockedError: If another process is at this part.
        UserError: As `build_embeddings`.
    """
    if config.overwrite or config.append or config.workers or config.scheduler is not None:
        raise OptionError("--part does what is missing in one process. Leave out --overwrite, --append, --workers, --scheduler.")
    run = _with_texts(graph_dir, config)
    with working_at(graph_dir, "embed", part):
        written, still_open = run.embed_part(part)
    return PartResult(graph_dir=graph_dir, stage="embed", part=str(part), written=written, open=still_open)


def _with_texts(graph_dir: Path, config: EmbedConfig) -> Run:
    """A run whose texts are there: made here, or by the process that is at it."""

    def look(manifest: Manifest) -> Run | None:
        run = open_run(graph_dir, manifest, config)
        return run if run.has_text() else None

    def make(manifest: Manifest) -> None:
        run = open_run(graph_dir, manifest, config)
        run.text()
        sort_ids(graph_dir, manifest)

    return in_common(graph_dir, look, make)
