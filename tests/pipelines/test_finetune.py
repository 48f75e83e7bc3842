"""The finetuning recipe over a few drawn pictures in Tiny-ImageNet's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_study import write_source

from pipelines.finetune import finetune
from train.config.files import load_config

OBJECTIVES = ("simclr", "supcon", "xclr")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune")
    write_source(folder)
    options = ["--data", str(folder / "tiny_imagenet"), "--batch-size", "60", "--encoder", "hashing:32", "--pretrain-epochs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("train.evaluate.protocols.linear.ITERATIONS", 3)
        done = CliRunner().invoke(finetune, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "runs/finetune"


def test_every_objective_starts_from_the_pretrained_backbone_with_equal_images(out: Path) -> None:
    for objective in OBJECTIVES:
        assert load_config(out / objective / "config.toml", {}).init == f"run:{out}/pretrained/model.safetensors"
        assert json.loads((out / objective / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"] == 240


def test_table_has_the_net_before_and_each_after(out: Path) -> None:
    lines = (out / "scores.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["chance", "pretrained", *OBJECTIVES]
    assert (out / "report.html").exists()
