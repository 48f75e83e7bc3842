"""Graphs fused by rescoring: mean, maximum and product of any graphs, against a brute force over all pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph

from graphbuild.cli import cli
from graphbuild.embed.nearest import nearest_texts
from graphbuild.errors import ArtifactError, OptionError, SourceError
from graphbuild.exchange import rescored
from graphbuild.exchange.fused import FuseResult, fuse_graphs
from graphbuild.exchange.fusion import FuseConfig
from graphbuild.exchange.imported import ImportConfig, import_graph
from graphbuild.exchange.relate.config import RelateConfig
from graphbuild.exchange.relate.stage import relate_columns
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.inspect import summarize
from graphbuild.quality.verify import verify_graph
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest

COUNT = 120
NAMES = [f"sample {i}" for i in range(COUNT)]


def _vectors(path: Path, seed: int, k: int) -> np.ndarray:
    """A graph of vectors, a text for every sample; its similarities."""
    vectors = clustered_vectors(COUNT, 12, seed=seed)
    write_graph(path, vectors, samples=list(zip(NAMES, range(COUNT), strict=True)), shard_size=50)
    build_knn(path, KnnConfig(k=k, sketch_dim=4))
    return vectors.astype(np.float64) @ vectors.astype(np.float64).T


def _metadata(path: Path, k: int) -> np.ndarray:
    """A graph of years, of which samples share some; its similarities."""
    years = np.random.default_rng(5).integers(0, 80, COUNT)
    source = path.with_suffix(".parquet")
    pq.write_table(pa.table({"key": NAMES, "year": years}), source)
    relate_columns(path, RelateConfig(sources=(str(source),), kernels=("year=number:6",), id_column="key", k=k))
    return np.exp(-np.square(np.subtract.outer(years, years)) / (2 * 6.0**2))


def _imported(path: Path) -> np.ndarray:
    """A graph of edges, four a text; what is not among them counts as 0."""
    rng = np.random.default_rng(6)
    edges = [
        (i, int(j), float(np.float16(rng.uniform(-0.2, 1)))) for i in range(COUNT) for j in rng.choice(COUNT, 5, False) if i != j
    ]
    texts, file = path.with_suffix(".texts.parquet"), path.with_suffix(".edges.parquet")
    pq.write_table(pa.table({"id": NAMES, "text": NAMES}), texts)
    source, target, values = zip(*edges, strict=True)
    columns = {"src": [NAMES[i] for i in source], "dst": [NAMES[j] for j in target], "similarity": values}
    pq.write_table(pa.table(columns), file)
    import_graph(path, ImportConfig(texts=texts, edges=file, k=4))
    graph = Graph.open(path)
    rows = graph.rows(np.arange(COUNT))
    one_way = np.full((COUNT, COUNT), -np.inf)
    np.put_along_axis(one_way, rows.neighbor_ids.astype(np.int64), rows.similarities.astype(np.float64), axis=1)
    either = np.maximum(one_way, one_way.T)
    either[np.isinf(either)] = 0
    np.fill_diagonal(either, 1)
    return either


def _exact(rule: str, parts: list[np.ndarray], weights: tuple[float, ...] = ()) -> np.ndarray:
    if rule == "mean":
        shares = np.array(weights or [1.0] * len(parts))
        return np.tensordot(shares / shares.sum(), np.stack(parts), axes=1)
    return np.max(parts, axis=0) if rule == "max" else np.prod(np.maximum(parts, 0), axis=0)


def _check(result: FuseResult, exact: np.ndarray) -> np.ndarray:
    """Whether each row is a brute force's; stored similarities are the exact ones in any case."""
    graph = Graph.open(result.graph_dir)
    texts = graph.sample_texts(NAMES).text_ids
    first = np.unique(texts, return_index=True)[1]
    by_text = exact[np.ix_(first, first)]
    np.fill_diagonal(by_text, -np.inf)
    rows = graph.rows(np.arange(graph.n_texts))
    kept = np.take_along_axis(by_text, rows.neighbor_ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(rows.similarities, kept, atol=1e-3)
    best = np.sort(by_text, axis=1)[:, -graph.k :]
    assert verify_graph(result.graph_dir).method == "fused"
    return np.abs(np.sort(kept, axis=1) - best).max(axis=1) < 1e-6


@pytest.mark.parametrize("rule", ["mean", "max", "product"])
def test_rows_of_any_rule_over_any_graphs_are_those_of_a_brute_force(tmp_path: Path, rule: Any) -> None:
    parts = [_vectors(tmp_path / "a", 1, 15), _metadata(tmp_path / "b", 12), _imported(tmp_path / "c")]
    weights = (0.5, 0.3, 0.2) if rule == "mean" else ()
    graphs = [tmp_path / name for name in "abc"]
    result = fuse_graphs(graphs, tmp_path / "f", FuseConfig(rule=rule, weights=weights, k=8))
    assert result.facts["certified_rows"] + result.facts["recomputed_rows"] == Graph.open(tmp_path / "f").n_texts
    certified = next(one for one in summarize(tmp_path / "f").health.measures if one.key == "certified")
    assert (certified.value, certified.verdict) == (1, "good")
    assert _check(result, _exact(rule, parts, weights)).all()


@pytest.mark.parametrize("rule", ["mean", "max", "product"])
def test_rows_that_are_called_proven_are_exact_without_a_search(tmp_path: Path, rule: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(rescored, "SEARCHED_PAIRS", 0)
    parts = [_vectors(tmp_path / "a", 1, 10), _metadata(tmp_path / "b", 10)]
    proven: list[bool] = []
    row = rescored.Rescoring.row

    def told(self: Any, text: int, k: int) -> Any:
        found = row(self, text, k)
        proven.append(found[1][-1] >= found[2] - 1e-6)
        return found

    monkeypatch.setattr(rescored.Rescoring, "row", told)
    result = fuse_graphs([tmp_path / "a", tmp_path / "b"], tmp_path / "f", FuseConfig(rule=rule, k=6))
    exact = _check(result, _exact(rule, parts))
    assert exact[np.array(proven)].all()
    assert result.facts["certified_rows"] == sum(proven)
    assert (sum(proven) == COUNT) == (rule == "max")
    assert sum(proven) > COUNT // 10
    assert f"{sum(proven):,} of 120 rows" in result.summary()
    assert Manifest.load(tmp_path / "f").stages["knn"].facts["certified_rows"] == sum(proven)


def test_maximum_of_graphs_of_vectors_is_proven_by_their_own_rows(tmp_path: Path) -> None:
    parts = [_vectors(tmp_path / "a", 1, 6), _vectors(tmp_path / "b", 2, 6)]
    result = fuse_graphs([tmp_path / "a", tmp_path / "b"], tmp_path / "f", FuseConfig(rule="max"))
    assert (result.facts["k"], result.facts["recomputed_rows"], result.dim) == (6, 0, None)
    assert _check(result, _exact("max", parts)).all()
    with pytest.raises(OptionError, match="only its own texts can be asked for"):
        nearest_texts(tmp_path / "f", "a dog")


def test_graph_of_few_categories_gives_no_row_more_candidates_than_it_has_room_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(rescored, "LEAST_ROOM", 8)
    source = tmp_path / "rows.parquet"
    labels = [f"class {i % 3}" for i in range(COUNT)]
    pq.write_table(pa.table({"key": NAMES, "label": labels}), source)
    relate_columns(tmp_path / "b", RelateConfig(sources=(str(source),), kernels=("label=category",), id_column="key"))
    parts = [_vectors(tmp_path / "a", 1, 10), np.array([[float(one == other) for other in labels] for one in labels])]
    result = fuse_graphs([tmp_path / "a", tmp_path / "b"], tmp_path / "f", FuseConfig(weights=(1, 1), k=5))
    assert _check(result, _exact("mean", parts)).all()


def test_equal_fusion_does_nothing_and_another_rule_is_refused(tmp_path: Path) -> None:
    _vectors(tmp_path / "a", 1, 6)
    _metadata(tmp_path / "b", 6)
    graphs = [tmp_path / "a", tmp_path / "b"]
    assert not fuse_graphs(graphs, tmp_path / "f", FuseConfig()).already_done
    assert fuse_graphs(graphs, tmp_path / "f", FuseConfig()).already_done
    with pytest.raises(OptionError, match="rule: none -> max"):
        fuse_graphs(graphs, tmp_path / "f", FuseConfig(rule="max"))
    with pytest.raises(SourceError, match="was fused without vectors"):
        fuse_graphs([tmp_path / "a", tmp_path / "f"], tmp_path / "h", FuseConfig(rule="max"))


def test_options_and_graphs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    _vectors(tmp_path / "a", 1, 6)
    write_graph(tmp_path / "b", clustered_vectors(COUNT, 8), samples=list(zip(NAMES, range(COUNT), strict=True)))
    graphs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(OptionError, match="--rule max has none"):
        fuse_graphs(graphs, tmp_path / "f", FuseConfig(rule="max", weights=(1, 2)))
    with pytest.raises(OptionError, match="--k: the mean of graphs of vectors"):
        fuse_graphs(graphs, tmp_path / "f", FuseConfig(k=5))
    with pytest.raises(ArtifactError, match="b: the knn stage is not finished"):
        fuse_graphs(graphs, tmp_path / "f", FuseConfig(rule="product"))
    with pytest.raises(OptionError, match="holds a graph that was not fused"):
        fuse_graphs([graphs[0], graphs[0]], graphs[1], FuseConfig(rule="max"))


def test_command_line_says_the_share_of_rows_that_are_proven(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        _vectors(tmp_path / name, seed, 6)
    arguments = ["fuse", str(tmp_path / "a"), str(tmp_path / "b"), "--rule", "max", "--k", "4", "--out", str(tmp_path / "f")]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert "120 of 120 rows (100.0%) are proven exact, 0 of them by a search of all texts" in done.stdout
