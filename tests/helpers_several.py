"""Pictures and several graphs of them, for the tests of runs with more than one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_train import tiny_config, write_images, write_tiny_graph

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.config import TrainConfig
from train.data.prepare import prepare
from train.run.checkpoint import newest_checkpoint
from train.run.loop import settle, train
from train.run.metrics import read_metrics
from train.run.trainer import Trainer

IMAGES = 40
Make = Callable[..., TrainConfig]


def write_place(folder: Path) -> Path:
    """Pictures; graphs `a` and `b` of them by other texts; `most` lacks one, `half` half of them, `other` all."""
    write_images(folder / "images.parquet", IMAGES)
    write_tiny_graph(folder / "a", IMAGES)
    known = {"b": range(IMAGES), "most": range(1, IMAGES), "half": range(0, IMAGES, 2), "other": range(IMAGES, 2 * IMAGES)}
    for name, numbers in known.items():
        samples = [(f"img-{i}", i % 10) for i in reversed(numbers)]
        write_graph(folder / name, clustered_vectors(10, 16, seed=3), samples=samples)
        build_knn(folder / name, KnnConfig(k=9, sketch_dim=0))
    return folder


def maker(place: Path) -> Make:
    """A configuration; `graphs` are names of graphs that are mixed, `heads` are such as `one=a:0.5`."""

    def make(graphs: tuple[str, ...] = ("a",), heads: tuple[str, ...] = (), **options: Any) -> TrainConfig:
        first, *others = [str(place / name) for name in graphs]
        parts = [head.partition("=") for head in heads]
        placed = tuple(f"{name}={place / graph}" for name, _, graph in parts)
        more = {"more_graphs": tuple(others), "head": placed, "data": str(place / "images.parquet")}
        return tiny_config(**{"graph_dir": first, **more, "epochs": 1, **options})

    return make


def losses(run: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in read_metrics(run)]


def goes_on_bit_for_bit(config: TrainConfig, run: Path) -> Trainer:
    """Train to the end, and again from a checkpoint after two steps; returns the second trainer."""
    train(config, run)
    data = prepare(config)
    settled = settle(data.opened.settle(config))
    first = Trainer(settled, data)
    steps = first.steps()
    for _ in range(2):
        next(steps)
    state = {name: value.clone() for name, value in first.model.state_dict().items()}
    second = Trainer(settled, data)
    second.restore(first.position("same"), state, first.optimizer.state_dict())
    assert [float(report.metrics(with_kl=False)["loss"]) for report in second.steps()] == losses(run)[2:]
    data.close()
    saved = newest_checkpoint(run, print)
    assert saved is not None
    assert saved.weights.keys() == second.model.state_dict().keys()
    assert all(torch.equal(value, saved.weights[name]) for name, value in second.model.state_dict().items())
    return second
