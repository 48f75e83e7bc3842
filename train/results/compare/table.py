"""The comparison as a table: an arm a row, a measure a column, each cell beside the same cell of the baseline."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graphbuild.errors import OptionError
from train.evaluate.intervals import mean_interval
from train.results.compare.arms import Arm, Measure, read_arms
from train.results.compare.differences import ALPHA, Difference, difference, holm_adjusted
from train.run.scores import IN_EDGES, KNN_TOP1, LINEAR_TOP1

HEADLINES = (
    KNN_TOP1,
    LINEAR_TOP1,
    "linear_n5",
    "superclass_p10",
    "held_out_knn",
    "few_shot_mean_5",
    "few_shot_logistic_5",
    "severity",
)
"""Shown unless measures are named."""
ALIKE, UNKNOWN, EQUIVALENT = "≈", "?", "="
_PERCENT = 100


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
    holm_p: float | None = None
    """The difference's p value, corrected for all differences of the table; None unless asked for."""
    equivalent: bool | None = None
    """Whether the difference lies within the bound of equivalence; None unless asked for, or where nothing is known."""

    @property
    def significant(self) -> bool | None:
        """Tell whether the difference is told apart from zero, after the correction if one was asked for; None if not known."""
        if self.versus is None:
            return None
        return self.versus.significant if self.holm_p is None else self.holm_p < ALPHA

    def text(self, *, difference: bool = False) -> str:
        """Return mean and interval, or the difference from the baseline and its own, with marks for what the tests say."""
        scale, digits = (1, 2) if self.measure in IN_EDGES else (100, 1)
        mean, half, sign = self.mean, self.half, ""
        if difference and self.versus is not None:
            # The differences are a tenth of the means.
            mean, half, sign, digits = self.versus.mean, self.versus.half, "+", 2
        shown = f"{scale * mean:{sign}.{digits}f}" + ("" if half is None else f" ± {scale * half:.{digits}f}")
        return " ".join([shown, *self._marks()])

    def _marks(self) -> list[str]:
        if self.versus is None:
            return []
        apart = [UNKNOWN] if self.significant is None else [] if self.significant else [ALIKE]
        return [*apart, *([EQUIVALENT] if self.equivalent else [])]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All cells, arm by arm."""

    arms: tuple[Arm, ...]
    baseline: str
    measures: tuple[Measure, ...]
    cells: tuple[Cell, ...]
    holm: bool = False
    """Whether p values are corrected over all differences of the table."""
    equivalence: float | None = None
    """The bound of equivalence, in points; None: not asked for."""
    notes: tuple[str, ...] = ()
    """A line for each condition in which runs that are paired differ."""

    def write(self, form: str, *, differences: bool = False) -> str:
        """Return it as `md`, with means or with differences from the baseline, or as `csv` or `json`, which hold both."""
        if form == "json":
            return json.dumps(self.to_json())
        return self.to_csv() if form == "csv" else self.to_markdown(differences=differences)

    def to_markdown(self, *, differences: bool = False) -> str:
        """Return a table, and what its marks mean."""
        rows = [self.cells_of(arm.name, differences=differences) for arm in self.arms]
        shown = f"Less {self.baseline}, whose own row is as it is," if differences else "Means over seeds"
        note = f"{shown} in percent (severity in edges) ± 95 % interval. {self._legend()}"
        return "\n\n".join([markdown_table(self.headings, rows), note, *self.notes])

    def _legend(self) -> str:
        tests = sum(cell.holm_p is not None for cell in self.cells)
        corrected = f" (p corrected over {tests} differences by Holm's method)" if self.holm else ""
        marks = [f"{ALIKE}: not told apart from {self.baseline}{corrected}", f"{UNKNOWN}: too few runs to tell"]
        if self.equivalence is not None:
            marks.append(
                f"{EQUIVALENT}: no difference above {self.equivalence:g} points (the 90 % interval lies within; not for severity)"
            )
        return "; ".join(marks) + "."

    @property
    def headings(self) -> list[str]:
        """Return the headings of the columns."""
        several = len({column for column, _ in self.measures}) > 1
        return ["arm", "runs", *(f"{column} {name}" if several else name for column, name in self.measures)]

    def cells_of(self, name: str, *, differences: bool = False) -> list[str]:
        """Return the row of an arm: its name, its runs and its cells."""
        (arm,) = [arm for arm in self.arms if arm.name == name]
        own = {(cell.column, cell.measure): cell.text(difference=differences) for cell in self.cells if cell.arm == name}
        return [name, str(len(arm.scores)), *(own.get(key, "–") for key in self.measures)]

    def to_csv(self) -> str:
        """Return a line a cell."""
        stream = io.StringIO()
        rows = [_flat(cell) for cell in self.cells]
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue().rstrip("\n")

    def to_json(self) -> dict[str, Any]:
        """Return the same cells for scripts."""
        arms = {arm.name: {"seeds": sorted(arm.scores), "objective": arm.config.objective} for arm in self.arms}
        return {"baseline": self.baseline, "arms": arms, "cells": [_flat(cell) for cell in self.cells], "notes": list(self.notes)}


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, whose columns but the first are numbers."""
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (headings, rule, *rows))


