"""Export, import and compare: edges out, edges in, two graphs side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, unit_rows, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import spearmanr

import graphbuild
from graphbuild.cli import cli
from graphbuild.errors import ArtifactMismatch, OptionError, SourceError
from graphbuild.exchange.export import export_edges
from graphbuild.exchange.imported import ImportConfig, ImportResult, import_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.compare import _correlate_ranks, compare_graphs
from graphbuild.quality.verify import verify_graph
from graphbuild.store.graph import Graph
from graphbuild.targets.assemble import assemble

N, K = 300, 9


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_graph(folder, clustered_vectors(N, 12), shard_size=110)
    build_knn(folder, KnnConfig(k=K))
    return folder


def imported(folder: Path, edges: list[tuple[object, object, float]], count: int = 4, **options: object) -> ImportResult:
    """Import edges among texts a, b, c, ..."""
    names = [chr(97 + i) for i in range(count)]
    pl.DataFrame({"id": names, "text": [f"text {name}" for name in names]}).write_parquet(folder / "texts.parquet")
    kinds = {"src": pl.String, "dst": pl.String, "similarity": pl.Float64}
    pl.DataFrame(edges, schema=kinds, orient="row").write_parquet(folder / "edges.parquet")
    config = ImportConfig(texts=folder / "texts.parquet", edges=folder / "edges.parquet", **options)  # type: ignore[arg-type]
    return import_graph(folder / "graph", config)


RING = [("a", "b", 0.9), ("b", "c", 0.8), ("c", "d", 0.7), ("d", "a", 0.6)]


def test_exported_parquet_equals_the_edges_table(graph_dir: Path, tmp_path: Path) -> None:
    result = export_edges(graph_dir, tmp_path / "edges.parquet")
    assert pl.read_parquet(result.out).equals(graphbuild.open(graph_dir).edges.collect())
    assert result.edges == N * K


def test_exported_csr_is_loaded_by_scipy_as_the_stored_similarities(graph_dir: Path, tmp_path: Path) -> None:
    matrix = sparse.load_npz(export_edges(graph_dir, tmp_path / "edges.npz").out)
    rows = Graph.open(graph_dir).rows(np.arange(N))
    dense = np.zeros((N, N), np.float32)
    np.put_along_axis(dense, rows.neighbor_ids.astype(np.int64), rows.similarities.astype(np.float32), axis=1)
    assert matrix.has_canonical_format
    assert np.array_equal(matrix.toarray(), dense)


def test_export_to_a_name_that_tells_nothing_says_what_to_do(graph_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"Call it .parquet or .npz, or give --format"):
        export_edges(graph_dir, tmp_path / "edges.bin")


def test_an_exported_graph_comes_back_the_same(graph_dir: Path, tmp_path: Path) -> None:
    graphbuild.open(graph_dir).texts.select("text", id="text_id").collect().write_parquet(tmp_path / "texts.parquet")
    export_edges(graph_dir, tmp_path / "edges.parquet")
    import_graph(tmp_path / "back", ImportConfig(texts=tmp_path / "texts.parquet", edges=tmp_path / "edges.parquet"))
    one, other = (Graph.open(folder).rows(np.arange(N)) for folder in (graph_dir, tmp_path / "back"))
    assert np.array_equal(one.neighbor_ids, other.neighbor_ids)
    assert np.array_equal(one.similarities, other.similarities)


def test_an_imported_graph_is_verified_and_makes_targets_with_absent(tmp_path: Path) -> None:
    imported(tmp_path, RING, symmetric=True)
    assert verify_graph(tmp_path / "graph").k == 2
    graph = Graph.open(tmp_path / "graph")
    target = assemble(graph.rows([0, 1, 2]), [0, 1, 2], absent=0.25).similarity_BB
    assert target == pytest.approx(np.array([[1, 0.9, 0.25], [0.9, 1, 0.8], [0.25, 0.8, 1]]), abs=1e-3)
    with pytest.raises(OptionError, match="--absent"):
        assemble(graph.rows([0, 1]), [0, 1])


def test_an_imported_graph_has_health_and_says_what_is_not_measured(tmp_path: Path) -> None:
    imported(tmp_path, RING, symmetric=True)
    health = graphbuild.open(tmp_path / "graph").health(batch_size=4)
    assert health.measure("mutual").value == 1  # type: ignore[union-attr]
    assert any("neither embeddings nor a sketch" in note for note in health.notes)


def test_edges_beyond_the_shortest_row_are_cut_and_counted(tmp_path: Path) -> None:
    result = imported(tmp_path, [*RING, ("a", "c", 0.95), ("a", "d", 0.1)])
    assert (result.k, result.facts["cut_edges"]) == (1, 2)
    assert Graph.open(tmp_path / "graph").rows([0]).neighbor_ids.tolist() == [[2]]


def test_texts_with_too_few_edges_are_refused_with_figures(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"1 of 4 texts have fewer than 1 edges \(ids 'd'; .* 50% 1.*never padded"):
        imported(tmp_path, RING[:3])
    with pytest.raises(SourceError, match="4 of 4 texts have fewer than 2 edges"):
        imported(tmp_path, RING, k=2)


def test_self_edges_and_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    result = imported(tmp_path, [*RING, ("a", "a", 1.0), ("a", "b", 0.9), ("a", "b", 0.9)])
    assert (result.facts["self_edges"], result.facts["repeated_edges"]) == (1, 2)
    assert "2 repeated edges" in result.summary()


def test_a_pair_of_two_similarities_takes_the_larger_both_ways(tmp_path: Path) -> None:
    result = imported(tmp_path, [*RING, ("b", "a", 0.5)])
    assert result.facts["unequal_pairs"] == 1
    edges = [*RING, ("b", "a", 0.95)]
    imported(tmp_path, edges, overwrite=True)
    rows = Graph.open(tmp_path / "graph").rows([0, 1])
    assert rows.similarities[:, 0].tolist() == [np.float16(0.95), np.float16(0.95)]


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (("a", "z", 0.5), r"1 rows name ids that the texts do not have \('z'\)"),
        (("a", "c", 1.5), r"1 similarities are not numbers from -1 to 1 \(1.5\)"),
        (("a", "c", float("nan")), r"1 similarities are not numbers"),
    ],
)
def test_wrong_edges_are_named(tmp_path: Path, edge: tuple[object, object, float], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        imported(tmp_path, [*RING, edge])


def test_texts_that_come_twice_are_named(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text\nsame\nsame\nother\n")
    (tmp_path / "edges.csv").write_text("src,dst,similarity\n0,1,0.5\n")
    with pytest.raises(SourceError, match=r"1 values of 'text' come more than once \('same'\)"):
        import_graph(tmp_path / "graph", ImportConfig(texts=tmp_path / "texts.csv", edges=tmp_path / "edges.csv"))


def test_samples_map_onto_texts_and_keep_their_columns(tmp_path: Path) -> None:
    pl.DataFrame({"sample_id": ["p1", "p2", "p3"], "id": ["a", "a", "b"], "label": [7, 8, 9]}).write_csv(tmp_path / "samples.csv")
    imported(tmp_path, RING, samples=tmp_path / "samples.csv")
    view = graphbuild.open(tmp_path / "graph")
    assert view.samples.select("sample_id", "text_id", "label").collect().rows() == [("p1", 0, 7), ("p2", 0, 8), ("p3", 1, 9)]
    assert view.texts.collect()["sample_count"].to_list() == [2, 1, 0, 0]


def test_importing_again_does_nothing_and_other_options_are_refused(tmp_path: Path) -> None:
    assert not imported(tmp_path, RING).already_done
    assert imported(tmp_path, RING).already_done
    with pytest.raises(OptionError, match="symmetric: False -> True"):
        imported(tmp_path, RING, symmetric=True)


def test_a_graph_that_was_embedded_is_not_overwritten_by_an_import(tmp_path: Path) -> None:
    write_graph(tmp_path / "graph", clustered_vectors(5, 4))
    with pytest.raises(OptionError, match="holds a graph that was not imported"):
        imported(tmp_path, RING, overwrite=True)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_overlap_equals_that_of_sets(data: st.DataObject) -> None:
    from graphbuild.quality.compare import _count_shared

    size = data.draw(st.integers(2, 12))
    # Places of -1 are neighbours that the other graph does not hold; they take no rank.
    rows = [data.draw(st.lists(st.permutations(range(size)), min_size=3, max_size=3)) for _ in range(2)]
    gaps = [np.array(data.draw(st.lists(st.booleans(), min_size=3 * size, max_size=3 * size))).reshape(3, size) for _ in range(2)]
    tables = [np.where(gap, -1, np.array(row)).astype(np.int32) for row, gap in zip(rows, gaps, strict=True)]
    ranks = np.arange(1, size + 1, dtype=np.int32)
    out, compared = np.empty((3, size), np.float32), np.empty(3, np.int32)
    _count_shared(tables[0], tables[1], ranks, np.zeros(size, np.int64), 2, out, compared)
    for i in range(3):
        one, other = ([value for value in table[i].tolist() if value >= 0] for table in tables)
        assert compared[i] == min(len(one), len(other))
        for t, rank in enumerate(ranks):
            length = min(rank, compared[i])
            assert out[i, t] == pytest.approx(len(set(one[:length]) & set(other[:length])) / max(length, 1))


def test_rank_correlation_is_spearmans_over_the_neighbours_in_both_rows() -> None:
    rng = np.random.default_rng(3)
    rows, size = 60, 40
    tables = [np.array([rng.permutation(size)[:15] for _ in range(rows)], np.int32) for _ in range(2)]
    for table in tables:
        table[rng.random(table.shape) < 0.3] = -1
    rho = np.empty(rows)
    _correlate_ranks(tables[0], tables[1], np.zeros(size, np.int64), np.zeros(size, np.int64), 1, rho)
    right = []
    for one, other in zip(tables[0].tolist(), tables[1].tolist(), strict=True):
        both = sorted(set(one) & set(other) - {-1})
        ranks = [[row.index(text) for text in both] for row in (one, other)]
        right.append(spearmanr(*ranks).statistic if len(both) >= 3 else np.nan)
    np.testing.assert_allclose(rho, right)
    assert np.isnan(rho).any()


def test_a_graph_compared_with_itself_agrees_everywhere(graph_dir: Path) -> None:
    found = compare_graphs(graph_dir, graph_dir)
    assert {entry["overlap"] for entry in found.overlap_by_rank} == {1.0}
    assert (found.rank_correlation, found.correlated_texts) == (1.0, found.texts)
    assert "rank correlation of the neighbours in both: 1.000" in found.summary()
    assert [entry["rank"] for entry in found.overlap_by_rank][:2] == [1, 4]


def test_comparison_names_the_text_that_moved(tmp_path: Path) -> None:
    vectors = clustered_vectors(60, 8, clusters=3, spread=0.2)
    moved = vectors.copy()
    moved[7] = unit_rows(-vectors[7:8].astype(np.float64))[0]
    for name, matrix in (("one", vectors), ("two", moved)):
        write_graph(tmp_path / name, matrix)
        build_knn(tmp_path / name, KnnConfig(k=10))
    found = compare_graphs(tmp_path / "one", tmp_path / "two")
    assert found.changed[0]["text"] == "text 7"
    assert "text 7" in found.summary()


def test_overlap_of_graphs_that_share_some_texts_is_held_against_chance_among_as_many_neighbours(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    # Every fifth text of the first graph is all that the second one has, with vectors that have nothing to do with it.
    write_graph(tmp_path / "one", unit_rows(rng.standard_normal((1_000, 8))))
    write_graph(tmp_path / "two", unit_rows(rng.standard_normal((200, 8))), texts=[f"text {i}" for i in range(0, 1_000, 5)])
    for name in ("one", "two"):
        build_knn(tmp_path / name, KnnConfig(k=40))
    found = compare_graphs(tmp_path / "one", tmp_path / "two")
    rows = [Graph.open(tmp_path / name).rows(np.arange(count)).neighbor_ids for name, count in (("one", 1_000), ("two", 200))]
    overlaps, counts = [], []
    for i in range(200):
        ours, theirs = [one // 5 for one in rows[0][5 * i].tolist() if one % 5 == 0], rows[1][i].tolist()
        counts.append(min(len(ours), len(theirs), 16))
        overlaps.append(len(set(ours[: counts[-1]]) & set(theirs[: counts[-1]])) / max(counts[-1], 1))
    (entry,) = (entry for entry in found.overlap_by_rank if entry["rank"] == 16)
    assert entry["overlap"] == pytest.approx(np.mean(overlaps))
    assert entry["random"] == pytest.approx(np.mean(counts) / 199)
    assert entry["overlap"] == pytest.approx(entry["random"], abs=0.02)


def test_texts_that_come_twice_are_compared_once(tmp_path: Path) -> None:
    vectors, texts = clustered_vectors(40, 8), [f"text {i % 30}" for i in range(40)]
    for name, own in (("one", texts), ("two", [f"other {i}" for i in range(30)] + texts[:10])):
        write_graph(tmp_path / name, vectors, texts=own)
        build_knn(tmp_path / name, KnnConfig(k=5))
    assert compare_graphs(tmp_path / "one", tmp_path / "two").texts == 10


def test_texts_are_matched_by_themselves_and_not_by_their_ids(tmp_path: Path) -> None:
    vectors = clustered_vectors(40, 8)
    order = np.random.default_rng(0).permutation(40)
    write_graph(tmp_path / "one", vectors)
    write_graph(tmp_path / "two", vectors[order], texts=[f"text {i}" for i in order])
    for name in ("one", "two"):
        build_knn(tmp_path / name, KnnConfig(k=5))
    assert compare_graphs(tmp_path / "one", tmp_path / "two").overlap_by_rank[-1]["overlap"] == pytest.approx(1, abs=0.02)


def test_graphs_without_common_texts_are_not_compared(graph_dir: Path, tmp_path: Path) -> None:
    imported(tmp_path, RING)
    with pytest.raises(ArtifactMismatch, match=r"share 0 of their texts \(300 and 4\)"):
        compare_graphs(graph_dir, tmp_path / "graph")


def test_commands_answer_in_json(graph_dir: Path, tmp_path: Path) -> None:
    exported = CliRunner().invoke(cli, ["export", "--graph-dir", str(graph_dir), "--out", str(tmp_path / "e.npz"), "--json"])
    assert json.loads(exported.output)["edges"] == N * K
    compared = CliRunner().invoke(cli, ["compare", str(graph_dir), str(graph_dir), "--json"])
    assert json.loads(compared.output)["texts"] == N


def test_ids_and_texts_of_csv_stay_as_they_stand(tmp_path: Path) -> None:
    ids, texts = ["007", "8", *(str(i) for i in range(100, 250)), "n1"], ["2.50", "1e3", *(f"text {i}" for i in range(150)), "NA"]
    (tmp_path / "t.csv").write_text("id,text\n" + "".join(f"{one},{text}\n" for one, text in zip(ids, texts, strict=True)))
    (tmp_path / "e.csv").write_text(
        "src,dst,similarity\n" + "".join(f"{a},{b},0.5\n" for a, b in zip(ids, ids[1:] + ids[:1], strict=True))
    )
    import_graph(tmp_path / "g", ImportConfig(texts=tmp_path / "t.csv", edges=tmp_path / "e.csv"))
    assert pq.read_table(tmp_path / "g/samples")["sample_id"].to_pylist() == ids
    assert pq.read_table(tmp_path / "g/texts")["text"].to_pylist() == texts
