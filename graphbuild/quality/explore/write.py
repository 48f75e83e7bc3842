"""`graphbuild explore`: a graph's texts as a map, in the files that embedding-atlas reads.

Shape letters: N texts of the graph, n texts on the map.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import polars as pl

from graphbuild.errors import OptionError
from graphbuild.quality.curate.decisions import require_neighbors
from graphbuild.quality.explore.columns import in_degrees, map_columns, start_positions, thumbnails
from graphbuild.quality.explore.labels import Label, label_clusters
from graphbuild.quality.explore.layout import Truth, judge, lay_out
from graphbuild.quality.explore.select import MOST_TEXTS, Selection, select_texts
from graphbuild.quality.explore.viewer import HINT, export_site, find_viewer, viewer_arguments
from graphbuild.store import schemas
from graphbuild.store.atomic import atomic_path, write_json
from graphbuild.store.frames import Frames
from graphbuild.store.outputs import PARQUET_METADATA, require_replaceable
from graphbuild.system.answers import Answer, next_steps, quoted
from graphbuild.system.progress import progress, stages

FOLDER = "explore"
_MAP, _LABELS, _STATE = "atlas.parquet", "labels.parquet", "state.json"
_STAGES = ("choosing texts", "placing", "judging", "labelling", "gathering", "writing")
_LABEL_WIDTH = 28
_SHOWN = ("in_degree", "similarity_1", "similarity_16", "similarity_256", "sample_count")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExploreConfig:
    """What a map shows."""

    folder: Path | None = None
    """Where its files go; None: explore/ in the graph directory."""
    site: Path | None = None
    """Where a static site goes; None writes none."""
    count: int | None = MOST_TEXTS
    """Texts at most; None takes all."""
    images: bool = True
    """Thumbnails where the manifest names pictures."""
    seed: int = 0
    overwrite: bool = False
    """Replace files that no map of ours is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExploreResult(Answer):
    """The files of a map, and how true it is."""

    graph_dir: Path
    folder: Path
    site: Path | None
    texts: int
    how: str
    truth: Truth
    labels: int
    images: int
    viewer: str | None
    """The viewer's program, where it is installed."""

    def summary(self) -> str:
        """Return lines for people, the last of which says how to look at the map."""
        lines = [
            f"{self.folder}: a map of {self.how}, {self.labels} labels" + (f", {self.images:,} pictures" if self.images else ""),
            self.truth.summary(),
        ]
        if self.site is not None:
            serve = f"python -m http.server --bind 127.0.0.1 --directory {quoted(self.site)}"
            return "\n".join([*lines, f"{self.site}: a static site", next_steps(serve)])
        command = shlex.join(viewer_arguments(images=self.images > 0))
        return "\n".join([*lines, next_steps(f"cd {quoted(self.folder)} && {self.viewer or HINT} {command}")])


def write_map(graph_dir: Path, config: ExploreConfig) -> ExploreResult:
    """Lay out a graph's texts and write atlas.parquet, labels.parquet and state.json.

    Raises:
        ArtifactError: If the graph is not finished, or damaged.
        OptionError: If umap-learn is missing, there are too few texts, or a folder or file is taken.
    """
    tables = Frames(graph_dir)
    require_neighbors(tables)
    if config.site is not None and find_viewer() is None:
        export_site(Path(), config.site, images=False)
    folder = config.folder or graph_dir / FOLDER
    for name in (_MAP, _LABELS):
        require_replaceable(folder / name, overwrite=config.overwrite)
    if (folder / _STATE).exists() and not (folder / _MAP).exists() and not config.overwrite:
        raise OptionError(f"{folder / _STATE}: is there already, without a map. Choose another --map-dir, or add --overwrite.")
    with stages(*_STAGES):
        with progress("choosing texts", None):
            degrees_N = in_degrees(tables.graph)
            chosen = select_texts(tables, degrees_N, count=config.count, seed=config.seed)
        with progress("placing", None, unit="epochs") as meter:
            start = start_positions(tables, chosen)
            positions = lay_out(chosen.neighbors_nm, chosen.similarities_nm, start, seed=config.seed, report=meter.reach)
        with progress("judging", None):
            truth = judge(positions, chosen.neighbors_nm, _vectors(tables, chosen), seed=config.seed)
        with progress("labelling", None):
            labels = label_clusters(positions, chosen.neighbors_nm, chosen.similarities_nm, seed=config.seed)
        with progress("gathering", None):
            frame = map_columns(tables, chosen, degrees_N, positions)
            pictures = thumbnails(tables, chosen) if config.images else None
            frame = frame if pictures is None else frame.with_columns(pictures)
        with progress("writing", None):
            _write(folder, frame, labels, truth, chosen)
            if config.site is not None:
                export_site(folder, config.site, images=pictures is not None)
    return ExploreResult(
        graph_dir=graph_dir,
        folder=folder,
        site=config.site,
        texts=len(frame),
        how=chosen.how,
        truth=truth,
        labels=len(labels),
        images=0 if pictures is None else len(pictures) - pictures.null_count(),
        viewer=find_viewer(),
    )


