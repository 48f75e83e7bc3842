"""Where a graph stands: which stages are done, what is missing, damaged or out of date, and which command comes next.

Only the manifest and the sizes of files are looked at: `graphbuild verify` reads the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graphbuild.store.files import damage
from graphbuild.store.manifest import COMMANDS, STAGES, Manifest, Stage
from graphbuild.system.answers import Answer, next_steps, plain, quoted, render, table

State = Literal["done", "missing", "damaged", "out of date"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """How far a stage of the graph is."""

    stage: str
    state: State
    files: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float = 0.0
    detail: str = ""
    """What is damaged or out of date."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphStatus(Answer):
    """All stages of a graph directory, and what to do next."""

    graph_dir: Path
    dataset: str
    counts: dict[str, int]
    stages: tuple[StageStatus, ...]
    next: tuple[str, ...]
    """Commands, the first of which is the next step."""

    def summary(self) -> str:
        """Return a table for people."""
        made = table(("stage", "state", "files", "rows", "MB", "seconds", ""), right=("files", "rows", "MB", "seconds"))
        for one in self.stages:
            sizes = ("", "", "", "")
            if one.files:
                sizes = (f"{one.files:,}", f"{one.rows:,}", f"{one.bytes / 1e6:,.1f}", f"{one.seconds:,.1f}")
            made.add_row(one.stage, one.state, *sizes, plain(one.detail))
        counts = ", ".join(f"{self.counts[name]:,} {name}" for name in ("samples", "captions", "texts") if name in self.counts)
        tables = render(f"{self.graph_dir}: data set {self.dataset}" + (f", {counts}" if counts else ""), {"stages": made})
        return "\n".join([tables, "", *map(next_steps, self.next)])


def graph_status(graph_dir: Path) -> GraphStatus:
    """Look at a graph directory without reading its data.

    Raises:
        ArtifactError: If there is no graph.
    """
    manifest = Manifest.load(graph_dir)
    digests = _column_digests(manifest)
    # Graphs of edges or kernels have no embeddings: they are whole without.
    expected = [name for name in STAGES if name in manifest.stages or name in _expected(manifest)]
    stages = tuple(_look(graph_dir, manifest.stages.get(name), name, digests) for name in expected)
    return GraphStatus(
        graph_dir=graph_dir,
        dataset=str(manifest.dataset.get("name", "unknown")),
        counts=dict(manifest.counts),
        stages=stages,
        next=_next(graph_dir, stages),
    )


def _expected(manifest: Manifest) -> tuple[str, ...]:
    return ("text", "lookup", "knn") if manifest.without_vectors else ("text", "lookup", "embed", "index", "knn")


def _column_digests(manifest: Manifest) -> dict[str, str]:
    """Return the digest of every column of every file, by the names that stages record as their inputs."""
    return {
        f"{receipt.path}:{column}": digest
        for stage in manifest.stages.values()
        for receipt in stage.files.values()
        for column, digest in receipt.columns.items()
    }


def _look(graph_dir: Path, stage: Stage | None, name: str, digests: dict[str, str]) -> StageStatus:
    if stage is None:
        return StageStatus(stage=name, state="missing")
    state: State = "done"
    detail = ""
    stale = [key for key, digest in stage.inputs.items() if ":" in key and key.split(":")[0] and digests.get(key, digest) != digest]
    if stale:
        state, detail = "out of date", f"{stale[0].partition(':')[0]} has changed since"
    for receipt in stage.files.values():
        if problem := damage(graph_dir, receipt, digest=False):
            state, detail = "damaged", f"{receipt.path} {problem}"
            break
    receipts = stage.files.values()
    return StageStatus(
        stage=name,
        state=state,
        files=len(receipts),
        rows=sum(receipt.rows for receipt in receipts),
        bytes=sum(receipt.bytes for receipt in receipts),
        seconds=round(stage.seconds, 3),
        detail=detail,
    )


def _next(graph_dir: Path, stages: tuple[StageStatus, ...]) -> tuple[str, ...]:
    graph = f"--graph-dir {quoted(graph_dir)}"
    # Whoever needs a partition makes it.
    to_do = next((one for one in stages if one.state != "done" and one.stage != "partition"), None)
    if to_do is None:
        return tuple(f"{command} {graph}" for command in ("graphbuild verify", "graphbuild report", "train run"))
    command = COMMANDS[to_do.stage]
    if command in ("embed", "rescore"):
        return (f"graphbuild {command} {graph} with the options it was begun with: it goes on where it stopped",)
    overwrite = " --overwrite" if to_do.state == "out of date" else ""
    return (f"graphbuild {command} {graph}{overwrite}",)
