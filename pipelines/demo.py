"""`python -m pipelines.demo`: everything once, small, in one process; at most five minutes on two cores.

The class graph of ImageNet; a graph of drawn scenes; SimCLR and X-CLR trained on the scenes with one budget; what their
frozen features tell about object, colour and background; a report. What is finished is not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graphbuild.system.options import DEFAULT_ENCODER, HELP
from graphbuild.system.process import run_cli

if TYPE_CHECKING:
    from train.config import Objective, TrainConfig
    from train.data.prepare import TrainingData

RUNS = Path("runs/demo")
GRAPHS = RUNS / "graphs"
"""Not among those that commands find by themselves."""
OBJECTIVES: tuple[Objective, ...] = ("simclr", "xclr")
LABELS = ("object", "attribute", "background")
SHOWN_CLASSES = ("Golden Retriever", "espresso", "school bus", "violin")
RECIPE = {"image_size": 32, "optimizer": "adamw", "lr": 5e-3, "crop_min": 0.5, "kl_every": 50}
"""Of both objectives. AdamW and mild crops, because a few hundred steps are too few for SGD with SimCLR's crops."""
TRAINING_BUDGET_SECONDS = 180.0
"""For both trainings together; where they would take longer, both get fewer steps."""
_TEMPLATE = "a photo of a {}"


@click.command(context_settings=HELP)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=8, show_default=True, help="Passes over the pictures, each objective."
)
@click.option("--train-pictures", type=click.IntRange(min=64), default=6_000, show_default=True, help="Drawn to train on.")
@click.option("--val-pictures", type=click.IntRange(min=16), default=1_500, show_default=True, help="Drawn to evaluate on.")
@click.option("--batch-size", type=click.IntRange(min=8), default=128, show_default=True, help="Pictures a step.")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Sentence Transformer of both graphs.")
@click.option("--fresh", is_flag=True, help="Train again, finished or not.")
def demo(epochs: int, train_pictures: int, val_pictures: int, batch_size: int, encoder: str, fresh: bool) -> None:
    """Build two graphs, train SimCLR and X-CLR on drawn scenes, compare them, and write runs/demo/report.html.

    runs/demo is its own: graphs and runs in it are made again where the options differ.
    """
    from pipelines.common import Steps, tell
    from train.results.report.write import write_report

    steps = Steps(5)
    steps.begin("class graph: the 1,000 class prompts of ImageNet")
    build_graph("imagenet_classes", dataset="imagenet", templates=(_TEMPLATE,), encoder=encoder)
    show_nearest_classes(GRAPHS / "imagenet_classes")
    steps.begin(f"scenes: {train_pictures:,} drawn pictures to train on and {val_pictures:,} held out; the captions' graph")
    sources = (f"train={train_pictures},val={val_pictures}",)
    build_graph("scenes", dataset="scenes", sources=sources, keep_columns=LABELS, encoder=encoder)
    steps.begin("SimCLR and X-CLR: the same pictures, steps and network")
    train_all({**RECIPE, "graph_dir": str(GRAPHS / "scenes"), "batch_size": batch_size, "epochs": epochs}, fresh=fresh)
    steps.begin("frozen features: object, attribute (its colour) and background of the held-out scenes")
    show_scores()
    steps.begin("report")
    report = write_report(
        [RUNS / objective for objective in OBJECTIVES], RUNS / "report.html", title="SimCLR and X-CLR on drawn scenes"
    )
    tell(report)
    click.echo(f"done in {steps.seconds():.0f} s; open {report.out}")


def build_graph(name: str, *, encoder: str, **options: Any) -> None:
    """Build, or complete, one graph in this process, so that both share one text encoder."""
    from graphbuild.embed.build import build_embeddings
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn
    from pipelines.common import tell

    config = EmbedConfig(encoder=encoder, workers=0, overwrite=True, **options)
    tell(build_embeddings(GRAPHS / name, config))
    tell(build_knn(GRAPHS / name, KnnConfig(overwrite=True)))


