"""What the public call adds to the trainer's own path: similarities of a batch by sample ids, by positions, and by `train run`.

Shape letters: B samples in a batch. All three are timed in turn, in one process and thread, on the same random batches, by
the thread's processor time, so that other jobs of the machine hardly count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import numpy as np
import numpy.typing as npt
import torch

from graphbuild.store import schemas
from graphbuild.store.arrays import Int64
from graphbuild.store.graph import Graph
from graphbuild.system.allocator import keep_freed_memory
from graphbuild.torch import SoftTargets
from train.config import TrainConfig
from train.data.join import Joined
from train.run.targets import XCLR, Split

_WARM_UP = 3


def run(graph_dir: Path, batch_sizes: tuple[int, ...], repeats: int) -> str:
    """Return the table, with its conditions."""
    keep_freed_memory()
    targets = SoftTargets(graph_dir)
    ids = np.array(targets.graph.sample_column(schemas.SAMPLE_ID).to_pylist())
    lines = [
        f"{targets.graph.n_texts:,} texts, k = {targets.graph.k}; random batches, milliseconds of the thread, median of {repeats}; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "| B | train run | positions | ids |",
        "|---:|---:|---:|---:|",
    ]
    for batch in batch_sizes:
        milliseconds = _measure(_contenders(targets, ids, batch), len(ids), batch, repeats)
        lines.append(f"| {batch:,} | " + " | ".join(f"{value:.2f}" for value in milliseconds) + " |")
    return "\n".join(lines)


def _contenders(targets: SoftTargets, ids: npt.NDArray[np.str_], batch: int) -> list[Callable[[Int64], torch.Tensor]]:
    graph = Graph.open(targets.graph_dir)
    found = graph.sample_texts(ids.tolist())
    joined = Joined(np.arange(len(ids)), found.offsets, found.text_ids, found.sample_rows[found.offsets[:-1]], "sample id", 0, ())
    trainer = XCLR(TrainConfig(kl_every=0), graph, joined, torch.device("cpu"), Split(range(batch), batch))
    positions = targets.positions(ids.tolist())
    return [
        lambda rows: trainer.target(rows, 0).rows(0, batch),
        lambda rows: targets(positions[rows]),
        lambda rows: targets(ids[rows].tolist()),
    ]


def _measure(calls: list[Callable[[Int64], torch.Tensor]], samples: int, batch: int, repeats: int) -> list[float]:
    rng = np.random.default_rng(batch)
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(_WARM_UP + repeats):
        rows = rng.choice(samples, batch, replace=False)
        for which in rng.permutation(len(calls)):
            began = time.thread_time()
            calls[which](rows)
            seconds[which].append(time.thread_time() - began)
    return [1e3 * median(taken[_WARM_UP:]) for taken in seconds]


@click.command()
@click.option("--graph-dir", type=click.Path(path_type=Path, exists=True), required=True)
@click.option(
    "--batch-size", "batch_sizes", type=click.IntRange(min=2), multiple=True, default=(256, 1024, 4096), help="Repeatable."
)
@click.option("--repeats", type=click.IntRange(min=3), default=31)
def main(graph_dir: Path, batch_sizes: tuple[int, ...], repeats: int) -> None:
    """Print the table."""
    click.echo(run(graph_dir, batch_sizes, repeats))


if __name__ == "__main__":
    main()
