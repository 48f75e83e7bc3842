"""Checkpoints: verified, pruned, and passed over when damaged; and the final encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graphbuild.errors import ArtifactError
from train.model.encoders import Encoder
from train.run.checkpoint import Position, checkpoints, load_encoder, newest_checkpoint, save_checkpoint, save_encoder
from train.run.metrics import append_line, cut_metrics, read_metrics


def net(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder("small", image_size=8, projector_hidden=8, projector_dim=4)


def save(run_dir: Path, step: int) -> Path:
    encoder = net(step)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    encoder(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    position = Position(step=step, images_seen=step * 8, seconds=1.5, fingerprint="f")
    return save_checkpoint(run_dir, position, encoder.state_dict(), optimizer.state_dict())


def test_checkpoint_comes_back_as_it_was_written(tmp_path: Path) -> None:
    encoder = net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)
    encoder(torch.randn(4, 3, 8, 8)).sum().backward()
    optimizer.step()
    position = Position(step=3, images_seen=24, seconds=1.5, fingerprint="f")
    save_checkpoint(tmp_path, position, encoder.state_dict(), optimizer.state_dict())
    found = newest_checkpoint(tmp_path, pytest.fail)
    assert found is not None
    assert found.position == position
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in encoder.state_dict().items())
    buffers = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    loaded = [state["momentum_buffer"] for state in found.optimizer["state"].values()]
    assert all(torch.equal(one, other) for one, other in zip(buffers, loaded, strict=True))


def test_only_the_two_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    victim = save(tmp_path, 2) / name
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        middle = len(content) // 2
        victim.write_bytes(content[:middle] if damage == "cut" else content[:middle] + b"\xff\x00" + content[middle + 2 :])
    told: list[str] = []
    found = newest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert found.position.step == 1
    assert len(told) == 1
    assert "step-00000002" in told[0]


def test_error_when_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.pt").unlink()
    with pytest.raises(ArtifactError, match=r"all 1 checkpoints are damaged. Start again with --overwrite"):
        newest_checkpoint(tmp_path, lambda message: None)


def test_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    path.rename(path.with_name(".step-00000002.tmp"))
    assert newest_checkpoint(tmp_path, pytest.fail) is None


def test_encoder_is_built_again_from_its_file_alone(tmp_path: Path) -> None:
    encoder = net().eval()
    save_encoder(tmp_path / "model.safetensors", encoder)
    views = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_encoder(tmp_path)(views), encoder(views))


def test_error_for_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the run is not finished. Go on with `train run --config .*/config.toml --run-dir"):
        load_encoder(tmp_path)


def test_damaged_encoder_is_one_error(tmp_path: Path) -> None:
    save_encoder(tmp_path / "model.safetensors", net())
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not the weights of a run"):
        load_encoder(tmp_path)


def test_metrics_are_cut_at_a_step_and_a_torn_line_goes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        append_line(tmp_path / "metrics.jsonl", {"step": step, "loss": float("nan") if step == 1 else 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    cut_metrics(tmp_path, 2)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.1}]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
