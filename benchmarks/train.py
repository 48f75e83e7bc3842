"""A step of X-CLR against one of SimCLR in the same loop, and both against SimCLR as it is usually written.

Same net, images and batch sizes. Drawn pictures (`scenes`) on a graph whose texts are embedded by hashing: what is timed
depends on neither. All take turns of a few steps, so that whatever else the machine does slows them alike.
`python -m benchmarks train --full` prints the table of RESULTS.md; so does `python -m benchmarks.train resnet50 224`, on a GPU.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, get_args

import click
import torch

from benchmarks.train_peers import LIGHTLY, contestants, steps
from train.config import ModelName, TrainConfig
from train.data.prepare import TrainingData, prepare
from train.run.loop import settle
from train.run.trainer import Trainer

_OBJECTIVES = ("simclr", "xclr")


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is measured, and how often."""

    model: ModelName = "small"
    image_size: int = 32
    pictures: int
    batch_sizes: tuple[int, ...]
    rounds: int
    turn: int
    """Steps of one objective before the other has its turn."""
    warm_up: int = 3
    queue: int = 1_024
    """Embeddings of past batches that an anchor meets, in the rows of objectives with a queue."""


SMALL = Size(pictures=2_048, batch_sizes=(64, 256), rounds=3, turn=3)
FULL = Size(pictures=16_384, batch_sizes=(256, 1024), rounds=8, turn=5)


@dataclass(frozen=True, slots=True)
class Timing:
    """One contestant at one batch size."""

    step_seconds: float
    """Median over all steps."""
    target_share: float | None = None
    """Of the time of all steps; None where there is no such target."""


def run(small: bool) -> str:
    """Return the table, with its conditions."""
    return measure(SMALL if small else FULL)


def measure(size: Size) -> str:
    """Return the table of a size, with its conditions."""
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        data = prepare_pictures(Path(folder), size)
        config = settle(data.opened.settle(TrainConfig(model=size.model, image_size=size.image_size, augment="simclr", kl_every=0)))
        timings = {batch: _measure(replace(config, batch_size=batch), data, size) for batch in size.batch_sizes}
        data.close()
    return _table(timings, config, size)


def prepare_pictures(folder: Path, size: Size) -> TrainingData:
    """Draw the pictures, build their graph, decode."""
    from graphbuild.embed.build import build_embeddings
    from graphbuild.embed.config import EmbedConfig
    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn

    source = f"train={size.pictures},val=1,side={size.image_size}"
    build_embeddings(folder, EmbedConfig(dataset="scenes", sources=(source,), encoder="hashing:384", workers=0))
    build_knn(folder, KnnConfig(k=256))
    return prepare(TrainConfig(graph_dir=str(folder), image_size=size.image_size))


def _measure(config: TrainConfig, data: TrainingData, size: Size) -> dict[str, Timing]:
    """All contestants in turns, after a warm-up of each."""
    total = size.warm_up + size.rounds * size.turn
    trainers = {
        name: Trainer(replace(config, objective=name, steps=total, epochs=total), data)  # type: ignore[arg-type]
        for name in _OBJECTIVES
    }
    running: dict[str, Any] = {name: trainer.steps() for name, trainer in trainers.items()}
    for name, (views, loss) in contestants(config).items():
        running[name] = steps(config, data, views, loss)
    shares: list[float] = []

    def note_share(name: str) -> None:
        # Read after every turn, so that X-CLR's lap holds its own steps alone.
        share = trainers["xclr"].clock.lap(0)["target_share"]
        shares.extend([share] if name == "xclr" else [])

    seconds = in_turns(running, size, torch.device(config.device), note_share)
    return {name: Timing(median(times), median(shares) if name == "xclr" else None) for name, times in seconds.items()}


def in_turns(
    running: dict[str, Any], size: Size, device: torch.device, after: Callable[[str], None] = lambda _name: None
) -> dict[str, list[float]]:
    """Return seconds of every step of each contestant, after a warm-up; `after` is called with who had a turn."""
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for some in running.values():
        _turn(some, size.warm_up, device)
    for number in range(size.rounds):
        # Who begins alternates, too.
        for name in running if number % 2 == 0 else reversed(running):
            seconds[name] += _turn(running[name], size.turn, device)
            after(name)
    return seconds


def _turn(running: Any, count: int, device: torch.device) -> list[float]:
    """Time each of the next steps."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        next(running)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return times


def _table(timings: dict[int, dict[str, Timing]], config: TrainConfig, size: Size) -> str:
    lines = [f"{'B':>6}  {'':<12}{'ms a step':>11}{'images/s':>11}{'step / SimCLR':>15}{'target':>9}"]
    for batch, found in timings.items():
        for name, timing in found.items():
            share = "" if timing.target_share is None else f"{timing.target_share:.2%}"
            lines.append(
                f"{batch:>6,}  {name:<12}{timing.step_seconds * 1e3:>11,.1f}{batch / timing.step_seconds:>11,.0f}"
                f"{timing.step_seconds / found['simclr'].step_seconds:>15.3f}{share:>9}"
            )
    if not any(LIGHTLY in found for found in timings.values()):
        lines.append("lightly is not installed (pip install lightly): the plain loop stands for the usual way")
    lines.append(
        f"{config.model} net at {config.image_size} px, {config.precision}, {config.device}, {torch.get_num_threads()} threads, "
        f"two views, {size.pictures:,} drawn pictures, k = 256, sketch 64; medians of {size.rounds} alternating rounds of "
        f"{size.turn} steps; target: share of X-CLR's time spent assembling it; the plain loop makes its views in "
        f"{config.workers} processes"
    )
    return "\n".join(lines)


@click.command()
@click.argument("model", type=click.Choice(get_args(ModelName)), default="small")
@click.argument("image_size", type=int, default=32)
def main(model: ModelName, image_size: int) -> None:
    """Print the table of a net and a view size."""
    click.echo(measure(replace(FULL, model=model, image_size=image_size)))


if __name__ == "__main__":
    main()
