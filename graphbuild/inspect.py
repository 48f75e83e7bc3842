"""A graph at a glance, and SQL over it.

Tables: texts, samples, edges (src, dst, rank, similarity; one row per stored neighbour, rank 1 the nearest), embeddings.
All are lazy: a query reads only the columns that it needs. Fixed-size lists are Array columns: use `.arr`, not `.list`.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from graphbuild import schemas
from graphbuild.errors import UserError, one_line
from graphbuild.graph import Graph
from graphbuild.manifest import Manifest
from graphbuild.view import GraphView

_SAMPLE_ROWS = 2000
_RANKS = (1, 2, 5, 10, 50, 100, 256, 1024)
_QUANTILES = (0.05, 0.5, 0.95)
_WIDTH = 120


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSummary:
    """What `graphbuild inspect` shows."""

    graph_dir: Path
    dataset: dict[str, Any]
    encoder: dict[str, Any]
    counts: dict[str, int]
    stages: dict[str, dict[str, Any]]
    """For each finished stage: seconds, bytes, files, facts."""
    similarity_by_rank: list[dict[str, float]]
    """Quantiles over a sample of texts, one entry a rank; empty where there are no neighbours."""

    def summary(self) -> str:
        """Tables for people."""
        output = io.StringIO()
        console = Console(file=output, width=_WIDTH, highlight=False)
        console.print(f"{self.graph_dir}", soft_wrap=True, markup=False)
        tables = {
            "data set": _pair_table(self.dataset),
            "encoder": _pair_table(self.encoder),
            "counts": _pair_table(self.counts),
            "stages": self._stage_table(),
            "similarity to the neighbour of each rank": self._similarity_table(),
        }
        for title, table in tables.items():
            if table.row_count:
                console.print(f"\n{title}")
                console.print(table)
        return output.getvalue().rstrip()

    def _stage_table(self) -> Table:
        table = _table(("stage", "files", "MB", "seconds", "facts"), right=("files", "MB", "seconds"))
        for name, stage in self.stages.items():
            facts = ", ".join(
                f"{key} {_show(value)}" for key, value in stage["facts"].items() if not isinstance(value, dict | list)
            )
            table.add_row(name, f"{stage['files']:,}", f"{stage['bytes'] / 1e6:,.1f}", f"{stage['seconds']:,.1f}", facts)
        return table

    def _similarity_table(self) -> Table:
        columns = tuple(self.similarity_by_rank[0]) if self.similarity_by_rank else ()
        table = _table(columns, right=columns)
        for entry in self.similarity_by_rank:
            table.add_row(*(f"{value:,.0f}" if key == "rank" else f"{value:.3f}" for key, value in entry.items()))
        return table

    def to_json(self) -> dict[str, Any]:
        """The same for scripts."""
        return {
            "graph_dir": str(self.graph_dir),
            "dataset": self.dataset,
            "encoder": self.encoder,
            "counts": self.counts,
            "stages": self.stages,
            "similarity_by_rank": self.similarity_by_rank,
        }


def summarize(graph_dir: Path) -> GraphSummary:
    """Read a graph's counts, stages and the similarity of its neighbours by rank.

    Raises:
        ArtifactError: If there is no graph, or a neighbour shard is missing or cut short.
    """
    manifest = Manifest.load(graph_dir)
    stages = {
        name: {
            "seconds": stage.seconds,
            "bytes": sum(receipt.bytes for receipt in stage.files.values()),
            "files": len(stage.files),
            "facts": stage.facts,
        }
        for name, stage in manifest.stages.items()
    }
    return GraphSummary(
        graph_dir=graph_dir,
        dataset=manifest.dataset,
        encoder=manifest.encoder,
        counts=_counts(manifest),
        stages=stages,
        similarity_by_rank=_similarity_by_rank(Graph.open(graph_dir)) if "knn" in manifest.stages else [],
    )


def run_sql(graph_dir: Path, sql: str, *, limit: int = 50, as_json: bool = False) -> str:
    """Run one SELECT over texts, samples, edges and embeddings.

    Args:
        graph_dir: The graph.
        sql: The query, in the SQL of Polars.
        limit: Rows to show at most.
        as_json: A JSON list of rows instead of a table.

    Raises:
        UserError: If the query cannot be run; it names the tables and their columns.
        ArtifactError: If a table's file is missing or damaged.
    """
    import polars as pl

    tables = GraphView(graph_dir).tables()
    try:
        frame = pl.SQLContext(frames=tables, eager=False).execute(sql).limit(limit + 1).collect(engine="streaming")
    except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
        # The first line says what; a plan of many lines follows it.
        reason = str(error).split("\n", 1)[0]
        listed = "; ".join(f"{name}({', '.join(table.collect_schema().names())})" for name, table in tables.items())
        raise UserError(f"--sql: {one_line(reason)}. Tables: {listed}") from error
    cut = len(frame) > limit
    frame = frame.head(limit)
    if as_json:
        return json.dumps(frame.to_dicts(), ensure_ascii=False, default=str)
    with pl.Config(tbl_rows=limit, tbl_cols=-1, fmt_str_lengths=100, tbl_width_chars=_WIDTH, tbl_hide_dataframe_shape=True):
        note = f"\nthe first {limit:,} rows; raise --limit for more" if cut else f"\n{len(frame):,} rows"
        return f"{frame}{note}"


def _counts(manifest: Manifest) -> dict[str, int]:
    counts = dict(manifest.counts)
    if "text" in manifest.stages:
        files = manifest.stages["text"].files
        counts.setdefault("texts", sum(r.rows for name, r in files.items() if name.startswith(f"{schemas.TEXTS}/")))
        rows = sum(receipt.rows for name, receipt in files.items() if name.startswith(f"{schemas.SAMPLES}/"))
        counts["sample rows"] = rows
        counts["duplicates collapsed"] = rows - counts["texts"]
    return counts


def _similarity_by_rank(graph: Graph) -> list[dict[str, float]]:
    step = max(1, graph.n_texts // _SAMPLE_ROWS)
    values_nK = graph.rows(np.arange(0, graph.n_texts, step)).similarities.astype(np.float32)
    ranks = sorted({rank for rank in (*_RANKS, graph.k) if 1 <= rank <= graph.k})
    return [
        {"rank": rank, **{f"{q:.0%}": round(float(np.quantile(values_nK[:, rank - 1], q)), 4) for q in _QUANTILES}}
        for rank in ranks
    ]


def _pair_table(pairs: dict[str, Any]) -> Table:
    table = _table(("", "value"), right=())
    table.show_header = False
    for key, value in pairs.items():
        if value not in (None, "", [], {}):
            table.add_row(key.replace("_", " "), _show(value))
    return table


def _table(columns: tuple[str, ...], *, right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _show(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 200 else text[:197] + "..."
