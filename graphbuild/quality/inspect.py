"""A graph at a glance: counts, stages and health."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from graphbuild.embed.text.policy import COUNTS, NOTES
from graphbuild.quality.health.measure import similarity_by_rank
from graphbuild.quality.health.result import Health, health_tables, similarity_table
from graphbuild.quality.samples import has_several_captions
from graphbuild.quality.view import GraphView
from graphbuild.store import schemas
from graphbuild.store.manifest import Manifest
from graphbuild.system.answers import Answer, next_steps, pair_table, plain, render, show, table
from graphbuild.system.progress import stages as progress_stages

if TYPE_CHECKING:
    import polars as pl

_SAMPLE_ROWS = 2000
_EXAMPLES = 3
_REPEATED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSummary(Answer):
    """What `graphbuild inspect` shows."""

    graph_dir: Path
    dataset: dict[str, Any]
    encoder: dict[str, Any]
    counts: dict[str, int]
    stages: dict[str, dict[str, Any]]
    """For each finished stage: seconds, bytes, files, facts."""
    similarity_by_rank: list[dict[str, float]]
    """Quantiles over a sample of texts, one entry a rank; empty where there are no neighbours."""
    health: Health | None
    """None where there are no neighbours, or it was not asked for."""

    def summary(self) -> str:
        """Return tables for people."""
        tables = {
            "data set": pair_table({key: value for key, value in self.dataset.items() if key != "files"}),
            "encoder": pair_table(self.encoder),
            "counts": pair_table(self.counts),
            "unusual captions": self._unusual_table(),
            "captions that repeat most": self._repeated_table(),
            "stages": self._stage_table(),
        }
        if self.health is None:
            tables["similarity to the neighbour of each rank"] = similarity_table(self.similarity_by_rank)
        else:
            tables |= health_tables(self.health)
        commands = ("graphbuild report", "graphbuild advise") if "knn" in self.stages else ("graphbuild status",)
        return f"{render(str(self.graph_dir), tables)}\n\n{next_steps(*commands, graph_dir=self.graph_dir)}"

    def _text_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.stages.get("text", {}).get("facts", {})
        return facts

    def _unusual_table(self) -> Table:
        made = table(("what", "count", "examples"), right=("count",))
        facts = self._text_facts()
        listed = {COUNTS.get(name, name): examples for name, examples in facts.get("listed", {}).items()}
        if ids := facts.get("truncated_text_ids"):
            listed["truncated_texts"] = [f"text_id {text_id}" for text_id in ids]
        for counted, examples in listed.items():
            heads = (NOTES.get(counted, counted.replace("_", " ")), f"{self.counts.get(counted, len(examples)):,}")
            for example in examples[:_EXAMPLES]:
                made.add_row(*heads, plain(example))
                heads = ("", "")
        return made

    def _repeated_table(self) -> Table:
        made = table(("captions", "text_id", "text"), right=("captions", "text_id"))
        for one in self._text_facts().get("most_repeated", ())[:_REPEATED]:
            made.add_row(f"{one['captions']:,}", f"{one['text_id']:,}", plain(show(one["text"])))
        return made

    def _stage_table(self) -> Table:
        made = table(("stage", "files", "MB", "seconds", "facts"), right=("files", "MB", "seconds"))
        for name, stage in self.stages.items():
            facts = ", ".join(f"{key} {show(value)}" for key, value in stage["facts"].items() if not isinstance(value, dict | list))
            numbers = (f"{stage['files']:,}", f"{stage['bytes'] / 1e6:,.1f}", f"{stage['seconds']:,.1f}")
            made.add_row(name, *numbers, plain(facts))
        return made

    def to_frame(self) -> pl.DataFrame:
        """Return counts and figures as one table: section, name, value, shuffled, verdict."""
        import polars as pl

        rows: list[tuple[str, str, float, float | None, str | None]] = [
            ("counts", key, float(value), None, None) for key, value in self.counts.items()
        ]
        if self.health:
            rows += [("health", one.key, one.value, one.shuffled, one.verdict) for one in self.health.measures]
        for entry in self.similarity_by_rank:
            rows += [(f"similarity at rank {entry['rank']:.0f}", key, entry[key], None, None) for key in entry if key != "rank"]
        kinds = {"section": pl.String, "name": pl.String, "value": pl.Float64, "shuffled": pl.Float64, "verdict": pl.String}
        return pl.DataFrame(rows, schema=kinds, orient="row")


def summarize(graph_dir: Path, *, health: bool = True, **options: Any) -> GraphSummary:
    """Read a graph's counts, stages and, where it has neighbours, its health.

    Args:
        graph_dir: The graph, finished or not.
        health: Whether to measure it: a pass over all edges.
        options: Fields of `graphbuild.quality.health.result.HealthConfig`.

    Raises:
        ArtifactError: If there is no graph, or a neighbour shard is missing or cut short.
        SourceError: If a column or file named in the options is not there.
    """
    view = GraphView(graph_dir)
    manifest = view.manifest
    stages = {
        name: {
            "seconds": stage.seconds,
            "bytes": sum(receipt.bytes for receipt in stage.files.values()),
            "files": len(stage.files),
            "facts": stage.facts,
        }
        for name, stage in manifest.stages.items()
    }
    measurable = "knn" in manifest.stages and view.graph.k > 0
    with progress_stages("edges", "figures"):
        measured = view.health(**options) if health and measurable else None
    return GraphSummary(
        graph_dir=graph_dir,
        # Some sources, such as COCO, give a row a caption without being asked to.
        dataset={**manifest.dataset, "multi_caption": has_several_captions(manifest)},
        encoder=manifest.encoder,
        counts=_counts(manifest),
        stages=stages,
        similarity_by_rank=measured.similarity_by_rank if measured else _quick_similarity(view) if measurable else [],
        health=measured,
    )


def _counts(manifest: Manifest) -> dict[str, int]:
    counts = dict(manifest.counts)
    if "text" in manifest.stages:
        texts, rows = (
            sum(receipt.rows for receipt in manifest.files("text", folder)) for folder in (schemas.TEXTS, schemas.SAMPLES)
        )
        counts.setdefault("texts", texts)
        counts["sample rows"] = rows
        counts["duplicates collapsed"] = rows - counts["texts"]
    return counts


def _quick_similarity(view: GraphView) -> list[dict[str, float]]:
    step = max(1, view.graph.n_texts // _SAMPLE_ROWS)
    return similarity_by_rank(view.graph.rows(np.arange(0, view.graph.n_texts, step)), view.graph.k)
