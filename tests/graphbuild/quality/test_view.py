"""`graphbuild.open`: lazy tables that read what a query needs."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers_graph import clustered_vectors, unit_rows, write_graph

import graphbuild
from graphbuild.errors import ArtifactError, OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality import view
from graphbuild.store.graph import Graph
from graphbuild.torch import losses, soft_targets

FOUR = np.array([[1, 0.1], [1, 0.2], [0, 1], [0.1, 1]])


@pytest.fixture
def graph_dir(tmp_path: Path) -> Path:
    texts = ["a dog", "a puppy", "a plane", "a jet"]
    write_graph(tmp_path, unit_rows(FOUR), texts=texts, sample_counts=[3, 1, 1, 1], shard_size=3)
    build_knn(tmp_path, KnnConfig(k=2, sketch_dim=2))
    return tmp_path


@pytest.fixture
def larger(tmp_path: Path) -> Path:
    write_graph(tmp_path, clustered_vectors(700, 16), shard_size=250)
    build_knn(tmp_path, KnnConfig(k=20))
    return tmp_path


def test_doctests_of_the_package_hold(graph_dir: Path) -> None:
    for module in (graphbuild, view, losses, soft_targets):
        outcome = doctest.testmod(module, extraglobs={"example_graph": graph_dir})
        assert outcome.attempted > 2, module
        assert outcome.failed == 0


def test_similarities_of_samples_load_no_torch(graph_dir: Path) -> None:
    call = f"graphbuild.open({str(graph_dir)!r}).soft_targets(['sample-0-0'])"
    code = f"import sys, graphbuild; {call}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_edges_equal_the_stored_rows(larger: Path) -> None:
    graph = Graph.open(larger)
    rows = graph.rows(np.arange(700))
    edges = graphbuild.open(larger).edges.collect()
    assert edges["src"].to_list() == np.repeat(np.arange(700), 20).tolist()
    assert edges["rank"].to_list() == np.tile(np.arange(1, 21), 700).tolist()
    assert np.array_equal(edges["dst"].to_numpy(), rows.neighbor_ids.reshape(-1))
    assert np.array_equal(edges["similarity"].to_numpy(), rows.similarities.reshape(-1).astype(np.float32))


@pytest.mark.parametrize("engine", ["streaming", "in-memory"])
def test_in_degrees_equal_a_count_by_numpy_in_either_engine(larger: Path, engine: str) -> None:
    counted = graphbuild.open(larger).edges.group_by("dst").len().sort("dst").collect(engine=engine)  # type: ignore[call-overload]
    degrees = np.bincount(Graph.open(larger).rows(np.arange(700)).neighbor_ids.reshape(-1), minlength=700)
    assert dict(counted.iter_rows()) == {i: n for i, n in enumerate(degrees.tolist()) if n}


def test_filters_and_heads_are_applied_where_edges_are_made(larger: Path) -> None:
    edges = graphbuild.open(larger).edges
    assert edges.filter(pl.col("src") == 699).collect(engine="streaming")["rank"].to_list() == list(range(1, 21))
    assert edges.head(7).collect()["rank"].to_list() == [1, 2, 3, 4, 5, 6, 7]


def test_edges_of_a_graph_of_one_text_are_empty(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(1, 4))
    build_knn(tmp_path, KnnConfig())
    assert graphbuild.open(tmp_path).edges.collect().is_empty()


def test_neighbors_of_an_id_and_of_its_text_are_the_same(graph_dir: Path) -> None:
    graph = graphbuild.open(graph_dir)
    assert graph.neighbors(2, count=1)["text"].to_list() == ["a jet"]
    assert graph.neighbors("a plane").equals(graph.neighbors(2))


def test_neighbors_of_an_unknown_id_are_refused(graph_dir: Path) -> None:
    with pytest.raises(OptionError, match="no text_id 4; they run from 0 to 3"):
        graphbuild.open(graph_dir).neighbors(4)


def test_opening_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no graph here"):
        graphbuild.open(tmp_path)


def test_a_shard_cut_short_is_named_before_it_is_read(graph_dir: Path) -> None:
    path = graph_dir / "texts/part-00001.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ArtifactError, match=r"texts/part-00001.parquet has 50 bytes"):
        _ = graphbuild.open(graph_dir).texts


def test_opening_a_graph_loads_neither_torch_nor_faiss_nor_dask(graph_dir: Path) -> None:
    code = f"import graphbuild, sys; graphbuild.open({str(graph_dir)!r}).edges.collect(); print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "faiss", "dask"}