def _vectors(tables: Frames, chosen: Selection) -> np.ndarray[Any, Any] | None:
    return tables.graph.embeddings()[chosen.ids_n] if "embed" in tables.manifest.stages else None


def _write(folder: Path, frame: pl.DataFrame, labels: list[Label], truth: Truth, chosen: Selection) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, PermissionError) as error:
        raise OptionError(f"{folder}: cannot be made ({error.strerror}). Choose another with --map-dir.") from None
    rows = [label.row for label in labels]
    texts = ["\n".join(wrap(text, _LABEL_WIDTH, max_lines=2, placeholder=" ...")) for text in frame[rows][schemas.TEXT]]
    named = (
        frame[rows]
        .select("x", "y", schemas.TEXT)
        .with_columns(
            # Wrapped and cut: a label as wide as a caption would leave no room for others.
            pl.Series(schemas.TEXT, texts),
            # What versions of the viewer from 0.20 on call the text.
            pl.Series("content", texts),
            pl.Series("level", [label.level for label in labels], dtype=pl.Int32),
            pl.Series("priority", [label.texts for label in labels], dtype=pl.Int32),
        )
    )
    for name, table in ((_MAP, frame), (_LABELS, named)):
        with atomic_path(folder / name) as temporary:
            table.write_parquet(temporary, metadata=PARQUET_METADATA)
    write_json(folder / _STATE, _state(frame, truth, chosen))


def _state(frame: pl.DataFrame, truth: Truth, chosen: Selection) -> dict[str, Any]:
    """Return the charts that the viewer opens with: how true the map is, then the map, then figures of the graph."""
    said = f"A map of {chosen.how}. {truth.summary()}"
    image = {"image": "image"} if "image" in frame.columns else {}
    charts: list[dict[str, Any]] = [
        {
            "type": "embedding",
            "title": "Texts",
            "data": {"x": "x", "y": "y", "text": "text", "importance": "in_degree", "neighbors": "neighbors", **image},
        },
        {"type": "markdown", "title": "How true this map is", "content": said},
        {"type": "predicates", "title": "SQL predicates"},
    ]
    for name in frame.columns:
        if name in _SHOWN:
            charts.append(_histogram(name))
        elif frame[name].dtype == pl.String and name not in (schemas.TEXT, schemas.SAMPLE_ID):
            charts.append({"type": "count-plot", "title": name, "data": {"field": name}})
    charts.append({"type": "instances", "title": "Table"})
    styles = {name: {"display": "hidden"} for name in ("x", "y", "neighbors", "near_duplicate_group", "FILE_NAME")}
    if image:
        styles["image"] = {"display": "full", "renderer": "image"}
    state = {"charts": {str(number): chart for number, chart in enumerate(charts, start=1)}, "columnStyles": styles}
    return {"props": {"initialState": state}}


def _histogram(field: str) -> dict[str, Any]:
    bars = {"mark": "bar", "encoding": {"x": {"field": field}, "y": {"aggregate": "count"}}}
    layers = [{**bars, "style": {"fillColor": "$markColorFade"}}, {**bars, "filter": "$filter"}]
    return {"title": field, "layers": layers, "selection": {"brush": {"encoding": "x"}}}
