"""The comparison as a table: an arm a row, a measure a column, each cell beside the same cell of the baseline."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError
from train.compare.arms import Arm, Measure, read_arms
from train.compare.differences import Difference, difference
from train.evaluate.intervals import mean_interval

HEADLINES = (
    "knn_top1",
    "linear_top1",
    "linear_n5",
    "superclass_p10",
    "held_out_knn",
    "few_shot_mean_5",
    "few_shot_logistic_5",
    "severity",
)
"""Shown unless measures are named."""
_PLAIN = ("severity", "severity_all", "severity_chance")
"""Edges, not shares."""
ALIKE, UNKNOWN = "≈", "?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One measure of one arm."""

    arm: str
    column: str
    measure: str
    runs: int
    mean: float
    half: float | None
    """Half the 95 % interval of the mean."""
    versus: Difference | None
    """This arm less the baseline; None for the baseline itself."""

    def text(self) -> str:
        """Mean and interval, and a mark where the baseline is not told apart."""
        scale, digits = (1, 2) if self.measure in _PLAIN else (100, 1)
        shown = f"{scale * self.mean:.{digits}f}" + ("" if self.half is None else f" ± {scale * self.half:.{digits}f}")
        if self.versus is None or self.versus.significant:
            return shown
        return f"{shown} {UNKNOWN if self.versus.significant is None else ALIKE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All cells, arm by arm."""

    arms: tuple[Arm, ...]
    baseline: str
    measures: tuple[Measure, ...]
    cells: tuple[Cell, ...]

    def write(self, form: str) -> str:
        """As `md`, `csv` or `json`."""
        if form == "json":
            return json.dumps(self.to_json())
        return self.to_csv() if form == "csv" else self.to_markdown()

    def to_markdown(self) -> str:
        """A table, and what its marks mean."""
        several = len({column for column, _ in self.measures}) > 1
        heads = ["arm", "runs", *(f"{column} {name}" if several else name for column, name in self.measures)]
        lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
        for arm in self.arms:
            own = {(cell.column, cell.measure): cell.text() for cell in self.cells if cell.arm == arm.name}
            lines.append("| " + " | ".join([arm.name, str(len(arm.scores)), *(own.get(key, "–") for key in self.measures)]) + " |")
        marks = f"{ALIKE}: not told apart from {self.baseline}; {UNKNOWN}: too few runs to tell."
        return "\n".join([*lines, "", f"Means over seeds in percent (severity in edges) ± 95 % interval. {marks}"])

    def to_csv(self) -> str:
        """A line a cell."""
        stream = io.StringIO()
        rows = [_flat(cell) for cell in self.cells]
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().rstrip("\n")

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        arms = {arm.name: {"seeds": sorted(arm.scores), "objective": arm.config.objective} for arm in self.arms}
        return {"baseline": self.baseline, "arms": arms, "cells": [_flat(cell) for cell in self.cells]}


def _flat(cell: Cell) -> dict[str, Any]:
    row = asdict(cell) | {"ci95": cell.half}
    del row["half"], row["versus"]
    versus = cell.versus
    return row | {
        "difference": versus.mean if versus else None,
        "difference_ci95": versus.half if versus else None,
        "paired": versus.paired if versus else None,
        "significant": versus.significant if versus else None,
    }


def compare(paths: Sequence[Path], *, measures: Sequence[str] = (), baseline: str | None = None) -> Comparison:
    """Set evaluated runs side by side.

    Args:
        paths: Folders of runs; those that differ in their seed alone are one arm.
        measures: Names of scores in eval.json, with or without their column (`label/knn_top1`); none: the headlines.
        baseline: The arm that the others are set against; None: the first.

    Raises:
        OptionError: If a measure or the baseline is unknown.
        ArtifactError: If a run was not evaluated.
    """
    arms = read_arms(paths)
    names = [arm.name for arm in arms]
    against = names[0] if baseline is None else baseline
    if against not in names:
        raise OptionError(f"--baseline {against}: no such arm. There are: {', '.join(names)}.")
    reference = arms[names.index(against)]
    chosen = _choose(arms, measures)
    cells = []
    for arm in arms:
        for column, name in chosen:
            values = arm.values((column, name))
            if not values:
                continue
            mean, half = mean_interval(list(values.values()))
            base = reference.values((column, name))
            versus = None if arm is reference or not base else difference(values, base)
            cells.append(Cell(arm=arm.name, column=column, measure=name, runs=len(values), mean=mean, half=half, versus=versus))
    return Comparison(arms=tuple(arms), baseline=against, measures=chosen, cells=tuple(cells))


def _choose(arms: Sequence[Arm], wanted: Sequence[str]) -> tuple[Measure, ...]:
    known = dict.fromkeys(key for arm in arms for scores in arm.scores.values() for key in scores)
    for name in wanted:
        if not any(_is(key, name) for key in known):
            exist = ", ".join(dict.fromkeys(measure for _, measure in known if not measure.endswith("_ci95")))
            raise OptionError(f"--measure {name}: no run has it. There are: {exist}.")
    chosen = tuple(key for name in wanted or HEADLINES for key in known if _is(key, name))
    if not chosen:
        raise OptionError("none of the usual measures was evaluated. Name some with --measure, or run `train eval` again.")
    return chosen


def _is(key: Measure, name: str) -> bool:
    return name in (key[1], f"{key[0]}/{key[1]}")
