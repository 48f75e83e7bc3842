"""Spread, alignment and uniformity by hand, the warning on collapse, and TensorBoard's files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers_train import tiny_config, write_images, write_tiny_graph
from torch.nn import functional

from train.config import TrainConfig
from train.run import session
from train.run.loop import train
from train.run.metrics import read_lines, read_metrics
from train.run.watch import sphere_figures


def unit(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_figures_equal_loops_over_pairs() -> None:
    first, second = unit(9, 5), unit(9, 5, seed=1)
    found = sphere_figures(first, second)
    apart = [math.exp(-2 * (first[i] - first[j]).square().sum().item()) for i in range(9) for j in range(9) if i != j]
    assert found["uniformity"].item() == pytest.approx(math.log(sum(apart) / len(apart)), rel=1e-5)
    distances = [(first[i] - second[i]).square().sum().item() for i in range(9)]
    assert found["alignment"].item() == pytest.approx(sum(distances) / 9, rel=1e-5)


def test_spread_is_one_where_vectors_lie_evenly_and_zero_where_they_are_the_same() -> None:
    assert sphere_figures(unit(2_000, 64), unit(2_000, 64))["spread"].item() == pytest.approx(1.0, abs=0.02)
    same = unit(1, 64).expand(50, 64)
    found = sphere_figures(same, same)
    assert found["spread"].item() == pytest.approx(0.0, abs=1e-3)
    assert found["uniformity"].item() == pytest.approx(0.0, abs=1e-5)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("watch")
    write_images(folder / "images.parquet", 32)
    write_tiny_graph(folder / "graph", 32)
    return tiny_config(graph_dir=str(folder / "graph"), data=str(folder / "images.parquet"), tensorboard=True)


def test_tensorboard_shows_the_lines_of_the_metrics(config: TrainConfig, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(config, tmp_path / "run")
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = read_metrics(tmp_path / "run")
    for name in ("loss", "spread", "images_per_s", "hit_rate"):
        assert [(point.step, point.value) for point in shown.Scalars(name)] == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines
        ]


def test_collapse_is_warned_of_once(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "COLLAPSED", 10.0)
    train(config, tmp_path / "run")
    assert capfd.readouterr().err.count("warning: step 2: the embeddings are nearly the same for all images") == 1
    assert [line["step"] for line in read_lines(tmp_path / "run" / "events.jsonl") if line["event"] == "collapse"] == [2]
