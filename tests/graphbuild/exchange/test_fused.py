"""Graphs fused by the weighted mean of their similarities, against brute force; and what does not fuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers_graph import clustered_vectors, write_graph

from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import OptionError, SourceError
from graphbuild.exchange.fused import fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.compare import compare_graphs
from graphbuild.quality.verify import verify_graph
from graphbuild.store.embeddings import load_embeddings
from graphbuild.store.graph import Graph
from graphbuild.store.mixture import share_weights


def _pair(tmp_path: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """60 samples: a text each in the first graph, in another order; a text for every two in the second."""
    one, two = clustered_vectors(60, 16, seed=1), clustered_vectors(30, 8, seed=2)
    names = [f"sample {i}" for i in range(60)]
    write_graph(tmp_path / "a", one, samples=[(names[i], i) for i in range(60)], shard_size=25)
    write_graph(tmp_path / "b", two, samples=[(names[i], i // 2) for i in reversed(range(60))])
    return [tmp_path / "a", tmp_path / "b"], one.astype(np.float64), two.astype(np.float64)[np.arange(60) // 2]


def test_fused_neighbours_are_those_of_the_weighted_mean_of_similarities(tmp_path: Path) -> None:
    graphs, one, two = _pair(tmp_path)
    result = fuse_graphs(graphs, tmp_path / "f", FuseConfig(weights=(1.4, 0.6)))
    assert (result.weights, result.dim, result.counts["texts"]) == (pytest.approx((0.7, 0.3)), 24, 60)
    mean = 0.7 * one @ one.T + 0.3 * two @ two.T
    stored = load_embeddings(tmp_path / "f").astype(np.float64)
    np.testing.assert_allclose(stored @ stored.T, mean, atol=1e-3)
    build_knn(tmp_path / "f", KnnConfig(k=6, sketch_dim=4))
    assert verify_graph(tmp_path / "f").k == 6
    np.fill_diagonal(mean, -2)
    rows = Graph.open(tmp_path / "f").rows(np.arange(60))
    best = -np.sort(-mean, axis=1)[:, :6]
    np.testing.assert_allclose(np.take_along_axis(mean, rows.neighbor_ids.astype(np.int64), axis=1), best, atol=2e-3)
    with pytest.raises(OptionError, match="no encoder for other texts"):
        nearest_texts(tmp_path / "f", "a dog")


def test_samples_alike_in_all_graphs_are_one_text_and_kept_in_order(tmp_path: Path) -> None:
    vectors = clustered_vectors(4, 8)
    samples = [("p", 2), ("q", 1), ("r", 2), ("s", 0), ("t", 3)]
    write_graph(tmp_path / "a", vectors, samples=samples)
    write_graph(tmp_path / "b", vectors, samples=samples)
    assert fuse_graphs([tmp_path / "a", tmp_path / "b"], tmp_path / "f", FuseConfig()).counts["texts"] == 4
    table = pq.read_table(tmp_path / "f" / "samples" / "part-00000.parquet")
    assert (table["sample_id"].to_pylist(), table["text_id"].to_pylist()) == (list("pqrst"), [0, 1, 0, 2, 3])
    stored = load_embeddings(tmp_path / "f").astype(np.float64)
    wide = vectors.astype(np.float64)[[2, 1, 0, 3]]
    np.testing.assert_allclose(stored @ stored.T, wide @ wide.T, atol=1e-3)


def test_equal_fusion_does_nothing_and_other_weights_are_refused(tmp_path: Path) -> None:
    graphs, *_ = _pair(tmp_path)
    assert not fuse_graphs(graphs, tmp_path / "f", FuseConfig()).already_done
    assert fuse_graphs(graphs, tmp_path / "f", FuseConfig()).already_done
    with pytest.raises(OptionError, match="weights"):
        fuse_graphs(graphs, tmp_path / "f", FuseConfig(weights=(1, 2)))
    assert not fuse_graphs(graphs, tmp_path / "f", FuseConfig(weights=(1, 2), overwrite=True)).already_done


def test_graph_of_other_samples_is_refused_with_the_number_that_match(tmp_path: Path) -> None:
    graphs, *_ = _pair(tmp_path)
    write_graph(tmp_path / "c", clustered_vectors(12, 8), samples=[(f"sample {i + 55}", i) for i in range(12)])
    with pytest.raises(SourceError, match=r"c: has 5 of the 60 samples of .*a, and 7 others"):
        fuse_graphs([graphs[0], tmp_path / "c"], tmp_path / "f", FuseConfig())
    assert not (tmp_path / "f").exists()


def test_samples_of_several_texts_are_refused(tmp_path: Path) -> None:
    graphs, *_ = _pair(tmp_path)
    several = [(f"sample {i}", i) for i in range(60)] + [("sample 0", 1)]
    write_graph(tmp_path / "c", clustered_vectors(60, 8), samples=several)
    with pytest.raises(SourceError, match="c: some samples have several texts"):
        fuse_graphs([graphs[0], tmp_path / "c"], tmp_path / "f", FuseConfig())


@pytest.mark.parametrize(
    ("weights", "words"),
    [((1, -1), "zero or more"), ((float("nan"), 1), "finite"), ((0, 0), "all are zero"), ((1, 1, 1), "3 for 2 graphs")],
)
def test_weights_that_are_negative_all_zero_or_too_many_are_refused(weights: tuple[float, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        share_weights(weights, 2)


def test_output_that_is_one_of_the_graphs_is_refused(tmp_path: Path) -> None:
    graphs, *_ = _pair(tmp_path)
    with pytest.raises(OptionError, match="is one of the graphs"):
        fuse_graphs(graphs, graphs[1], FuseConfig())


def test_graphs_that_share_no_text_are_compared_by_sample(tmp_path: Path) -> None:
    one = clustered_vectors(40, 16, seed=1)
    samples = [f"sample {i}" for i in range(40)]
    write_graph(tmp_path / "a", one, texts=[f"caption {i}" for i in range(40)], samples=list(zip(samples, range(40), strict=True)))
    # The same vectors in another order, and one more sample of a text: only the first counts.
    order = np.random.default_rng(0).permutation(40)
    pairs = [(samples[text], place) for place, text in enumerate(order)]
    write_graph(tmp_path / "b", one[order], texts=[f"vector {i}" for i in range(40)], samples=[*pairs, ("extra", 0)])
    for name in "ab":
        build_knn(tmp_path / name, KnnConfig(k=5, sketch_dim=0))
    found = compare_graphs(tmp_path / "a", tmp_path / "b")
    assert (found.by_sample, found.texts) == (True, 40)
    assert found.overlap_by_rank[-1]["overlap"] > 0.99
    assert "40 texts matched by their samples" in found.summary()
