"""What run folders say of themselves: conditions, scores and curves, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphbuild.errors import ArtifactError
from train.config import TrainConfig, told_objective
from train.evaluate.run import Scores
from train.results.report.figures import Curve, line_chart
from train.results.report.page import Cell, CurveFigure, ResultRow, Results, same_for_all
from train.run.checkpoint import WEIGHTS, resume_command
from train.run.folder import EVAL_FILE, TRAINED, UNTRAINED, read_run_config
from train.run.metrics import EVENTS_FILE, read_lines, read_metrics
from train.run.scores import HEADLINE, read_scores

_Z = 1.96


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What the report needs of a finished run."""

    path: Path
    name: str
    config: TrainConfig
    metrics: list[dict[str, Any]]
    seconds: float | None
    """Spent training."""
    scores: Scores = field(default_factory=dict)
    """From eval.json; empty where the run was not evaluated."""
    evaluated: dict[str, Any] = field(default_factory=dict)
    """The rest of eval.json."""

    @property
    def columns(self) -> list[str]:
        """Return the label columns that were evaluated."""
        return [name for name, scores in next(iter(self.scores.values()), {}).items() if "n_train" in scores]


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read finished runs from their folders, told apart by name.

    Raises:
        OptionError: If a folder is not that of a run.
        ArtifactError: If a run is not finished, or its eval.json cannot be read.
    """
    whole = list(dict.fromkeys(path.resolve() for path in paths))
    return [_read_run(path, name) for path, name in zip(whole, distinct_names(whole), strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Name different folders by the last parts of their paths: as few as tell each from all others."""

    def name(path: Path) -> str:
        others = [other for other in paths if other != path]
        for count in range(1, len(path.parts) + 1):
            if all(other.parts[-count:] != path.parts[-count:] for other in others):
                break
        return str(Path(*path.parts[-count:]))

    return [name(path) for path in paths]


def _read_run(path: Path, name: str) -> RunRecord:
    config = read_run_config(path)
    if not (path / WEIGHTS).exists():
        raise ArtifactError(f"{path}: the run is not finished. Go on with `{resume_command(path)}`.")
    finishes = [line["seconds"] for line in read_lines(path / EVENTS_FILE) if line.get("event") == "finish"]
    evaluated = read_scores(path / EVAL_FILE) if (path / EVAL_FILE).exists() else {}
    scores = evaluated.pop("scores", {})
    return RunRecord(path, name, config, read_metrics(path), finishes[-1] if finishes else None, scores, evaluated)


