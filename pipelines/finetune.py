"""`python -m pipelines.finetune --data FOLDER`: does a net that SimCLR trained get better by X-CLR? Probes before and after.

FOLDER is that of `pipelines.tiny_imagenet`, whose graph is reused. A net is pretrained by SimCLR; from its backbone, with a new
projector, SimCLR, SupCon and X-CLR go on with equal images seen. SimCLR is the control: what more training alone does.
The protocol: backbones frozen, kNN and linear probe on val, of the pretrained net and of each that went on from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphbuild.system.options import FOLDER, HELP
from graphbuild.system.process import run_cli
from pipelines.tiny_imagenet import (
    COLUMN,
    GRAPH,
    OBJECTIVES,
    build_graph,
    data_option,
    find_data,
    train_all,
    training_options,
    write_scores,
)

PRETRAINED = "pretrained"


@click.command(context_settings=HELP)
@data_option
@click.option("--out", type=FOLDER, default=Path("runs/finetune"), show_default=True)
@click.option("--pretrain-epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Passes of SimCLR.")
@click.option("--epochs", type=click.IntRange(min=1), default=1, show_default=True, help="Passes from there, each objective.")
@click.option("--lr", type=float, default=3e-4, show_default=True, help="Learning rate from there; pretraining has the default.")
@training_options
def finetune(folder: Path, out: Path, encoder: str, pretrain_epochs: int, epochs: int, lr: float, **options: Any) -> None:
    """Pretrain by SimCLR, go on by SimCLR, SupCon and X-CLR, and probe the frozen features before and after."""
    from pipelines.common import Steps, tell
    from train.config import TrainConfig
    from train.results.report.write import write_report
    from train.run.checkpoint import WEIGHTS
    from train.run.loop import train

    train_data, val_data = find_data(folder)
    steps = Steps(len(OBJECTIVES) + 4)
    steps.begin("graph of the class prompts")
    build_graph(train_data, encoder)
    shared = {**options, "graph_dir": str(GRAPH), "data": train_data, "label_column": COLUMN}
    steps.begin("pretrain by simclr")
    config = TrainConfig(**{**shared, "objective": "simclr", "epochs": pretrain_epochs})
    tell(train(config, out / PRETRAINED))
    train_all({**shared, "epochs": epochs, "lr": lr, "init": f"run:{out / PRETRAINED / WEIGHTS}"}, out, steps)
    steps.begin("frozen features on val, before and after")
    write_scores(out, val_data, start=PRETRAINED)
    steps.begin("report")
    runs = [out / objective for objective in OBJECTIVES]
    tell(write_report(runs, out / "report.html", data=val_data, title="SimCLR, SupCon and X-CLR from a pretrained net"))


if __name__ == "__main__":
    run_cli(finetune, debug_variable="TRAIN_DEBUG")
