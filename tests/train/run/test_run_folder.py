"""A run's folder: what is removed is ours, and a run that was killed anywhere can be started again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_train import tiny_config, write_images

from graphbuild.errors import OptionError, UserError
from train.config import TrainConfig
from train.model.weights import dump_weights
from train.run.checkpoint import checkpoints, read_checkpoint
from train.run.folder import open_run
from train.run.loop import train
from train.run.metrics import append_line, read_lines


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_images(tmp_path / "images.parquet", 16)
    return tiny_config(objective="simclr", data=str(tmp_path / "images.parquet"), steps=2)


def test_what_a_killed_start_left_is_no_obstacle(tmp_path: Path, config: TrainConfig) -> None:
    (tmp_path / "run").mkdir()
    for name in (".config.toml.tmp", ".config.toml.99999999-0a1b2c3d.tmp", ".lock"):
        (tmp_path / "run" / name).write_text("half")
    assert train(config, tmp_path / "run").steps == 2
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_checkpoint_that_was_begun_by_a_killed_process_goes_at_the_next_run(tmp_path: Path, config: TrainConfig) -> None:
    train(config, tmp_path / "run")
    left = tmp_path / "run/checkpoints/.step-00000004.99999999-0a1b2c3d.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    train(config, tmp_path / "run")
    assert not left.exists()
    assert checkpoints(tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"batch_size": 10_000}, {"init": "run:nothing.safetensors"}, {"objective": "supcon"}])
def test_a_new_run_that_is_refused_before_its_first_step_leaves_no_folder(
    tmp_path: Path, config: TrainConfig, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UserError):
        train(replace(config, **wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_stays_where_it_is_when_its_images_are_gone(tmp_path: Path, config: TrainConfig) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()
    (tmp_path / "images.parquet").unlink()
    with pytest.raises(UserError):
        train(config, tmp_path / "run")
    assert (tmp_path / "run/config.toml").exists()
    assert checkpoints(tmp_path / "run")


def test_overwrite_removes_nothing_that_the_run_did_not_write(tmp_path: Path, config: TrainConfig) -> None:
    train(config, tmp_path / "run")
    kept = ("notes.md", "features/mine.npy", "checkpoints/best.pt", "tensorboard/layout.json")
    for name in kept:
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    train(replace(config, seed=1), tmp_path / "run", overwrite=True)
    assert all((tmp_path / "run" / name).read_text() == "mine" for name in kept)
    assert len(read_lines(tmp_path / "run/metrics.jsonl")) == 2


@pytest.mark.parametrize("wrong", [{"init": "run:nowhere.safetensors"}, {"batch_size": 4096}, {"image_column": "absent"}])
def test_an_overwrite_that_is_refused_leaves_the_earlier_run(tmp_path: Path, config: TrainConfig, wrong: dict[str, Any]) -> None:
    train(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        train(replace(config, **wrong), tmp_path / "run", overwrite=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_an_overwrite_may_start_from_the_weights_that_it_replaces(tmp_path: Path, config: TrainConfig) -> None:
    train(config, tmp_path / "run")
    init = f"run:{tmp_path / 'run/model.safetensors'}"
    assert train(replace(config, init=init), tmp_path / "run", overwrite=True).first_step == 0


@pytest.mark.parametrize("text", ["", 'objective = "xclr"\n', "[tool]\nname = 1\n"])
def test_a_config_file_of_another_program_makes_no_run(tmp_path: Path, config: TrainConfig, text: str) -> None:
    (tmp_path / "theirs/checkpoints").mkdir(parents=True)
    (tmp_path / "theirs/config.toml").write_text(text)
    (tmp_path / "theirs/model.safetensors").write_text("theirs")
    with pytest.raises(OptionError, match=r"config\.toml"):
        train(config, tmp_path / "theirs", overwrite=True)
    assert (tmp_path / "theirs/model.safetensors").read_text() == "theirs"


class Killed(BaseException):
    """The process's end."""


@pytest.mark.parametrize("last", range(8))
def test_an_overwrite_killed_anywhere_can_be_run_again_and_mixes_nothing(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    train(config, tmp_path / "run")
    (tmp_path / "run/eval.json").write_text("{}")
    before = (tmp_path / "run/model.safetensors").read_bytes()
    calls = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            nonlocal calls
            if calls == last:
                raise Killed
            calls += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        from train.run import folder

        patch.setattr(folder, "remove", counted(folder.remove))
        # A process that ends lets go of the folder.
        with suppress(Killed), closing(open_run(tmp_path / "run", config, config, overwrite=True)) as replaced:
            replaced.begin()
    result = train(config, tmp_path / "run")
    # Either the old run is still whole, or a new one went from its beginning to its end: equal here, being the same training.
    assert (result.steps, len(read_lines(tmp_path / "run/metrics.jsonl"))) == (2, 2)
    assert (tmp_path / "run/model.safetensors").read_bytes() == before


def test_a_line_of_metrics_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step})
    path.write_bytes(path.read_bytes().replace(b'"step": 2}', b'"st\xff": 2') + b'{"step": 4')
    assert [line["step"] for line in read_lines(path)] == [1, 3]
    assert "1 lines cannot be read and are left out, the first of them line 2" in capsys.readouterr().err


def test_a_step_of_a_checkpoint_that_was_altered_is_noticed(tmp_path: Path, config: TrainConfig) -> None:
    train(config, tmp_path / "run")
    receipt = checkpoints(tmp_path / "run")[0] / "checkpoint.json"
    receipt.write_text(receipt.read_text().replace('"step": 2', '"step": 1'))
    with pytest.raises(Exception, match=r"checkpoint\.json is damaged"):
        read_checkpoint(receipt.parent)


def test_equal_runs_give_equal_files_of_weights(tmp_path: Path, config: TrainConfig) -> None:
    for name in ("one", "other"):
        train(config, tmp_path / name)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "other/model.safetensors").read_bytes()


def test_facts_of_weights_stand_in_one_order_and_tensors_come_back() -> None:
    from safetensors.torch import load

    tensors = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.bfloat16)}
    facts = {f"key {number}": "ü" * number for number in range(6)}
    contents = {dump_weights(tensors, dict(reversed(facts.items()) if turn % 2 else facts.items())) for turn in range(8)}
    assert len(contents) == 1
    found = load(contents.pop())
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_another_number_of_threads_is_said_at_resume(
    tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, tmp_path / "run")
    folder = checkpoints(tmp_path / "run")[0]
    stored = json.loads((folder / "checkpoint.json").read_text())
    assert stored["position"]["threads"] == torch.get_num_threads()
    del stored["position_digest"]
    stored["position"] |= {"threads": 64}
    (folder / "checkpoint.json").write_text(json.dumps(stored))
    (tmp_path / "run/model.safetensors").unlink()
    train(config, tmp_path / "run")
    assert f"64 threads before, {torch.get_num_threads()} now" in capsys.readouterr().err
    assert any(line["event"] == "arithmetic" for line in read_lines(tmp_path / "run/events.jsonl"))
