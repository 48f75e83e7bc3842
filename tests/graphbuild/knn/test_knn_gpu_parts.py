"""Parts of the search on a GPU: limits by rank, memory, vectors by position, work ahead, results put in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from scipy import stats

from graphbuild.knn.config import KnnConfig
from graphbuild.knn.engines.gpu import vectors as by_position
from graphbuild.knn.engines.gpu.ahead import ahead
from graphbuild.knn.engines.gpu.certificate import Certificate
from graphbuild.knn.engines.gpu.limits import checkpoints, first_sample, rank_for, room
from graphbuild.knn.engines.gpu.room import plan_room
from graphbuild.knn.engines.gpu.sweep import spans
from graphbuild.knn.engines.gpu.vectors import Vectors, is_kept, open_vectors
from graphbuild.knn.scratch import map_vectors
from graphbuild.knn.stage import build_knn
from graphbuild.knn.tasks import Job, blocks, search_shards
from graphbuild.store.files import shard_ranges

CPU = torch.device("cpu")


@pytest.mark.parametrize("mean", [0.3, 4.0, 32.1, 257.0, 600.0, 5_000.0])
def test_rank_is_the_smallest_that_fewer_than_one_row_in_100000_reaches(mean: float) -> None:
    rank = rank_for(mean)
    assert stats.poisson.sf(rank - 1, mean) <= 1e-5
    # Beyond exp's range it may be a little higher than it had to be.
    assert stats.poisson.sf(rank - 2 if mean < 700 else int(0.98 * rank), mean) > 1e-6


def test_sample_limits_are_too_high_for_no_more_rows_than_promised() -> None:
    # Of each row's 257 nearest, those in a random eighth; the limit is too high where they reach the rank.
    found = np.random.default_rng(0).hypergeometric(257, 100_000 - 257, 12_500, size=200_000)
    assert (found >= rank_for(257 / 8)).mean() <= 3e-5


def test_first_sample_and_checkpoints_are_whole_words_of_the_random_part() -> None:
    for count in (2, 300, 20_000, 1_000_001, 12_400_000):
        places = checkpoints(count)
        assert first_sample(count) <= places[-1] <= count
        assert all(place % 16 == 0 or place == count for place in places)


@pytest.mark.parametrize(("gigabytes", "texts", "width"), [(141, 12_400_000, 768), (83, 12_400_000, 768), (83, 1_000_000, 1024)])
def test_all_rows_of_12_million_texts_have_room_on_a_large_gpu(gigabytes: int, texts: int, width: int) -> None:
    free = int(gigabytes * 0.85e9)
    found = plan_room(texts, 384, 256, free=free, host=2**36, device="cuda", kernels=True, sweep=True)
    assert (found.resident, found.rows, found.width, found.tile) == (True, texts, width, 8192)


def test_rows_go_in_groups_where_results_that_wait_would_fill_the_host() -> None:
    found = plan_room(12_400_000, 384, 256, free=10**11, host=10**9, device="cuda", kernels=True, sweep=True)
    assert found.rows * 256 * 6 // 8 <= 10**9 // 4


def test_room_grows_with_the_neighbours() -> None:
    assert [room(k, deviations=8.5) for k in (1, 32, 256)] == [256, 448, 1024]


def test_spans_reach_over_no_cut() -> None:
    assert spans(0, 100, 40, [16, 70]) == [(0, 16), (16, 56), (56, 70), (70, 100)]
    assert spans(20, 20, 8) == []


@pytest.mark.parametrize("resident", [False, True])
def test_blocks_of_positions_hold_their_texts_and_end_in_zeros(resident: bool) -> None:
    source = clustered_vectors(203, 24)
    vectors = Vectors(source, CPU, resident=resident)
    assert sorted(vectors.texts_N.tolist()) == list(range(203))
    rest = vectors.texts_N[checkpoints(203)[-1] :].tolist()
    assert rest == sorted(rest)
    chosen = np.zeros(203, np.bool_)
    chosen[[3, 4, 90, 202]] = True
    for places in (
        vectors.places_N,
        vectors.places_N[5:30],
        vectors.places_N[195:203],
        vectors.places_N[192:203],
        vectors.places(chosen),
    ):
        block = vectors.block(places)
        assert len(block) % 16 == 0
        np.testing.assert_array_equal(block[: len(places)].numpy(), source[vectors.texts(places)])
        assert not block[len(places) :].any()


def test_vectors_of_a_scratch_file_stay_on_a_gpu_for_the_next_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = clustered_vectors(64, 16)
    path = tmp_path / "vectors"
    source.tofile(path)
    made = []

    def recorded(vectors: np.ndarray, device: torch.device, *, resident: bool) -> Vectors:
        made.append(str(device))
        # What a GPU would hold; there is none here.
        return Vectors(vectors, CPU, resident=resident)

    monkeypatch.setattr(by_position, "Vectors", recorded)
    gpus = [torch.device("cuda", number) for number in (0, 1)]
    for _ in range(2):
        for gpu in gpus:
            open_vectors(map_vectors(path, (64, 16)), gpu, resident=True)
    assert made == ["cuda:0", "cuda:1"]
    assert is_kept(map_vectors(path, (64, 16)), gpus[0])
    # In memory, or of another file: not the same.
    assert not is_kept(source, gpus[0])
    clustered_vectors(64, 16, seed=1).tofile(tmp_path / "others")
    open_vectors(map_vectors(tmp_path / "others", (64, 16)), gpus[0], resident=True)
    assert not is_kept(map_vectors(path, (64, 16)), gpus[0])
    assert is_kept(map_vectors(path, (64, 16)), gpus[1])


def test_certificate_bounds_negative_scores_by_their_magnitude() -> None:
    certificate = Certificate(64, CPU)
    scores = torch.tensor([-1.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0], dtype=torch.float16)
    highest = certificate.highest(scores)
    assert (highest > scores.double()).all()
    assert (highest.diff() > 0).all()
    assert ((highest - scores.double()) < 1e-3).all()
    assert not certificate.holds(torch.full((1, 1), 0.6, dtype=torch.float16), *(torch.ones((1, 1)).half() * 0.5 for _ in range(2)))


def test_items_come_in_order_while_the_work_goes_on() -> None:
    threads = set()

    def work() -> Iterator[int]:
        for number in range(7):
            threads.add(threading.current_thread().name)
            yield number

    assert list(ahead(work())) == list(range(7))
    assert threads == {"knn-ahead"}


def test_error_of_the_work_is_raised_where_its_items_are_taken() -> None:
    def work() -> Iterator[int]:
        yield 1
        raise ValueError("no room")

    taken = ahead(work())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="no room"):
        next(taken)


def test_work_ends_when_nobody_wants_the_rest() -> None:
    done = []

    def work() -> Iterator[int]:
        for number in range(1_000):
            done.append(number)
            yield number

    taken = ahead(work())
    next(taken)
    taken.close()
    ended = len(done)
    assert ended < 10
    time.sleep(0.05)
    assert len(done) == ended


def test_tasks_on_a_gpu_take_some_shards_each_and_those_on_a_cpu_one() -> None:
    shards = shard_ranges(1_000, 10)
    for device, largest in (("cpu", 1), ("cuda", 4)):
        made = blocks(shards, device)
        assert [shard for block in made for shard in block] == shards
        assert max(map(len, made)) == largest
    # With few shards, every GPU gets some.
    assert len(blocks(shards[:10], "cuda")) == 10


def test_task_of_some_shards_writes_those_that_are_missing_with_the_bytes_of_a_whole_search(tmp_path: Path) -> None:
    vectors = clustered_vectors(900, 32)
    for name in ("whole", "parts"):
        write_graph(tmp_path / name, vectors, shard_size=300)
    build_knn(tmp_path / "whole", KnnConfig(k=7, sketch_dim=0))
    (tmp_path / "parts" / "knn").mkdir()
    vectors.tofile(tmp_path / "vectors")
    job = Job(
        root=str(tmp_path / "parts"),
        vectors=str(tmp_path / "vectors"),
        shape=(900, 32),
        basis=None,
        k=7,
        memory=10**9,
        device="cpu:0",
        key="key",
    )
    shards = shard_ranges(900, 300)
    told: list[int] = []
    (first,) = search_shards(job, (shards[1],), report=told.append)
    again = search_shards(job, tuple(shards), report=told.append)
    assert sum(told) == 900
    assert again[0] == first
    assert len({receipt.path for receipt in again}) == 3
    for receipt in again:
        assert (tmp_path / "parts" / receipt.path).read_bytes() == (tmp_path / "whole" / receipt.path).read_bytes()
