"""`graphbuild advise`: its figures against the reference targets, laid out in full."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_graph import clustered_vectors, write_graph
from helpers_targets import laid_out, slow_entropy, slow_kl, slow_own_view_mass

from graphbuild.cli import cli
from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.quality import fidelity
from graphbuild.quality.advise import TAUS, advise, recommend
from graphbuild.quality.fidelity import Fidelity, FidelityConfig, Sharpness, Storage, choose_tau_s
from graphbuild.store.graph import Graph
from graphbuild.targets import assemble as targets

TEXTS = 300
CONFIG = FidelityConfig(batch_size=64, batches=3, chunk=16)


@pytest.fixture(scope="module")
def graph_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    # 150 samples of two captions each.
    write_graph(folder, clustered_vectors(TEXTS, 40), samples=[(f"s{i // 2}", i) for i in range(TEXTS)], shard_size=128)
    build_knn(folder, KnnConfig(k=40, sketch_dim=32))
    return folder


@pytest.fixture(scope="module")
def advice(graph_dir: Path) -> Fidelity:
    return advise(graph_dir, batch_size=64, batches=3, chunk=16, tau_s=0.1).found


def test_more_neighbours_and_a_wider_sketch_never_tell_less(advice: Fidelity) -> None:
    found = {(choice.k, choice.sketch_dim): choice for choice in advice.storage}
    assert set(found) == {(k, r) for k in (0, 16, 32, 40) for r in (0, 32) if k or r}
    for r in (0, 32):
        divergences = [found[k, r].kl_neighbors for k in (16, 32, 40)]
        assert divergences == sorted(divergences, reverse=True)
    assert found[40, 32].kl_random < found[40, 0].kl_random


def test_bytes_are_those_of_the_stored_columns(advice: Fidelity, graph_dir: Path) -> None:
    rows = Graph.open(graph_dir).rows([0])
    (stored,) = [choice for choice in advice.storage if (choice.k, choice.sketch_dim) == (40, 32)]
    assert stored.bytes_a_row == sum(getattr(rows, name).nbytes for name in type(rows).__slots__)


def test_divergence_of_what_is_stored_equals_the_reference(advice: Fidelity, graph_dir: Path) -> None:
    graph = Graph.open(graph_dir)
    drawn = fidelity._draw(graph, CONFIG)
    embeddings = graph.embeddings()
    for kind, name in (("random", "kl_random"), ("neighbors", "kl_neighbors")):
        expected = []
        for texts in drawn[kind]:
            exact = laid_out(targets.dense(embeddings[texts], texts), 0.1)
            stored = targets.assemble(graph.rows(texts), texts).similarity_BB
            expected.append(slow_kl(exact, laid_out(stored, 0.1)))
        (found,) = [getattr(choice, name) for choice in advice.storage if (choice.k, choice.sketch_dim) == (40, 32)]
        assert found == pytest.approx(np.mean(expected), rel=1e-6)


def test_effective_positives_and_own_view_equal_the_reference(advice: Fidelity, graph_dir: Path) -> None:
    graph = Graph.open(graph_dir)
    embeddings = graph.embeddings()
    batches = fidelity._draw(graph, CONFIG)["random"]
    exact = [laid_out(targets.dense(embeddings[t], t), 0.2) for t in batches]
    (found,) = [row for row in advice.sharpness if row.tau_s == 0.2]
    assert found.positives_random == pytest.approx(np.exp(np.mean([slow_entropy(s) for s in exact])), rel=1e-6)
    assert found.own_view_random == pytest.approx(np.mean([slow_own_view_mass(s) for s in exact]), rel=1e-6)


def test_verdicts_go_from_one_hot_to_flat_as_tau_s_rises(graph_dir: Path) -> None:
    sharpest = advise(graph_dir, batch_size=64, batches=1, tau_s=0.02).found.sharpness[0]
    found = advise(graph_dir, batch_size=64, batches=1, tau_s=5.0).found.sharpness
    assert [row.tau_s for row in found] == [*TAUS, 5.0]
    assert sharpest.verdict.startswith("one-hot")
    assert found[-1].verdict == "flat"
    positives = [row.positives_random for row in found]
    assert positives == sorted(positives)


def test_batches_of_chunks_meet_more_neighbours(graph_dir: Path) -> None:
    advice = advise(graph_dir, batch_size=16, chunk=16, batches=6).found
    assert advice.hit_rate_neighbors > 1.5 * advice.hit_rate_random


def test_every_sample_shows_one_of_its_texts_once_a_batch(graph_dir: Path) -> None:
    for batches in fidelity._draw(Graph.open(graph_dir), CONFIG).values():
        for texts in batches:
            assert len(np.unique(texts // 2)) == len(texts) == 64


def test_a_batch_of_more_samples_than_there_are_is_refused(graph_dir: Path) -> None:
    with pytest.raises(OptionError, match="--batch-size 1,024: the graph has 150 samples"):
        advise(graph_dir)


def test_command_prints_two_tables_or_json(graph_dir: Path) -> None:
    arguments = ["advise", "--graph-dir", str(graph_dir), "--batch-size", "64", "--batches", "1"]
    said = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    assert "bytes a row" in said
    assert "effective positives" in said
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).output)
    assert {"storage", "sharpness", "hit_rate_random", "absent"} <= set(found)


def sharp(tau_s: float, own_view: float) -> Sharpness:
    return Sharpness(
        tau_s=tau_s,
        positives_random=2,
        positives_neighbors=3,
        own_view_random=own_view,
        own_view_neighbors=own_view / 2,
        verdict="soft",
    )


@pytest.mark.parametrize(
    ("masses", "expected"),
    [
        ({0.05: 0.99, 0.1: 0.7, 0.15: 0.4, 0.2: 0.2}, 0.1),
        ({0.05: 1.0, 0.1: 0.95, 0.15: 0.85, 0.2: 0.5}, 0.15),
        ({0.05: 0.5, 0.07: 0.2, 0.1: 0.05, 0.2: 0.01}, 0.07),
        ({0.05: 1.0, 0.1: 0.99, 0.2: 0.98}, 0.2),
    ],
)
def test_tau_s_is_the_one_nearest_to_the_papers_that_is_neither_one_hot_nor_flat(
    masses: dict[float, float], expected: float
) -> None:
    assert choose_tau_s([sharp(*pair) for pair in masses.items()]).tau_s == expected


def store(k: int, sketch_dim: int, nats: float) -> Storage:
    size = 6 * k + (sketch_dim + 4 if sketch_dim else 0)
    return Storage(tau_s=0.1, k=k, sketch_dim=sketch_dim, bytes_a_row=size, kl_random=nats / 2, kl_neighbors=nats)


def test_the_fewest_bytes_that_are_near_enough_are_recommended() -> None:
    storage = (store(0, 64, 0.001), store(16, 0, 0.5), store(16, 64, 0.03), store(32, 64, 0.019), store(64, 0, 0.018))
    found = Fidelity(hit_rate_random=1, hit_rate_neighbors=2, absent=0, storage=storage, sharpness=(sharp(0.1, 0.5),))
    chosen = recommend(found)
    assert (chosen.k, chosen.sketch_dim, chosen.tau_s) == (32, 64, 0.1)
    assert "260 bytes a row, 0.0095 nats at random, 0.0190 among neighbours" in chosen.reasons[0]


def test_where_nothing_is_near_enough_the_nearest_is_recommended_and_that_is_said() -> None:
    storage = (store(16, 0, 0.5), store(256, 64, 0.03))
    found = Fidelity(hit_rate_random=1, hit_rate_neighbors=2, absent=0, storage=storage, sharpness=(sharp(0.1, 0.5),))
    assert recommend(found).k == 256
    assert "nothing that can be stored" in recommend(found).reasons[0]


def test_divergences_are_measured_at_the_recommended_tau_s(graph_dir: Path) -> None:
    advice = advise(graph_dir, batch_size=64, batches=1)
    assert {choice.tau_s for choice in advice.found.storage} == {advice.recommended.tau_s}
    assert f"--tau-s {advice.recommended.tau_s:g}" in advice.summary()
    assert advice.to_json()["recommended"]["k"] in {choice.k for choice in advice.found.storage}
    settled = advise(graph_dir, batch_size=64, batches=1, tau_s=0.12)
    assert settled.recommended.tau_s == settled.found.storage[0].tau_s == 0.12
