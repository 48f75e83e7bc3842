"""The Tiny-ImageNet recipe over a few drawn pictures in its format, as a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_forked import run_module
from PIL import Image

from graphbuild.errors import SourceError
from pipelines.tiny_imagenet import tiny_imagenet

NAMES = ("goldfish", "tabby", "school bus", "espresso")
OPTIONS = ("--epochs", "1", "--batch-size", "16", "--image-size", "16", "--encoder", "hashing:32")


def _write(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        label = index % len(NAMES)
        pixels = rng.integers(0, 120, (20, 20, 3), dtype=np.uint8)
        pixels[:, :, label % 3] += np.uint8(60 + 20 * label)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG")
        rows.append({"image": stream.getvalue(), "file": f"{path.stem}_{index}.JPEG", "label": label, "name": NAMES[label]})
    pq.write_table(pa.Table.from_pylist(rows), path)


def _recipe(folder: Path) -> subprocess.CompletedProcess[str]:
    return run_module("pipelines.tiny_imagenet", "--data", "data", *OPTIONS, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    (root / "data").mkdir()
    for number in range(2):
        _write(root / f"data/train-0{number}-of-02.parquet", 40, number)
    _write(root / "data/val.parquet", 24, 9)
    return root


@pytest.fixture(scope="module")
def done(folder: Path) -> subprocess.CompletedProcess[str]:
    done = _recipe(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_table_has_chance_the_untrained_net_and_three_objectives(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    lines = (folder / "runs/tiny_imagenet/scores.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["chance", "untrained", "simclr", "supcon", "xclr"]
    assert "\n".join(lines) in done.stdout


def test_scores_are_kept_as_json_too(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    scores = json.loads((folder / "runs/tiny_imagenet/scores.json").read_text())
    assert all(0 <= scores[name]["trained"]["label"]["knn_top1"] <= 1 for name in ("simclr", "supcon", "xclr"))


def test_the_graph_holds_one_text_a_class(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    counts = json.loads((folder / "graphs/tiny_imagenet/graph.json").read_text())["counts"]
    assert (counts["texts"], counts["samples"]) == (len(NAMES), 80)


def test_all_objectives_saw_equally_many_images(folder: Path, done: subprocess.CompletedProcess[str]) -> None:
    runs = [folder / "runs/tiny_imagenet" / name for name in ("simclr", "supcon", "xclr")]
    assert {json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["images_seen"] for run in runs} == {80}


def test_second_call_trains_nothing(folder: Path, done: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weights = folder / "runs/tiny_imagenet/xclr/model.safetensors"
    before = weights.stat().st_mtime_ns
    monkeypatch.chdir(folder)
    again = CliRunner().invoke(tiny_imagenet, ["--data", "data", *OPTIONS], catch_exceptions=False)
    assert again.output.count("was finished before") == 3
    assert weights.stat().st_mtime_ns == before


def test_error_for_a_folder_without_the_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(SourceError, match=r"data: train-\*\.parquet and val\.parquet are needed"):
        CliRunner().invoke(tiny_imagenet, ["--data", str(tmp_path / "data"), *OPTIONS], catch_exceptions=False)
