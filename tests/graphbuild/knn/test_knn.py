"""The knn stage and its engine against a float64 brute force that shares no code with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from helpers_graph import brute_force, clustered_vectors, unit_rows, write_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import ArtifactError, OptionError, ResourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.stage import build_knn
from graphbuild.store.manifest import Manifest
from graphbuild.system.memory import parse_size

TINY = KnnConfig(k=5)


def search_all(vectors: NDArray[np.float16], k: int) -> tuple[NDArray[np.int32], NDArray[np.float16], int]:
    found = RowBlockEngine(vectors, k=k, memory_limit=10**9).search_rows(np.arange(len(vectors)))
    return found.ids_nK, found.similarities_nK, found.recomputed


def stored(graph_dir: Path) -> pa.Table:
    return pa.concat_tables([pa.ipc.open_file(path).read_all() for path in sorted((graph_dir / "knn").glob("*.arrow"))])


def all_bytes(graph_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((graph_dir / "knn").glob("*.arrow"))}


@pytest.mark.parametrize(("count", "dim", "k"), [(2, 8, 1), (7, 3, 6), (300, 63, 17), (4500, 64, 40)])
def test_engine_matches_float64_brute_force(count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim, seed=count)
    ids, similarities, _ = search_all(vectors, k)
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(similarities, expected_similarities)


# Blocks of 64 rows, and a few rows in one wide tile.
@pytest.mark.parametrize("rows", [130, 3])
def test_some_rows_among_many_texts_match_float64_brute_force(rows: int) -> None:
    vectors = clustered_vectors(9_001, 16)
    engine = RowBlockEngine(vectors, k=12, memory_limit=RowBlockEngine.required_memory(9_001, 16, 12))
    asked = np.sort(np.random.default_rng(0).choice(len(vectors), rows, replace=False))
    found = engine.search_rows(asked)
    expected_ids, expected_similarities = brute_force(vectors, 12, asked)
    np.testing.assert_array_equal(found.ids_nK, expected_ids)
    np.testing.assert_array_equal(found.similarities_nK, expected_similarities)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_engine_matches_brute_force_for_any_shape_with_duplicates_and_ties(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 150))
    dim = data.draw(st.sampled_from([1, 2, 3, 16, 63, 65]))
    k = data.draw(st.integers(1, count - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Few distinct vectors with few distinct coordinates: duplicates and exact ties everywhere.
    distinct = rng.integers(-2, 3, (data.draw(st.integers(1, count)), dim)) + 1e-3
    vectors = unit_rows(distinct[rng.integers(len(distinct), size=count)])
    ids, similarities, _ = search_all(vectors, k)
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(similarities, expected_similarities)


def test_text_is_never_its_own_neighbour_even_among_duplicates() -> None:
    vectors = np.repeat(clustered_vectors(3, 16), 200, axis=0)
    ids, _, _ = search_all(vectors, 50)
    assert not (ids == np.arange(600)[:, None]).any()


def test_rows_that_the_certificate_does_not_settle_are_counted() -> None:
    vectors = np.repeat(clustered_vectors(3, 16), 200, axis=0)
    _, _, recomputed = search_all(vectors, 50)
    assert recomputed == 600


def test_pair_stored_by_both_rows_has_one_similarity() -> None:
    ids, similarities, _ = search_all(clustered_vectors(400, 63), 60)
    value = {(i, int(j)): s for i in range(400) for j, s in zip(ids[i], similarities[i], strict=True)}
    assert all(value[j, i] == s for (i, j), s in value.items() if (j, i) in value)


def test_engine_says_what_a_too_small_memory_limit_needs() -> None:
    with pytest.raises(ResourceError, match=r"needs at least [\d,]+ MB.*Raise --memory-limit"):
        RowBlockEngine(clustered_vectors(200, 16), k=5, memory_limit=10_000)


def test_small_memory_limit_gives_the_same_bytes(tmp_path: Path) -> None:
    vectors = clustered_vectors(900, 32)
    for name, limit in (("a", None), ("b", "25MB")):
        write_graph(tmp_path / name, vectors)
        build_knn(tmp_path / name, KnnConfig(k=20, memory_limit=limit))
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_shard_boundaries_do_not_change_the_rows(tmp_path: Path) -> None:
    vectors = clustered_vectors(500, 32)
    for name, size in (("a", 500), ("b", 77)):
        write_graph(tmp_path / name, vectors, shard_size=size)
        build_knn(tmp_path / name, KnnConfig(k=20))
    assert stored(tmp_path / "a").combine_chunks() == stored(tmp_path / "b").combine_chunks()


def test_auto_stores_all_neighbours_of_a_small_graph_and_says_complete(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(40, 8))
    result = build_knn(tmp_path, KnnConfig())
    assert (result.k, result.complete) == (39, True)
    assert Manifest.load(tmp_path).stages["knn"].facts["complete"] is True


def test_auto_stores_256_of_a_larger_graph(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(4098, 4))
    assert build_knn(tmp_path, KnnConfig()).k == 256


def test_k_beyond_the_texts_stores_all_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_graph(tmp_path, clustered_vectors(10, 8))
    result = build_knn(tmp_path, KnnConfig(k=500))
    assert "500 asked, but there are only 9 other texts" in capsys.readouterr().err
    assert (result.k, Manifest.load(tmp_path).stages["knn"].facts["k_asked"]) == (9, 500)


def test_graph_of_one_text_has_rows_of_width_zero(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(1, 8))
    result = build_knn(tmp_path, KnnConfig())
    assert (result.k, result.complete, stored(tmp_path).num_rows) == (0, True, 1)


@pytest.mark.parametrize(
    ("value", "said"), [(0.0, "is zero"), (np.nan, "is not finite"), (np.inf, "is not finite"), (0.5, "length")]
)
def test_vector_without_a_direction_is_refused_by_text_id(tmp_path: Path, value: float, said: str) -> None:
    vectors = clustered_vectors(50, 8)
    vectors[37] = value
    write_graph(tmp_path, vectors, shard_size=20)
    with pytest.raises(ArtifactError, match=f"text_id 37 .*{said}"):
        build_knn(tmp_path, TINY)


def test_second_run_does_nothing(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(50, 8))
    build_knn(tmp_path, TINY)
    before = (tmp_path / "graph.json").stat().st_mtime_ns
    assert build_knn(tmp_path, TINY).already_done
    assert (tmp_path / "graph.json").stat().st_mtime_ns == before


def test_other_k_is_refused_unless_overwritten(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(50, 8))
    build_knn(tmp_path, TINY)
    with pytest.raises(OptionError, match=r"k: 5 -> 6.*--overwrite"):
        build_knn(tmp_path, KnnConfig(k=6))
    assert build_knn(tmp_path, KnnConfig(k=6, overwrite=True)).k == 6


def test_damaged_shard_is_rebuilt_alone(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(100, 8), shard_size=30)
    build_knn(tmp_path, TINY)
    before = all_bytes(tmp_path)
    (tmp_path / "knn/part-00002.arrow").write_bytes(b"short")
    result = build_knn(tmp_path, TINY)
    assert (result.reused_shards, all_bytes(tmp_path)) == (3, before)


def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    vectors = clustered_vectors(300, 16)
    for name in ("a", "b"):
        write_graph(tmp_path / name, vectors, shard_size=100)
        build_knn(tmp_path / name, TINY)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")


def test_polars_scans_the_shards_and_joins_them_to_texts(tmp_path: Path) -> None:
    write_graph(tmp_path, unit_rows(np.array([[1, 0.1], [1, 0.2], [0, 1]])), texts=["a dog", "a puppy", "a plane"])
    build_knn(tmp_path, KnnConfig(k=1))
    texts = pl.scan_parquet(tmp_path / "texts/*.parquet")
    edges = pl.scan_ipc(tmp_path / "knn/*.arrow").select("text_id", neighbor=pl.col("neighbor_ids").arr.first())
    frame = edges.join(texts, on="text_id").join(texts, left_on="neighbor", right_on="text_id").collect()
    assert frame.sort("text_id")["text_right"].to_list() == ["a puppy", "a dog", "a puppy"]


@pytest.mark.parametrize(
    ("text", "size"), [("4GB", 4 * 10**9), ("512MiB", 2**29), ("1.5g", 1_500_000_000), ("800", 800), ("2 kB", 2000)]
)
def test_memory_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_memory_size_that_is_none_is_refused_with_examples() -> None:
    with pytest.raises(OptionError, match=r"'lots' is no size. Write it as 4GB"):
        parse_size("lots")
