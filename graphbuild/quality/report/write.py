"""Putting the report together. Captions, labels, ids and paths come from outside: the template escapes every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphbuild.errors import OptionError
from graphbuild.quality.fidelity import Fidelity, FidelityConfig, measure_fidelity
from graphbuild.quality.health.result import Health
from graphbuild.quality.pictures import pictures
from graphbuild.quality.report.figures import figures
from graphbuild.quality.report.map import MapFigure, draw_map
from graphbuild.quality.report.page import FidelityTable, Neighborhood, Page, render
from graphbuild.quality.report.worst import Found, Shown, find_worst, worst_cases
from graphbuild.quality.view import GraphView
from graphbuild.store import schemas
from graphbuild.store.atomic import read_json, remove_stale_temporaries, write_json, write_text
from graphbuild.store.outputs import require_replaceable
from graphbuild.system.answers import Answer, next_steps, quoted
from graphbuild.system.progress import progress, stages

_NEIGHBORHOODS, _NEIGHBORS = 8, 6
_LEAST_BATCH = 16
"""Samples below which a batch tells nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportResult(Answer):
    """The report that was written."""

    out: Path
    metrics: Path
    warnings: tuple[str, ...]
    bytes: int
    next: tuple[str, ...]
    """Commands."""

    def summary(self) -> str:
        """Return a few lines for people, warnings first."""
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines.append(f"{self.out}: {self.bytes / 1e3:,.0f} kB, one file, no network needed; {self.metrics}")
        return "\n".join([*lines, next_steps("open it in a browser", *self.next)])


