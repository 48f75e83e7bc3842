"""Putting the report together: run folders in, an HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graphbuild.errors import OptionError
from graphbuild.store.atomic import write_text
from graphbuild.store.graph import Graph
from graphbuild.store.images import recorded
from graphbuild.store.outputs import require_replaceable
from graphbuild.system.answers import Answer
from graphbuild.system.progress import progress, stages
from train.config import TrainConfig
from train.data.prepare import OpenData, open_data
from train.results.report.neighbors import find_neighborhoods
from train.results.report.page import Page, Place, RunHead, render_page
from train.results.report.pictures import compare_similarities
from train.results.report.runs import RunRecord, conditions, curves, read_runs, results, short_path
from train.run.loop import settle


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult(Answer):
    """The report that was written."""

    out: Path
    runs: tuple[str, ...]
    bytes: int

    def summary(self) -> str:
        """Return lines for people."""
        size = f"{self.bytes / 1e6:.1f} MB, one file, no network needed"
        return f"{self.out}: {', '.join(self.runs)} ({size})\nnext: open it in a browser"


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
        runs: Their folders. All of them are shown on the images and graph of each that has others than those before it.
        out: The file; replaced if a report wrote it.
        data: Held-out images for the neighbours; None: those that the graph or the evaluation names.
        title: Of the page.
        remarks: Lines below the title.
        overwrite: Replace any file.

    Raises:
        OptionError: If there is no run, a folder is not that of one, or the file is somebody else's.
        ArtifactError: If a run is not finished, or a graph is damaged.
        SourceError: If the images of a run cannot be read.
    """
    if not runs:
        raise OptionError("no run to report on. Name the folders of finished runs, such as runs/xclr-1.")
    require_replaceable(out, overwrite=overwrite)
    records = [replace(record, config=settle(replace(record.config, device="auto"))) for record in read_runs(runs)]
    columns = list(dict.fromkeys(column for record in records for column in record.columns))
    found = [(record, open_data(record.config)) for record in _different_data(records)]
    opened = found[0][1]
    columns = columns or _default_columns(records[0], opened.graph)
    with stages("similarities", "neighbours"):
        places = tuple(_place(records, record, one, columns, data, titled=len(found) > 1) for record, one in found)
    page = Page(
        title=title or "Training report: " + ", ".join(record.name for record in records),
        subtitle=_subtitle(records, opened.graph),
        remarks=(*remarks, *_notes(opened.graph)),
        runs=tuple(RunHead(record.name, number) for number, record in enumerate(records)),
        conditions=conditions(records, [_describe_graphs(record.config) for record in records]),
        results=results(records),
        curves=curves(records),
        places=places,
    )
    write_text(out, render_page(page))
    return ReportResult(out=out, runs=tuple(record.name for record in records), bytes=out.stat().st_size)


def _different_data(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The first run on each pair of images and graph; one without a graph only where no other has its images."""
    first: dict[tuple[str | None, str | None], RunRecord] = {}
    for record in records:
        first.setdefault((record.config.data, record.config.graph_dir), record)
    with_graph = {data for data, graph_dir in first if graph_dir is not None}
    return [record for (data, graph_dir), record in first.items() if graph_dir is not None or data not in with_graph]


def _place(
    records: Sequence[RunRecord], record: RunRecord, opened: OpenData, columns: Sequence[str], data: str | None, *, titled: bool
) -> Place:
    with progress("similarities", None):
        matrices = compare_similarities(records, opened, columns)
    with progress("neighbours", None):
        neighborhoods = find_neighborhoods(records, record, opened, columns, data)
    graph = f", by the texts of {short_path(str(opened.graph.path))}" if opened.graph else ""
    return Place(
        title=f"On {short_path(record.config.data or '')}{graph}" if titled else "",
        matrices=matrices.figures if matrices else (),
        matrices_how=matrices.how if matrices else "",
        matrices_order=matrices.order if matrices else "",
        neighborhoods=neighborhoods,
    )


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
