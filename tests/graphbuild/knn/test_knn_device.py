"""The torch engine, on the CPU device: the same neighbours as a float64 brute force, whatever the shape and the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, unit_rows, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.engines.device import DeviceEngine, half_bits
from graphbuild.knn.stage import build_knn, estimate_knn
from graphbuild.store.files import shard_ranges


def brute_force(vectors: NDArray[np.float16], k: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    wide = vectors.astype(np.float64)
    exact = wide @ wide.T
    np.fill_diagonal(exact, -np.inf)
    ids = np.lexsort((np.broadcast_to(np.arange(len(wide)), exact.shape), -exact))[:, :k]
    rounded = np.take_along_axis(exact, ids, 1).astype(np.float16)
    order = np.lexsort((ids, -rounded.astype(np.float64)))
    return np.take_along_axis(ids, order, 1), np.take_along_axis(rounded, order, 1)


def assert_exact(engine: DeviceEngine, vectors: NDArray[np.float16], k: int) -> int:
    found = list(engine.search(shard_ranges(len(vectors), 700)))
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(np.concatenate([one.ids_nK for one in found]), expected_ids)
    np.testing.assert_array_equal(np.concatenate([one.similarities_nK for one in found]), expected_similarities)
    return sum(one.recomputed for one in found)


def engine_for(vectors: NDArray[np.float16], k: int, *, limit: int = 10**9, precision: str = "auto") -> DeviceEngine:
    return DeviceEngine(vectors, k=k, memory_limit=limit, device="cpu", precision=precision)


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize(("count", "dim", "k"), [(2, 8, 1), (301, 63, 17), (2_300, 64, 40)])
def test_torch_engine_matches_float64_brute_force(precision: str, count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim)
    assert_exact(engine_for(vectors, k, precision=precision), vectors, k)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_torch_engine_matches_brute_force_for_any_shape_with_duplicates_and_ties(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 900))
    dim = data.draw(st.sampled_from([1, 2, 16, 63, 65]))
    k = data.draw(st.integers(1, min(count - 1, 30)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    distinct = rng.integers(-2, 3, (data.draw(st.integers(1, count)), dim)) + 1e-3
    vectors = unit_rows(distinct[rng.integers(len(distinct), size=count)])
    assert_exact(engine_for(vectors, k, precision=data.draw(st.sampled_from(["float16", "float32"]))), vectors, k)


def test_similarities_closer_than_float16_can_tell_apart_are_put_in_exact_order() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal(48) + 0.02 * rng.standard_normal((1_200, 48)))
    assert_exact(engine_for(vectors, 30, precision="float16"), vectors, 30)


@pytest.mark.parametrize(("count", "dim", "k"), [(1_500, 64, 1024), (900, 1536, 20), (700, 63, 699)])
def test_torch_engine_takes_the_widest_rows_and_vectors(count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim)
    assert_exact(engine_for(vectors, k), vectors, k)


@pytest.mark.parametrize("tile", [256, 100])
def test_tiles_and_groups_of_any_size_give_the_same_rows(tile: int) -> None:
    vectors = clustered_vectors(1_900, 32)
    engine = engine_for(vectors, 30)
    engine._tile, engine._group_rows = tile, 333
    assert_exact(engine, vectors, 30)


def test_vectors_that_stay_on_the_device_give_the_same_rows() -> None:
    vectors = clustered_vectors(1_200, 32)
    engine = engine_for(vectors, 30)
    engine._resident = True
    assert_exact(engine, vectors, 30)


def test_torch_engine_settles_nearly_all_clustered_vectors_without_a_second_search() -> None:
    vectors = clustered_vectors(2_500, 64, clusters=200)
    # The limit of a row starts from a random sample, and may by chance be too high.
    assert assert_exact(engine_for(vectors, 40, precision="float16"), vectors, 40) < 25


def test_small_memory_makes_smaller_tiles_and_the_same_rows() -> None:
    vectors = clustered_vectors(1_500, 32)
    small = engine_for(vectors, 10, limit=60_000_000)
    assert small._tile < engine_for(vectors, 10)._tile
    assert_exact(small, vectors, 10)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("k", [1, 40, 899])
@pytest.mark.parametrize("room", [1, 400_000, 10**9])
def test_rows_set_against_all_texts_are_exact_whatever_the_room(room: int, k: int, resident: bool) -> None:
    rng = np.random.default_rng(1)
    # A third of the texts are one and the same: the lowest ids of those that tie are its neighbours.
    vectors = unit_rows(rng.integers(-2, 3, (900, 17)) + 1e-3)[rng.integers(0, 900, 900)]
    vectors[rng.random(900) < 1 / 3] = vectors[0]
    engine = engine_for(vectors, k)
    engine._settling_bytes, engine._resident = room, resident
    first, rows = 100, np.array([0, 3, 4, 299, 750])
    ids, similarities = np.full((800, k), -7, np.int32), np.zeros((800, k), np.float16)
    engine._settle(rows, first, ids, similarities)
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(ids[rows], expected_ids[first + rows])
    np.testing.assert_array_equal(similarities[rows], expected_similarities[first + rows])
    assert (np.delete(ids, rows, axis=0) == -7).all()


def test_torch_engine_says_what_a_too_small_memory_needs() -> None:
    with pytest.raises(ResourceError, match=r"needs at least [\d,]+ MB on cpu"):
        engine_for(clustered_vectors(2_000, 16), 5, limit=1_000_000)


def test_graph_by_the_torch_engine_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered_vectors(1_500, 32)
    for name in ("here", "there"):
        write_graph(tmp_path / name, vectors, shard_size=400)
    build_knn(tmp_path / "here", KnnConfig(k=20))
    # The CPU under the name by which the search goes to torch.
    monkeypatch.setattr("graphbuild.knn.stage.resolve_device", lambda _: "cpu:0")
    build_knn(tmp_path / "there", KnnConfig(k=20, device="cuda"))
    files = [[path.read_bytes() for path in sorted((tmp_path / name / "knn").glob("*.arrow"))] for name in ("here", "there")]
    assert files[0] == files[1]


def test_dry_run_measures_the_torch_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path, clustered_vectors(1_500, 32))
    monkeypatch.setattr("graphbuild.knn.stage.resolve_device", lambda _: "cpu:0")
    assert estimate_knn(tmp_path, KnnConfig(k=20)).pairs == 1_500**2


def test_progress_of_the_torch_engine_adds_up_to_the_work_it_announced() -> None:
    engine = engine_for(clustered_vectors(1_500, 16), 5)
    told: list[int] = []
    ranges = shard_ranges(1_500, 400)
    for _ in engine.search(ranges, told.append):
        pass
    assert sum(told) == engine.work(ranges)


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=50))
def test_rounding_to_float16_is_numpys_and_rounds_once(values: list[float]) -> None:
    wide = np.array([*values, 1 + 2.0**-11 + 2.0**-40, 2.0**-25, -0.0, 2.0**-14])
    found = half_bits(torch.from_numpy(wide)).to(torch.int32).numpy().astype(np.uint16)
    np.testing.assert_array_equal(found, wide.astype(np.float16).view(np.uint16))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(300, 16))
    with pytest.raises(ResourceError, match=r"--device cuda: torch finds no GPU here. Use --device cpu"):
        build_knn(tmp_path, KnnConfig(k=5, device="cuda"))
