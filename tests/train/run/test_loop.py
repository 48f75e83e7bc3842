"""The training loop on tiny images: what it writes, what it refuses, and that it learns."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_train import tiny_config, write_images, write_tiny_graph

from graphbuild.errors import ArtifactMismatch, OptionError, UserError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.config import TrainConfig, load_config
from train.data.prepare import prepare
from train.run.checkpoint import load_encoder
from train.run.folder import open_run
from train.run.loop import measure_step_seconds, settle, train
from train.run.metrics import read_lines, read_metrics
from train.run.trainer import Trainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    write_images(folder / "images.parquet", 33, broken=(5,))
    write_tiny_graph(folder / "graph", 32)
    return folder


def config_in(place: Path, **changes: Any) -> TrainConfig:
    return tiny_config(graph_dir=str(place / "graph"), data=str(place / "images.parquet"), **changes)


@pytest.mark.parametrize("objective", ["xclr", "simclr", "supcon"])
def test_run_folder_holds_configuration_metrics_checkpoint_and_encoder(place: Path, tmp_path: Path, objective: str) -> None:
    result = train(config_in(place, objective=objective), tmp_path / "run")
    # 33 images, one unknown to the graph: 32 in batches of eight, two epochs. One is corrupt, and another takes its place.
    assert (result.steps, result.images_seen) == (8, 64)
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "config.toml",
        "events.jsonl",
        "metrics.jsonl",
        "model.safetensors",
    ]
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert all(line["kl"] == pytest.approx(line["loss"] - line["target_entropy"], abs=1e-5) for line in lines)
    assert load_encoder(tmp_path / "run").feature_dim == 256


def test_every_logged_step_has_the_same_figures(place: Path, tmp_path: Path) -> None:
    train(config_in(place, steps=2), tmp_path / "run")
    assert set(read_metrics(tmp_path / "run")[0]) == {
        "step",
        "epoch",
        "images_seen",
        "loss",
        "kl",
        "target_entropy",
        "own_view_mass",
        "hit_rate",
        "kl_to_dense",
        "spread",
        "alignment",
        "uniformity",
        "lr",
        "grad_norm",
        "images_per_s",
        "data_wait_share",
        "augment_share",
        "target_share",
    }


def test_corrupt_and_unknown_images_are_listed_in_the_events(place: Path, tmp_path: Path) -> None:
    train(config_in(place, steps=1), tmp_path / "run")
    events = {line["event"]: line for line in read_lines(tmp_path / "run" / "events.jsonl")}
    assert (events["unknown_images"]["count"], events["unknown_images"]["examples"]) == (1, ["img-32"])
    assert events["corrupt_image"]["sample_id"] == "img-5"
    assert events["finish"]["step"] == 1


def test_images_decoded_batch_by_batch_train_like_those_in_memory_corrupt_ones_included(place: Path, tmp_path: Path) -> None:
    for name, size in (("held", 4.0), ("read", 0.0)):
        result = train(config_in(place, cache_gb=size, crop_from="held"), tmp_path / name)
        assert (result.steps, result.images_seen) == (8, 64)
        told = [line for line in read_lines(tmp_path / name / "events.jsonl") if line["event"] == "corrupt_image"]
        assert [line["sample_id"] for line in told] == ["img-5"]
    held, read = (load_encoder(tmp_path / name).state_dict() for name in ("held", "read"))
    assert all(torch.equal(held[name], read[name]) for name in held)


def test_saved_configuration_repeats_the_run_bit_for_bit(place: Path, tmp_path: Path) -> None:
    train(config_in(place), tmp_path / "one")
    train(load_config(tmp_path / "one" / "config.toml", {}), tmp_path / "two")
    one, two = (load_encoder(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_configuration_is_refused_with_the_difference_named(place: Path, tmp_path: Path) -> None:
    train(config_in(place, steps=1), tmp_path / "run")
    with pytest.raises(OptionError, match=r"another configuration \(--tau: 0.1 -> 0.2, --seed: 0 -> 4\)\. Add --overwrite"):
        train(config_in(place, steps=1, tau=0.2, seed=4), tmp_path / "run")


def test_overwrite_starts_again(place: Path, tmp_path: Path) -> None:
    train(config_in(place), tmp_path / "run")
    result = train(config_in(place, steps=2, tau=0.2), tmp_path / "run", overwrite=True)
    assert (result.first_step, result.steps) == (0, 2)
    assert len(read_metrics(tmp_path / "run")) == 2


def test_finished_run_is_not_done_again(place: Path, tmp_path: Path) -> None:
    train(config_in(place), tmp_path / "run")
    before = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    result = train(config_in(place), tmp_path / "run")
    assert "was finished before (8 steps)" in result.summary()
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == before


def test_folder_of_something_else_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="is not the folder of a run"):
        train(config_in(place), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_runs_are_numbered_and_an_unfinished_one_goes_on(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = config_in(place, steps=2)
    assert train(asked).run_dir == Path("runs/xclr-1")
    assert train(replace(asked, seed=1)).run_dir == Path("runs/xclr-2")
    (tmp_path / "runs/xclr-2/model.safetensors").unlink()
    again = train(replace(asked, seed=1))
    assert (again.run_dir, again.first_step) == (Path("runs/xclr-2"), 2)
    assert train(replace(asked, seed=1)).run_dir == Path("runs/xclr-3")


def test_folder_in_use_by_another_process_is_refused(place: Path, tmp_path: Path) -> None:
    train(config_in(place, steps=1), tmp_path / "run")
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another process is training in this folder"):
        train(config_in(place, steps=1), tmp_path / "run")
    holder.communicate(b"\n")


def test_checkpoint_of_other_images_is_refused(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "images.parquet"
    shutil.copy(place / "images.parquet", data)
    config = replace(config_in(place), data=str(data))
    train(config, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    pq.write_table(pq.read_table(data).slice(1), data)
    with pytest.raises(ArtifactMismatch, match="was made with other images or another graph"):
        train(config, tmp_path / "run")


def test_non_finite_loss_stops_before_the_weights_change(place: Path) -> None:
    # At this temperature the logits are infinite, and the loss is no number.
    trainer = Trainer(settle(replace(prepared(place).opened.config, tau=1e-42)), prepared(place))
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    with pytest.raises(UserError, match="step 1: the loss is nan; stopped before the weights were changed"):
        next(trainer.steps())
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.named_parameters())
    assert trainer.step == 0


def prepared(place: Path) -> Any:
    return prepare(config_in(place))


def test_larger_batch_than_images_is_one_error(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--batch-size 64 is more than the 32 images there are"):
        train(config_in(place, batch_size=64), tmp_path / "run")


def test_prepared_data_serve_two_runs(place: Path, tmp_path: Path) -> None:
    data = prepared(place)
    alone = train(config_in(place, objective="simclr"), tmp_path / "alone")
    shared = [train(config_in(place, objective=name), tmp_path / name, data=data) for name in ("xclr", "simclr")]
    assert [result.steps for result in shared] == [8, 8]
    assert shared[1].last["loss"] == alone.last["loss"]


def test_step_time_is_measured_without_writing_anything(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert measure_step_seconds(config_in(place), steps=3) > 0
    assert not list(tmp_path.iterdir())


def test_training_separates_the_classes_that_colours_tell(place: Path, tmp_path: Path) -> None:
    config = config_in(place, objective="supcon", label_column="label", epochs=12, augment="none")
    train(config, tmp_path / "run")
    kl = [line["kl"] for line in read_metrics(tmp_path / "run")]
    assert np.mean(kl[-3:]) < 0.5 * np.mean(kl[:3])


def test_supcon_says_what_its_classes_are(place: Path, tmp_path: Path) -> None:
    for name, column in (("texts", None), ("labels", "label")):
        train(config_in(place, objective="supcon", label_column=column, steps=1), tmp_path / name)
    notes = [
        next(line["note"] for line in read_lines(tmp_path / name / "events.jsonl") if line["event"] == "start")
        for name in ("texts", "labels")
    ]
    assert notes == ["classes: images of equal texts (no --label-column)", "classes: 5 values of label"]


def test_graph_without_a_sketch_needs_a_constant(place: Path, tmp_path: Path) -> None:
    write_graph(tmp_path / "graph", clustered_vectors(20, 8), samples=[(f"img-{i}", i % 20) for i in range(33)])
    build_knn(tmp_path / "graph", KnnConfig(k=3, sketch_dim=0))
    config = replace(config_in(place, steps=1), graph_dir=str(tmp_path / "graph"))
    with pytest.raises(OptionError, match="--absent"):
        train(config, tmp_path / "run")
    assert train(replace(config, absent=0.1), tmp_path / "constant").steps == 1


def test_unknown_device_is_one_error(place: Path) -> None:
    with pytest.raises(OptionError, match=r"--device 'quantum' is no device"):
        settle(config_in(place, device="quantum"))


def test_auto_of_a_resumed_run_is_what_the_run_settled(place: Path, tmp_path: Path) -> None:
    asked = config_in(place, precision="auto")
    settled = settle(replace(asked, load_size=12))
    other = "float32" if settled.precision == "bfloat16" else "bfloat16"
    open_run(tmp_path / "run", asked, replace(settled, precision=other)).close()
    folder = open_run(tmp_path / "run", asked, settled)
    assert folder.config.precision == other
    folder.close()


def test_result_is_json(place: Path, tmp_path: Path) -> None:
    result = train(config_in(place, steps=1), tmp_path / "run")
    assert json.loads(json.dumps(result.to_json()))["last"]["step"] == 1