def _flat(cell: Cell) -> dict[str, Any]:
    row = asdict(cell) | {"ci95": cell.half}
    del row["half"], row["versus"]
    versus = cell.versus
    return row | {
        "difference": versus.mean if versus else None,
        "difference_ci95": versus.half if versus else None,
        "paired": versus.paired if versus else None,
        "p": versus.p if versus else None,
        "significant": cell.significant,
    }


def compare(
    paths: Sequence[Path],
    *,
    measures: Sequence[str] = (),
    baseline: str | None = None,
    holm: bool = False,
    equivalence: float | None = None,
) -> Comparison:
    """Set evaluated runs side by side.

    Args:
        paths: Folders of runs; those that differ in their seed alone are one arm.
        measures: Names of scores in eval.json, with or without their column (`label/knn_top1`); none: the headlines.
        baseline: The arm that the others are set against; None: the first.
        holm: Correct the p values over all differences of the table.
        equivalence: Bound, in points, within which a difference counts as none; None: not tested.

    Raises:
        OptionError: If a measure or the baseline is unknown.
        ArtifactError: If a run was not evaluated.
    """
    arms = read_arms(paths)
    names = [arm.name for arm in arms]
    against = names[0] if baseline is None else baseline
    if against not in names:
        raise OptionError(f"--baseline {against}: no such arm. There are: {', '.join(names)}.")
    chosen = _choose(arms, measures)
    reference = arms[names.index(against)]
    cells = _cells(arms, reference, chosen)
    if equivalence is not None:
        cells = [_with_equivalence(cell, equivalence / _PERCENT) for cell in cells]
    return Comparison(
        arms=tuple(arms),
        baseline=against,
        measures=chosen,
        cells=tuple(_with_holm(cells) if holm else cells),
        holm=holm,
        equivalence=equivalence,
        notes=tuple(line for arm in arms if arm is not reference for line in arm.differing(reference)),
    )


def _cells(arms: Sequence[Arm], reference: Arm, measures: Sequence[Measure]) -> list[Cell]:
    cells = []
    for arm in arms:
        for column, name in measures:
            values = arm.values((column, name))
            if not values:
                continue
            mean, half = mean_interval(list(values.values()))
            base = reference.values((column, name))
            versus = None if arm is reference or not base else difference(values, base)
            cells.append(Cell(arm=arm.name, column=column, measure=name, runs=len(values), mean=mean, half=half, versus=versus))
    return cells


def _with_holm(cells: Sequence[Cell]) -> list[Cell]:
    found = {place: cell.versus.p for place, cell in enumerate(cells) if cell.versus is not None}
    known = {place: p for place, p in found.items() if p is not None}
    adjusted = dict(zip(known, holm_adjusted(list(known.values())), strict=True))
    return [replace(cell, holm_p=adjusted.get(place)) for place, cell in enumerate(cells)]


def _with_equivalence(cell: Cell, bound: float) -> Cell:
    # A bound in points says nothing of what is counted in edges.
    if cell.versus is None or cell.measure in IN_EDGES:
        return cell
    return replace(cell, equivalent=cell.versus.equivalent(bound))


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
