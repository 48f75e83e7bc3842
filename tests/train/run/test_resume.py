"""A run that is stopped goes on as if nothing had happened: the same bits, the same metrics, no step twice."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers_forked import run_program
from helpers_train import tiny_config, write_images, write_tiny_graph

from train.config import TrainConfig
from train.data.prepare import prepare
from train.run import session
from train.run.checkpoint import Position, checkpoints, load_encoder, newest_checkpoint, save_checkpoint
from train.run.folder import Interrupted
from train.run.loop import settle, train
from train.run.metrics import read_lines, read_metrics
from train.run.trainer import Trainer

TIMED = ("images_per_s", "data_wait_share", "augment_share", "target_share")
"""What depends on the clock."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("resume")
    data, graph = write_images(folder / "images.parquet", 43, broken=(7, 30)), write_tiny_graph(folder / "graph", 43)
    # Five steps an epoch: a checkpoint every three lies in the middle of epochs.
    return tiny_config(data=str(data), graph_dir=str(graph), epochs=3, checkpoint_every=3, image_size=16)


@pytest.fixture(scope="module")
def undisturbed(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(config, run_dir)
    return run_dir


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in read_metrics(run_dir)]


def assert_equal_runs(one: Path, other: Path) -> None:
    weights, others = load_encoder(one).state_dict(), load_encoder(other).state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert untimed(one) == untimed(other)


KILLED = """
import os, signal, sys
from train.run import session
from train.cli import main
write = session.append_line
def write_and_die(path, values):
    write(path, values)
    if values.get("step") == 8:
        os.kill(os.getpid(), signal.SIGKILL)
session.append_line = write_and_die
main()
"""
"""`train run`, which dies at step 8, after its metrics were written."""


def test_checkpoints_are_written_by_the_clock_beside_those_by_steps(
    config: TrainConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written = [0.0], []

    def tick() -> float:
        now[0] += 30.0
        return now[0]

    def note(path: Path, position: Position, *rest: Any) -> None:
        written.append(position.step)
        save_checkpoint(path, position, *rest)

    monkeypatch.setattr("train.run.session.time", SimpleNamespace(monotonic=tick))
    monkeypatch.setattr("train.run.session.save_checkpoint", note)
    train(replace(config, checkpoint_every=1000, checkpoint_minutes=2.0), tmp_path / "run")
    assert len(written) > 2
    assert written == sorted(set(written))
    assert written[-1] == 15
    assert_equal_runs(tmp_path / "run", undisturbed)


def test_run_killed_in_mid_epoch_ends_bit_identical_to_an_undisturbed_one(
    config: TrainConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "asked.toml").write_text(config.to_toml())
    arguments = ["run", "--config", str(tmp_path / "asked.toml"), "--run-dir", str(run_dir)]
    died = run_program(KILLED, *arguments)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert read_metrics(run_dir)[-1]["step"] == 8
    result = train(config, run_dir)
    assert result.first_step == 6
    assert_equal_runs(run_dir, undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_writes_a_checkpoint_and_says_how_to_go_on(
    config: TrainConfig, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    run_dir = tmp_path / "run"
    write = session.append_line

    def write_and_signal(path: Path, values: dict[str, Any]) -> None:
        write(path, values)
        if path.name == "metrics.jsonl" and values["step"] == 4:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(session, "append_line", write_and_signal)
    with pytest.raises(Interrupted, match=r"a checkpoint was written\. Go on with: train run --config .* --run-dir") as caught:
        train(config, run_dir)
    assert caught.value.exit_code == code
    assert checkpoints(run_dir)[0].name == "step-00000004"
    assert train(config, run_dir).first_step == 4
    told = [line["event"] for line in read_lines(run_dir / "events.jsonl") if line["event"] != "corrupt_image"]
    assert told == ["start", "interrupt", "resume", "finish"]
    assert_equal_runs(run_dir, undisturbed)


def test_run_goes_on_from_every_step_with_the_same_losses(config: TrainConfig) -> None:
    data = prepare(config)
    settled = settle(data.opened.settle(config))
    whole = Trainer(settled, data)
    states, losses = [], []
    for report in whole.steps():
        losses.append(float(report.outcome.soft.loss.detach()))
        weights = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
        state = torch.load(_saved(whole.optimizer.state_dict()), weights_only=True)
        states.append((whole.position("f"), weights, state))
    for start in (1, 4, 5, 13):
        resumed = Trainer(settled, data)
        resumed.restore(*states[start - 1])
        assert [float(report.outcome.soft.loss.detach()) for report in resumed.steps()] == losses[start:]


def _saved(state: dict[str, Any]) -> Any:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    config: TrainConfig, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    train(config, run_dir)
    (run_dir / "model.safetensors").unlink()
    newest, before = checkpoints(run_dir)
    (newest / "model.safetensors").write_bytes(b"torn")
    result = train(config, run_dir)
    assert f"step-{result.first_step:08d}" == before.name
    assert f"warning: {newest / 'model.safetensors'} is damaged" in capfd.readouterr().err
    assert_equal_runs(run_dir, undisturbed)
    found = newest_checkpoint(run_dir, pytest.fail)
    assert found is not None
    assert found.position.step == 15
