"""Health: every figure against an independent count."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, unit_rows, write_graph
from scipy import sparse, stats
from scipy.sparse.csgraph import connected_components

import graphbuild
from graphbuild.cli import cli
from graphbuild.errors import OptionError, SourceError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.health import verdicts
from graphbuild.quality.health.edges import count_edges, mutual_share, random_ends
from graphbuild.quality.health.labels import GroupAgreement, group_agreement, purity_within_reach, wordnet_agreement
from graphbuild.quality.health.result import Health
from graphbuild.quality.health.target import PairSimilarity, truncated_mass
from graphbuild.store.files import write_parquet
from graphbuild.store.graph import Graph
from graphbuild.store.hierarchy import read_hierarchy
from graphbuild.store.manifest import Manifest

N, K = 400, 15


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("health")
    counts = np.random.default_rng(0).integers(1, 4, N).tolist()
    write_graph(folder, clustered_vectors(N, 16, spread=0.3), shard_size=150, sample_counts=counts)
    build_knn(folder, KnnConfig(k=K))
    return folder


@pytest.fixture(scope="module")
def measured(graph_dir: Path) -> Health:
    return graphbuild.open(graph_dir).health(batch_size=64, label_columns=("sample_id",))


def stored(graph_dir: Path) -> tuple[Graph, np.ndarray, np.ndarray]:
    graph = Graph.open(graph_dir)
    rows = graph.rows(np.arange(N))
    return graph, rows.neighbor_ids, rows.similarities.astype(np.float32)


def value(health: Health, key: str) -> float:
    found = health.measure(key)
    assert found is not None, key
    return found.value


def test_components_equal_those_of_scipy_at_every_threshold(graph_dir: Path, measured: Health) -> None:
    _, ids, similarities = stored(graph_dir)
    src = np.repeat(np.arange(N), K)
    for entry in measured.components:
        keep = similarities.reshape(-1) >= np.float32(entry["threshold"])
        edges = sparse.coo_array((np.ones(keep.sum()), (src[keep], ids.reshape(-1)[keep])), shape=(N, N))
        count, labels = connected_components(edges, directed=False)
        assert (entry["components"], entry["largest"]) == (count, np.bincount(labels).max())


def test_hub_skewness_and_largest_hub_equal_a_count_by_scipy(graph_dir: Path, measured: Health) -> None:
    _, ids, _ = stored(graph_dir)
    assert value(measured, "hub_skew") == pytest.approx(stats.skew(np.bincount(ids[:, :10].reshape(-1), minlength=N)))
    assert value(measured, "largest_hub") == np.bincount(ids.reshape(-1)).max() / K


def test_mutual_share_equals_a_count_over_all_edges(graph_dir: Path) -> None:
    graph, ids, _ = stored(graph_dir)
    pairs = {(i, int(j)) for i in range(N) for j in ids[i]}
    assert mutual_share(graph, np.arange(N), K) == sum((j, i) in pairs for i, j in pairs) / len(pairs)


def test_hit_rate_equals_that_of_many_random_batches(graph_dir: Path, measured: Health) -> None:
    _, ids, _ = stored(graph_dir)
    texts = graphbuild.open(graph_dir).samples.collect()["text_id"].to_numpy()
    rng = np.random.default_rng(1)
    batches = [texts[rng.choice(len(texts), 64, replace=False)] for _ in range(3000)]
    hits = [np.isin(batch[1:], ids[batch[0]]).sum() for batch in batches]
    assert value(measured, "hit_rate") == pytest.approx(np.mean(hits), abs=4 * np.std(hits) / np.sqrt(len(hits)))


def test_truncated_mass_equals_that_of_the_dense_softmax(graph_dir: Path) -> None:
    graph, ids, _ = stored(graph_dir)
    vectors = graph.embeddings().astype(np.float64)
    weights = np.exp(vectors @ vectors.T / 0.1)
    np.fill_diagonal(weights, 0)
    kept = np.take_along_axis(weights, ids.astype(np.int64), axis=1).sum(axis=1)
    expected = (1 - kept / weights.sum(axis=1)).mean()
    found = truncated_mass(graph, PairSimilarity(graph), np.arange(N), 0.1, np.random.default_rng(0))
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_text_apart_is_listed_as_isolated_and_twins_as_near_duplicates(tmp_path: Path) -> None:
    # 30 directions of a circle's upper half, one of them twice, and one text apart from all.
    angles = np.linspace(0, 1, 30)
    plane = np.stack([np.cos(angles), np.sin(angles), np.zeros(30)], axis=1)
    write_graph(tmp_path, unit_rows(np.concatenate([plane, plane[:1], [[0, 0, 1.0]]])), texts=[f"t{i}" for i in range(32)])
    build_knn(tmp_path, KnnConfig(k=4, sketch_dim=3))
    health = graphbuild.open(tmp_path).health(batch_size=8)
    assert health.isolated[0]["text"] == "t31"
    assert {"t0", "t30"} in [{pair["text"], pair["other"]} for pair in health.near_duplicates]


@pytest.mark.parametrize("k", [3, 90, 99])
def test_shuffled_ends_are_other_texts_with_equal_chance(k: int) -> None:
    ends = np.concatenate([random_ends(np.random.default_rng(seed), 7, (20, k), 100) for seed in range(200)])
    own = np.tile(np.arange(7, 27), 200)[:, None]
    assert not (ends == own).any()
    assert (ends.min(), ends.max()) == (0, 99)
    outside = np.bincount(ends.reshape(-1), minlength=100)[30:]
    assert abs(outside.mean() - 200 * 20 * k / 99) < 4 * np.sqrt(outside.mean())


def test_a_shuffled_graph_has_the_in_degrees_of_a_binomial(graph_dir: Path) -> None:
    graph, _, _ = stored(graph_dir)
    found = count_edges(graph, np.full(N, 1 / N), np.random.default_rng(0))
    assert found.shuffled.in_degree_N.sum() == found.stored.in_degree_N.sum() == N * K
    assert found.shuffled.in_degree_N.var() == pytest.approx(K, rel=0.3)


def labelled(folder: Path, labels: Sequence[str | None], column: str = "label") -> None:
    """Rewrite the samples with a label column."""
    manifest = Manifest.load(folder)
    name = "samples/part-00000.parquet"
    table = pq.read_table(folder / name).append_column(column, pa.array(labels))
    manifest.stages["text"].files[name] = write_parquet(folder, name, table, key="test")
    manifest.save(folder)


def test_label_purity_equals_a_count_by_hand(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(60, 8), sample_counts=[2] * 60)
    build_knn(tmp_path, KnnConfig(k=6))
    names = np.random.default_rng(0).choice(["cat", "dog", "cow"], 60).tolist()
    labelled(tmp_path, [name for name in names for _ in range(2)])
    ids = Graph.open(tmp_path).rows(np.arange(60)).neighbor_ids
    health = graphbuild.open(tmp_path).health(batch_size=8)
    for k in (1, 5, 6):
        expected = np.mean([names[i] == names[j] for i in range(60) for j in ids[i, :k]])
        assert value(health, f"purity_label_{k}") == pytest.approx(expected)


def test_texts_without_a_label_are_counted_in_a_note(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8))
    build_knn(tmp_path, KnnConfig(k=6))
    labelled(tmp_path, [None, None, *["cat", "dog"] * 14])
    assert "purity of label: 2 texts have no label and are left out" in graphbuild.open(tmp_path).health(batch_size=8).notes


def test_labels_that_no_texts_share_are_a_note_and_not_a_figure(measured: Health) -> None:
    assert any(note.startswith("purity of sample_id: ") for note in measured.notes)
    assert not [one for one in measured.measures if one.key.startswith("purity")]


def test_group_agreement_equals_a_count_by_sets() -> None:
    rng = np.random.default_rng(0)
    groups = [sorted(rng.choice(12, rng.integers(0, 3), replace=False).tolist()) for _ in range(40)]
    offsets = np.concatenate([[0], np.cumsum([len(group) for group in groups])])
    codes = np.array([code for group in groups for code in group], np.int32)
    ends = np.stack([rng.permutation(np.delete(np.arange(40), i))[:6] for i in range(40)]).astype(np.int32)
    first, found, reach = [], [], []
    for i in range(40):
        members = {j for j in range(40) if j != i and set(groups[i]) & set(groups[j])}
        if members:
            first.append(int(ends[i, 0]) in members)
            found.append(len(members & set(ends[i].tolist())) / len(members))
            reach.append(min(6, len(members)) / len(members))
    expected = GroupAgreement(np.mean(first), np.mean(found), np.mean(reach), len(first))
    assert group_agreement((offsets, codes), np.arange(40), ends) == expected


def test_wordnet_paths_and_given_distances_agree_on_real_classes(shared_data: Path) -> None:
    given, paths = (
        read_hierarchy(shared_data / "classes" / name)
        for name in ("tiny_imagenet_wordnet_pathdist.npz", "tiny_imagenet_classes.tsv")
    )
    names = [[wnid] for wnid in given.places]
    above = np.triu_indices(len(names), 1)
    correlation = stats.spearmanr(given.matrix(names)[above], paths.matrix(names)[above]).statistic
    assert correlation > 0.8


@pytest.mark.parametrize("content", ["wnid\tname\nn1\tdog\n", "\x00\x01"])
def test_a_file_that_is_no_wordnet_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.tsv"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"other.tsv: not distances between classes .*--wordnet takes a TSV"):
        read_hierarchy(path, "--wordnet")


def test_rank_correlation_equals_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    similarity, distance = rng.integers(0, 9, (5, 30)) / 9, rng.integers(0, 9, (5, 30)).astype(np.float32)
    expected = np.mean([stats.spearmanr(s, -d).statistic for s, d in zip(similarity, distance, strict=True)])
    assert wordnet_agreement(similarity, distance) == pytest.approx(expected)


def test_an_unknown_label_column_names_those_that_exist(graph_dir: Path) -> None:
    with pytest.raises(SourceError, match="samples have no column 'colour'; there are sample_id, sample_hash, text_id"):
        graphbuild.open(graph_dir).health(label_columns=("colour",))


def test_a_graph_of_one_text_has_no_health(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(1, 4))
    build_knn(tmp_path, KnnConfig())
    with pytest.raises(OptionError, match="single text without neighbours"):
        graphbuild.open(tmp_path).health()


def test_a_complete_graph_says_which_figures_mean_nothing(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(40, 8))
    build_knn(tmp_path, KnnConfig(k="all"))
    health = graphbuild.open(tmp_path).health(batch_size=16)
    assert health.measure("mutual") is None
    assert any("every pair is stored" in note for note in health.notes)


@pytest.mark.parametrize(("value", "expected"), [(0.5, "good"), (0.3, "fair"), (0.2, "poor")])
def test_verdicts_follow_the_limits_beside_them(value: float, expected: str) -> None:
    assert verdicts.mutual(value, 0.0).verdict == expected


def test_inspect_shows_every_figure_with_its_verdict(graph_dir: Path, measured: Health) -> None:
    shown = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(graph_dir), "--batch-size", "64"]).output
    assert all(one.title in shown for one in measured.measures)


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_inspect_writes_the_summary_in_every_form(graph_dir: Path, form: str) -> None:
    outcome = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(graph_dir), "--format", form])
    assert outcome.exit_code == 0
    if form == "csv":
        assert outcome.output.startswith("section,name,value,shuffled,verdict\n")
    elif form == "json":
        assert json.loads(outcome.output)["health"]["texts"] == N
    else:
        assert "mutual" in pq.read_table(pa.BufferReader(outcome.stdout_bytes))["name"].to_pylist()


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_sql_gives_all_rows_in_every_form(graph_dir: Path, form: str) -> None:
    query = "SELECT src, COUNT(*) AS n FROM edges GROUP BY src ORDER BY src"
    outcome = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(graph_dir), "--sql", query, "--format", form])
    read = {
        "csv": lambda: len(outcome.output.splitlines()) - 1,
        "json": lambda: len(json.loads(outcome.output)),
        "parquet": lambda: pq.read_table(pa.BufferReader(outcome.stdout_bytes)).num_rows,
    }
    assert read[form]() == N


def test_lists_cannot_be_csv_and_the_error_says_what_can(graph_dir: Path) -> None:
    query = "SELECT embedding FROM embeddings"
    outcome = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(graph_dir), "--sql", query, "--format", "csv"])
    assert isinstance(outcome.exception, OptionError)
    assert "choose --format parquet" in str(outcome.exception)


def test_captions_with_square_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    write_graph(tmp_path, clustered_vectors(30, 8), texts=[f"[bold]caption {i}[/bold] [/]" for i in range(30)])
    build_knn(tmp_path, KnnConfig(k=5))
    shown = CliRunner().invoke(cli, ["inspect", "--graph-dir", str(tmp_path), "--batch-size", "8"]).output
    assert "[bold]caption" in shown


def test_a_graph_of_ten_texts_is_not_blamed_for_its_size(tmp_path: Path) -> None:
    write_graph(tmp_path, unit_rows(np.random.default_rng(0).normal(size=(10, 16))))
    build_knn(tmp_path, KnnConfig(k=3))
    health = graphbuild.open(tmp_path).health(batch_size=8)
    assert {key: verdict(health, key) for key in ("component_90", "isolated")} == {"component_90": "info", "isolated": "info"}
    assert verdict(health, "orphans") in ("good", "fair")


def verdict(health: Health, key: str) -> str:
    found = health.measure(key)
    assert found is not None, key
    return found.verdict


def write_classes(folder: Path, sizes: list[int], column: str = "label") -> None:
    """Write texts whose nearest are those of the own class, as far as there are any, with a column of classes."""
    codes = np.repeat(np.arange(len(sizes)), sizes)
    spread = 0.01 * np.random.default_rng(0).normal(size=(len(codes), 40))
    write_graph(folder, unit_rows(np.eye(40)[codes] + spread))
    labelled(folder, [f"class {code}" for code in codes], column)


def test_purity_is_judged_by_what_classes_of_their_size_can_fill(tmp_path: Path) -> None:
    # A class of four texts fills three of 20 places at most: the best graph there is must be good.
    write_classes(tmp_path, [4] * 40)
    build_knn(tmp_path, KnnConfig(k=20))
    health = graphbuild.open(tmp_path).health(batch_size=8)
    assert value(health, "purity_label_20") == pytest.approx(3 / 20)
    assert verdict(health, "purity_label_20") == "good"
    codes = np.repeat(np.arange(40), 4).astype(np.int32)
    assert purity_within_reach(codes, np.arange(160), [1, 3, 20]) == [1, 1, 3 / 20]


def test_groups_larger_than_the_row_are_judged_by_what_the_row_holds(tmp_path: Path) -> None:
    write_classes(tmp_path, [31] * 4, "group")
    build_knn(tmp_path, KnnConfig(k=5))
    health = graphbuild.open(tmp_path).health(batch_size=8)
    assert value(health, "group_found") == pytest.approx(5 / 30)
    assert verdict(health, "group_found") == "good"


def test_a_column_named_as_a_label_is_no_group_whatever_it_is_called(tmp_path: Path) -> None:
    write_classes(tmp_path, [8] * 10, "group")
    build_knn(tmp_path, KnnConfig(k=5))
    health = graphbuild.open(tmp_path).health(batch_size=8, label_columns=("group",))
    assert health.measure("purity_group_5") is not None
    assert health.measure("group_found") is None


def test_the_target_is_that_of_a_batch_without_repetitions(tmp_path: Path) -> None:
    # As many samples as the batch holds: each comes once, so the batch is the whole graph.
    write_graph(tmp_path, clustered_vectors(50, 8))
    build_knn(tmp_path, KnnConfig(k="all"))
    health = graphbuild.open(tmp_path).health(batch_size=50)
    vectors = Graph.open(tmp_path).embeddings().astype(np.float64)
    scores = np.tile(vectors @ vectors.T, (2, 2)) / 0.1
    other_view = (np.arange(100) + 50) % 100
    scores[np.arange(100), other_view] = 1 / 0.1
    np.fill_diagonal(scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    assert value(health, "own_view_mass") == pytest.approx(shares[np.arange(100), other_view].mean(), abs=1e-3)
