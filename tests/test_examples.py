"""Every example trains two steps on 200 scenes, on a CPU, with the library that it is about."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_pictures import build_graph, write_pictures

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OPTIONS = {
    "plain_torch": ["--epochs", "1", "--steps", "2", "--batch-size", "16"],
    "with_lightning": ["--steps", "2", "--batch-size", "16"],
    "with_lightly": ["--epochs", "1", "--steps", "2", "--batch-size", "16"],
    "with_accelerate": ["--epochs", "1", "--steps", "2", "--batch-size", "16"],
    "finetune_open_clip": ["--epochs", "1", "--steps", "2", "--batch-size", "8", "--model", "ViT-S-32-alt", "--pretrained", ""],
}
LEFT = {
    "plain_torch": "encoder.pt",
    "with_lightning": "lightning_logs",
    "with_lightly": "backbone.pt",
    "with_accelerate": "state/custom_checkpoint_0.pkl",
    "finetune_open_clip": "vision.pt",
}
"""What each leaves behind."""


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_pictures(tmp_path_factory.mktemp("user"))
    build_graph(folder)
    return folder


def inputs(folder: Path) -> list[str]:
    return ["--pictures", str(folder / "pictures"), "--graph-dir", str(folder / "graphs/captions")]


def test_each_script_has_a_test_and_fewer_than_eighty_lines() -> None:
    scripts = {path.stem: path.read_text().count("\n") for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == set(OPTIONS)
    assert max(scripts.values()) < 80


def run_example(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a script of the folder of examples in this process."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, *OPTIONS[name]])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def require_trained(folder: Path, printed: str) -> None:
    assert "epoch 0 step 0 loss" in printed
    assert "effective_positives" in printed
    assert all(torch.isfinite(value).all() for value in torch.load(folder / LEFT["plain_torch"]).values())


def test_plain_loop_trains_in_an_empty_folder(
    user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_example("plain_torch", inputs(user_folder), monkeypatch)
    require_trained(tmp_path, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "plain_torch"])
def test_example_trains(name: str, user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_example(name, inputs(user_folder), monkeypatch)
    assert (tmp_path / LEFT[name]).exists()


@pytest.mark.slow
def test_plain_loop_trains_as_a_script_called_train_in_an_empty_folder(user_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text((EXAMPLES / "plain_torch.py").read_text())
    command = [sys.executable, "train.py", *inputs(user_folder), *OPTIONS["plain_torch"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    require_trained(tmp_path, done.stdout)
