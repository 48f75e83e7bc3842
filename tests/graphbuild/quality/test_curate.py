"""Curation verbs against brute force, and through `subset`."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, unit_rows, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.cli import cli
from graphbuild.errors import OptionError
from graphbuild.exchange.subset import SubsetConfig, subset_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.curate.dedup import find_duplicates
from graphbuild.quality.curate.outliers import find_outliers
from graphbuild.quality.curate.sample import choose_sample, greedy_cover
from graphbuild.store.graph import Graph


def make(folder: Path, vectors: NDArray[np.float16], k: int | str = "all", **options: object) -> Path:
    write_graph(folder, vectors, **options)  # type: ignore[arg-type]
    build_knn(folder, KnnConfig(k=k))  # type: ignore[arg-type]
    return folder


def similarities(vectors: NDArray[np.float16]) -> NDArray[np.float64]:
    """As stored: the float64 product, rounded to float16."""
    wide = vectors.astype(np.float64)
    return (wide @ wide.T).astype(np.float16).astype(np.float64)


def test_every_dropped_text_names_a_kept_one_above_the_threshold_and_no_kept_pair_reaches_it(tmp_path: Path) -> None:
    vectors = clustered_vectors(120, 16, clusters=10, spread=0.08)
    graph = make(tmp_path / "g", vectors)
    result = find_duplicates(graph, tmp_path / "d.parquet", threshold=0.9)
    table = pl.read_parquet(tmp_path / "d.parquet").sort("text_id")
    exact = similarities(vectors)
    kept = table.filter("keep")["text_id"].to_list()
    assert 0 < len(kept) < 120
    assert result.dropped_texts == 120 - len(kept)
    assert all(exact[i, j] < 0.9 for i, j in combinations(kept, 2))
    for row in table.filter(~pl.col("keep")).iter_rows(named=True):
        assert row["reason"] == "near-duplicate"
        assert row["other_text_id"] in kept
        assert row["similarity"] == exact[row["text_id"], row["other_text_id"]] >= 0.9
        assert row["similarity"] == max(exact[row["text_id"], other] for other in kept)


def test_text_with_most_samples_stands_for_its_group_and_its_first_sample_is_kept(tmp_path: Path) -> None:
    vectors = unit_rows(np.array([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [1, 0.02, 0.0]]))
    graph = make(tmp_path / "g", vectors, sample_counts=[1, 3, 1, 2])
    result = find_duplicates(graph, tmp_path / "d.parquet", threshold=0.95)
    table = pl.read_parquet(tmp_path / "d.parquet")
    assert table.filter("keep")["sample_id"].to_list() == ["sample-1-0", "sample-2-0"]
    assert table.filter(pl.col("reason") == "same text as an earlier sample")["sample_id"].to_list() == ["sample-1-1", "sample-1-2"]
    assert (result.groups, result.kept_samples, result.samples) == (1, 2, 7)


def test_rows_without_room_for_all_their_duplicates_are_counted(tmp_path: Path) -> None:
    vectors = np.repeat(unit_rows(np.eye(3, 8)), [5, 1, 1], axis=0)
    result = find_duplicates(make(tmp_path / "g", vectors, k=2), None, threshold=0.95)
    assert result.full_rows == 5
    assert "larger --k" in result.summary()


def test_levels_show_the_pairs_nearest_to_each_threshold(tmp_path: Path) -> None:
    vectors = clustered_vectors(80, 12, clusters=6, spread=0.1)
    result = find_duplicates(make(tmp_path / "g", vectors), None, threshold=0.95, show_levels=True)
    dropped = [level.dropped_texts for level in result.levels]
    assert dropped == sorted(dropped)
    exact = similarities(vectors)
    names = {f"text {i}": i for i in range(80)}
    for level in result.levels:
        for similarity, one, other in level.least_similar:
            assert similarity == exact[names[one], names[other]] >= level.threshold


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 12))
def test_greedy_cover_takes_the_largest_gain_at_every_step(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    vectors = clustered_vectors(24, 6, clusters=4, seed=seed)
    folder = make(tmp_path_factory.mktemp("g"), vectors, k=7)
    graph = Graph.open(folder)
    reach = np.zeros((24, 24))
    for text in range(24):
        row = graph.rows([text])
        reach[text, row.neighbor_ids[0]] = np.maximum(row.similarities[0].astype(np.float64), 0)
        reach[text, text] = 1
    covered, expected = np.zeros(24), []
    for _ in range(count):
        gains = np.maximum(reach - covered, 0).sum(axis=1)
        gains[expected] = -1
        expected.append(int(np.argmax(gains)))
        covered = np.maximum(covered, reach[expected[-1]])
    chosen, cover, _ = greedy_cover(graph, count)
    assert cover.mean() == pytest.approx(covered.mean(), abs=1e-6)
    assert len(set(chosen.tolist())) == count


def test_sample_covers_more_than_random_and_keeps_one_sample_of_each_chosen_text(tmp_path: Path) -> None:
    graph = make(tmp_path / "g", clustered_vectors(300, 16), k=20, sample_counts=[1 + i % 2 for i in range(300)])
    result = choose_sample(graph, tmp_path / "s.parquet", count=20)
    kept = pl.read_parquet(tmp_path / "s.parquet").filter("keep")
    assert len(kept) == kept["text_id"].n_unique() == 20
    assert result.coverage > result.random_coverage
    with pytest.raises(OptionError, match="the graph has 300 texts"):
        choose_sample(graph, tmp_path / "s.parquet", count=301)


def test_outliers_are_the_texts_with_the_lowest_similarity(tmp_path: Path) -> None:
    vectors = clustered_vectors(200, 16)
    graph = make(tmp_path / "g", vectors, k=10)
    result = find_outliers(graph, tmp_path / "o.parquet", share=0.1, ranks=3)
    exact = similarities(vectors)
    np.fill_diagonal(exact, -9)
    score = np.sort(exact, axis=1)[:, ::-1][:, :3].mean(axis=1)
    dropped = pl.read_parquet(tmp_path / "o.parquet").filter(~pl.col("keep"))["text_id"].to_list()
    assert set(dropped) == set(np.argsort(score)[:20].tolist())
    assert result.outliers == 20
    with pytest.raises(OptionError, match="give one of them"):
        find_outliers(graph, tmp_path / "o.parquet", share=0.1, below=0.2)
    with pytest.raises(OptionError, match="10 neighbours are stored"):
        find_outliers(graph, tmp_path / "o.parquet", ranks=11)


def test_decisions_compose_with_subset(tmp_path: Path) -> None:
    graph = make(tmp_path / "g", clustered_vectors(60, 8, clusters=5, spread=0.05))
    (graph / "tokenizer").mkdir()
    result = find_duplicates(graph, tmp_path / "d.parquet", threshold=0.95)
    subset = subset_graph(graph, tmp_path / "s", SubsetConfig(keep=tmp_path / "d.parquet"))
    assert subset.counts["samples"] == result.kept_samples
    assert subset.unknown == 0


def test_commands_answer_in_json_and_refuse_other_files(tmp_path: Path) -> None:
    graph = make(tmp_path / "g", clustered_vectors(40, 8))
    answer = CliRunner().invoke(cli, ["dedup", "--graph-dir", str(graph), "--json"])
    assert json.loads(answer.output)["texts"] == 40
    with pytest.raises(OptionError, match="answer is a Parquet file"):
        find_duplicates(graph, tmp_path / "d.csv")
