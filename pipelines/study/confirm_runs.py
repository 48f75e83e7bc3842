"""`python -m pipelines.study.confirm_runs --data FOLDER --set cpu`: the runs of the confirmatory study, made and recorded.

OUT/SET/fold-N/ holds data/, graphs/ and runs/ARM/seed-S. A run's record is a line of RECORDS/SET.jsonl, written when the run is
evaluated: it says how the run was made, and its scores, and names no place. Killed and started again, the same command goes on:
runs with a record are not made again, and one that was under way goes on from its checkpoint.
A block is made by one process, its runs one after the other, so that they share decoded images and threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from graphbuild.store.arrays import Float64
from graphbuild.system.options import DEFAULT_ENCODER, FOLDER, HELP
from graphbuild.system.process import run_cli
from pipelines.study.confirm import (
    MEASURES,
    REFERENCE_TAU_S,
    SECONDARY_MEASURES,
    SETS,
    ArmName,
    Block,
    RunSet,
    arm_similarity,
    blocks,
    fold_classes,
    own_class_mass,
    solve_tau_s,
)
from pipelines.study.data import StudyData, prepare_data
from pipelines.study.execute import Study, StudyConfig
from pipelines.study.graphs import class_similarities, import_similarities
from pipelines.study.jobs import claim, run_jobs
from pipelines.study.plan import Arm, Planned
from pipelines.study.records import append_record, recorded, require_same, result_of, scores_of
from train.evaluate.options import ProtocolName

_PROTOCOLS: tuple[ProtocolName, ...] = ("knn", "linear", "retrieval", "few-shot", "severity")
_KEPT = (*MEASURES, *SECONDARY_MEASURES, "knn_top1", "few_shot_mean_5", "few_shot_logistic_5", "held_out_chance")
_TEXTS = ("definitions", "prompts", "wordnet")
"""Arms whose similarities are their own; the others' are made of those of definitions."""
_SOLVED = "tau_s"
"""Differs in its last digits where another machine computed the embeddings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmConfig:
    """Where the study is made, and in which set of runs."""

    source: Path
    """Holds tiny_imagenet/ and classes/."""
    out: Path
    records: Path
    name: str
    """Of the set."""
    run_set: RunSet
    batch_size: int = 256
    encoder: str = DEFAULT_ENCODER
    jobs: int = 1
    """Processes, each of which makes a block at a time."""

    @property
    def file(self) -> Path:
        """Where the records of the set are stored."""
        return self.records / f"{self.name}.jsonl"

    def folder(self, fold: int) -> Path:
        """Return the folder of a fold's images, graphs and runs."""
        return self.out / self.name / f"fold-{fold}"


@dataclass(frozen=True, slots=True)
class PlannedBlock:
    """A block, the images of its fold, and its runs, one an arm; graphs are made."""

    block: Block
    data: StudyData
    runs: Mapping[ArmName, Planned]


def execute(config: ConfirmConfig) -> None:
    """Make and record every run of the set that has no record.

    Raises:
        ArtifactMismatch: If a record is of a run that was made otherwise.
        UserError: If a run cannot be made; those before it stand.
    """
    done = recorded(config.file, "block")
    todo = [
        prepare_block(config, block)
        for block in blocks()[: config.run_set.blocks]
        if any((arm, block.number) not in done for arm in config.run_set.arms)
    ]
    if (jobs := min(config.jobs, len(todo))) > 1:
        run_jobs(partial(make_blocks, config, todo), jobs)
    else:
        make_blocks(config, todo)


def prepare_block(config: ConfirmConfig, block: Block) -> PlannedBlock:
    """Make the images and graphs of a block, as far as they are missing, and solve tau_s for each arm.

    Raises:
        UserError: If a file is missing, or a graph cannot be built.
    """
    folder = config.folder(block.fold)
    data = prepare_data(config.source, folder, partial(fold_classes, fold=block.fold))
    graphs = folder / "graphs"
    texts = {name: class_similarities(name, data, graphs / "texts", config.encoder) for name in _TEXTS if _is_used(name, config)}
    mass = own_class_mass(texts["definitions"], REFERENCE_TAU_S)
    runs = {}
    for arm in config.run_set.arms:
        similarity = arm_similarity(arm, block, texts)
        name = f"{arm}-{block.number}" if arm == "permuted" else "definitions" if arm == "supcon" else arm
        import_similarities(graphs / name, similarity, data)
        runs[arm] = Planned(_arm(arm, name, similarity, mass), block.seed)
    return PlannedBlock(block, data, runs)


