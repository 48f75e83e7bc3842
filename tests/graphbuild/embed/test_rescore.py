"""Rescored graphs against a brute force of single pairs through transformers, resumption, refusals, and what trains on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from helpers_embed import WORDS, save_cross_encoder
from helpers_graph import clustered_vectors, write_graph
from helpers_train import tiny_config, write_images, write_tiny_graph
from numpy.typing import NDArray
from transformers import BertForSequenceClassification, BertTokenizer

from graphbuild.cli import cli
from graphbuild.embed import rescore as stage
from graphbuild.embed.cross_encoder import CrossScorer, find_cross_encoder
from graphbuild.embed.rescore import RescoreConfig, estimate_rescore, rescore
from graphbuild.errors import ArtifactError, ArtifactMismatch, OptionError
from graphbuild.exchange.publish import Measured, PublishConfig, publish_graph
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality.status import graph_status
from graphbuild.quality.verify import verify_graph
from graphbuild.store import schemas
from graphbuild.store.files import write_arrow
from graphbuild.store.frames import Frames
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.torch import SoftTargets
from train.run.loop import train

N, K, TOP = 60, 9, 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("cross") / "encoder")


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS, size=rng.integers(3, 9))) for _ in range(count)]


def make_graph(folder: Path, *, k: int | str = K, shard_size: int = 25) -> Path:
    write_graph(folder, clustered_vectors(N, 16), texts=sentences(N), shard_size=shard_size).save(folder)
    build_knn(folder, KnnConfig(k=k, sketch_dim=8))
    return folder


@pytest.fixture(scope="module")
def graph_dir(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_graph(tmp_path_factory.mktemp("rescored") / "graph")
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    return folder


@pytest.fixture(scope="module")
def brute_force(model: Path) -> NDArray[np.float64]:
    """The mean similarity of every pair of texts, one call a pair and order; (N, N)."""
    net, tokenizer = BertForSequenceClassification.from_pretrained(str(model)).eval(), BertTokenizer.from_pretrained(str(model))
    texts, one_way = sentences(N), np.zeros((N, N))
    for i, first in enumerate(texts):
        with torch.inference_mode():
            tokens = tokenizer([first] * N, texts, return_tensors="pt", padding=True)
            one_way[i] = torch.sigmoid(net(**tokens).logits[:, 0].double()).numpy()
    return (one_way + one_way.T) / 2


def rescored_rows(folder: Path) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
    rows = Graph.open(folder, similarity="rescored").rows(np.arange(N))
    return rows.neighbor_ids, rows.similarities


def part_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "rescored").iterdir())}


def test_similarities_are_those_of_a_brute_force_over_single_pairs(graph_dir: Path, brute_force: NDArray[np.float64]) -> None:
    ids, similarities = rescored_rows(graph_dir)
    expected = np.take_along_axis(brute_force, ids.astype(np.int64), axis=1)
    assert np.abs(similarities - expected).max() < 1e-3
    # The model tells pairs apart, so that the order below says something.
    assert expected.std() > 0.1


def test_rows_hold_the_nearest_stored_neighbours_in_the_new_order(graph_dir: Path) -> None:
    ids, similarities = rescored_rows(graph_dir)
    stored = Graph.open(graph_dir).rows(np.arange(N))
    assert np.array_equal(np.sort(ids, axis=1), np.sort(stored.neighbor_ids[:, :TOP], axis=1))
    for row in range(N):
        keys = list(zip(-similarities[row].astype(float), ids[row].tolist(), strict=True))
        assert keys == sorted(keys)
    assert (ids != stored.neighbor_ids[:, :TOP]).any()


def test_both_similarities_are_kept(graph_dir: Path) -> None:
    tables = Frames(graph_dir).tables()
    held = tables["rescored"].join(tables["edges"], on=["src", "dst"], suffix="_knn").collect()
    assert len(held) == N * TOP
    assert held["stored_similarity"].to_list() == held["similarity_knn"].to_list()
    ids, similarities = rescored_rows(graph_dir)
    rows = tables["rescored"].collect()
    assert rows["dst"].to_list() == ids.reshape(-1).tolist()
    assert rows["similarity"].to_list() == similarities.reshape(-1).astype(np.float32).tolist()
    assert rows["rank"].to_list() == list(range(1, TOP + 1)) * N


def test_a_pair_of_both_rows_is_scored_once_and_is_the_same_in_both(graph_dir: Path) -> None:
    ids, similarities = rescored_rows(graph_dir)
    value = {(row, int(other)): float(s) for row in range(N) for other, s in zip(ids[row], similarities[row], strict=True)}
    both = [pair for pair in value if pair[::-1] in value]
    assert both
    assert all(value[pair] == value[pair[::-1]] for pair in both)
    distinct = {tuple(sorted(pair)) for pair in value}
    assert Manifest.load(graph_dir).stages["rescore"].facts["pairs"] == len(distinct)


def test_estimate_counts_the_pairs_and_changes_nothing(graph_dir: Path, model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    estimate = estimate_rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    assert estimate.exact
    assert estimate.pairs == Manifest.load(graph_dir).stages["rescore"].facts["pairs"]
    assert f"{estimate.pairs:,} pairs, each in both orders" in estimate.summary()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_killed_run_goes_on_with_what_is_missing_to_the_same_bytes(
    graph_dir: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_graph(tmp_path / "graph")
    calls: list[int] = []
    score_shard = stage.score_shard

    def killed(root: str, shard: stage.ShardRange, *rest: object, report: object) -> object:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(shard.index)
        return score_shard(root, shard, *rest, report=report)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, "score_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    assert "rescore" not in Manifest.load(folder).stages
    assert sorted(part_bytes(folder)) == ["scored-00000.arrow", "scored-00001.arrow"]
    calls.clear()
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    assert calls == [2]
    assert part_bytes(folder) == part_bytes(graph_dir)
    assert rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP)).already_done


def test_damaged_shard_is_rebuilt_alone_from_what_the_others_hold(graph_dir: Path, model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    config = RescoreConfig(cross_encoder=str(model), top=TOP)
    rescore(folder, config)
    path = folder / "rescored/part-00002.arrow"
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"part-00002.* Run `graphbuild rescore` again"):
        verify_graph(folder)
    times = {one.name: one.stat().st_mtime_ns for one in (folder / "rescored").iterdir() if one != path}
    rescore(folder, config)
    assert {name: (folder / "rescored" / name).stat().st_mtime_ns for name in times} == times
    assert part_bytes(folder) == part_bytes(graph_dir)
    verify_graph(folder)


@pytest.mark.slow
def test_worker_processes_write_the_same_bytes(graph_dir: Path, model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP, workers=2))
    ids, similarities = rescored_rows(folder)
    expected_ids, expected = rescored_rows(graph_dir)
    # Other numbers of threads may round otherwise.
    assert np.abs(np.sort(similarities, axis=1).astype(float) - np.sort(expected, axis=1).astype(float)).max() < 2e-3
    assert np.array_equal(np.sort(ids, axis=1), np.sort(expected_ids, axis=1))


def test_rescored_target_has_the_new_similarities_and_the_constant_elsewhere(
    graph_dir: Path, brute_force: NDArray[np.float64]
) -> None:
    ids, _ = rescored_rows(graph_dir)
    chosen = np.arange(0, N, 2)
    targets = SoftTargets(graph_dir, similarity="rescored", absent=0.05)
    found = targets([f"sample-{row}-0" for row in chosen]).numpy()
    for i, row in enumerate(chosen):
        for j, other in enumerate(chosen):
            known = other in ids[row] or row in ids[other]
            expected = 1.0 if i == j else brute_force[row, other] if known else 0.05
            assert found[i, j] == pytest.approx(expected, abs=1e-3)
    assert "kl_to_dense" not in targets.describe([f"sample-{row}-0" for row in chosen])
    stored = SoftTargets(graph_dir)([f"sample-{row}-0" for row in chosen]).numpy()
    assert not np.allclose(stored, found, atol=0.01)


def test_rescored_target_without_a_constant_is_refused_unless_every_pair_is_there(
    graph_dir: Path, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="say nothing of pairs that were not rescored"):
        SoftTargets(graph_dir, similarity="rescored")(["sample-0-0", "sample-1-0"])
    with pytest.raises(OptionError, match="teacher embeddings takes similarities from vectors"):
        SoftTargets(graph_dir, similarity="rescored", teacher="embeddings")(["sample-0-0", "sample-1-0"])
    folder = make_graph(tmp_path / "graph", k="all")
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=N))
    assert SoftTargets(folder, similarity="rescored")(["sample-0-0", "sample-1-0"]).shape == (2, 2)


def test_graph_is_read_as_before_and_a_new_search_forgets_what_was_rescored(graph_dir: Path, model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    before = Graph.open(folder).rows(np.arange(N))
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    after = Graph.open(folder).rows(np.arange(N))
    assert np.array_equal(before.similarities, after.similarities)
    assert np.array_equal(before.neighbor_ids, after.neighbor_ids)
    assert graph_status(folder).stages[-1].stage == "rescore"
    build_knn(folder, KnnConfig(k=K + 1, overwrite=True))
    with pytest.raises(ArtifactError, match=r"the rescore stage is not finished\. Run `graphbuild rescore` first"):
        Graph.open(folder, similarity="rescored")


def test_rows_of_other_neighbours_are_refused(graph_dir: Path, model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    rescore(folder, RescoreConfig(cross_encoder=str(model), top=TOP))
    manifest = json.loads((folder / "graph.json").read_text())
    inputs = manifest["stages"]["rescore"]["inputs"]
    name = next(one for one in inputs if one.endswith("neighbor_ids"))
    loaded = Manifest.load(folder)
    loaded.stages["rescore"].inputs[name] = "0" * 32
    loaded.save(folder)
    with pytest.raises(ArtifactMismatch, match="Run `graphbuild rescore --overwrite` again"):
        Graph.open(folder, similarity="rescored")


def test_what_is_no_cross_encoder_of_one_output_is_refused_by_name(graph_dir: Path, tmp_path: Path) -> None:
    for classes in (2, 3):
        folder = save_cross_encoder(tmp_path / f"classes-{classes}", classes=classes)
        with pytest.raises(OptionError, match=rf"gives {classes} numbers a pair \(LABEL_0, LABEL_1.*are no similarity"):
            rescore(graph_dir, RescoreConfig(cross_encoder=str(folder)))
    folder = save_cross_encoder(tmp_path / "base", base=True)
    with pytest.raises(OptionError, match=r"is no cross-encoder: its config\.json names BertModel"):
        rescore(graph_dir, RescoreConfig(cross_encoder=str(folder)))
    for name in ("hashing:16", "all-MiniLM-L6-v2"):
        with pytest.raises(OptionError, match="is no cross-encoder"):
            find_cross_encoder(name)


def test_a_cross_encoder_that_gives_nan_is_refused_with_the_pair(tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    broken = save_cross_encoder(tmp_path / "broken", broken=True)
    with pytest.raises(ArtifactError, match=r"gave a number that is not finite for '[a-z ]+' and '[a-z ]+'"):
        rescore(folder, RescoreConfig(cross_encoder=str(broken)))
    assert "rescore" not in Manifest.load(folder).stages


def test_large_logits_become_similarities_between_zero_and_one(model: Path) -> None:
    scorer = CrossScorer(model)
    scorer._model.predict = lambda pairs, **_: np.linspace(-900, 900, len(pairs))
    found = scorer.similarities([("a", "b")] * 8)
    assert ((found >= 0) & (found <= 1)).all()
    scorer._model.predict = lambda pairs, **_: np.zeros((len(pairs), 2))
    with pytest.raises(ArtifactError, match=r"gave numbers of shape \[2, 2\] for 2 pairs"):
        scorer.similarities([("a", "b")])


def test_published_folder_holds_what_was_rescored(graph_dir: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    measured = Measured(recall=None, recall_rows=None, health=())
    publish_graph(graph_dir, tmp_path / "published", PublishConfig(license="unknown"), measured)
    loaded = datasets.load_dataset(str(tmp_path / "published"), "rescored", split="train", cache_dir=str(tmp_path / "cache"))
    ids, similarities = rescored_rows(graph_dir)
    assert np.array_equal(np.array(loaded["neighbor_ids"][:]), ids)
    assert np.array_equal(np.array(loaded["similarities"][:], np.float16), similarities)


def test_other_options_need_overwrite(graph_dir: Path, model: Path) -> None:
    with pytest.raises(OptionError, match=r"the rescore stage was built with other options \(top: 6 -> 3\)"):
        rescore(graph_dir, RescoreConfig(cross_encoder=str(model), top=3))


def test_command_says_the_cost_and_what_comes_next(model: Path, tmp_path: Path) -> None:
    folder = make_graph(tmp_path / "graph")
    options = ["rescore", "--graph-dir", str(folder), "--cross-encoder", str(model), "--top", "4"]
    dry = CliRunner().invoke(cli, [*options, "--dry-run", "--json"])
    assert dry.exit_code == 0, dry.output
    assert json.loads(dry.stdout)["pairs"] > 0
    result = CliRunner().invoke(cli, options)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("estimate: ")
    assert "--similarity rescored --absent 0" in result.stdout


def test_a_run_trains_on_rescored_similarities(model: Path, tmp_path: Path) -> None:
    data, graph = write_images(tmp_path / "images.parquet", 24), write_tiny_graph(tmp_path / "graph", 24)
    rescore(graph, RescoreConfig(cross_encoder=str(model), top=3))
    losses = []
    for similarity in ("stored", "rescored"):
        config = tiny_config(data=str(data), graph_dir=str(graph), steps=2, similarity=similarity, absent=0.0, log_every=1)
        train(config, tmp_path / similarity)
        losses.append(pl.read_ndjson(tmp_path / similarity / "metrics.jsonl")["loss"].to_list())
    assert losses[0] != losses[1]
    with pytest.raises(OptionError, match="--similarity rescored is stored in rows, and --teacher embeddings reads none"):
        tiny_config(data=str(data), graph_dir=str(graph), similarity="rescored", teacher="embeddings")
    with pytest.raises(OptionError, match="--similarity rescored is of a graph's target"):
        tiny_config(data=str(data), objective="simclr", similarity="rescored")


def _rewrite(graph_dir: Path, column: str, change: Callable[[NDArray[np.generic]], None]) -> None:
    """Write the first rescored shard anew, with receipt and manifest as if it had been made so."""
    manifest = Manifest.load(graph_dir)
    receipt = manifest.files("rescore", schemas.RESCORED)[0]
    batch = pa.ipc.open_file(graph_dir / receipt.path).get_batch(0)
    place = batch.schema.get_field_index(column)
    values = batch.column(place).flatten().to_numpy().reshape(batch.num_rows, -1).copy()
    change(values)
    columns = batch.columns
    columns[place] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), type=batch.schema.field(place).type)
    changed = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
    manifest.stages["rescore"].files[receipt.path] = write_arrow(graph_dir, receipt.path, changed, key=receipt.key)
    manifest.save(graph_dir)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (schemas.NEIGHBOR_IDS, N - 1, "holds other texts than its nearest stored neighbours"),
        (schemas.STORED_SIMILARITIES, 0.125, "does not hold the stored similarities of its neighbours"),
        (schemas.SIMILARITIES, 1.5, "holds a similarity that is not from 0 to 1"),
        (schemas.SIMILARITIES, 0.0, "is not ordered by similarity, then id"),
    ],
)
def test_rescored_row_that_is_not_of_the_graph_is_named(
    graph_dir: Path, tmp_path: Path, column: str, value: float, words: str
) -> None:
    shutil.copytree(graph_dir, tmp_path / "g")
    verify_graph(tmp_path / "g")

    def change(values: NDArray[np.generic]) -> None:
        values[4, 0] = value

    _rewrite(tmp_path / "g", column, change)
    with pytest.raises(ArtifactError, match=rf"rescored/part-00000\.arrow: the row of text_id 4 {words}"):
        verify_graph(tmp_path / "g")
