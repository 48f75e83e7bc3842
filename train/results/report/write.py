"""Putting the report together: run folders in, an HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError
from graphbuild.store.files import write_text
from graphbuild.store.graph import Graph
from graphbuild.store.images import recorded
from graphbuild.store.outputs import require_replaceable
from train.config import TrainConfig
from train.data.prepare import open_data
from train.results.report.page import Page, RunHead, render_page
from train.results.report.pictures import compare_similarities, find_neighbors
from train.results.report.runs import RunRecord, conditions, curves, read_runs, results, short_path
from train.run.loop import settle


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult:
    """The report that was written."""

    out: Path
    runs: tuple[str, ...]
    bytes: int

    def summary(self) -> str:
        """Return one line for people."""
        return f"{self.out}: {', '.join(self.runs)} ({self.bytes / 1e6:.1f} MB, one file, no network needed)"

    def to_json(self) -> dict[str, Any]:
        """Return the same for scripts."""
        return {**asdict(self), "out": str(self.out), "runs": list(self.runs)}


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    data: str | None = None,
    title: str | None = None,
    remarks: Sequence[str] = (),
    overwrite: bool = False,
) -> ReportResult:
    """Write one HTML file about finished runs.

    Args:
        runs: Their folders. The first one's images and graph are used for the pictures.
        out: The file; replaced if a report wrote it.
        data: Held-out images for the neighbours; None: those that the graph or the evaluation names.
        title: Of the page.
        remarks: Lines below the title.
        overwrite: Replace any file.

    Raises:
        OptionError: If there is no run, a folder is not that of one, or the file is somebody else's.
        ArtifactError: If a run is not finished, or a graph is damaged.
        SourceError: If the images of the first run cannot be read.
    """
    if not runs:
        raise OptionError("no run to report on. Name the folders of finished runs, such as runs/xclr-1.")
    require_replaceable(out, overwrite=overwrite)
    records = [replace(record, config=settle(replace(record.config, device="auto"))) for record in read_runs(runs)]
    columns = list(dict.fromkeys(column for record in records for column in record.columns))
    opened = open_data(records[0].config)
    columns = columns or _default_columns(records[0], opened.graph)
    matrices = compare_similarities(records, opened, columns)
    queries, queries_how = find_neighbors(records, opened, columns, data)
    page = Page(
        title=title or "Training report: " + ", ".join(record.name for record in records),
        subtitle=_subtitle(records, opened.graph),
        remarks=(*remarks, *_notes(opened.graph)),
        runs=tuple(RunHead(record.name, number) for number, record in enumerate(records)),
        conditions=conditions(records, [_describe_graphs(record.config) for record in records]),
        results=results(records),
        curves=curves(records),
        matrices=matrices.figures if matrices else (),
        matrices_how=matrices.how if matrices else "",
        matrices_order=matrices.order if matrices else "",
        queries=queries,
        queries_how=queries_how,
        mark_names=tuple(columns) if queries and queries[0].rows[0].hits and queries[0].rows[0].hits[0].marks else (),
    )
    _write(out, render_page(page))
    return ReportResult(out=out, runs=tuple(record.name for record in records), bytes=out.stat().st_size)


def _default_columns(run: RunRecord, graph: Graph | None) -> list[str]:
    images = recorded(graph.manifest.dataset) if graph else None
    column = run.config.label_column or (images.label_column if images else None)
    return [column] if column else []


def _subtitle(runs: Sequence[RunRecord], graph: Graph | None) -> str:
    objectives = ", ".join(dict.fromkeys(run.config.objective for run in runs))
    where = f"the data set {graph.manifest.dataset.get('name')}" if graph else short_path(runs[0].config.data or "")
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''} ({objectives}) on {where}."


def _notes(graph: Graph | None) -> tuple[str, ...]:
    images = recorded(graph.manifest.dataset) if graph else None
    return (f"The pictures are {images.note}.",) if images and images.note else ()


def _describe_graphs(config: TrainConfig) -> str:
    if not config.graphs:
        return "none"
    heads = {head.graph_dir: f"{head.weight:g} of head {head.name}: " for head in config.heads}
    shares = dict(zip(config.graphs, config.graph_shares, strict=False)) if config.more_graphs else {}
    mixed = {path: f"{share:.3g} of the {config.graph_mix}: " for path, share in shares.items()}
    return "; ".join((heads | mixed).get(path, "") + _describe_graph(path) for path in config.graphs)


def _describe_graph(graph_dir: str) -> str:
    graph = Graph.open(Path(graph_dir))
    encoder = graph.manifest.encoder
    stored = "all pairs" if graph.is_complete else f"{graph.k} neighbours a text"
    return (
        f"{short_path(str(graph.path))}: {graph.n_texts:,} texts, {stored}, sketch of {graph.sketch_dim} bytes; "
        f"{encoder.get('name')}, {encoder.get('dim')} wide, {encoder.get('precision')}"
    )


def _write(out: Path, html: str) -> None:
    write_text(out, html)
