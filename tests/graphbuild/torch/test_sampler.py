"""Batches of neighbours for any DataLoader: every sample once an epoch, the trainer's order, shared over processes, resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_graph import clustered_vectors, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.targets.batches import NeighborBatches
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import load_partition
from graphbuild.torch import NeighborBatchSampler, SoftTargets

IDS = [f"picture-{number}" for number in range(103)]
ORDER = [IDS[number] for number in np.random.default_rng(0).permutation(103)]
"""A data set whose order is not that of the graph."""


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampler")
    write_graph(folder, clustered_vectors(103, 16), samples=[(name, number) for number, name in enumerate(IDS)])
    build_knn(folder, KnnConfig(k=10, sketch_dim=8))
    return folder


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(4, 40), world=st.integers(1, 4), drop=st.booleans(), seed=st.integers(0, 9))
def test_every_sample_comes_once_an_epoch_whatever_the_processes(
    graph_dir: Path, batch: int, world: int, drop: bool, seed: int
) -> None:
    if batch * world > 103:
        return
    options = {"chunk": 4, "seed": seed, "drop_last": drop}
    samplers = [
        NeighborBatchSampler(graph_dir, ORDER, batch, rank=rank, num_replicas=world, **options)  # type: ignore[arg-type]
        for rank in range(world)
    ]
    drawn = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in drawn} == {len(samplers[0])}
    for together in zip(*drawn, strict=True):
        assert len({len(part) for part in together}) == 1
    every = [index for batches in drawn for some in batches for index in some]
    assert len(every) == len(set(every))
    left = 103 - len(every)
    assert left == (103 % (batch * world) if drop else 103 % (batch * world) % world)


def test_batches_are_those_of_the_trainer(graph_dir: Path) -> None:
    sampler = NeighborBatchSampler(graph_dir, IDS, 20, chunk=5, seed=3)
    chunks = load_partition(Graph.open(graph_dir), PartitionConfig(chunk=5)).of_rows(np.arange(103))
    trainers = NeighborBatches(chunks, 20, seed=3)
    for epoch in range(2):
        batches = list(sampler)
        assert batches[:-1] == [trainers.batch(epoch, step).tolist() for step in range(5)]
        assert len(batches[-1]) == 3


def test_neighbours_meet_in_its_batches(graph_dir: Path) -> None:
    targets = SoftTargets(graph_dir)
    sampler = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=16, drop_last=True)
    near = np.mean([targets.describe([ORDER[i] for i in batch])["hit_rate"] for batch in sampler])
    rng = np.random.default_rng(0)
    far = np.mean([targets.describe([ORDER[i] for i in rng.permutation(103)[:16]])["hit_rate"] for _ in range(6)])
    assert near > 1.5 * far


def test_state_resumes_in_the_middle_of_an_epoch(graph_dir: Path) -> None:
    whole = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8)
    expected = [list(whole), list(whole)]
    first = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8)
    batches = iter(first)
    done = [next(batches) for _ in range(3)]
    resumed = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8)
    resumed.load_state_dict(first.state_dict())
    resumed.set_epoch(0)
    assert done + list(resumed) == expected[0]
    assert list(resumed) == expected[1]
    resumed.load_state_dict(first.state_dict(step=1))
    assert list(resumed) == expected[0][1:]


def test_epochs_differ_and_are_repeatable(graph_dir: Path) -> None:
    sampler = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_loader_takes_it_as_a_batch_sampler(graph_dir: Path) -> None:
    sampler = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8)
    loader = DataLoader(ORDER, batch_sampler=sampler)  # type: ignore[arg-type]
    assert len(loader) == 7
    assert sorted(name for batch in loader for name in batch) == sorted(IDS)


def test_state_of_other_batches_is_refused(graph_dir: Path) -> None:
    state = NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8, seed=1).state_dict()
    with pytest.raises(OptionError, match=r"the state is of other batches: .*'seed': 1"):
        NeighborBatchSampler(graph_dir, ORDER, 16, chunk=8).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 17}, "chunk 17 is not from 1 to the batch size, 16"),
        ({"chunk": 8, "rank": 2, "num_replicas": 2}, "rank 2 of num_replicas 2"),
        ({"chunk": 8, "rank": 0}, "give both"),
        ({"chunk": 8, "neighbor_ranks": "64"}, "neighbor-ranks"),
    ],
)
def test_options_that_make_no_batches_are_refused(graph_dir: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        NeighborBatchSampler(graph_dir, ORDER, 16, **options)  # type: ignore[arg-type]


def test_unknown_ids_and_too_few_samples_are_refused(graph_dir: Path) -> None:
    with pytest.raises(SourceError, match="does not know 1 of the 2 sample ids: 'nobody'"):
        NeighborBatchSampler(graph_dir, [IDS[0], "nobody"], 2, chunk=2)
    with pytest.raises(OptionError, match="128 is more than the 103"):
        NeighborBatchSampler(graph_dir, IDS, 128)


def test_items_of_one_sample_are_chunked_by_their_texts(graph_dir: Path) -> None:
    # Images of classes: the graph's samples are the classes.
    labels = [IDS[number % 10] for number in range(60)]
    sampler = NeighborBatchSampler(graph_dir, labels, 12, chunk=4)
    assert sorted(index for batch in sampler for index in batch) == list(range(60))


def test_graph_that_cannot_be_written_and_has_no_partition_is_named(
    graph_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(graph_dir, tmp_path / "graph")
    shutil.rmtree(tmp_path / "graph/partition", ignore_errors=True)
    # A file where the folder should be: not even root can write there.
    (tmp_path / "graph/partition").write_text("")
    with pytest.raises(ArtifactError, match=r"has no partition into chunks of 8, .*graphbuild partition --chunk 8"):
        NeighborBatchSampler(tmp_path / "graph", ORDER, 16, chunk=8)
