"""Batch targets against loops over pairs in float64."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_graph import clustered_vectors, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.manifest import Manifest
from graphbuild.store.neighbors import Rows
from graphbuild.store.sketches import FACT, UNCORRECTED
from graphbuild.targets import assemble as targets
from graphbuild.targets import softmax

TEXTS = 300
VECTORS = clustered_vectors(TEXTS, 32)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("sparse")
    write_graph(folder, VECTORS, shard_size=128)
    build_knn(folder, KnnConfig(k=40, sketch_dim=12))
    return Graph.open(folder)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("complete")
    write_graph(folder, VECTORS, shard_size=128)
    build_knn(folder, KnnConfig(k="all"))
    return Graph.open(folder)


def slow_similarities(rows: Rows, ids: NDArray[np.int64], absent: float | None) -> tuple[NDArray[np.float64], list[int]]:
    """The definition of docs/definitions.md, pair by pair."""
    stored = [dict(zip(r.tolist(), s.tolist(), strict=True)) for r, s in zip(rows.neighbor_ids, rows.similarities, strict=True)]
    result = np.empty((len(ids), len(ids)))
    for i, a in enumerate(ids.tolist()):
        for j, b in enumerate(ids.tolist()):
            found = [value for value in (stored[i].get(b), stored[j].get(a)) if value is not None]
            if a == b:
                result[i, j] = 1.0
            elif found:
                result[i, j] = max(found)
            elif absent is not None:
                result[i, j] = absent
            else:
                dot = sum(int(p) * int(q) for p, q in zip(rows.sketch[i], rows.sketch[j], strict=True))
                found_ij = float(rows.sketch_scale[i]) * float(rows.sketch_scale[j]) * dot
                cosine = sum(c * found_ij**power for power, c in enumerate(rows.correction))
                result[i, j] = found_ij + slow_residual(rows, i) * slow_residual(rows, j) * max(-1.0, min(1.0, cosine))
    return result, [sum(b != a and b in stored[i] for b in ids.tolist()) for i, a in enumerate(ids.tolist())]


def slow_residual(rows: Rows, i: int) -> float:
    return math.sqrt(max(0.0, 1 - sum((float(rows.sketch_scale[i]) * int(q)) ** 2 for q in rows.sketch[i])))


def slow_target(similarity: NDArray[np.float64], tau_s: float) -> NDArray[np.float64]:
    """Row-wise softmax over all other views, one exponential at a time."""
    batch = len(similarity)
    result = np.zeros((2 * batch, 2 * batch))
    for i in range(2 * batch):
        others = [j for j in range(2 * batch) if j != i]
        logits = [similarity[i % batch, j % batch] / tau_s for j in others]
        total = math.fsum(math.exp(value - max(logits)) for value in logits)
        for j, value in zip(others, logits, strict=True):
            result[i, j] = math.exp(value - max(logits)) / total
    return result


def random_rows(rng: np.random.Generator, ids: NDArray[np.int64], texts: int, k: int, sketch_dim: int) -> Rows:
    """Rows as an imported graph may hold them: the two directions of a pair may differ."""
    table = {t: rng.permutation([other for other in range(texts) if other != t])[:k] for t in range(texts)}
    similarities = rng.uniform(-1, 1, (texts, k)).astype(np.float16)
    codes = rng.integers(-127, 128, (texts, sketch_dim)).astype(np.int8)
    scales = rng.uniform(0.001, 0.02, texts).astype(np.float32)
    neighbors = np.array([table[t] for t in ids.tolist()], np.int32).reshape(len(ids), k)
    one, two, three, four = rng.uniform(-0.5, 0.5, 4).tolist()
    return Rows(neighbors, similarities[ids], codes[ids], scales[ids], correction=(one, two, three, four))


@pytest.mark.parametrize("absent", [None, 0.25, -math.inf])
def test_assembly_equals_a_loop_over_pairs(sparse: Graph, absent: float | None) -> None:
    ids = np.random.default_rng(0).integers(0, TEXTS, 90)
    rows = sparse.rows(ids)
    assembly = targets.assemble(rows, ids, absent=absent)
    expected, counts = slow_similarities(rows, ids, absent)
    np.testing.assert_allclose(assembly.similarity_BB, expected, rtol=0, atol=1e-6)
    assert assembly.stored_B.tolist() == counts


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000), batch=st.integers(1, 40), texts=st.integers(2, 30), k=st.integers(0, 29), sketch=st.integers(1, 9)
)
def test_assembly_equals_the_loop_for_any_graph_and_batch(seed: int, batch: int, texts: int, k: int, sketch: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, texts, batch)
    rows = random_rows(rng, ids, texts, min(k, texts - 1), sketch)
    assembly = targets.assemble(rows, ids)
    expected, counts = slow_similarities(rows, ids, None)
    np.testing.assert_allclose(assembly.similarity_BB, expected, rtol=0, atol=2e-6)
    assert assembly.stored_B.tolist() == counts
    np.testing.assert_array_equal(assembly.similarity_BB, assembly.similarity_BB.T)


def test_assembly_tells_apart_ids_of_the_whole_int32_range() -> None:
    ids = np.array([0, 2**31 - 1, 2**30, 12_345_678, 1], np.int64)
    neighbors = np.roll(ids, 1)[:, None].astype(np.int32)
    rows = Rows(neighbors, np.full((5, 1), 0.5, np.float16), np.zeros((5, 0), np.int8), np.zeros(5, np.float32))
    assembly = targets.assemble(rows, ids, absent=0.0)
    expected = np.eye(5) + 0.5 * (np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0))
    np.testing.assert_array_equal(assembly.similarity_BB, expected)


def test_same_text_counts_as_one_whatever_is_stored(sparse: Graph) -> None:
    ids = np.array([4, 7, 4, 4])
    similarity = targets.assemble(sparse.rows(ids), ids).similarity_BB
    assert similarity[0, 2] == similarity[2, 3] == similarity[1, 1] == 1.0


def test_a_random_batch_hits_as_many_stored_edges_as_arithmetic_says(sparse: Graph) -> None:
    rng = np.random.default_rng(3)
    draws = [rng.choice(TEXTS, 64, replace=False) for _ in range(60)]
    rate = np.mean([targets.hit_rate(targets.assemble(sparse.rows(ids), ids)) for ids in draws])
    assert rate == pytest.approx(63 * 40 / (TEXTS - 1), rel=0.05)


def test_a_graph_without_sketch_needs_a_constant(sparse: Graph) -> None:
    rows = sparse.rows([1, 2])
    bare = Rows(rows.neighbor_ids, rows.similarities, np.zeros((2, 0), np.int8), np.zeros(2, np.float32))
    with pytest.raises(OptionError, match=r"--absent.*--sketch-dim 64"):
        targets.assemble(bare, [1, 2])


def test_a_constant_that_is_no_number_is_refused(sparse: Graph) -> None:
    with pytest.raises(OptionError, match="not a number"):
        targets.assemble(sparse.rows([1, 2]), [1, 2], absent=math.nan)


def test_a_complete_graph_equals_the_dense_target_up_to_float16_rounding(complete: Graph) -> None:
    ids = np.random.default_rng(1).integers(0, TEXTS, 120)
    similarity = targets.assemble(complete.rows(ids), ids).similarity_BB
    exact = targets.dense(complete.embeddings()[ids], ids)
    # Half an ulp of float16 below 1 is 2^-12; the stored value lies within one ulp of the exact one.
    assert np.abs(similarity - exact).max() <= 2**-11
    tau_s = 0.1
    logs, exact_logs = (np.log(softmax.two_view_target(g.astype(np.float64), tau_s) + np.eye(240)) for g in (similarity, exact))
    assert np.abs(logs - exact_logs).max() <= 2 * 2**-11 / tau_s


def test_dense_equals_float64_products_of_the_stored_vectors() -> None:
    ids = np.array([3, 9, 3, 200])
    expected = VECTORS[ids].astype(np.float64) @ VECTORS[ids].astype(np.float64).T
    expected[ids[:, None] == ids] = 1.0
    np.testing.assert_allclose(targets.dense(VECTORS[ids], ids), expected, rtol=0, atol=1e-6)


def test_two_view_target_equals_the_loop() -> None:
    similarity = slow_similarities(random_rows(np.random.default_rng(2), np.arange(7), 7, 3, 4), np.arange(7), None)[0]
    for tau_s in (0.05, 0.1, 1.0):
        np.testing.assert_allclose(softmax.two_view_target(similarity, tau_s), slow_target(similarity, tau_s), rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 20), tau_s=st.sampled_from([1e-5, 0.05, 0.1, 1.0]))
def test_targets_are_row_stochastic_with_a_zero_diagonal_and_equal_views(seed: int, batch: int, tau_s: float) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 15, batch)
    target = softmax.two_view_target(targets.assemble(random_rows(rng, ids, 15, 5, 4), ids).similarity_BB, tau_s)
    np.testing.assert_allclose(target.sum(axis=1), 1.0, atol=1e-5)
    assert (np.diagonal(target) == 0).all()
    assert (target >= 0).all()
    swapped = np.roll(target, (batch, batch), axis=(0, 1))
    np.testing.assert_allclose(target, swapped, rtol=1e-6)


def test_pairs_left_out_have_no_mass() -> None:
    similarity = np.array([[1.0, -math.inf], [-math.inf, 1.0]])
    target = softmax.two_view_target(similarity, 0.1)
    np.testing.assert_array_equal(target, np.roll(np.eye(4), 2, axis=1))
    assert (softmax.entropy(similarity, 0.1), softmax.own_view_mass(similarity, 0.1)) == (0.0, 1.0)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(OptionError, match="tau_s"):
        softmax.two_view_target(np.eye(2), 0.0)


@pytest.mark.parametrize(("fill", "mass"), [(-math.inf, 1.0), (0.0, 0.915), (0.1, 0.798), (0.35, 0.245)])
def test_own_view_mass_depends_on_the_fill_as_computed_by_hand(fill: float, mass: float) -> None:
    similarity = np.full((1024, 1024), fill, np.float32)
    np.fill_diagonal(similarity, 1.0)
    assert softmax.own_view_mass(similarity, 0.1) == pytest.approx(mass, abs=5e-4)


def test_entropy_of_a_uniform_target_is_the_logarithm_of_its_positives() -> None:
    assert softmax.entropy(np.ones((5, 5)), 0.1) == pytest.approx(math.log(9))


def test_kl_is_zero_only_for_equal_targets_and_equals_the_definition() -> None:
    g, h = (np.corrcoef(np.random.default_rng(s).random((6, 9))) for s in (0, 1))
    a, b = slow_target(g, 0.2), slow_target(h, 0.2)
    by_hand = sum(a[i, j] * math.log(a[i, j] / b[i, j]) for i in range(12) for j in range(12) if i != j) / 12
    assert softmax.kl(g, g, 0.2) == 0.0
    assert softmax.kl(g, h, 0.2) == pytest.approx(by_hand, rel=1e-12)


def test_kl_is_infinite_where_the_target_leaves_out_what_the_reference_holds() -> None:
    everything, only_own = np.ones((2, 2)), np.array([[1.0, -math.inf], [-math.inf, 1.0]])
    assert softmax.kl(everything, only_own, 0.1) == math.inf
    assert math.isfinite(softmax.kl(only_own, everything, 0.1))


def test_graph_folder_is_left_as_it_was(complete: Graph) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(complete.path).rglob("*")}
    ids = np.arange(10)
    targets.assemble(complete.rows(ids), ids)
    assert {path: path.stat().st_mtime_ns for path in Path(complete.path).rglob("*")} == before


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More texts than a graph is complete of."""
    folder = tmp_path_factory.mktemp("large")
    write_graph(folder, clustered_vectors(4500, 48), shard_size=2048)
    build_knn(folder, KnnConfig(k=16, sketch_dim=16))
    return folder


@pytest.mark.parametrize("tau_s", [0.05, 0.1, 0.2])
def test_corrected_target_is_nearer_to_the_dense_one_than_that_of_a_graph_of_before(
    large: Path, tmp_path: Path, tau_s: float
) -> None:
    old = shutil.copytree(large, tmp_path / "old")
    manifest = Manifest.load(old)
    assert len(manifest.stages["knn"].facts.pop(FACT)) == 4
    manifest.save(old)
    graphs = [Graph.open(folder) for folder in (old, large)]
    assert graphs[0].correction == graphs[0].rows([0]).correction == UNCORRECTED
    ids = np.random.default_rng(1).choice(4500, 400, replace=False)
    exact = targets.dense(graphs[1].embeddings()[ids], ids)
    before, after = (softmax.kl(exact, targets.assemble(graph.rows(ids), ids).similarity_BB, tau_s) for graph in graphs)
    assert after < before
