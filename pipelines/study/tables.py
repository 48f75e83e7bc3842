"""The study's tables, from the records of the runs that are evaluated by now.

TABLES/GROUP.md and GROUP.csv; gaps.md and gaps.png: what each graph is ahead of its own control, which has its weights between
other texts, with p values that are corrected over the measures of a row.
"""

from __future__ import annotations

from pathlib import Path

from graphbuild.store.atomic import atomic_path
from pipelines.study.figure import draw_gaps
from pipelines.study.plan import ARMS, CAPTIONS, SCENES, controls
from train.results.compare.differences import Difference
from train.results.compare.table import ALIKE, HEADLINES, UNKNOWN, Comparison, compare, markdown_table
from train.run.folder import EVAL_FILE

_GAPS_NOTE = (
    "Less the same weights between other texts, in percent (severity in edges) ± 95 % interval, paired by seed. "
    f"{ALIKE}: not told apart (p corrected over the measures of a row by Holm's method); {UNKNOWN}: too few runs to tell."
)
_CORE = "core"
_BASELINE = "xclr-shuffled"
"""The control: what differs from it is not due to softness."""
_SCENES_MEASURES = ("object_matched/linear_top1", "object_broken/linear_top1", "attribute/linear_top1")


def write_tables(records: Path, tables: Path) -> list[Path]:
    """Write a table of every group of which two arms are evaluated; the core's arms stand in those on the same images.

    Args:
        records: Holds ARM/seed-N of every run.
        tables: Where the tables go.

    Returns:
        The Markdown files.
    """
    from graphbuild.store.atomic import write_text

    written = []
    for group in dict.fromkeys(arm.group for arm in ARMS):
        own = [arm for arm in ARMS if arm.group == group]
        alone = group == _CORE or own[0].graph in (SCENES, CAPTIONS)
        beside = [] if alone else [arm for arm in ARMS if arm.group == _CORE]
        runs = {arm.name: _evaluated(records / arm.name) for arm in (*beside, *own)}
        present = [name for name, found in runs.items() if found]
        if len(present) < 2 or not any(runs[arm.name] for arm in own):
            continue
        measures = _SCENES_MEASURES if group == SCENES else ()
        baseline = _BASELINE if _BASELINE in present else present[0]
        found = compare([run for name in present for run in runs[name]], baseline=baseline, measures=measures)
        for form in ("md", "csv"):
            write_text(tables / f"{group}.{form}", found.write(form) + "\n")
        written.append(tables / f"{group}.md")
    if gaps := _gaps(records):
        rows = [found.cells_of(name, differences=True) for name, found in gaps.items()]
        write_text(tables / "gaps.md", f"{markdown_table(next(iter(gaps.values())).headings, rows)}\n\n{_GAPS_NOTE}\n")
        written.append(tables / "gaps.md")
    return written


def write_gaps_figure(records: Path, tables: Path) -> None:
    """Draw gaps.png, unless there is nothing to draw.

    Args:
        records: As for `write_tables`.
        tables: The same.
    """
    if gaps := _gaps(records):
        path = tables / "gaps.png"
        with atomic_path(path) as temporary:
            draw_gaps({name: _differences(found, name) for name, found in gaps.items()}).savefig(temporary, dpi=200, format="png")


def _differences(found: Comparison, arm: str) -> dict[str, Difference]:
    return {cell.measure: cell.versus for cell in found.cells if cell.arm == arm and cell.versus}


def _gaps(records: Path) -> dict[str, Comparison]:
    """Each arm whose graph was shuffled beside that control, as far as both are evaluated, by the measures that all have."""
    pairs = {arm.name: (_evaluated(records / control.name), _evaluated(records / arm.name)) for arm, control in controls()}
    both = {name: [*shuffled, *own] for name, (shuffled, own) in pairs.items() if shuffled and own}
    known = [{measure for _, measure in compare(runs).measures} for runs in both.values()]
    shared = [measure for measure in HEADLINES if all(measure in measures for measures in known)]
    return {name: compare(runs, measures=shared, holm=True) for name, runs in both.items()}


def _evaluated(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"seed-*/{EVAL_FILE}"))