def make_blocks(config: ConfirmConfig, todo: Sequence[PlannedBlock]) -> None:
    """Make the blocks in turn; those that another process is at are left to it.

    Raises:
        ArtifactMismatch: If a record is of a run that was made otherwise.
        UserError: If a run cannot be made.
    """
    for planned in todo:
        block = planned.block
        with claim(config.out / config.name / f"block-{block.number}") as mine:
            if mine:
                _make_block(config, planned)


def _make_block(config: ConfirmConfig, planned: PlannedBlock) -> None:
    run_set, block = config.run_set, planned.block
    studied = StudyConfig(
        out=config.folder(block.fold),
        budget=run_set.budget,
        batch_size=config.batch_size,
        encoder=config.encoder,
        model=run_set.model,
        protocols=_PROTOCOLS,
        jobs=config.jobs,
        records=config.records,
    )
    # One a block: decoded images of the fold before are let go.
    study = Study(studied, planned.data)
    for arm, run in planned.runs.items():
        options = {**study.requested(run), **study.named(run)}
        if (record := recorded(config.file, "block").get((arm, block.number))) is not None:
            requested = {name: value for name, value in options.items() if name != _SOLVED}
            require_same(config.file, f"block {block.number}, {arm}", record, requested)
            continue
        click.echo(f"block {block.number}, fold {block.fold}, {arm}")
        study.make_run(run)
        append_record(config.file, _record(config, planned, arm, study.run_dir(run), options))


def _record(
    config: ConfirmConfig, planned: PlannedBlock, arm: ArmName, run_dir: Path, options: Mapping[str, Any]
) -> dict[str, Any]:
    block, scores = planned.block, scores_of(run_dir)
    # There is no severity where nothing is mistaken.
    kept = {name: scores[name] for name in _KEPT if name in scores}
    about = {"set": config.name, "arm": arm, "block": block.number, "fold": block.fold}
    return {**about, **result_of(run_dir, kept, options)}


def _is_used(name: str, config: ConfirmConfig) -> bool:
    return name == "definitions" or name in config.run_set.arms


def _arm(arm: ArmName, graph: str, similarity: Float64, mass: float) -> Arm:
    if arm == "supcon":
        return Arm(name=arm, group="confirm", objective="supcon", graph=graph, options={"label_column": "name"})
    # The graphs hold every pair, so that none is ever absent.
    options = {"absent": 0.0, _SOLVED: solve_tau_s(similarity, mass)}
    return Arm(name=arm, group="confirm", objective="xclr", graph=graph, options=options)


@click.command(context_settings=HELP)
@click.option("--data", "source", type=FOLDER, required=True, help="Folder of tiny_imagenet/ and classes/.")
@click.option("--set", "name", type=click.Choice(tuple(SETS)), default="cpu", show_default=True, help="Which of the planned runs.")
@click.option("--blocks", "count", type=click.IntRange(min=1), default=None, help="The first so many alone: a study cut short.")
@click.option("--out", type=FOLDER, default=Path("runs/confirm"), show_default=True)
@click.option(
    "--records",
    type=FOLDER,
    default=None,
    help="Folder of SET.jsonl, a line a run; runs that it holds are not made again (default: OUT).",
)
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Blocks made at the same time.")
@click.option("--dry-run", is_flag=True, help="Say which runs there are and which are done.")
def confirm_runs(source: Path, name: str, count: int | None, out: Path, records: Path | None, jobs: int, dry_run: bool) -> None:
    """Make the planned runs of one set; those that have a record are not made again."""
    run_set = SETS[name]
    if count is not None:
        run_set = replace(run_set, blocks=min(count, run_set.blocks))
    config = ConfirmConfig(source=source, out=out, records=records or out, name=name, run_set=run_set, jobs=jobs)
    if not dry_run:
        execute(config)
        return
    done = recorded(config.file, "block")
    for block in blocks()[: run_set.blocks]:
        for arm in run_set.arms:
            state = "done" if (arm, block.number) in done else "to do"
            click.echo(f"{state:<6} block {block.number} fold {block.fold} seed {block.seed} {arm}")


if __name__ == "__main__":
    run_cli(confirm_runs, debug_variable="TRAIN_DEBUG")
