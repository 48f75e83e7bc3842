"""Several processes on one batch: the loss, the gradients and the targets of one; and what happens when one of them ends."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_ranks import BATCH, batch_of, loss_and_gradients, net, run_ranks, said, train_cli, train_cli_until
from helpers_targets import one_hot, same_class, whole_clip_loss
from helpers_train import tiny_config, write_images, write_tiny_graph
from torch.nn import functional

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.targets import assemble as reference
from graphbuild.targets.softmax import apply_options
from train.config import TrainConfig
from train.run.checkpoint import checkpoints, load_encoder
from train.run.distributed import Ranks
from train.run.loop import train
from train.run.metrics import read_lines, read_metrics

TEXTS = 40
KINDS = ["union", "mutual", "mixed", "resident", "supcon", "simclr", "clip"]
TIMED = ("images_per_s", "data_wait_share", "augment_share", "target_share")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    write_graph(folder, clustered_vectors(TEXTS, 24))
    build_knn(folder, KnnConfig(k=6, sketch_dim=16))
    return Graph.open(folder)


def expected_similarity(kind: str, graph: Graph, ids: torch.Tensor) -> torch.Tensor:
    """G by the reference of `graphbuild.targets.assemble`, which knows of no processes."""
    if kind in ("simclr", "clip"):
        return one_hot(BATCH)
    if kind == "supcon":
        return same_class(ids % 5)
    how: Any = "mutual" if kind == "mutual" else "union"
    similarity: Any = reference.assemble(graph.rows(ids.numpy()), ids.numpy(), symmetrize=how).similarity_BB
    if kind == "mixed":
        similarity = apply_options(similarity, min_similarity=0.1, own_weight=0.3, tau_s=0.1)
    return torch.from_numpy(similarity)


def slow_loss(z: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the target laid out as 2B x 2B."""
    target = torch.tile(similarity.double(), (2, 2)).div(0.1).fill_diagonal_(-torch.inf).softmax(dim=1)
    logits = (z @ z.T / 0.1).fill_diagonal_(-1e9)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_equal_one_process_with_the_whole_batch(graph: Graph, tmp_path: Path, count: int) -> None:
    assert run_ranks(count, loss_and_gradients, KINDS, graph.path, TEXTS, tmp_path, folder=tmp_path) == [0] * count
    parts = [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(count)]
    for seed, kind in enumerate(KINDS):
        pictures, ids = batch_of(seed, TEXTS)
        similarity = expected_similarity(kind, graph, ids)
        rows = torch.cat([part[kind][2] for part in parts])
        torch.testing.assert_close(rows, similarity, rtol=0, atol=1e-6 if kind == "mixed" else 0)
        model = net()
        z = functional.normalize(model(pictures), dim=1)
        loss = whole_clip_loss(*z.chunk(2), torch.tensor(10.0), ids) if kind == "clip" else slow_loss(z, rows)
        loss.backward()  # type: ignore[no-untyped-call]
        for part in parts:
            found, gradients, _ = part[kind]
            assert found.item() == pytest.approx(loss.item(), abs=1e-9), kind
            for gradient, weight in zip(gradients, model.parameters(), strict=True):
                torch.testing.assert_close(gradient, weight.grad, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("ranks")
    data, graph_dir = write_images(folder / "images.parquet", 43, broken=(4,)), write_tiny_graph(folder / "graph", 43)
    # Images are decoded batch by batch, so that only one process meets the broken one.
    return tiny_config(data=str(data), graph_dir=str(graph_dir), checkpoint_every=3, image_size=16, cache_gb=0.0, epochs=2)


def as_arguments(config: TrainConfig, folder: Path) -> list[str]:
    (folder / "asked.toml").write_text(config.to_toml())
    return ["--config", str(folder / "asked.toml"), "--run-dir", str(folder / "run")]


@pytest.fixture(scope="module")
def undisturbed(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_ranks(2, train_cli, *as_arguments(config, folder), folder=folder) == [0, 0]
    return folder


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(run_dir)]


def test_only_the_first_process_writes_and_speaks(undisturbed: Path) -> None:
    assert [line["step"] for line in read_metrics(undisturbed / "run")] == list(range(1, 11))
    assert read_metrics(undisturbed / "run")[-1]["images_seen"] == 80
    events = read_lines(undisturbed / "run" / "events.jsonl")
    assert sorted(line["event"] for line in events) == ["corrupt_image", "finish", "start"]
    assert "xclr, 10 steps, 80 images" in said(undisturbed, 0)
    assert said(undisturbed, 1) == ""


def test_processes_see_the_batches_and_targets_of_one(config: TrainConfig, undisturbed: Path, tmp_path: Path) -> None:
    train(config, tmp_path / "alone")
    for one, other in zip(untimed(tmp_path / "alone"), untimed(undisturbed / "run"), strict=True):
        for name in ("step", "epoch", "images_seen", "lr"):
            assert one[name] == other[name]
        for name in ("hit_rate", "target_entropy", "own_view_mass", "kl_to_dense"):
            assert one[name] == pytest.approx(other[name], abs=1e-5), name


def test_killed_process_ends_the_job_with_a_message_and_the_run_resumes_to_the_same_bits(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    arguments = as_arguments(config, tmp_path)
    codes = run_ranks(2, train_cli_until, 1, 7, signal.SIGKILL, *arguments, folder=tmp_path, timeout=240)
    assert codes == [1, -signal.SIGKILL]
    assert "error: process 0 lost another one of the 2: it died" in said(tmp_path, 0)
    assert run_ranks(2, train_cli, *arguments, folder=tmp_path) == [0, 0]
    assert "going on from step 6" in said(tmp_path, 0)
    assert untimed(tmp_path / "run") == untimed(undisturbed / "run")
    one, other = (load_encoder(folder / "run").state_dict() for folder in (tmp_path, undisturbed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_signal_to_one_process_stops_all_with_a_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    codes = run_ranks(2, train_cli_until, 1, 4, signal.SIGTERM, *as_arguments(config, tmp_path), folder=tmp_path)
    assert codes == [143, 143]
    assert "stopped by SIGTERM after step 4 of 10; a checkpoint was written" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    assert checkpoints(tmp_path / "run")[0].name == "step-00000004"


def test_error_of_all_processes_is_said_once(config: TrainConfig, tmp_path: Path) -> None:
    arguments = [*as_arguments(config, tmp_path), "--batch-size", "9"]
    assert run_ranks(2, train_cli, *arguments, folder=tmp_path) == [1, 1]
    assert said(tmp_path, 0).splitlines() == [
        "error: --batch-size 9 is that of all 2 processes together, and cannot be divided by them. Take 8 or 10."
    ]
    assert said(tmp_path, 1) == ""


def test_batch_smaller_than_the_processes_is_refused_with_one_that_fits() -> None:
    with pytest.raises(OptionError, match=r"--batch-size 3 is that of all 4 processes together.*Take 4\."):
        Ranks(0, 4).require_divisible(3)


def test_parts_of_a_batch_follow_one_another() -> None:
    assert [place for rank in range(4) for place in Ranks(rank, 4).part(12)] == list(range(12))
