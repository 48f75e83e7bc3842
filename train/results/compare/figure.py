"""Accuracy of a linear probe against labelled samples per class, an arm a line, its 95 % interval as a band."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphbuild.errors import OptionError
from graphbuild.store.atomic import atomic_path
from graphbuild.store.outputs import MARK
from train.evaluate.intervals import mean_interval
from train.results.compare.arms import Arm
from train.run.scores import LINEAR_TOP1

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
_POINTS = {"linear_n1": 1.0, "linear_n5": 5.0, "linear_n20": 20.0}
_SHARES = {"linear_10pct": 0.1, LINEAR_TOP1: 1.0}
_SIZE_INCHES = (5.2, 3.6)

Point = tuple[float, float, float]
"""Samples per class, mean accuracy, half its 95 % interval (0 where there is a single run)."""


def accuracy_curve(arm: Arm, column: str) -> list[Point]:
    """Return the points of one arm, by samples per class; empty where low-data probes were not run."""
    counts, classes = arm.values((column, "n_train")), arm.values((column, "classes"))
    found = dict(_POINTS)
    if counts and classes:
        seed = next(iter(counts))
        found |= {name: share * counts[seed] / classes[seed] for name, share in _SHARES.items()}
    points = {}
    for name, samples in found.items():
        if values := arm.values((column, name)):
            mean, half = mean_interval(list(values.values()))
            points[samples] = (samples, mean, half or 0.0)
    return [points[samples] for samples in sorted(points)] if len(points) > 1 else []


def write_figure(arms: Sequence[Arm], path: Path) -> None:
    """Draw the curves of the first label column that has any.

    Raises:
        OptionError: If no run has low-data probes, or the file's name does not tell a known form.
    """
    require_figure_name(path)
    columns = dict.fromkeys(column for arm in arms for scores in arm.scores.values() for column, _ in scores)
    curves = next((drawn for column in columns if (drawn := _curves(arms, column))), None)
    if curves is None:
        raise OptionError("--figure: no run has probes on little data. Run `train eval RUN --protocol linear --protocol low-data`.")
    # Loaded here: a second of import that only figures need.
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        samples, means, halves = zip(*points, strict=True)
        (line,) = axes.plot(samples, [100 * mean for mean in means], marker="o", markersize=3.5, linewidth=1.6, label=name)
        low, high = ([100 * (mean + sign * half) for mean, half in zip(means, halves, strict=True)] for sign in (-1, 1))
        axes.fill_between(samples, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("labelled samples per class")
    axes.set_ylabel("linear probe, top-1 in %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, in the form that its name says; the same figure is the same bytes."""
    from matplotlib import rc_context

    # Else the parts of an SVG have names that are drawn.
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": MARK}):
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=200, metadata=_metadata_of(path))


def _metadata_of(path: Path) -> dict[str, str | None]:
    """Return what a figure's file says of itself: that this program wrote it, and not when."""
    if path.suffix == ".png":
        return {"Software": MARK}
    return {"Creator": MARK, "Date" if path.suffix == ".svg" else "CreationDate": None}


def require_figure_name(path: Path) -> None:
    """Refuse a file whose name does not tell a form that figures have.

    Raises:
        OptionError: If so.
    """
    if path.suffix not in _SUFFIXES:
        raise OptionError(f"{path}: a figure's name ends in {', '.join(_SUFFIXES)}.")


def _curves(arms: Sequence[Arm], column: str) -> dict[str, list[Point]]:
    return {arm.name: points for arm in arms if (points := accuracy_curve(arm, column))}