def write_report(
    graph_dir: Path,
    out: Path | None = None,
    *,
    fidelity: bool = True,
    chart: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> ReportResult:
    """Measure a graph and write report.html, and metrics.json beside it.

    Args:
        graph_dir: A graph with neighbours.
        out: The HTML file; None: report/report.html in the graph directory.
        fidelity: Whether to measure what the stored rows lose of the target, in random batches and in batches of neighbours;
            a partition into chunks is made where it is missing.
        chart: Whether to draw a map: that of `graphbuild explore`, else one of up to 5,000 texts.
        overwrite: Replace any file, and not only those that a report wrote.
        options: Fields of `HealthConfig`.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If there is nothing to measure, or a file of others would be replaced.
        SourceError: If a column or file named in the options is not there.
    """
    out = out or graph_dir / schemas.REPORT / "report.html"
    metrics = out.with_name("metrics.json")
    require_replaceable(out, overwrite=overwrite)
    if not overwrite:
        _require_ours(metrics)
    remove_stale_temporaries(metrics.parent, of=metrics.name)
    view = GraphView(graph_dir)
    with stages("edges", "figures", "partition", "embeddings", "targets", "near-duplicates", "map"):
        health = view.health(**options)
        found = _fidelity(view, health) if fidelity else None
        worst = find_worst(view, health)
        seed = int(health.config["seed"])
        drawn = _map(view, list(worst.hubs), seed) if chart else (None, "")
    page = _page(graph_dir, view, health, found, worst, drawn, np.random.default_rng(seed))
    write_text(out, render(page))
    write_json(metrics, health.to_json() | ({"fidelity": asdict(found)} if found else {}))
    commands = tuple(f"{name} --graph-dir {quoted(graph_dir)}" for name in ("graphbuild explore", "train run"))
    return ReportResult(
        out=out, metrics=metrics, warnings=tuple(head for head, _ in page.warnings), bytes=out.stat().st_size, next=commands
    )


def _page(
    graph_dir: Path,
    view: GraphView,
    health: Health,
    found: Fidelity | None,
    worst: Found,
    drawn: tuple[MapFigure | None, str],
    rng: np.random.Generator,
) -> Page:
    """Everything on the page; some texts are drawn, to be shown with their neighbours."""
    figure, map_note = drawn
    hoods = _draw_neighborhoods(view, rng)
    shown, note = _shown(view, sorted(worst.ids() | {one for center, near in hoods for one in (center, *dict(near))}))
    name = str(view.manifest.dataset.get("name", "graph"))
    return Page(
        title=f"Graph report: {graph_dir.absolute().name}",
        subtitle=f"{health.texts:,} texts of the data set {name}, "
        + ("every pair stored." if health.complete else f"{health.k:,} neighbours each."),
        warnings=_warnings(view, health),
        verdict=_verdict(health),
        map=figure,
        map_note=map_note,
        worst=worst_cases(worst, health, graph_dir, shown),
        health=health,
        figures=figures(health, found),
        fidelity=FidelityTable.of(found) if found else None,
        neighborhoods=tuple(
            Neighborhood(shown(center), tuple(shown(other, value) for other, value in near)) for center, near in hoods
        ),
        pictures_note=note,
        made_of=_made_of(view),
    )


def _require_ours(metrics: Path) -> None:
    """Refuse to replace a file that no report wrote: nobody named it."""
    if not metrics.exists():
        return
    try:
        held = read_json(metrics)
    except ValueError:
        held = None
    if not isinstance(held, dict) or not {"graph_dir", "measures"} <= held.keys():
        raise OptionError(f"{metrics}: is there already, and no report wrote it. Choose another --out, or add --overwrite.")


def _fidelity(view: GraphView, health: Health) -> Fidelity | None:
    """Measured on two batches of either kind; None for a graph without embeddings, such as an imported one."""
    samples = view.manifest.counts.get("samples", 0)
    if "embed" not in view.manifest.stages or samples < _LEAST_BATCH:
        return None
    batch_size = min(health.config["batch_size"], samples)
    return measure_fidelity(view.path, FidelityConfig(batch_size=batch_size, batches=2, seed=health.config["seed"]))


def _warnings(view: GraphView, health: Health) -> tuple[tuple[str, str], ...]:
    """Poor figures, and what was left out or cut while reading the captions."""
    found = [(f"{one.title}: {one.show(one.value)} (good is {one.good})", one.why) for one in health.warnings]
    counts = view.manifest.counts
    told = {
        "null_captions": ("captions are null and were left out", "Their samples are not in the graph, unless they have others."),
        "blank_captions": ("captions are blank and were left out", "Their samples are not in the graph, unless they have others."),
        "invalid_utf8_rows": (
            "rows held invalid UTF-8",
            "Each bad sequence became a replacement character; graph.json lists rows.",
        ),
        "truncated_texts": ("texts are longer than the encoder reads", "Only their beginnings count: shorten them, or split them."),
    }
    found += [(f"{counts[key]:,} {what}", remedy) for key, (what, remedy) in told.items() if counts.get(key)]
    return tuple(found)


def _verdict(health: Health) -> str:
    """One sentence: how many figures are good, fair, poor."""
    count = {verdict: sum(one.verdict == verdict for one in health.measures) for verdict in ("good", "fair", "poor")}
    if count["poor"]:
        advice = "Look at the warnings before you train on this graph."
    elif count["fair"]:
        advice = "Nothing speaks against training on this graph; the fair figures show where it could be better."
    else:
        advice = "Nothing speaks against training on this graph."
    return f"{count['good']} figures are good, {count['fair']} fair, {count['poor']} poor. {advice}"


def _map(view: GraphView, hubs: list[int], seed: int) -> tuple[MapFigure | None, str]:
    with progress("map", None):
        return draw_map(view, hubs, seed=seed)


def _draw_neighborhoods(view: GraphView, rng: np.random.Generator) -> list[tuple[int, list[tuple[int, float]]]]:
    """Random texts with their nearest neighbours and similarities."""
    graph = view.graph
    ids = np.sort(rng.choice(graph.n_texts, min(_NEIGHBORHOODS, graph.n_texts), replace=False))
    rows = graph.rows(ids)
    near, values = rows.neighbor_ids[:, :_NEIGHBORS].tolist(), rows.similarities[:, :_NEIGHBORS].astype(float).tolist()
    return [(text_id, list(zip(*pairs, strict=True))) for text_id, *pairs in zip(ids.tolist(), near, values, strict=True)]


def _shown(view: GraphView, text_ids: list[int]) -> tuple[Callable[..., Shown], str]:
    """Return what makes a text of one of these ids, with the picture of its first sample, and what to say of missing ones."""
    texts = dict(view.texts_of(text_ids).iter_rows())
    samples = _first_samples(view, text_ids)
    found, note = pictures(view.path, view.manifest, list(samples.values()))

    def shown(text_id: int, similarity: float | None = None) -> Shown:
        return Shown(text_id, texts[text_id], found.get(samples.get(text_id, "")), similarity)

    return shown, note


def _first_samples(view: GraphView, text_ids: list[int]) -> dict[int, str]:
    import polars as pl

    mine = view.samples.filter(pl.col(schemas.TEXT_ID).is_in(pl.Series(text_ids, dtype=pl.Int32).implode()))
    first = mine.group_by(schemas.TEXT_ID, maintain_order=True).agg(pl.col(schemas.SAMPLE_ID).first())
    return dict(first.collect(engine="streaming").iter_rows())


def _made_of(view: GraphView) -> tuple[tuple[str, str], ...]:
    """Where the graph comes from, in names and values."""
    manifest = view.manifest
    stage = manifest.stages["knn"]
    encoder = manifest.encoder
    pairs = [
        ("directory", str(view.path)),
        ("data set", str(manifest.dataset.get("name", ""))),
        ("files", ", ".join(Path(str(source)).name for source in manifest.dataset.get("sources", ()))),
        ("templates", "; ".join(manifest.dataset.get("templates", ()))),
        ("definitions", (manifest.dataset.get("definitions") or {}).get("name", "")),
        ("encoder", ", ".join(str(encoder[key]) for key in ("name", "revision", "precision") if encoder.get(key))),
        ("samples", f"{manifest.counts.get('samples', 0):,}"),
        ("texts", f"{manifest.counts.get('texts', 0):,}"),
        ("kernels", "; ".join(f"{','.join(one['columns'])} as {one['kind']}" for one in stage.config.get("kernels", ()))),
        ("neighbours", f"{stage.config['k']:,} a text, {stage.config['method']}"),
        ("sketch", f"{stage.config['sketch_dim']} bytes a text" if stage.config["sketch_dim"] else "none"),
    ]
    return tuple((name, value) for name, value in pairs if value)
