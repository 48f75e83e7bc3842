"""A step of X-CLR against a step of SimCLR in the same loop: same net, images and batches, only the target differs.

Drawn pictures (`scenes`) on a graph whose texts are embedded by hashing: what is timed depends on neither.
Both trainers take turns of a few steps, so that whatever else the machine does slows both alike.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch

from train.config import TrainConfig
from train.data.prepare import TrainingData, prepare
from train.loop import settle
from train.trainer import Trainer

_OBJECTIVES = ("simclr", "xclr")
_WARM_UP = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is measured."""

    pictures: int
    batch_sizes: tuple[int, ...]
    rounds: int
    turn: int
    """Steps of one objective before the other has its turn."""


SMALL = Size(pictures=2_048, batch_sizes=(64, 256), rounds=3, turn=3)
FULL = Size(pictures=16_384, batch_sizes=(256, 1024), rounds=8, turn=5)


@dataclass(frozen=True, slots=True)
class Timing:
    """One objective at one batch size."""

    step_seconds: float
    """Median over all steps."""
    target_share: float
    """Of the time of all steps."""


def run(small: bool) -> str:
    """The table, with its conditions."""
    size = SMALL if small else FULL
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        data = _prepare(Path(folder), size)
        config = settle(data.settle(TrainConfig(image_size=32, augment="simclr", kl_every=0)))
        timings = {batch: _measure(replace(config, batch_size=batch), data, size) for batch in size.batch_sizes}
        data.close()
    return _table(timings, config, size)


def _prepare(folder: Path, size: Size) -> TrainingData:
    """Draw the pictures, build their graph, decode."""
    from graphbuild.embed import EmbedConfig, build_embeddings
    from graphbuild.knn import KnnConfig, build_knn

    source = f"train={size.pictures},val=1,side=32"
    build_embeddings(folder, EmbedConfig(dataset="scenes", sources=(source,), encoder="hashing:384", workers=0))
    build_knn(folder, KnnConfig(k=256))
    return prepare(TrainConfig(graph_dir=str(folder), image_size=32))


def _measure(config: TrainConfig, data: TrainingData, size: Size) -> dict[str, Timing]:
    """Both objectives in turns, after a warm-up of each."""
    steps = _WARM_UP + size.rounds * size.turn
    trainers = {
        name: Trainer(replace(config, objective=name, steps=steps, epochs=steps), data)  # type: ignore[arg-type]
        for name in _OBJECTIVES
    }
    running: dict[str, Any] = {name: trainer.steps() for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in _OBJECTIVES}
    shares: dict[str, list[float]] = {name: [] for name in _OBJECTIVES}
    for name in _OBJECTIVES:
        _turn(running[name], _WARM_UP, trainers[name])
    for number in range(size.rounds):
        # Who begins alternates, too.
        for name in _OBJECTIVES if number % 2 == 0 else reversed(_OBJECTIVES):
            trainers[name].clock.lap(0)
            seconds[name] += _turn(running[name], size.turn, trainers[name])
            shares[name].append(trainers[name].clock.lap(0)["target_share"])
    return {name: Timing(median(seconds[name]), median(shares[name])) for name in _OBJECTIVES}


def _turn(running: Any, steps: int, trainer: Trainer) -> list[float]:
    """Seconds of each of the next steps."""
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        next(running)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        times.append(time.perf_counter() - began)
    return times


def _table(timings: dict[int, dict[str, Timing]], config: TrainConfig, size: Size) -> str:
    lines = [f"{'B':>6}{'SimCLR ms':>12}{'X-CLR ms':>12}{'X-CLR / SimCLR':>17}{'SimCLR img/s':>15}{'X-CLR img/s':>14}{'target':>9}"]
    for batch, found in timings.items():
        simclr, xclr = found["simclr"], found["xclr"]
        lines.append(
            f"{batch:>6,}{simclr.step_seconds * 1e3:>12,.1f}{xclr.step_seconds * 1e3:>12,.1f}"
            f"{xclr.step_seconds / simclr.step_seconds:>17.3f}{batch / simclr.step_seconds:>15,.0f}"
            f"{batch / xclr.step_seconds:>14,.0f}{xclr.target_share:>9.2%}"
        )
    lines.append(
        f"{config.model} net at {config.image_size} px, {config.precision}, {config.device}, {torch.get_num_threads()} threads, "
        f"two views, {size.pictures:,} drawn pictures, k = 256, sketch 64; medians of {size.rounds} alternating rounds of "
        f"{size.turn} steps; target: share of X-CLR's time spent assembling it"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    click.echo(run(small=True))
