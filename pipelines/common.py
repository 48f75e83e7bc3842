"""What recipes share: saying where they are, running a stage once, and tables of scores."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from train.evaluate.options import NEEDS, EvalOptions, ProtocolName
from train.evaluate.run import evaluate_run
from train.run.checkpoint import CONFIG_FILE, RECEIPT, WEIGHTS, checkpoints
from train.run.folder import EVAL_FILE, TRAINED, UNTRAINED, read_run_config
from train.run.scores import HEADLINE, read_scores


class Steps:
    """Headings on stdout, with the time since the start."""

    def __init__(self, count: int) -> None:
        self._count, self._number, self._began = count, 0, time.monotonic()

    def begin(self, what: str) -> None:
        """Say what comes next."""
        self._number += 1
        click.echo(f"\n[{self._number}/{self._count}, {self.seconds():.0f} s] {what}")

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._began


def tell(result: Any, *, indent: str = "") -> None:
    """Print what a step of a recipe did, without what a user would do next: the recipe does it."""
    lines = [line for line in result.summary().splitlines() if not line.startswith("next: ")]
    click.echo("\n".join(indent + line for line in lines))


def run_holds(run_dir: Path, options: Mapping[str, Any], fingerprint: str) -> bool:
    """Return whether a folder holds a run, finished or not, of these options and of the data with this fingerprint."""
    if not (run_dir / CONFIG_FILE).exists():
        return False
    stored = read_run_config(run_dir)
    shown = {name: value for name, value in options.items() if name not in ("graph_dir", "data")}
    if any(getattr(stored, name) != value for name, value in shown.items()):
        return False
    saved = checkpoints(run_dir)
    # Without a checkpoint nothing was learned yet from any data.
    return not saved or _fingerprint(saved[0] / RECEIPT) == fingerprint


def _fingerprint(receipt: Path) -> str | None:
    try:
        value: str = json.loads(receipt.read_text(encoding="utf-8"))["position"]["fingerprint"]
        return value
    except (OSError, ValueError, KeyError):
        return None


def evaluate_once(
    run_dir: Path,
    *,
    data: str | None,
    columns: Sequence[str],
    untrained: bool,
    train_data: str | None = None,
    sets: Mapping[str, str] | None = None,
) -> Mapping[str, Any]:
    """Return the scores of a run by encoder and column, from its eval.json if that holds them already.

    Args:
        run_dir: The run.
        data: Images to classify; None: as `train eval` finds them.
        columns: Label columns.
        untrained: Whether the net that was started from is scored, too.
        train_data: Images to learn from; None: those of the run.
        sets: Published sets to score, too: fields of `EvalOptions`, and their files.
    """
    files: dict[str, Any] = dict(sets or {})
    published = tuple(protocol for protocol, name in NEEDS.items() if name in files)
    path = run_dir / EVAL_FILE
    if path.exists():
        stored = read_scores(path)
        scores: Mapping[str, Any] = stored["scores"]
        # Weights that are newer than their scores were trained again.
        current = path.stat().st_mtime >= (run_dir / WEIGHTS).stat().st_mtime
        # MIT-States has two sets of scores, "mit-states object" and "mit-states attribute".
        scored = {*scores[TRAINED], *(name.partition(" ")[0] for name in scores[TRAINED])}
        if current and {*columns, *published} <= scored and (UNTRAINED in scores or not untrained):
            click.echo(f"{path}: evaluated before, reused")
            return scores
    # The headline figures only: a recipe is to end soon.
    protocols: tuple[ProtocolName, ...] = ("knn", "linear", *published)
    images = EvalOptions(data=data, train_data=train_data, label_columns=tuple(columns), untrained=untrained)
    options = replace(images, protocols=protocols, **files)
    return evaluate_run(run_dir, options).scores


def score_rows(scores: Mapping[str, Mapping[str, Any]], columns: Sequence[str], start: str = UNTRAINED) -> list[list[str]]:
    """Return rows of a table: chance, the net that was started from, then each run; percent, one decimal.

    Args:
        scores: By run, what `evaluate_once` gave; one of them with the untrained net.
        columns: Label columns, in the order of the table's.
        start: What that net is called.
    """
    first = next(values for values in scores.values() if UNTRAINED in values)
    rows = [["chance", *(_percent(first[TRAINED][column]["chance"]) for column in columns for _ in HEADLINE)]]
    for name, by_column in ((start, first[UNTRAINED]), *((run, values[TRAINED]) for run, values in scores.items())):
        rows.append([name, *(_percent(by_column[column][key]) for column in columns for key, _ in HEADLINE)])
    return rows


def score_headings(columns: Sequence[str]) -> list[str]:
    """Return headings that go with `score_rows`."""
    return ["encoder", *(f"{column} {name}" for column in columns for _, name in HEADLINE)]


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal: the first column to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (headings, *rows)
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
