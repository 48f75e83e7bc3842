"""`python -m pipelines.tiny_imagenet --data FOLDER`: class prompts, three objectives, and what their features know of 200 classes.

FOLDER holds Tiny-ImageNet-200 as Parquet: train-*.parquet and val.parquet with the columns image, file, label and name.
A finished run is not run again; one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphbuild.errors import SourceError
from graphbuild.system.options import DEFAULT_ENCODER, FOLDER, HELP, together
from graphbuild.system.process import run_cli

if TYPE_CHECKING:
    from train.config import Objective

GRAPH = Path("graphs/tiny_imagenet")
OBJECTIVES: tuple[Objective, ...] = ("simclr", "supcon", "xclr")
COLUMN = "label"
data_option = click.option("--data", "folder", type=FOLDER, required=True, help="Folder of train-*.parquet and val.parquet.")
training_options = together(
    click.option("--image-size", type=click.IntRange(min=16), default=32, show_default=True, help="Pixels of a view."),
    click.option("--batch-size", type=click.IntRange(min=8), default=250, show_default=True, help="Images a step."),
    click.option("--model", default="small", show_default=True, help="The network, as `train run --model` takes it."),
    click.option("--tau-s", type=float, default=0.1, show_default=True, help="Temperature of the X-CLR target."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of weights, batches and augmentations."),
    click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Sentence Transformer of the class prompts."),
)


@click.command(context_settings=HELP)
@data_option
@click.option("--out", type=FOLDER, default=Path("runs/tiny_imagenet"), show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Passes over the images, each objective.")
@training_options
def tiny_imagenet(folder: Path, out: Path, encoder: str, **options: Any) -> None:
    """Make a class-prompt graph, then train SimCLR, SupCon and X-CLR with equal images seen, then kNN and linear probe on val."""
    from pipelines.common import Steps, tell
    from train.results.report.write import write_report

    train_data, val_data = find_data(folder)
    steps = Steps(len(OBJECTIVES) + 3)
    steps.begin("graph of the class prompts")
    build_graph(train_data, encoder)
    train_all({**options, "graph_dir": str(GRAPH), "data": train_data, "label_column": COLUMN}, out, steps)
    steps.begin("frozen features on val")
    write_scores(out, val_data)
    steps.begin("report")
    runs = [out / objective for objective in OBJECTIVES]
    tell(write_report(runs, out / "report.html", data=val_data, title="SimCLR, SupCon and X-CLR on Tiny-ImageNet"))


def find_data(folder: Path) -> tuple[str, str]:
    """Return the pattern of the training files, and the validation file.

    Raises:
        SourceError: If either is missing.
    """
    pattern, val = folder / "train-*.parquet", folder / "val.parquet"
    if not list(folder.glob(pattern.name)) or not val.exists():
        raise SourceError(f"{folder}: train-*.parquet and val.parquet are needed. Name the folder that holds them with --data.")
    return str(pattern), str(val)


def build_graph(train_data: str, encoder: str) -> None:
    """Build the graph of 200 prompts, every pair stored; all images map onto them."""
    from graphbuild.embed.build import build_embeddings
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.embed.text.table import DEFAULT_TEMPLATE
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn
    from pipelines.common import tell

    config = EmbedConfig(
        dataset="parquet",
        sources=(train_data,),
        caption_column="name",
        id_column="file",
        keep_columns=(COLUMN,),
        templates=(DEFAULT_TEMPLATE,),
        encoder=encoder,
        workers=0,
    )
    tell(build_embeddings(GRAPH, config))
    tell(build_knn(GRAPH, KnnConfig()))


def train_all(options: Mapping[str, Any], out: Path, steps: Any) -> None:
    """Train every objective on the same decoded images."""
    from pipelines.common import tell
    from train.config import TrainConfig
    from train.data.prepare import prepare
    from train.run.loop import train

    data = prepare(TrainConfig(objective=OBJECTIVES[0], **options))
    for objective in OBJECTIVES:
        steps.begin(f"train {objective}")
        tell(train(TrainConfig(objective=objective, **options), out / objective, data=data))
    data.close()


def write_scores(out: Path, val_data: str, start: str = "untrained") -> None:
    """Evaluate, print the table, and write scores.json and scores.md; `start` is what the net before all training is called."""
    from graphbuild.store.atomic import write_text
    from pipelines.common import evaluate_once, score_headings, score_rows
    from train.results.compare.table import markdown_table

    scores: dict[str, Any] = {
        name: evaluate_once(out / name, data=val_data, columns=(COLUMN,), untrained=number == 0)
        for number, name in enumerate(OBJECTIVES)
    }
    table = markdown_table(score_headings((COLUMN,)), score_rows(scores, (COLUMN,), start))
    write_text(out / "scores.json", json.dumps(scores, indent=2) + "\n")
    write_text(out / "scores.md", table + "\n")
    click.echo(table)
    click.echo(f"top-1 in percent on val; kept in {out / 'scores.json'} and {out / 'scores.md'}")


if __name__ == "__main__":
    run_cli(tiny_imagenet, debug_variable="TRAIN_DEBUG")
