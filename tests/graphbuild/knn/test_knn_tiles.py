"""The tile engine: every number format, grouping and odd shape gives what a float64 brute force gives."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_graph import brute_force, clustered_vectors, unit_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import ResourceError
from graphbuild.knn.engines.choose import make_engine
from graphbuild.knn.engines.coding import FORMATS, Coding, eigenvectors, leading_basis
from graphbuild.knn.engines.group import rank_among, rounds
from graphbuild.knn.engines.groups import Groups
from graphbuild.knn.engines.rowblocks import RowBlockEngine
from graphbuild.knn.engines.threads import threads
from graphbuild.knn.engines.tiles import TileEngine
from graphbuild.store.files import shard_ranges

PRECISIONS: list[str | int] = [*FORMATS, 8, 32]
"""All coordinates in a format, or so many leading ones in int8."""


def coding(precision: str | int, vectors: NDArray[np.float16], form: str = "int8") -> str | Coding:
    """What an engine takes: a format, or leading coordinates."""
    if isinstance(precision, str):
        return precision
    return Coding(form, leading_basis(eigenvectors(vectors), precision))


def search(engine: TileEngine | RowBlockEngine, count: int, size: int = 700) -> tuple[NDArray[np.int32], NDArray[np.float16], int]:
    found = list(engine.search(shard_ranges(count, size)))
    ids, similarities = (np.concatenate([getattr(one, name) for one in found]) for name in ("ids_nK", "similarities_nK"))
    return ids, similarities, sum(one.recomputed for one in found)


def assert_same(engine: TileEngine, vectors: NDArray[np.float16], k: int) -> None:
    ids, similarities, _ = search(engine, len(vectors))
    expected_ids, expected_similarities = brute_force(vectors, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(similarities, expected_similarities)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("dim", "spread"), [(63, 0.6), (384, 1.0)])
def test_every_format_matches_float64_brute_force(precision: str | int, dim: int, spread: float) -> None:
    vectors = clustered_vectors(2200, dim, clusters=15, spread=spread)
    assert_same(TileEngine(vectors, k=40, memory_limit=10**9, precision=coding(precision, vectors)), vectors, 40)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_shape_with_duplicates_and_ties_matches_brute_force(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 1100))
    dim = data.draw(st.sampled_from([1, 2, 16, 63, 65]))
    k = data.draw(st.integers(1, min(count - 1, 30)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    distinct = rng.integers(-2, 3, (data.draw(st.integers(1, count)), dim)) + 1e-3
    vectors = unit_rows(distinct[rng.integers(len(distinct), size=count)])
    precision = data.draw(st.sampled_from(FORMATS))
    assert_same(TileEngine(vectors, k=k, memory_limit=10**9, precision=coding(precision, vectors)), vectors, k)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_similarities_closer_than_a_format_can_tell_apart_are_put_in_exact_order(precision: str | int) -> None:
    rng = np.random.default_rng(0)
    # All within a thousandth of one another: thousands of scores share a few half-precision values.
    vectors = unit_rows(rng.standard_normal(48) + 0.02 * rng.standard_normal((1500, 48)))
    assert_same(TileEngine(vectors, k=30, memory_limit=10**9, precision=coding(precision, vectors)), vectors, 30)


@pytest.mark.parametrize(("count", "dim", "k"), [(2000, 64, 1024), (1500, 1536, 20), (1025, 63, 1024), (1024, 63, 1)])
def test_widest_rows_and_vectors_match_brute_force(count: int, dim: int, k: int) -> None:
    vectors = clustered_vectors(count, dim)
    assert_same(TileEngine(vectors, k=k, memory_limit=2 * 10**9), vectors, k)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_groups_of_few_rows_give_the_same_as_one_group(precision: str | int) -> None:
    vectors = clustered_vectors(5000, 32)
    whole = TileEngine(vectors, k=30, memory_limit=10**9, precision=coding(precision, vectors))
    cut = TileEngine(vectors, k=30, memory_limit=10**9, precision=coding(precision, vectors))
    # 2,048 rows hold two ranges of 700, and a range of 3,000 in pieces.
    cut.groups = Groups(5000, 2048)
    for size in (700, 3000):
        for one, other in zip(search(whole, 5000, size)[:2], search(cut, 5000, size)[:2], strict=True):
            np.testing.assert_array_equal(one, other)


def test_some_ranges_alone_give_the_same_rows_as_all() -> None:
    vectors = clustered_vectors(4000, 32)
    engine = TileEngine(vectors, k=30, memory_limit=10**9)
    ranges = shard_ranges(4000, 700)
    every = list(engine.search(ranges))
    for index, found in zip((1, 4), engine.search([ranges[1], ranges[4]]), strict=True):
        np.testing.assert_array_equal(found.ids_nK, every[index].ids_nK)


def test_clustered_vectors_need_no_second_search() -> None:
    vectors = clustered_vectors(4000, 64, clusters=200)
    assert search(TileEngine(vectors, k=40, memory_limit=10**9, precision="int8"), 4000)[2] == 0


def test_rows_with_more_ties_than_room_are_searched_again_and_counted() -> None:
    vectors = np.repeat(clustered_vectors(3, 16), 500, axis=0)
    ids, _, recomputed = search(TileEngine(vectors, k=20, memory_limit=10**9), 1500)
    assert recomputed == 1500
    np.testing.assert_array_equal(ids, brute_force(vectors, 20)[0])


def test_rows_whose_neighbours_are_dissimilar_are_searched_again() -> None:
    # Opposite pairs: most similarities are negative, and negative scores are no candidates.
    axes = np.concatenate([np.eye(40), -np.eye(40)])
    vectors = unit_rows(axes - 0.2)
    assert_same(TileEngine(vectors, k=60, memory_limit=10**9), vectors, 60)


def test_engine_says_what_a_too_small_memory_limit_needs() -> None:
    with pytest.raises(ResourceError, match=r"needs at least [\d,]+ MB.*Raise --memory-limit"):
        TileEngine(clustered_vectors(2000, 16), k=5, memory_limit=8_000_000)


def test_small_sets_and_nearly_complete_graphs_are_searched_in_row_blocks() -> None:
    small = make_engine(clustered_vectors(1000, 8), k=5, memory_limit=10**9)
    dense = make_engine(clustered_vectors(13_000, 8), k=2000, memory_limit=2 * 10**9)
    large = make_engine(clustered_vectors(13_000, 8), k=5, memory_limit=10**9)
    assert [type(engine) for engine in (small, dense, large)] == [RowBlockEngine, RowBlockEngine, TileEngine]


@pytest.mark.parametrize("threads", [1, 2, 16])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 67])
def test_rounds_meet_all_pairs_once_in_tasks_without_a_common_block(count: int, threads: int) -> None:
    pairs, met_by_all = [], 0
    met: list[set[int]] = [set() for _ in range(count)]
    for tasks, number in rounds(count, threads):
        blocks = [{block for pair in task for block in pair} for task in tasks]
        assert sum(map(len, blocks)) == len(set().union(*blocks))
        pairs += [pair for task in tasks for pair in task]
        for one, other in (pair for task in tasks for pair in task):
            met[one].add(other)
            met[other].add(one)
        met_by_all += number
        assert min(map(len, met)) >= met_by_all - 4
    assert sorted(pairs) == [(one, other) for one in range(count) for other in range(one, count)]
    assert met_by_all == count


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_a_random_share_rarely_holds_more_of_the_nearest_than_its_rank(share: float) -> None:
    held = np.random.default_rng(0).binomial(257, share, 100_000)
    assert (held >= rank_among(257, share)).mean() < 1e-3


@pytest.mark.parametrize("group_rows", [4096, 1024])
def test_texts_stored_by_cluster_need_no_second_search(group_rows: int) -> None:
    # A group of some shards is no sample of all texts: it may hold all of a row's neighbours.
    centres = np.random.default_rng(0).standard_normal((8, 32))
    vectors = unit_rows(np.repeat(centres, 500, axis=0) + 0.3 * np.random.default_rng(1).standard_normal((4000, 32)))
    engine = TileEngine(vectors, k=30, memory_limit=10**9, precision="int8")
    engine.groups = Groups(4000, group_rows)
    ids, _, recomputed = search(engine, 4000)
    assert recomputed <= 8
    np.testing.assert_array_equal(ids, brute_force(vectors, 30)[0])


def test_failure_in_a_thread_ends_the_work_and_is_raised() -> None:
    started = []

    def work(_thread: int, task: int) -> None:
        started.append(task)
        if task == 3:
            raise ValueError("task three")

    with threads(2) as pool, pytest.raises(ValueError, match="task three"):
        pool.run(range(10**6), work)
    assert len(started) < 10**6
