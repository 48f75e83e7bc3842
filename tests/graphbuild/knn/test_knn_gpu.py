"""The torch engine, on the CPU device: the same neighbours as a float64 brute force, whatever the shape, the way and the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_graph import brute_force, clustered_vectors, unit_rows, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import memory
from graphbuild.errors import ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.engines.gpu.engine import DeviceEngine
from graphbuild.knn.engines.gpu.torch_steps import half_bits
from graphbuild.knn.stage import build_knn, estimate_knn
from graphbuild.store.files import shard_ranges
from graphbuild.store.manifest import Manifest

WAYS = ["sweep", "topk", "auto"]


def assert_exact(engine: DeviceEngine, vectors: NDArray[np.float16], k: int, *, shard: int = 700) -> int:
    found = list(engine.search(shard_ranges(len(vectors), shard)))
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(np.concatenate([one.ids_nK for one in found]), expected_ids)
    np.testing.assert_array_equal(np.concatenate([one.similarities_nK for one in found]), expected_similarities)
    return sum(one.recomputed for one in found)


def engine_for(
    vectors: NDArray[np.float16],
    k: int,
    way: str = "sweep",
    *,
    tile: int | None = None,
    rows: int | None = None,
    resident: bool = True,
    limit: int = 10**9,
    precision: str = "auto",
) -> DeviceEngine:
    engine = DeviceEngine(vectors, k=k, memory_limit=limit, device="cpu", precision=precision, way=way)
    room = engine.room
    tile = tile or room.tile
    engine.room = replace(room, tile=tile, rows=rows or room.rows, panel=min(room.panel, tile), resident=resident)
    return engine


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "dim", "k"), [(2, 8, 1), (301, 63, 17), (1_900, 64, 40)])
def test_every_way_matches_float64_brute_force(way: str, precision: str, count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim)
    assert_exact(engine_for(vectors, k, way, precision=precision, tile=256), vectors, k)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape_with_duplicates_and_ties_matches_brute_force(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 700))
    dim = data.draw(st.sampled_from([1, 2, 16, 63, 65]))
    k = data.draw(st.integers(1, min(count - 1, 30)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    distinct = rng.integers(-2, 3, (data.draw(st.integers(1, count)), dim)) + 1e-3
    vectors = unit_rows(distinct[rng.integers(len(distinct), size=count)])
    tile, rows = data.draw(st.sampled_from([64, 128, 256])), data.draw(st.integers(1, count))
    engine = engine_for(vectors, k, data.draw(st.sampled_from(WAYS)), tile=tile, rows=rows, resident=data.draw(st.booleans()))
    assert_exact(engine, vectors, k, shard=data.draw(st.integers(1, count)) + 20)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(("tile", "rows"), [(64, None), (128, 333), (512, 1_000)])
def test_tiles_and_groups_of_any_size_give_the_same_rows(tile: int, rows: int | None, resident: bool) -> None:
    vectors = clustered_vectors(1_500, 32)
    assert_exact(engine_for(vectors, 30, tile=tile, rows=rows, resident=resident), vectors, 30)


@pytest.mark.parametrize("way", WAYS)
def test_hundreds_of_duplicates_are_settled_exactly(way: str) -> None:
    vectors = clustered_vectors(1_500, 32, clusters=300)
    # Many times more twins than a row has room for: the lowest ids of those that tie are neighbours.
    vectors[400:1_000] = vectors[400]
    assert assert_exact(engine_for(vectors, 5, way, tile=128), vectors, 5) >= 600


def test_rows_that_are_all_equal_are_settled_exactly() -> None:
    vectors = np.tile(clustered_vectors(1, 32), (700, 1))
    assert assert_exact(engine_for(vectors, 9, tile=128), vectors, 9) == 700


def test_a_hub_that_is_near_to_all_texts_is_exact() -> None:
    rng = np.random.default_rng(3)
    vectors = unit_rows(rng.standard_normal((1_400, 400)) + 8 * np.eye(400)[0])
    vectors[777] = np.eye(400)[0]
    ids, _ = brute_force(vectors, 3)
    assert (ids == 777).any(axis=1).mean() > 0.9
    assert_exact(engine_for(vectors, 20, tile=128), vectors, 20)


def test_similarities_closer_than_float16_can_tell_apart_are_put_in_exact_order() -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal(48) + 0.02 * rng.standard_normal((1_200, 48)))
    assert_exact(engine_for(vectors, 30, tile=256), vectors, 30)


def test_similarities_that_are_all_negative_are_settled_exactly() -> None:
    # The corners of a simplex: any two are at -1 / (N - 1).
    vectors = unit_rows(np.eye(60) - 1 / 60)
    assert assert_exact(engine_for(vectors, 5, tile=32), vectors, 5) == 60
    assert_exact(engine_for(vectors, 5, "topk", tile=32), vectors, 5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("count", "dim", "k"), [(700, 64, 512), (300, 1536, 20), (500, 63, 499), (400, 32, 398)])
def test_nearly_complete_graphs_and_wide_vectors_are_exact(way: str, count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim)
    assert_exact(engine_for(vectors, k, way, tile=128), vectors, k)


def test_ordered_texts_do_not_mislead_limits() -> None:
    # Texts of a cluster follow one another, as captions of a picture do: a sample that is not random would see all or none.
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((125, 48))
    vectors = unit_rows(np.repeat(centres, 16, axis=0) + 0.4 * rng.standard_normal((2_000, 48)))
    assert assert_exact(engine_for(vectors, 20, tile=128), vectors, 20) < 20


def test_nearly_all_rows_of_clustered_vectors_are_settled_by_their_certificate() -> None:
    vectors = clustered_vectors(2_500, 64, clusters=200)
    assert assert_exact(engine_for(vectors, 40, tile=256), vectors, 40) < 10


def test_small_memory_makes_smaller_tiles_and_groups_and_the_same_rows() -> None:
    vectors = clustered_vectors(1_500, 32)
    small = DeviceEngine(vectors, k=10, memory_limit=5_000_000, device="cpu", way="sweep")
    assert small.room.tile < engine_for(vectors, 10).room.tile
    assert small.room.rows < 1_500
    assert_exact(small, vectors, 10)


@pytest.mark.parametrize("way", ["sweep", "topk"])
def test_search_stays_within_its_memory(way: str) -> None:
    vectors = clustered_vectors(3_000, 64)
    limit = 60_000_000
    small = DeviceEngine(vectors, k=200, memory_limit=limit, device="cpu", way=way)
    ranges = shard_ranges(3_000, 1_000)
    before = memory.reset_peak()
    results = sum(one.ids_nK.nbytes + one.similarities_nK.nbytes for one in small.search(ranges))
    assert memory.status("VmHWM") - before < limit + results


@pytest.mark.parametrize(("way", "limit"), [("sweep", 1_000_000), ("topk", 100_000)])
def test_too_small_a_memory_is_refused_and_what_it_takes_is_said(way: str, limit: int) -> None:
    with pytest.raises(ResourceError, match=r"the search needs at least [\d,]+ MB on cpu, and [01] MB are free"):
        engine_for(clustered_vectors(2_000, 16), 5, way, limit=limit)


def test_missing_ranges_alone_are_searched_among_all_texts() -> None:
    vectors = clustered_vectors(1_600, 32)
    ranges = [one for one in shard_ranges(1_600, 200) if one.index in {1, 2, 6}]
    found = list(engine_for(vectors, 15, tile=128).search(ranges))
    ids, similarities = brute_force(vectors, 15)
    for one, neighbors in zip(ranges, found, strict=True):
        np.testing.assert_array_equal(neighbors.ids_nK, ids[one.start : one.stop])
        np.testing.assert_array_equal(neighbors.similarities_nK, similarities[one.start : one.stop])


def test_what_was_measured_and_taken_is_told_with_the_results() -> None:
    vectors = clustered_vectors(2_500, 32)
    (found,) = engine_for(vectors, 10, "auto", tile=128).search(shard_ranges(2_500, 2_500))
    assert set(found.facts["picoseconds"]) == {"maxima, 128 columns", "product and topk"}
    assert found.facts["way"] == min(found.facts["picoseconds"], key=found.facts["picoseconds"].__getitem__)


@pytest.mark.parametrize("rows", [None, 700])
def test_rows_before_the_trial_are_kept_where_topk_is_taken(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the sweep were slow.
    monkeypatch.setattr("graphbuild.knn.engines.gpu.choice.timed", lambda work, _: 0.0 if "best" in work.__qualname__ else 1.0)
    vectors = clustered_vectors(1_500, 32)
    engine = engine_for(vectors, 10, "auto", tile=256, rows=rows)
    told: list[int] = []
    ranges = shard_ranges(1_500, 500)
    found = list(engine.search(ranges, told.append))
    np.testing.assert_array_equal(np.concatenate([one.ids_nK for one in found]), brute_force(vectors, 10)[0])
    assert sum(told) == engine.work(ranges)
    assert found[-1].facts["way"] == "product and topk"


@pytest.mark.parametrize("rows", [None, 600])
@pytest.mark.parametrize("way", WAYS)
def test_progress_adds_up_to_the_work_that_was_announced(way: str, rows: int | None) -> None:
    engine = engine_for(clustered_vectors(1_500, 16), 5, way, tile=128, rows=rows)
    told: list[int] = []
    ranges = shard_ranges(1_500, 400)
    for _ in engine.search(ranges, told.append):
        pass
    assert sum(told) == engine.work(ranges)
    assert min(told) >= 0


def test_graph_by_the_torch_engine_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered_vectors(1_500, 32)
    for name in ("here", "there"):
        write_graph(tmp_path / name, vectors, shard_size=400)
    build_knn(tmp_path / "here", KnnConfig(k=20))
    # The CPU under the name by which the search goes to torch.
    monkeypatch.setattr("graphbuild.knn.engines.devices.resolve_device", lambda _: "cpu:0")
    build_knn(tmp_path / "there", KnnConfig(k=20, device="cuda"))
    files = [[path.read_bytes() for path in sorted((tmp_path / name / "knn").glob("*.arrow"))] for name in ("here", "there")]
    assert files[0] == files[1]
    receipts = Manifest.load(tmp_path / "there").stages["knn"].files.values()
    assert {receipt.facts["way"] for receipt in receipts} == {"product and topk"}


def test_dry_run_measures_the_torch_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(tmp_path, clustered_vectors(1_500, 32))
    monkeypatch.setattr("graphbuild.knn.engines.devices.resolve_device", lambda _: "cpu:0")
    assert estimate_knn(tmp_path, KnnConfig(k=20)).pairs == 1_500**2


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