def show_nearest_classes(graph_dir: Path) -> None:
    """Print the stored neighbours of a few classes."""
    from graphbuild.store.graph import Graph

    graph = Graph.open(graph_dir)
    before, after = _TEMPLATE.split("{}")
    names = [text.removeprefix(before).removesuffix(after) for text in graph.texts().to_pylist()]
    rows = graph.rows([names.index(name) for name in SHOWN_CLASSES])
    for name, neighbors, similarities in zip(SHOWN_CLASSES, rows.neighbor_ids, rows.similarities, strict=True):
        near = ", ".join(f"{names[i]} {s:.2f}" for i, s in zip(neighbors[:4], similarities[:4], strict=True))
        click.echo(f"  nearest to {name}: {near}")


def train_all(options: Mapping[str, Any], *, fresh: bool) -> None:
    """Train both objectives with equal steps; finished runs of these options and pictures are kept, unless `fresh`."""
    from pipelines.common import run_holds, tell
    from train.config import TrainConfig
    from train.data.prepare import prepare
    from train.run.folder import read_run_config
    from train.run.loop import train

    data = prepare(TrainConfig(**options))
    kept = [name for name in OBJECTIVES if not fresh and run_holds(RUNS / name, options, data.fingerprint())]
    if kept:
        # Begun with that many steps, and the other objective gets as many.
        config = replace(TrainConfig(**options), steps=read_run_config(RUNS / kept[0]).steps)
    else:
        choose_threads(TrainConfig(**options), data)
        config = within_budget(TrainConfig(**options), data)
    for objective in OBJECTIVES:
        chosen = replace(config, objective=objective)
        # A kept run of another number of steps than the first one's would not compare.
        keep = objective in kept and read_run_config(RUNS / objective).steps == config.steps
        tell(train(chosen, RUNS / objective, overwrite=not keep, data=data))
    data.close()


def choose_threads(config: TrainConfig, data: TrainingData) -> None:
    """Compute with one thread where that is faster than with all: threads that wait for one another crawl on a busy machine."""
    import torch

    from train.run.loop import measure_step_seconds

    most = torch.get_num_threads()
    seconds = {}
    for threads in dict.fromkeys((1, most)):
        torch.set_num_threads(threads)
        seconds[threads] = measure_step_seconds(replace(config, objective=OBJECTIVES[0]), steps=2, data=data)
    if seconds[1] < seconds[most]:
        torch.set_num_threads(1)
        click.echo(f"other programs are at work here: one thread is faster than {most}")


def within_budget(config: TrainConfig, data: TrainingData) -> TrainConfig:
    """Time five steps of each objective, and cut the steps of both alike if they would take too long together."""
    from train.run.loop import measure_step_seconds

    seconds = [measure_step_seconds(replace(config, objective=objective), data=data) for objective in OBJECTIVES]
    planned = config.epochs * (len(data.store) // config.batch_size)
    total = planned * sum(seconds)
    told = ", ".join(f"{name} {one * 1000:.0f} ms" for name, one in zip(OBJECTIVES, seconds, strict=True))
    click.echo(f"a step takes: {told}; {planned:,} steps each, about {total:.0f} s together")
    if total <= TRAINING_BUDGET_SECONDS:
        return config
    steps = max(1, int(TRAINING_BUDGET_SECONDS / sum(seconds)))
    click.echo(f"more than {TRAINING_BUDGET_SECONDS:.0f} s: both are cut to {steps:,} steps each, so the scores will be lower")
    return replace(config, steps=steps)


def show_scores() -> None:
    """Evaluate both encoders and the untrained one, and print the table."""
    from pipelines.common import evaluate_once, score_headings, score_rows, text_table

    scores: dict[str, Any] = {
        name: evaluate_once(RUNS / name, data=None, columns=LABELS, untrained=number == 0) for number, name in enumerate(OBJECTIVES)
    }
    click.echo(text_table(score_headings(LABELS), score_rows(scores, LABELS)))
    click.echo("top-1 in percent. The pictures are drawn: this shows that the path works, and says nothing about photographs.")


if __name__ == "__main__":
    run_cli(demo, debug_variable="TRAIN_DEBUG")
