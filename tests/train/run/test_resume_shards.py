"""Tiny-ImageNet as webdataset shards, killed in mid-epoch, once or more: the run ends with the same bits as an undisturbed one."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers_forked import run_program
from helpers_ranks import run_ranks, train_cli, train_cli_until
from helpers_train import tiny_config

from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from train.config import TrainConfig
from train.run.checkpoint import load_encoder
from train.run.loop import train
from train.run.metrics import read_lines, read_metrics

KILLED = """
import os, signal
from train.run import session
from train.cli import main
write = session.append_line
def write_and_die(path, values):
    write(path, values)
    if values.get("step") == int(os.environ["DIE_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
session.append_line = write_and_die
main()
"""
TIMED = ("images_per_s", "data_wait_share", "augment_share", "target_share")


def write_tiny_imagenet(folder: Path, parquet: Path, count: int) -> None:
    """Some of the pictures as img2dataset would have written them: the file is the URL, the class name the caption."""
    import webdataset

    rows = pq.read_table(parquet, columns=["image", "file", "label", "name"]).slice(0, count).to_pylist()
    folder.mkdir()
    for shard in range(4):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number, row in enumerate(rows[shard::4]):
                meta = {
                    "url": f"https://tiny.example/{row['file']}",
                    "caption": row["name"],
                    "status": "success",
                    "label": row["label"],
                }
                image = row["image"] if isinstance(row["image"], bytes) else row["image"]["bytes"]
                # One was cut short on its way.
                image = image[:300] if (shard, number) == (2, 3) else image
                sample = {"__key__": f"{shard:05d}{number:04d}", "jpg": image, "txt": row["name"], "json": json.dumps(meta)}
                writer.write(sample)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> TrainConfig:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_imagenet(folder / "shards", shared_data / "tiny_imagenet" / "val.parquet", 132)
    build_embeddings(
        folder / "graph", EmbedConfig(dataset="img2dataset", sources=(str(folder / "shards"),), encoder="hashing:32", workers=0)
    )
    build_knn(folder / "graph", KnnConfig(k=16))
    return tiny_config(
        data=str(folder / "shards"),
        graph_dir=str(folder / "graph"),
        id_column=None,
        image_size=32,
        batch_size=16,
        batches="neighbors",
        chunk=4,
        cache_gb=0.0,
        checkpoint_every=3,
    )


@pytest.mark.parametrize(
    ("steps", "last"),
    [((8,), 6), pytest.param((5, 11), 9, marks=pytest.mark.faults), pytest.param((2, 7, 14), 12, marks=pytest.mark.faults)],
)
def test_killed_run_over_shards_ends_bit_identical_to_an_undisturbed_one(
    config: TrainConfig, tmp_path: Path, steps: tuple[int, ...], last: int
) -> None:
    assert train(config, tmp_path / "whole").steps == 16
    (tmp_path / "asked.toml").write_text(config.to_toml())
    arguments = ["run", "--config", str(tmp_path / "asked.toml"), "--run-dir", str(tmp_path / "run")]
    for step in steps:
        died = run_program(KILLED, *arguments, DIE_AT=str(step))
        assert died.returncode == -signal.SIGKILL, died.stderr
    assert train(config, tmp_path / "run").first_step == last
    untimed = dict.fromkeys(TIMED)
    ours, theirs = (load_encoder(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shown, expected = ([{**line, **untimed} for line in read_metrics(tmp_path / name)] for name in ("run", "whole"))
    assert shown == expected
    corrupt = {line["sample_id"] for line in read_lines(tmp_path / "whole" / "events.jsonl") if line["event"] == "corrupt_image"}
    assert len(corrupt) == 1


@pytest.mark.faults
def test_two_processes_killed_twice_end_bit_identical_to_an_undisturbed_job(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "asked.toml").write_text(config.to_toml())
    whole, killed = (["--config", str(tmp_path / "asked.toml"), "--run-dir", str(tmp_path / name)] for name in ("whole", "run"))
    assert run_ranks(2, train_cli, *whole, folder=tmp_path / "said") == [0, 0]
    for rank, step in ((1, 5), (0, 11)):
        codes = run_ranks(2, train_cli_until, rank, step, signal.SIGKILL, *killed, folder=tmp_path / "said")
        assert codes[rank] == -signal.SIGKILL
        assert codes[1 - rank] == 1
    assert run_ranks(2, train_cli, *killed, folder=tmp_path / "said") == [0, 0]
    ours, theirs = (load_encoder(tmp_path / name).state_dict() for name in ("run", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
