"""The measures that the paper (arXiv 2407.18134) reports on ImageNet and beyond, as one table of a recipe's own runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from train.results.compare.table import markdown_table
from train.run.folder import EVAL_FILE, TRAINED, UNTRAINED
from train.run.scores import LINEAR_TOP1, read_scores

_MISSING = "–"


class Measure(NamedTuple):
    """A column of the table."""

    heading: str
    scored_on: str
    """Label column or data set in eval.json."""
    score: str
    option: str | None = None
    """Option of the recipe without which it is not measured."""


def measures(label: str) -> tuple[Measure, ...]:
    """Return the paper's measures in its order: linear probes of frozen features, with ImageNet's classes in `label`."""
    return (
        Measure("ImageNet", label, LINEAR_TOP1),
        Measure("ImageNet Real", "imagenet-real", LINEAR_TOP1, "--real-labels"),
        Measure("IN-9 same class", "imagenet-9", "mixed_same", "--imagenet9"),
        Measure("IN-9 mixed", "imagenet-9", "mixed_rand", "--imagenet9"),
        Measure("ObjectNet", "objectnet", LINEAR_TOP1, "--objectnet"),
        Measure("MIT-States objects", "mit-states object", LINEAR_TOP1, "--mit-states"),
        Measure("MIT-States attributes", "mit-states attribute", LINEAR_TOP1, "--mit-states"),
    )


def paper_table(runs: Path, label: str) -> str:
    """Return a row for each evaluated run in a folder, and one for the net before; percent, one decimal.

    Other objectives trained into the same folder (`train run --objective simclr --run-dir RUNS/simclr`) and evaluated by
    `train eval` are rows, too. What no run was scored on stands below the table, with the option that names its pictures.
    """
    columns = measures(label)
    scores = {path.parent.name: read_scores(path)["scores"] for path in sorted(runs.glob(f"*/{EVAL_FILE}"))}
    found = [(name, by_encoder[TRAINED]) for name, by_encoder in scores.items()]
    before = next((by_encoder[UNTRAINED] for by_encoder in scores.values() if UNTRAINED in by_encoder), None)
    encoders = found if before is None else [(UNTRAINED, before), *found]
    rows = [[name, *(_cell(scored, one) for one in columns)] for name, scored in encoders]
    absent = [one for one in columns if one.option and all(_cell(scored, one) == _MISSING for _, scored in found)]
    options = ", ".join(dict.fromkeys(str(one.option) for one in absent))
    note = f"\n\nNot measured: give {options}." if options else ""
    return markdown_table(["linear probe, %", *(one.heading for one in columns)], rows) + note


def _cell(scores: Mapping[str, Mapping[str, Any]], measure: Measure) -> str:
    value = scores.get(measure.scored_on, {}).get(measure.score)
    return _MISSING if value is None else f"{100 * value:.1f}"
