"""A step of every objective over one of SimCLR, in one loop: net, pictures, graph and views are the same.

All take turns of a few steps, so that whatever else the machine does slows them alike. `python -m benchmarks objectives` prints
the table at a small size; `python -m benchmarks.objectives --batch-size 1024 --only rank` some rows, beside that of SimCLR.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from benchmarks.train import FULL, SMALL, Size, in_turns, prepare_pictures
from train.config import TrainConfig
from train.data.prepare import TrainingData
from train.run.loop import settle
from train.run.trainer import Trainer

_BASE = "simclr"
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    _BASE: {"objective": "simclr"},
    "supcon": {"objective": "supcon"},
    "xclr": {"objective": "xclr"},
    **{
        f"xclr, --negatives {name}": {"objective": "xclr", "negatives": name}
        for name in ("decoupled", "decoupled-weighted", "hard", "graph", "mixed")
    },
    "simclr, --queue": {"objective": "simclr", "queued": True},
    "xclr, --queue": {"objective": "xclr", "queued": True},
    "rank": {"objective": "rank"},
    **{
        f"{name}, --positives {kind}": {"objective": name, "positives": kind}
        for name in ("vicreg", "barlow", "simsiam", "lejepa")
        for kind in ("own", "graph")
    },
    "xclr, two graphs in one target": {"objective": "xclr", "more": 1},
    "xclr, two heads": {"objective": "xclr", "heads": 2},
    # clip, whose text tower is as large as one asks for, does not compare.
}


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    return measure(SMALL if small else FULL)


def measure(size: Size, only: Collection[str] = ()) -> str:
    """Return the table of a size, with its conditions; every batch size is a column.

    Args:
        size: What is measured.
        only: Names of `VARIANTS`; SimCLR is always there. Empty: all.
    """
    chosen = {name: options for name, options in VARIANTS.items() if not only or name in {_BASE, *only}}
    with tempfile.TemporaryDirectory(prefix="bench-objectives-") as folder:
        data = prepare_pictures(Path(folder), size)
        config = settle(data.opened.settle(TrainConfig(model=size.model, image_size=size.image_size, kl_every=0)))
        found = {batch: _measure(replace(config, batch_size=batch), data, size, chosen) for batch in size.batch_sizes}
        data.close()
    head = "".join(f"{f'ms, B = {batch:,}':>16}{'over SimCLR':>13}" for batch in found)
    lines = [f"{'objective':<36}{head}"]
    for name in chosen:
        cells = "".join(f"{times[name] * 1e3:>16,.1f}{times[name] / times[_BASE]:>13.3f}" for times in found.values())
        lines.append(f"{name:<36}{cells}")
    lines.append(
        f"{config.model} net at {config.image_size} px, {config.precision}, {config.device}, {torch.get_num_threads()} threads, "
        f"two views, projections of {config.projector_dim}, {size.pictures:,} drawn pictures, "
        f"k = 256, sketch 64, queues of {size.queue:,}; medians of {size.rounds} alternating rounds of {size.turn} steps"
    )
    return "\n".join(lines)


def _measure(config: TrainConfig, data: TrainingData, size: Size, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a step of each, all in turns after a warm-up."""
    total = size.warm_up + size.rounds * size.turn
    running = {}
    for name, options in chosen.items():
        given = {key: value for key, value in options.items() if key not in ("more", "heads", "queued")}
        path = str(config.graph_dir)
        # The same graph again: what a second one costs does not depend on what it says.
        graphs = {"more_graphs": (path,) * options.get("more", 0), "head": _heads(path, options.get("heads", 0))}
        queue = size.queue if options.get("queued") else 0
        made = replace(config, **given, **graphs, queue=queue, steps=total, epochs=total)
        running[name] = Trainer(made, data).steps()
    seconds = in_turns(running, size, torch.device(config.device))
    return {name: median(times) for name, times in seconds.items()}


def _heads(path: str, count: int) -> tuple[str, ...]:
    return tuple(f"head{number}={path}" for number in range(count))


@click.command()
@click.option("--batch-size", "batch_sizes", type=int, multiple=True, default=FULL.batch_sizes, help="Repeatable.")
@click.option("--rounds", type=click.IntRange(1), default=FULL.rounds, show_default=True)
@click.option("--turn", type=click.IntRange(1), default=FULL.turn, show_default=True, help="Steps before the next has its turn.")
@click.option("--pictures", type=click.IntRange(2), default=FULL.pictures, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(tuple(VARIANTS)), help="Repeatable (default: all).")
def main(batch_sizes: tuple[int, ...], rounds: int, turn: int, pictures: int, only: tuple[str, ...]) -> None:
    """Print the table of some batch sizes, or some of its rows."""
    size = replace(FULL, batch_sizes=batch_sizes, rounds=rounds, turn=turn, pictures=pictures, warm_up=min(turn, FULL.warm_up))
    click.echo(measure(size, only))


if __name__ == "__main__":
    main()
