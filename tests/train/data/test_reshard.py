"""Shards in partition order: every sample once, chunks together, any source, any interruption."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_forked import run_program
from helpers_train import draw, encode, tiny_config, write_images, write_tar_shards, write_tiny_graph

from graphbuild.errors import ArtifactError, OptionError
from graphbuild.store.graph import Graph
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import load_partition
from train.config import TrainConfig
from train.data.reshard import PLAN_FILE, reshard
from train.data.sources import open_images
from train.run.loop import train
from train.run.metrics import read_metrics


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_graph(tmp_path_factory.mktemp("reshard") / "graph", 64)


def config_of(graph_dir: Path, data: Path, **changes: Any) -> TrainConfig:
    return tiny_config(**{"graph_dir": str(graph_dir), "data": str(data), "chunk": 4, "id_column": None, **changes})


def digests(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
def test_every_sample_is_there_once_with_its_bytes_and_facts(tmp_path: Path, graph_dir: Path, kind: str) -> None:
    column = None
    if kind == "tar":
        data = write_tar_shards(tmp_path / "images", 66, broken=(5,))
    elif kind == "parquet":
        data, column = write_images(tmp_path / "images.parquet", 66, broken=(5,)), "id"
    else:
        data = tmp_path / "images"
        for i in range(66):
            (data / f"class {i % 5}").mkdir(parents=True, exist_ok=True)
            (data / f"class {i % 5}" / f"{i}.png").write_bytes(b"not an image" if i == 5 else encode(draw(i)))
        ids = [f"class {i % 5}/{i}.png" for i in range(66)]
        graph_dir = write_graph_of(tmp_path / "graph", ids[:64])
    result = reshard(config_of(graph_dir, data, id_column=column), tmp_path / "out", shard_size=20, memory_gb=1e-5)
    assert (result.samples, result.shards, result.unknown) == (66, 4, 2)
    before, after = open_images(str(data), id_column=column), open_images(str(tmp_path / "out"))
    assert sorted(after.sample_ids) == sorted(before.sample_ids)
    place = {sample_id: index for index, sample_id in enumerate(before.sample_ids)}
    order = [place[sample_id] for sample_id in after.sample_ids]
    assert after.encoded(range(66)) == before.encoded(order)
    assert [meta["label"] for meta in after.metas(range(66))] == [f"class {index % 5}" for index in _numbers(after.sample_ids)]


def _numbers(sample_ids: Any) -> list[int]:
    return [int(sample_id.removesuffix(".png").replace("/", "-").rsplit("-", 1)[1]) for sample_id in sample_ids]


def write_graph_of(folder: Path, ids: list[str]) -> Path:
    from helpers_graph import clustered_vectors, write_graph

    from graphbuild.knn.config import KnnConfig
    from graphbuild.knn.stage import build_knn

    write_graph(folder, clustered_vectors(16, 16), samples=[(name, i % 16) for i, name in enumerate(ids)])
    build_knn(folder, KnnConfig(k=5, sketch_dim=8))
    return folder


def test_chunks_of_the_partition_are_runs_of_the_shards(tmp_path: Path, graph_dir: Path) -> None:
    reshard(config_of(graph_dir, write_tar_shards(tmp_path / "images", 64)), tmp_path / "out", shard_size=24)
    graph = Graph.open(graph_dir)
    partition = load_partition(graph, PartitionConfig(chunk=4))
    rows = graph.sample_texts(open_images(str(tmp_path / "out")).sample_ids).sample_rows
    chunks = partition.of_rows(rows)
    assert int((np.diff(chunks) != 0).sum()) == len(np.unique(chunks)) - 1


def test_run_over_new_shards_meets_neighbours_as_one_over_the_old_does(tmp_path: Path, graph_dir: Path) -> None:
    data = write_tar_shards(tmp_path / "images", 64)
    reshard(config_of(graph_dir, data), tmp_path / "out")
    for name, path in (("old", data), ("new", tmp_path / "out")):
        assert train(config_of(graph_dir, path, batches="neighbors", steps=2), tmp_path / name).steps == 2
    hits = [read_metrics(tmp_path / name)[0]["hit_rate"] for name in ("old", "new")]
    assert min(hits) > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from train.data import reshard
from train.cli import main
write, step = reshard._write_shard, int(os.environ["DIE_AT"])
def write_and_die(path, number, *rest):
    if number == step:
        (path.with_name("." + path.name + ".tmp")).write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, number, *rest)
reshard._write_shard = write_and_die
main()
"""


def test_killed_reshard_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, graph_dir: Path) -> None:
    data = write_tar_shards(tmp_path / "images", 64)
    reshard(config_of(graph_dir, data), tmp_path / "whole", shard_size=16)
    arguments = ["reshard", "--graph-dir", str(graph_dir), "--data", str(data), "--chunk", "4", "--shard-size", "16"]
    died = run_program(KILLED, *arguments, "--out", tmp_path / "out", DIE_AT="2")
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert sorted(digests(tmp_path / "out")) == ["00000.tar", "00001.tar"]
    result = reshard(config_of(graph_dir, data), tmp_path / "out", shard_size=16)
    assert (result.written, result.shards) == (2, 4)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert reshard(config_of(graph_dir, data), tmp_path / "out", shard_size=16).written == 0


def test_other_options_and_foreign_folders_are_refused(tmp_path: Path, graph_dir: Path) -> None:
    data = write_tar_shards(tmp_path / "images", 64)
    reshard(config_of(graph_dir, data), tmp_path / "out", shard_size=32)
    with pytest.raises(OptionError, match=r"shards of other images or options \(shard_size: 32 -> 16\)\. Choose another --out"):
        reshard(config_of(graph_dir, data), tmp_path / "out", shard_size=16)
    with pytest.raises(OptionError, match="exists, and is not empty"):
        reshard(config_of(graph_dir, data), data)


def test_damaged_or_foreign_shards_are_written_anew(tmp_path: Path, graph_dir: Path) -> None:
    data, out = write_tar_shards(tmp_path / "images", 64), tmp_path / "out"
    reshard(config_of(graph_dir, data), out, shard_size=32)
    whole = (out / "00001.tar").read_bytes()
    flipped = bytearray(whole)
    # Within the first picture: the archive itself stays readable.
    flipped[600] ^= 1
    for damaged in (whole[:5000], bytes(flipped), (out / "00000.tar").read_bytes()):
        (out / "00001.tar").write_bytes(damaged)
        assert reshard(config_of(graph_dir, data), out, shard_size=32).written == 1
        assert (out / "00001.tar").read_bytes() == whole
    assert json.loads((out / PLAN_FILE).read_text())["samples"] == 64
    (out / PLAN_FILE).write_text("{")
    with pytest.raises(ArtifactError, match=f"{PLAN_FILE}: is damaged"):
        reshard(config_of(graph_dir, data), out, shard_size=32)


def test_columns_of_users_may_have_the_names_that_shards_use(tmp_path: Path, graph_dir: Path) -> None:
    data = write_images(tmp_path / "images.parquet", 64)
    table = pq.read_table(data)
    for name, values in (("status", ["failed_review"] * 64), ("sample_id", [str(i) for i in range(64)]), ("url", ["same"] * 64)):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, data)
    reshard(config_of(graph_dir, data, id_column="id"), tmp_path / "out")
    after = open_images(str(tmp_path / "out"))
    assert sorted(after.sample_ids) == sorted(table["id"].to_pylist())
    assert {meta["status"] for meta in after.metas(range(64))} == {"failed_review"}
