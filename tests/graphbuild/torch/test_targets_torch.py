"""The torch twin against the reference in `graphbuild.targets.assemble`, which has loops of its own to answer to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.targets import assemble as reference
from graphbuild.torch import similarities as targets

TEXTS = 200
VECTORS = clustered_vectors(TEXTS, 24)


def build(folder: Path, config: KnnConfig) -> Graph:
    write_graph(folder, VECTORS, shard_size=64)
    build_knn(folder, config)
    return Graph.open(folder)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build(tmp_path_factory.mktemp("graph"), KnnConfig(k=20, sketch_dim=16))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return build(tmp_path_factory.mktemp("complete"), KnnConfig(k="all", sketch_dim=0))


def as_tensors(rows: Rows) -> list[torch.Tensor]:
    return [torch.from_numpy(getattr(rows, name)) for name in Rows.__slots__]


def random_batch(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TEXTS, size)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 80), absent=st.sampled_from([None, 0.3, -math.inf]))
def test_torch_assembly_equals_the_reference_bit_for_bit(graph: Graph, seed: int, size: int, absent: float | None) -> None:
    ids = random_batch(size, seed)
    rows = graph.rows(ids)
    expected = reference.assemble(rows, ids, absent=absent)
    found = targets.assemble(*as_tensors(rows), torch.from_numpy(ids), absent=absent)
    np.testing.assert_array_equal(found.similarity_BB.numpy(), expected.similarity_BB)
    np.testing.assert_array_equal(found.stored_B.numpy(), expected.stored_B)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 14))
def test_torch_assembly_equals_the_reference_where_directions_differ(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 15, 20)
    table = np.array([rng.permutation(np.delete(np.arange(15), t))[:k] for t in range(15)], np.int32).reshape(15, k)
    values = rng.uniform(-1, 1, (15, k)).astype(np.float16)
    rows = Rows(table[ids], values[ids], rng.integers(-127, 128, (20, 8)).astype(np.int8), rng.random(20).astype(np.float32))
    expected = reference.assemble(rows, ids)
    found = targets.assemble(*as_tensors(rows), torch.from_numpy(ids), absent=None)
    np.testing.assert_array_equal(found.similarity_BB.numpy(), expected.similarity_BB)
    np.testing.assert_array_equal(found.stored_B.numpy(), expected.stored_B)


def test_sketch_products_are_exact_under_bfloat16_autocast(graph: Graph) -> None:
    ids = random_batch(50)
    plain = targets.assemble(*as_tensors(graph.rows(ids)), torch.from_numpy(ids), absent=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = targets.assemble(*as_tensors(graph.rows(ids)), torch.from_numpy(ids), absent=None)
    assert torch.equal(plain.similarity_BB, cast.similarity_BB)


def test_dense_teacher_equals_the_reference(graph: Graph) -> None:
    ids = random_batch(60)
    assembler = targets.TargetAssembler(graph, teacher="embeddings")
    expected = reference.dense(graph.embeddings()[ids], ids)
    np.testing.assert_allclose(assembler.assemble(torch.from_numpy(ids)).numpy(), expected, rtol=0, atol=1e-6)


def test_assembler_gives_the_reference_and_keeps_the_hits(graph: Graph) -> None:
    ids = random_batch(60)
    assembler = targets.TargetAssembler(graph)
    expected = reference.assemble(graph.rows(ids), ids)
    np.testing.assert_array_equal(assembler.assemble(torch.from_numpy(ids)).numpy(), expected.similarity_BB)
    assert assembler.last_stored_B.float().mean().item() == pytest.approx(reference.hit_rate(expected))


def test_fidelity_equals_the_reference_on_the_whole_target(graph: Graph) -> None:
    ids = torch.from_numpy(random_batch(60))
    assembler = targets.TargetAssembler(graph, tau_s=0.2, measure_fidelity=True)
    similarity = assembler.assemble(ids)
    found = assembler.fidelity(ids, similarity)
    target = reference.two_view_target(similarity.numpy().astype(np.float64), 0.2)
    exact = reference.two_view_target(reference.dense(graph.embeddings()[ids], ids.numpy()).astype(np.float64), 0.2)
    assert found.kl_to_dense is not None
    assert found.kl_to_dense.item() == pytest.approx(reference.kl(exact, target), abs=1e-6)
    assert found.own_view_mass.item() == pytest.approx(reference.own_view_mass(target), rel=1e-5)
    assert found.entropy.item() == pytest.approx(reference.entropy(target), rel=1e-5)


def test_a_complete_graph_needs_neither_sketch_nor_constant(complete: Graph) -> None:
    ids = random_batch(50)
    similarity = targets.TargetAssembler(complete).assemble(torch.from_numpy(ids)).numpy()
    assert np.abs(similarity - reference.dense(complete.embeddings()[ids], ids)).max() <= 2**-11


def test_a_sparse_graph_without_sketch_needs_a_constant(tmp_path: Path) -> None:
    graph = build(tmp_path, KnnConfig(k=5, sketch_dim=0))
    with pytest.raises(OptionError, match="--absent"):
        targets.TargetAssembler(graph)
    assert targets.TargetAssembler(graph, absent=0.1).assemble(torch.tensor([0, 1])).shape == (2, 2)


def test_a_temperature_that_is_not_positive_is_refused(graph: Graph) -> None:
    with pytest.raises(OptionError, match="--tau-s"):
        targets.TargetAssembler(graph, tau_s=0.0)


def test_weights_are_the_blocks_of_the_two_view_target(graph: Graph) -> None:
    ids = random_batch(30)
    similarity = reference.assemble(graph.rows(ids), ids).similarity_BB.astype(np.float64)
    weights, logs = targets.target_weights(torch.from_numpy(similarity), 0.1)
    target = reference.two_view_target(similarity, 0.1)
    np.testing.assert_allclose(weights.numpy(), target[:30, 30:], rtol=1e-12)
    np.testing.assert_allclose(logs.exp().numpy(), weights.numpy(), rtol=1e-12)


def test_kl_without_common_support_is_infinite_and_never_nan() -> None:
    assert targets.kl(torch.ones(3, 3), targets.one_hot(3), 0.1).item() == math.inf
    assert math.isfinite(targets.kl(targets.one_hot(3), torch.ones(3, 3), 0.1).item())


def test_supcon_similarities_hold_equal_classes_only() -> None:
    expected = [[1.0, -math.inf, 1.0], [-math.inf, 1.0, -math.inf], [1.0, -math.inf, 1.0]]
    assert targets.same_class(torch.tensor([5, 2, 5])).tolist() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_assembly_on_a_gpu_equals_the_cpu_bit_for_bit(graph: Graph) -> None:
    ids = torch.from_numpy(random_batch(150))
    on_cpu, on_gpu = targets.TargetAssembler(graph), targets.TargetAssembler(graph, device="cuda")
    assert torch.equal(on_gpu.assemble(ids).cpu(), on_cpu.assemble(ids))
    assert torch.equal(on_gpu.last_stored_B.cpu(), on_cpu.last_stored_B)
