"""`graphbuild explore`: what the map's files hold, how true the map says it is, and what the viewer shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from helpers_graph import clustered_vectors, write_graph

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.explore import viewer
from graphbuild.quality.explore.layout import judge
from graphbuild.quality.explore.select import select_texts
from graphbuild.quality.explore.write import ExploreConfig, ExploreResult, write_map
from graphbuild.store.frames import Frames

TEXTS, K = 240, 30


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    write_graph(folder, clustered_vectors(TEXTS, 16, clusters=8, spread=0.25), texts=[f"caption {i}" for i in range(TEXTS)])
    build_knn(folder, KnnConfig(k=K, sketch_dim=8))
    return folder


@pytest.fixture(scope="module")
def result(graph_dir: Path) -> ExploreResult:
    return write_map(graph_dir, ExploreConfig())


def test_rows_hold_the_graphs_own_neighbours_by_row_and_its_figures(graph_dir: Path, result: ExploreResult) -> None:
    frame = pl.read_parquet(result.folder / "atlas.parquet")
    edges = Frames(graph_dir).edges.collect()
    assert frame["text"].to_list() == [f"caption {i}" for i in range(TEXTS)]
    for row in (0, 17, TEXTS - 1):
        stored = edges.filter(pl.col("src") == row).sort("rank").head(20)
        assert frame["neighbors"][row]["ids"] == stored["dst"].to_list()
        assert frame["neighbors"][row]["distances"] == pytest.approx(1 - stored["similarity"].to_numpy(), abs=1e-6)
        assert frame["similarity_1"][row] == stored["similarity"][0]
        assert frame["in_degree"][row] == edges.filter(pl.col("dst") == row).height
    assert "similarity_16" in frame.columns
    assert "similarity_256" not in frame.columns


def test_truth_of_the_map_is_that_of_a_recount(graph_dir: Path, result: ExploreResult) -> None:
    frame = pl.read_parquet(result.folder / "atlas.parquet")
    places = frame.select("x", "y").to_numpy().astype(np.float64)
    kept = []
    for row in range(TEXTS):
        distance = np.square(places - places[row]).sum(axis=1)
        distance[row] = np.inf
        kept.append(len(set(np.argsort(distance)[:15].tolist()) & set(frame["neighbors"][row]["ids"][:15])) / 15)
    assert result.truth.kept_share == pytest.approx(np.mean(kept), abs=2e-3)
    assert result.truth.kept_share > 4 * result.truth.random_share
    assert f"{result.truth.kept_share:.1%}" in (result.folder / "state.json").read_text()


def test_a_map_that_is_the_truth_keeps_every_neighbour() -> None:
    places = np.stack([np.arange(40.0) ** 1.1, np.zeros(40)], axis=1).astype(np.float32)
    distance = np.abs(places[:, None, 0] - places[None, :, 0])
    np.fill_diagonal(distance, np.inf)
    found = judge(places, np.argsort(distance, axis=1)[:, :15].astype(np.int32), None, seed=0)
    assert found.kept_share == 1
    assert found.trustworthiness is None


def test_labels_are_texts_of_the_map_at_their_own_places(result: ExploreResult) -> None:
    labels = pl.read_parquet(result.folder / "labels.parquet")
    frame = pl.read_parquet(result.folder / "atlas.parquet")
    assert labels.columns == ["x", "y", "text", "content", "level", "priority"]
    assert labels.join(frame, on=["x", "y", "text"]).height == labels.height == result.labels
    assert labels.filter(pl.col("level") == 0)["priority"].sum() == TEXTS


def test_same_seed_gives_the_same_bytes(graph_dir: Path, result: ExploreResult, tmp_path: Path) -> None:
    again = write_map(graph_dir, ExploreConfig(folder=tmp_path / "map"))
    assert (again.folder / "atlas.parquet").read_bytes() == (result.folder / "atlas.parquet").read_bytes()
    assert (again.folder / "state.json").read_bytes() == (result.folder / "state.json").read_bytes()


def test_part_of_a_graph_holds_its_hubs_and_exact_neighbours_among_the_chosen(graph_dir: Path) -> None:
    tables = Frames(graph_dir)
    degrees = np.bincount(tables.edges.collect()["dst"].to_numpy(), minlength=TEXTS)
    chosen = select_texts(tables, degrees, count=100, seed=3)
    assert set(np.lexsort((np.arange(TEXTS), -degrees))[:50].tolist()) <= set(chosen.ids_n.tolist())
    assert len(set(chosen.ids_n.tolist())) == 100
    vectors = tables.graph.embeddings()[chosen.ids_n].astype(np.float64)
    exact = vectors @ vectors.T
    np.fill_diagonal(exact, -2)
    best = np.sort(exact, axis=1)[:, ::-1][:, :20]
    assert chosen.similarities_nm == pytest.approx(best, abs=1e-3)
    assert np.take_along_axis(exact, chosen.neighbors_nm.astype(np.int64), axis=1) == pytest.approx(best, abs=1e-3)
    assert "the 50 that most rows hold" in chosen.how


def test_too_few_texts_and_a_site_without_the_viewer_are_one_line(
    graph_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(tmp_path / "small", clustered_vectors(3, 8))
    build_knn(tmp_path / "small", KnnConfig())
    with pytest.raises(OptionError, match="at least 4 texts"):
        write_map(tmp_path / "small", ExploreConfig())
    monkeypatch.setattr(viewer, "PROGRAM", "no-such-viewer")
    with pytest.raises(OptionError, match=r"is not installed\. Install it"):
        write_map(graph_dir, ExploreConfig(site=tmp_path / "site"))
    assert not (tmp_path / "site").exists()


def test_state_opens_with_the_map_and_says_how_true_it_is(result: ExploreResult) -> None:
    charts = json.loads((result.folder / "state.json").read_text())["props"]["initialState"]["charts"]
    assert [chart.get("type") for chart in charts.values()][:2] == ["embedding", "markdown"]
    assert "Trust the listed neighbours" in charts["2"]["content"]


def test_a_map_replaces_no_file_of_others(graph_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(OptionError, match=r"state\.json: is there already, without a map"):
        write_map(graph_dir, ExploreConfig(folder=tmp_path, images=False))
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
