"""`inspect`: counts, quantiles and SQL."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, unit_rows, write_graph

from graphbuild.cli import cli
from graphbuild.embed.build import build_embeddings
from graphbuild.embed.config import EmbedConfig
from graphbuild.errors import ArtifactError, UserError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.inspect import summarize
from graphbuild.quality.sql import run_sql


@pytest.fixture
def graph_dir(tmp_path: Path) -> Path:
    write_graph(
        tmp_path,
        unit_rows(np.array([[1, 0.1], [1, 0.2], [0, 1], [0.1, 1]])),
        texts=["a dog", "a puppy", "a plane", "a jet"],
        sample_counts=[3, 1, 1, 1],
        shard_size=3,
    )
    build_knn(tmp_path, KnnConfig(k=2, sketch_dim=2))
    return tmp_path


def test_summary_counts_duplicates_that_were_collapsed(graph_dir: Path) -> None:
    counts = summarize(graph_dir).counts
    assert (counts["texts"], counts["sample rows"], counts["duplicates collapsed"]) == (4, 6, 2)


def test_summary_says_that_samples_have_several_captions_though_nobody_asked_for_it(tmp_path: Path) -> None:
    captions = [{"id": i, "image_id": 1, "caption": f"cat {i}"} for i in range(3)]
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": captions}
    source = tmp_path / "captions_val2017.json"
    source.write_text(json.dumps(coco))
    config = EmbedConfig(dataset="coco", sources=(str(source),), encoder="hashing:8", workers=0)
    build_embeddings(tmp_path / "graph", config)
    assert summarize(tmp_path / "graph").dataset["multi_caption"] is True


def test_summary_shows_encoder_stages_and_similarities(graph_dir: Path) -> None:
    shown = summarize(graph_dir).summary()
    assert all(word in shown for word in ("test-encoder", "knn", "similarity to the neighbour of each rank", "6"))


def test_similarity_quantiles_fall_with_rank(graph_dir: Path) -> None:
    first, second = summarize(graph_dir).similarity_by_rank
    assert first["rank"] == 1
    assert first["50%"] > second["50%"]


def test_summary_works_without_neighbours(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(5, 4))
    assert summarize(tmp_path).similarity_by_rank == []


def test_sql_joins_edges_to_texts(graph_dir: Path) -> None:
    query = (
        "SELECT a.text AS one, b.text AS other FROM edges JOIN texts a ON src = a.text_id JOIN texts b ON dst = b.text_id "
        "WHERE rank = 1 ORDER BY src"
    )
    rows = json.loads(run_sql(graph_dir, query, form="json"))
    expected = [("a dog", "a puppy"), ("a puppy", "a dog"), ("a plane", "a jet"), ("a jet", "a plane")]
    assert [(row["one"], row["other"]) for row in rows] == expected


def test_edges_hold_every_stored_neighbour_with_its_rank(graph_dir: Path) -> None:
    rows = json.loads(run_sql(graph_dir, "SELECT * FROM edges", form="json"))
    assert [(row["src"], row["rank"]) for row in rows] == [(i, rank) for i in range(4) for rank in (1, 2)]


@pytest.mark.parametrize(("table", "rows"), [("samples", 6), ("texts", 4), ("embeddings", 4), ("edges", 8)])
def test_sql_counts_the_rows_of_every_table(graph_dir: Path, table: str, rows: int) -> None:
    assert json.loads(run_sql(graph_dir, f"SELECT count(*) AS n FROM {table}", form="json")) == [{"n": rows}]


def test_sql_says_that_it_shows_only_the_first_rows(graph_dir: Path) -> None:
    assert "the first 2 rows; raise --limit" in run_sql(graph_dir, "SELECT text FROM texts", limit=2).decode()


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT foo FROM edges", "SELECT * FROM nowhere"])
def test_wrong_sql_is_one_line_that_names_the_tables(graph_dir: Path, query: str) -> None:
    with pytest.raises(UserError, match=r"^--sql: [^\n]*Tables: [^\n]*edges\(src, dst, rank, similarity\)[^\n]*$"):
        run_sql(graph_dir, query)


def test_truncated_shard_is_named(graph_dir: Path) -> None:
    path = graph_dir / "knn/part-00001.arrow"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ArtifactError, match=r"knn/part-00001.arrow has 200 bytes"):
        summarize(graph_dir)
    with pytest.raises(ArtifactError, match=r"knn/part-00001.arrow has 200 bytes"):
        run_sql(graph_dir, "SELECT * FROM edges")


def test_edges_of_a_graph_of_one_text_are_an_empty_table(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(1, 4))
    build_knn(tmp_path, KnnConfig())
    assert json.loads(run_sql(tmp_path, "SELECT * FROM edges", form="json")) == []


def test_command_prints_json(graph_dir: Path) -> None:
    outcome = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(graph_dir), "--json"])
    assert json.loads(outcome.output)["counts"]["texts"] == 4