def conditions(runs: Sequence[RunRecord], graphs: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Name and values of everything that a comparison should know; one value where all runs agree."""
    rows: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("objective", lambda run: told_objective(run.config)),
        ("images", lambda run: short_path(run.config.data or "none")),
        ("images seen", lambda run: f"{_last(run, 'images_seen'):,}, two views each"),
        ("steps", lambda run: f"{_last(run, 'step'):,} of {run.config.batch_size:,} images"),
        ("network", lambda run: f"{run.config.model} at {run.config.image_size} px, projection {run.config.projector_dim} wide"),
        ("views", lambda run: f"{run.config.augment}, crops of at least {run.config.crop_min:.0%} of the area"),
        ("optimizer", lambda run: f"{run.config.optimizer}, learning rate {_number(run.config.lr)}"),
        ("temperature", lambda run: _number(run.config.logit_temperature)),
        ("target temperature", lambda run: _number(run.config.tau_s if run.config.has_soft_target else None)),
        ("arithmetic", lambda run: run.config.precision),
        ("training time", lambda run: "unknown" if run.seconds is None else f"{run.seconds:,.0f} s"),
        ("hit rate", lambda run: _mean(run, "hit_rate")),
        ("own-view mass", lambda run: _mean(run, "own_view_mass")),
        ("KL to the dense target", lambda run: _mean(run, "kl_to_dense", " nats")),
    ]
    found = [(name, same_for_all([value(run) for run in runs])) for name, value in rows]
    return (*found[:2], ("graph", same_for_all(list(graphs))), *found[2:])


def short_path(path: str) -> str:
    """Return a path below the working directory as it is; of any other the last three parts: reports are read on other machines."""
    given = Path(path)
    if not given.is_absolute():
        return path
    if given.is_relative_to(Path.cwd()):
        return str(given.relative_to(Path.cwd()))
    return str(Path(*given.parts[-3:]))


def _last(run: RunRecord, name: str) -> int:
    return int(run.metrics[-1].get(name, 0)) if run.metrics else 0


def _number(value: float | str | None) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def _mean(run: RunRecord, name: str, unit: str = "") -> str:
    """Mean over all logged steps."""
    values = [line[name] for line in run.metrics if line.get(name) is not None]
    return f"{sum(values) / len(values):.3g}{unit}" if values else "none"


def results(runs: Sequence[RunRecord]) -> tuple[Results, ...]:
    """Return a table of scores for each data set that runs were evaluated on.

    Chance and untrained nets stand first, then the runs; the best trained one of a column is marked where it is told apart
    from the next.
    """
    by_data: dict[Any, list[tuple[int, RunRecord]]] = {}
    for number, run in enumerate(runs):
        if run.scores:
            images = [run.evaluated.get(name) for name in ("data", "train_data", "images", "train_images")]
            by_data.setdefault(tuple(images), []).append((number, run))
    return tuple(_results(scored, named=len(by_data) > 1) for scored in by_data.values())


def _results(scored: Sequence[tuple[int, RunRecord]], *, named: bool) -> Results:
    columns = list(dict.fromkeys(column for _, run in scored for column in run.columns))
    first = scored[0][1]
    trained = [_values(run.scores.get(TRAINED, {}), columns) for _, run in scored]
    images = int(first.evaluated.get("images", 0))
    best = [_told_apart([value for value in values if value is not None], images) for values in zip(*trained, strict=True)]
    rows = [ResultRow("chance", tuple(Cell(_percent(value)) for value in _chance(scored, columns)), reference=True)]
    rows += [
        ResultRow(name, tuple(Cell(_percent(value)) for value in _values(run.scores[UNTRAINED], columns)), reference=True)
        for name, run in _untrained(scored)
    ]
    rows += [
        ResultRow(
            run.name, tuple(Cell(_percent(v), v is not None and v == top) for v, top in zip(values, best, strict=True)), number
        )
        for (number, run), values in zip(scored, trained, strict=True)
    ]
    counts = f"{images:,} held-out images, {first.evaluated.get('train_images', 0):,} to learn from"
    where = f" of {short_path(str(first.evaluated.get('data', '')))}" if named else ""
    how = (
        f"Top-1 accuracy in percent on {counts}{where}: a vote of the 20 nearest neighbours, and a linear probe. Bold: ahead of "
        "every other run by more than chance among these images explains (95 %). It says nothing of other seeds."
    )
    return Results(how, tuple((column, tuple(name for _, name in HEADLINE)) for column in columns), tuple(rows))


def _told_apart(values: Sequence[float], images: int) -> float | None:
    """The best of some accuracies, if a test of two proportions tells it from the next; None else, or where it stands alone."""
    if len(values) < 2 or not images:
        return None
    second, best = sorted(values)[-2:]
    error = math.sqrt((best * (1 - best) + second * (1 - second)) / images)
    return best if best - second > _Z * error else None


def _values(by_column: Mapping[str, Mapping[str, float]], columns: Sequence[str]) -> list[float | None]:
    return [by_column.get(column, {}).get(name) for column in columns for name, _ in HEADLINE]


def _chance(scored: Sequence[tuple[int, RunRecord]], columns: Sequence[str]) -> list[float | None]:
    found: dict[str, float] = {}
    for _, run in scored:
        by_column = next(iter(run.scores.values()))
        for column in run.columns:
            found.setdefault(column, by_column[column]["chance"])
    return [found.get(column) for column in columns for _ in HEADLINE]


def _untrained(scored: Sequence[tuple[int, RunRecord]]) -> list[tuple[str, RunRecord]]:
    """One untrained net of each kind: runs of one seed and network begin with the same."""
    kinds: dict[tuple[Any, ...], RunRecord] = {}
    for _, run in scored:
        if UNTRAINED in run.scores:
            config = run.config
            kinds.setdefault((config.model, config.image_size, config.seed, config.precision), run)
    return [("untrained" if len(kinds) == 1 else f"untrained, of {run.name}", run) for run in kinds.values()]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


_CURVES = (
    ("kl", "Excess loss", "nats", "Loss minus the target's entropy: comparable between targets; zero is a perfect fit."),
    ("loss", "Loss", "nats", "Cross-entropy against the target; a softer target has a higher floor."),
    ("hit_rate", "Hit rate", "stored neighbours an anchor", "Neighbours from the graph that meet in a batch."),
    ("own_view_mass", "Own-view mass", "share of the target", "What the target leaves to the other view of the same image."),
)


def curves(runs: Sequence[RunRecord]) -> tuple[CurveFigure, ...]:
    """Return charts over steps, of all runs that logged the figure."""
    figures = []
    for key, title, unit, caption in _CURVES:
        drawn = [
            Curve(run.name, number, [line["step"] for line in found], [line[key] for line in found])
            for number, run in enumerate(runs)
            if (found := [line for line in run.metrics if line.get(key) is not None])
        ]
        svg = line_chart(drawn, x_label="step", y_label=unit)
        if svg is not None:
            figures.append(CurveFigure(f"{title} ({unit})", svg, caption))
    return tuple(figures)
