"""Batches of chunks: every sample at most once an epoch, chunks whole, any position from nothing; and training on them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_train import draw, encode, tiny_config, write_images, write_tiny_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError, UserError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.manifest import Manifest
from graphbuild.targets.batches import NeighborBatches, RandomBatches
from graphbuild.targets.chunks import PartitionConfig
from graphbuild.targets.partition import load_partition
from train.config import TrainConfig
from train.data.chunks import make_batches
from train.data.prepare import prepare
from train.run.checkpoint import load_encoder, newest_checkpoint
from train.run.loop import train
from train.run.metrics import read_metrics


def equal_chunks(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(count) // size)


def epoch_of(batches: RandomBatches, epoch: int) -> np.ndarray:
    return np.concatenate([batches.batch(epoch, step) for step in range(batches.steps_per_epoch)])


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32), count=st.integers(8, 400), batch=st.integers(2, 8), most=st.integers(1, 40))
def test_an_epoch_holds_every_sample_once_but_for_the_remainder(seed: int, count: int, batch: int, most: int) -> None:
    # Chunks of any sizes, some samples without one.
    chunks = np.random.default_rng(seed).integers(-1, max(1, count // most), count)
    batches = NeighborBatches(chunks, batch, seed)
    seen = epoch_of(batches, 3)
    assert len(np.unique(seen)) == len(seen) == count - count % batch
    assert batches.dropped_per_epoch == count % batch
    assert seen.min() >= 0
    assert seen.max() < count


def test_what_an_epoch_leaves_out_changes() -> None:
    batches = NeighborBatches(equal_chunks(103, 5), 10, seed=1)
    left_out = {tuple(np.setdiff1d(np.arange(103), epoch_of(batches, epoch))) for epoch in range(10)}
    assert len(left_out) > 5


def test_a_batch_is_whole_chunks_where_all_are_full() -> None:
    chunks = equal_chunks(320, 8)
    batches = NeighborBatches(chunks, 32, seed=0)
    for step in range(10):
        assert np.unique(chunks[batches.batch(2, step)], return_counts=True)[1].tolist() == [8] * 4


def test_a_short_chunk_splits_at_most_one_chunk_a_cut() -> None:
    chunks = np.delete(equal_chunks(320, 8), [3, 200])
    batches = NeighborBatches(chunks, 32, seed=0)
    for step in range(batches.steps_per_epoch):
        sizes = np.unique(chunks[batches.batch(0, step)], return_counts=True)[1]
        assert (sizes < 7).sum() <= 2


def test_every_epoch_mixes_the_chunks_anew() -> None:
    chunks = equal_chunks(400, 10)
    batches = NeighborBatches(chunks, 40, seed=0)
    mixes = [{frozenset(chunks[batches.batch(epoch, step)].tolist()) for step in range(10)} for epoch in range(5)]
    assert len(set.union(*mixes)) > 45


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), count=st.integers(8, 300), epoch=st.integers(0, 5))
def test_chunks_of_one_are_exactly_the_random_batches(seed: int, count: int, epoch: int) -> None:
    np.testing.assert_array_equal(
        epoch_of(NeighborBatches(np.arange(count), 8, seed), epoch), epoch_of(RandomBatches(count, 8, seed), epoch)
    )


def test_a_stopped_run_goes_on_with_the_same_batches_from_every_position() -> None:
    chunks = equal_chunks(57, 4)
    whole = list(islice(NeighborBatches(chunks, 10, 3).batches(), 12))
    for position, batch in enumerate(whole):
        rest = islice(NeighborBatches(chunks, 10, 3).batches(epoch=batch.epoch, step=batch.step), 12 - position)
        assert [b.indices.tolist() for b in rest] == [b.indices.tolist() for b in whole[position:]]


def test_any_number_of_ranks_shares_out_the_same_batch() -> None:
    chunks = equal_chunks(320, 8)
    whole = NeighborBatches(chunks, 32, 0).batch(1, 4)
    for ranks in (2, 4):
        # Each rank computes the batch for itself, and takes its part.
        parts = [np.split(NeighborBatches(chunks, 32, 0).batch(1, 4), ranks)[rank] for rank in range(ranks)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_order_is_pinned() -> None:
    assert NeighborBatches(np.arange(1000) // 4, 8, seed=0).batch(0, 0).tolist() == [824, 825, 826, 827, 204, 205, 206, 207]


@pytest.mark.parametrize(("epoch", "step"), [(0, 5), (0, -1), (-1, 0)])
def test_a_step_that_no_epoch_has_is_refused(epoch: int, step: int) -> None:
    with pytest.raises(ValueError, match="steps 0 to 4"):
        NeighborBatches(equal_chunks(57, 4), 10, seed=0).batch(epoch, step)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neighbors")
    write_images(folder / "images.parquet", 65, broken=(5,))
    write_tiny_graph(folder / "graph", 64, texts=64)
    return folder


def config_in(place: Path, **changes: Any) -> TrainConfig:
    settings = {"graph_dir": str(place / "graph"), "data": str(place / "images.parquet"), "batches": "neighbors", "chunk": 4}
    return tiny_config(**{**settings, **changes})


def test_trainer_makes_the_partition_and_meets_more_neighbours(place: Path, tmp_path: Path) -> None:
    hits = {}
    for name in ("random", "neighbors"):
        train(config_in(place, batches=name), tmp_path / name)
        hits[name] = np.mean([line["hit_rate"] for line in read_metrics(tmp_path / name)])
    assert hits["neighbors"] > 1.5 * hits["random"]
    assert (place / "graph" / "partition" / "chunk-4-ranks-1-5-seed-0.arrow").exists()
    assert "partition" in Manifest.load(place / "graph").stages


def test_unknown_images_leave_the_other_chunks_as_they_are(place: Path) -> None:
    data = prepare(config_in(place))
    batches = make_batches(config_in(place), data)
    assert data.joined is not None
    assert data.graph is not None
    # Of 65 images the graph does not know one.
    assert batches.n_samples == len(data.store) == 64
    partition = load_partition(data.graph, PartitionConfig(chunk=4))
    chunks = partition.of_rows(data.joined.graph_rows)
    assert np.bincount(chunks).tolist() == [4] * 16
    for step in range(batches.steps_per_epoch):
        assert len(np.unique(chunks[batches.batch(0, step)])) <= 3
    data.close()


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_encoder(run_dir).state_dict()


def test_chunk_of_one_trains_as_random_batches_do(place: Path, tmp_path: Path) -> None:
    train(config_in(place, batches="random", steps=3), tmp_path / "random")
    train(config_in(place, chunk=1, steps=3), tmp_path / "one")
    one, other = weights(tmp_path / "random"), weights(tmp_path / "one")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_run_resumed_in_mid_epoch_ends_bit_identical(place: Path, tmp_path: Path) -> None:
    config = config_in(place, checkpoint_every=4)
    train(config, tmp_path / "run")
    undisturbed = weights(tmp_path / "run")
    # Seven steps an epoch: what is left is the checkpoint after the fifth of the second.
    (tmp_path / "run" / "model.safetensors").unlink()
    last = newest_checkpoint(tmp_path / "run", lambda message: None)
    assert last is not None
    shutil.rmtree(last.path) if last.path.is_dir() else last.path.unlink()
    assert train(config, tmp_path / "run").first_step == 12
    again = weights(tmp_path / "run")
    assert all(torch.equal(undisturbed[name], again[name]) for name in again)


def test_images_of_classes_are_chunked_by_themselves(tmp_path: Path) -> None:
    # The graph's samples are classes; the images' folder names say which is whose.
    write_graph(tmp_path / "graph", clustered_vectors(6, 8), samples=[(f"class {i}", i) for i in range(6)])
    build_knn(tmp_path / "graph", KnnConfig(k="all"))
    for i in range(48):
        path = tmp_path / "images" / f"class {i % 6}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(i)))
    config = config_in(tmp_path, data=str(tmp_path / "images"), id_column=None, chunk=4)
    data = prepare(replace(config, graph_dir=str(tmp_path / "graph")))
    assert data.joined is not None
    assert data.joined.by == "class"
    batches = make_batches(config, data)
    classes = data.joined.text_ids
    for step in range(batches.steps_per_epoch):
        # Two chunks of four, each with at most two images of a class.
        assert np.bincount(classes[batches.batch(0, step)]).max() <= 4
    data.close()


def test_neighbours_without_a_graph_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAPHBUILD_DIR", raising=False)
    with pytest.raises(UserError, match="no graph under graphs"):
        prepare(config_in(place, objective="simclr", graph_dir=None))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 16, "batch_size": 8}, "--chunk 16 is more than --batch-size 8"),
        ({"chunk": 129}, "--chunk: 129 is not at least 1 and at most 128"),
        ({"neighbor_ranks": "64"}, r"--neighbor-ranks '64': write the first and the last rank"),
    ],
)
def test_bad_option_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TrainConfig(**{"batches": "neighbors", **changes})
