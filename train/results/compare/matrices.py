"""Similarity matrices side by side: what the texts say of some training images, and what each arm's first run learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from graphbuild.errors import OptionError
from graphbuild.store.arrays import Float32
from train.data.prepare import open_data
from train.results.compare.figure import require_figure_name, save_figure
from train.results.report.figures import off_diagonal_range
from train.results.report.pictures import measure_similarities
from train.results.report.runs import read_runs
from train.results.report.similarity import agreement
from train.run.loop import settle

_PANEL_INCHES = 2.1


def write_matrices(runs: Sequence[Path], names: Sequence[str], out: Path, *, column: str) -> None:
    """Draw them into a file; above each learned matrix stands its correlation with the texts'.

    Args:
        runs: A run of every arm; the first one's images and graph are used for all.
        names: What the arms are called.
        out: The file.
        column: Label column that orders the texts; one that the images lack is passed over.

    Raises:
        OptionError: If the first run has no graph.
        UserError: If a run is not finished, or its images cannot be read.
    """
    require_figure_name(out)
    records = [replace(record, config=settle(replace(record.config, device="auto"))) for record in read_runs(runs)]
    found = measure_similarities(records, open_data(records[0].config), [column])
    if found is None:
        raise OptionError(f"{runs[0]}: has no graph, so that there are no similarities of texts to compare with.")
    shown = {record.name: name for record, name in zip(records, names, strict=True)}
    panels = {"texts": found.texts_NN}
    for name, matrix in found.learned.items():
        panels[f"{shown.get(name, name)} ({agreement(matrix, found.texts_NN):.2f})"] = matrix
    draw(panels, out)


def draw(panels: dict[str, Float32], out: Path) -> None:
    """Draw one row of matrices, each on its own scale: the 1st to the 99th percentile of what is off the diagonal."""
    # Loaded here: a second of import that only figures need.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL_INCHES * len(panels), _PANEL_INCHES + 0.3), layout="constrained")
    for axes, (title, matrix) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        low, high = off_diagonal_range(matrix)
        axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axes.set_title(title, fontsize="small")
        axes.set_xticks([])
        axes.set_yticks([])
    save_figure(figure, out)
