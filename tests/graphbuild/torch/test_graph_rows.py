"""Rows of a batch: read ahead, or held on the device; the same target either way, and nothing that waits for a device."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_train import tiny_config, write_images, write_tiny_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from graphbuild.errors import ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.targets import assemble as reference
from graphbuild.torch.assembler import TargetAssembler, TargetOptions
from graphbuild.torch.blocks import StoredTarget
from graphbuild.torch.rows import DeviceRows, MappedRows, RowTensors, belongs_on_device, bytes_on_device
from graphbuild.torch.softmax import apply_options
from train.run.checkpoint import load_encoder
from train.run.loop import train
from train.run.metrics import read_lines

TEXTS = 200
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("graph")
    write_graph(folder, clustered_vectors(TEXTS, 24), shard_size=64)
    build_knn(folder, KnnConfig(k=20, sketch_dim=16))
    return Graph.open(folder)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 80), absent=st.sampled_from([None, 0.3, -math.inf]), mutual=st.booleans())
def test_graph_held_on_the_device_gives_the_reference_bit_for_bit(
    graph: Graph, seed: int, size: int, absent: float | None, mutual: bool
) -> None:
    ids = np.random.default_rng(seed).integers(0, TEXTS, size)
    options = TargetOptions(absent=absent, symmetrize="mutual" if mutual else "union", graph_on_device="yes")
    assembler = TargetAssembler(graph, options)
    assert assembler.graph_on_device
    found = assembler.assemble(torch.from_numpy(ids))
    expected = reference.assemble(graph.rows(ids), ids, absent=absent, symmetrize="mutual" if mutual else "union")
    np.testing.assert_array_equal(found.rows(0, size).numpy(), expected.similarity_BB)
    assert found.hit_rate(range(size)).item() == pytest.approx(expected.stored_B.mean())  # type: ignore[union-attr]


def test_rows_on_the_device_are_those_of_the_files_across_shards(graph: Graph) -> None:
    ids = np.random.default_rng(0).integers(0, TEXTS, 150)
    found, expected = DeviceRows(graph, CPU).rows(torch.from_numpy(ids)), graph.rows(ids)
    for name in Rows.__slots__:
        np.testing.assert_array_equal(getattr(found, name).numpy(), getattr(expected, name))


def test_bytes_on_the_device_are_counted_right(graph: Graph) -> None:
    held = DeviceRows(graph, CPU)
    assert bytes_on_device(graph) == sum(tensor.nbytes for tensor in held._all)


def test_assembly_on_a_device_has_fixed_shapes_and_asks_the_device_nothing() -> None:
    # Under fake tensors there are no values: whatever needed one on the host, or a shape that depends on one, would fail.
    with FakeTensorMode():
        rows = (
            torch.empty(500, 32, dtype=torch.int32),
            torch.empty(500, 32, dtype=torch.float16),
            torch.empty(500, 16, dtype=torch.int8),
            torch.empty(500),
        )
        ids = torch.empty(64, dtype=torch.int64)
        for symmetrize in ("union", "mutual"):
            batch = RowTensors(*(whole.index_select(0, ids) for whole in rows))
            found = StoredTarget(batch, ids, absent=None, symmetrize=symmetrize)  # type: ignore[arg-type]
            shaped = apply_options(found.rows(0, 64), min_similarity=0.1, own_weight=0.3, tau_s=0.1)
            assert shaped.shape == (64, 64)
            assert found.stored(0, 64).shape == (64,)


def test_rows_read_ahead_are_used_and_others_are_read_then(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    read = Graph.rows

    def watched(self: Graph, ids: Any, **more: Any) -> Rows:
        threads.append(threading.current_thread().name.rsplit("_", 1)[0])
        return read(self, ids, **more)

    monkeypatch.setattr(Graph, "rows", watched)
    mapped = MappedRows(graph)
    mapped.read_ahead(np.arange(10))
    np.testing.assert_array_equal(mapped.rows(np.arange(10)).neighbor_ids, read(graph, np.arange(10)).neighbor_ids)
    assert threads == ["graph-rows"]
    mapped.read_ahead(np.arange(10))
    # One image of the batch could not be read.
    np.testing.assert_array_equal(mapped.rows(np.arange(9)).neighbor_ids, read(graph, np.arange(9)).neighbor_ids)
    # The other thread may come to read only now, or not at all.
    assert "MainThread" in threads


def test_auto_never_holds_a_graph_on_a_cpu(graph: Graph) -> None:
    assert [belongs_on_device(graph, CPU, choice) for choice in ("auto", "yes", "no")] == [False, True, False]


@pytest.mark.parametrize(("free", "held"), [(3.0, True), (1.5, False)])
def test_auto_holds_a_graph_on_a_gpu_with_twice_the_room(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, free: float, held: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * bytes_on_device(graph)), 0))
    assert belongs_on_device(graph, torch.device("cuda"), "auto") is held


def test_graph_that_does_not_fit_is_one_error(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 0))
    with pytest.raises(ResourceError, match="--graph-on-device yes: the graph's rows take"):
        belongs_on_device(graph, torch.device("cuda"), "yes")


def test_runs_with_the_graph_on_the_device_or_in_files_are_the_same(tmp_path: Path) -> None:
    data, folder = write_images(tmp_path / "images.parquet", 32, broken=(3,)), write_tiny_graph(tmp_path / "graph", 32)
    # Images are decoded on the way, so that the batch of the broken one is not the one that was read ahead.
    for choice in ("yes", "no"):
        config = tiny_config(data=str(data), graph_dir=str(folder), graph_on_device=choice, cache_gb=0.0)
        train(config, tmp_path / choice)
    one, other = (load_encoder(tmp_path / choice).state_dict() for choice in ("yes", "no"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    notes = [
        next(line["note"] for line in read_lines(tmp_path / choice / "events.jsonl") if "note" in line) for choice in ("yes", "no")
    ]
    assert ["held on cpu" in note for note in notes] == [True, False]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_assembly_on_a_gpu_waits_for_nothing(graph: Graph) -> None:
    assembler = TargetAssembler(graph, TargetOptions(graph_on_device="yes", own_weight=0.2, min_similarity=0.1), "cuda")
    ids = torch.arange(64)
    assembler.assemble(ids).rows(0, 64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        # Any wait for the device raises here.
        similarity_BB = assembler.assemble(ids).rows(0, 64)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert similarity_BB.shape == (64, 64)
