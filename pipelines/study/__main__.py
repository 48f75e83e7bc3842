"""`python -m pipelines.study --data FOLDER`: objectives, graphs and temperatures compared, with equal images seen.

FOLDER holds tiny_imagenet/, classes/ and, for the runs on captions, flickr8k/. Started again with the same --out, it goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from graphbuild.system.options import DEFAULT_ENCODER, FOLDER, HELP
from graphbuild.system.process import run_cli
from train.config import ModelName


@click.command(context_settings=HELP)
@click.option("--data", "folder", type=FOLDER, required=True, help="Folder of tiny_imagenet/, classes/ and flickr8k/.")
@click.option("--out", type=FOLDER, default=Path("runs/study"), show_default=True)
@click.option(
    "--budget",
    type=click.IntRange(min=1),
    default=320_000,
    show_default=True,
    help="Images a run sees (flickr: 0.3 of them, scenes: 0.15).",
)
@click.option("--batch-size", type=click.IntRange(min=8), default=256, show_default=True, help="Images a step.")
@click.option("--model", type=click.Choice(get_args(ModelName)), default="small", show_default=True, help="The image encoder.")
@click.option("--image-size", type=click.IntRange(min=8), default=32, show_default=True, help="Height and width of a view.")
@click.option("--seeds", type=click.IntRange(min=1), default=None, help="Seeds of every arm (default: 3 of some, 1 of others).")
@click.option("--only", multiple=True, metavar="NAME", help="Arms or groups to run; repeatable (default: all).")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Sentence Transformer of the texts.")
@click.option("--second-encoder", default=None, help="Another one, for the arm xclr-second-encoder; without it that is left out.")
@click.option(
    "--records",
    type=FOLDER,
    default=None,
    help="Folder of configurations and scores, without weights; runs that it holds are not made again (default: OUT/records).",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs made at the same time, and then evaluated on the CPU.",
)
@click.option("--dry-run", is_flag=True, help="Say which runs there are and which are done.")
def study(
    folder: Path,
    out: Path,
    budget: int,
    batch_size: int,
    model: ModelName,
    image_size: int,
    seeds: int | None,
    only: tuple[str, ...],
    encoder: str,
    second_encoder: str | None,
    records: Path | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Train every arm and seed, and evaluate each: kNN, probes, superclass retrieval, few-shot, severity."""
    from pipelines.study.data import StudyData, prepare_data
    from pipelines.study.execute import Study, StudyConfig
    from pipelines.study.plan import plan

    runs = plan(only, seeds, second=second_encoder is not None)
    config = StudyConfig(
        out=out,
        budget=budget,
        batch_size=batch_size,
        encoder=encoder,
        second_encoder=second_encoder,
        model=model,
        image_size=image_size,
        jobs=jobs,
        records=records or out / "records",
    )
    if dry_run:
        todo = Study(config, StudyData(out / "data", folder))
        todo.check()
        for planned in runs:
            state = "done" if todo.is_done(planned) else "to do"
            click.echo(f"{state:<6} {planned.arm.group:<12} {planned.name:<36} graph {planned.arm.graph}")
        return
    Study(config, prepare_data(folder, out)).execute(runs)


if __name__ == "__main__":
    run_cli(study, debug_variable="TRAIN_DEBUG")
