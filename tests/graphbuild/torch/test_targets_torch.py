"""The torch twin against the reference in `graphbuild.targets.assemble`, which has loops of its own to answer to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_graph import clustered_vectors, write_graph
from helpers_targets import laid_out, one_hot, same_class, slow_kl
from hypothesis import given, settings
from hypothesis import strategies as st

from graphbuild.errors import OptionError
from graphbuild.knn.config import KnnConfig
from graphbuild.knn.stage import build_knn
from graphbuild.store.graph import Graph
from graphbuild.store.neighbors import Rows
from graphbuild.targets import assemble as reference
from graphbuild.torch.assembler import TargetAssembler, TargetOptions
from graphbuild.torch.blocks import StoredTarget
from graphbuild.torch.rows import RowTensors
from graphbuild.torch.softmax import kl, target_weights

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


def stored(rows: Rows, ids: np.ndarray, absent: float | None = None) -> StoredTarget:
    tensors = RowTensors(*(torch.from_numpy(getattr(rows, name)) for name in Rows.__slots__))
    return StoredTarget(tensors, torch.from_numpy(ids), absent=absent, correction=rows.correction)


def assembled(graph: Graph, ids: np.ndarray, **options: Any) -> torch.Tensor:
    return TargetAssembler(graph, TargetOptions(**options)).assemble(torch.from_numpy(ids)).rows(0, len(ids))


def random_batch(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, TEXTS, size)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 80), absent=st.sampled_from([None, 0.3, -math.inf]))
def test_torch_assembly_equals_the_reference_bit_for_bit(graph: Graph, seed: int, size: int, absent: float | None) -> None:
    ids = random_batch(size, seed)
    rows = graph.rows(ids)
    expected = reference.assemble(rows, ids, absent=absent)
    found = stored(rows, ids, absent)
    np.testing.assert_array_equal(found.rows(0, size).numpy(), expected.similarity_BB)
    np.testing.assert_array_equal(found.stored(0, size).numpy(), expected.stored_B)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 14))
def test_torch_assembly_equals_the_reference_where_directions_differ(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 15, 20)
    table = np.array([rng.permutation(np.delete(np.arange(15), t))[:k] for t in range(15)], np.int32).reshape(15, k)
    values = rng.uniform(-1, 1, (15, k)).astype(np.float16)
    codes, scales = rng.integers(-127, 128, (20, 8)).astype(np.int8), rng.uniform(0, 0.005, 20).astype(np.float32)
    one, two, three, four = rng.normal(size=4).tolist()
    rows = Rows(table[ids], values[ids], codes, scales, correction=(one, two, three, four))
    expected = reference.assemble(rows, ids)
    found = stored(rows, ids)
    np.testing.assert_array_equal(found.rows(0, 20).numpy(), expected.similarity_BB)
    np.testing.assert_array_equal(found.stored(0, 20).numpy(), expected.stored_B)


def test_sketch_products_are_exact_under_bfloat16_autocast(graph: Graph) -> None:
    ids = random_batch(50)
    target = stored(graph.rows(ids), ids)
    plain = target.rows(0, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = target.rows(0, 50)
    assert torch.equal(plain, cast)


def test_dense_teacher_equals_the_reference(graph: Graph) -> None:
    ids = random_batch(60)
    expected = reference.dense(graph.embeddings()[ids], ids)
    np.testing.assert_allclose(assembled(graph, ids, teacher="embeddings").numpy(), expected, rtol=0, atol=1e-6)


def test_assembler_gives_the_reference_and_its_hits(graph: Graph) -> None:
    ids = random_batch(60)
    expected = reference.assemble(graph.rows(ids), ids)
    found = TargetAssembler(graph, TargetOptions()).assemble(torch.from_numpy(ids))
    np.testing.assert_array_equal(found.rows(0, 60).numpy(), expected.similarity_BB)
    hits = found.hit_rate(range(60))
    assert hits is not None
    assert hits.item() == pytest.approx(reference.hit_rate(expected))


@pytest.mark.parametrize("tile", [7, 60])
def test_kl_to_the_dense_target_equals_that_of_the_whole_target(graph: Graph, tile: int) -> None:
    ids = random_batch(60)
    assembler = TargetAssembler(graph, TargetOptions(tau_s=0.2))
    assert assembler.load_embeddings()
    found = assembler.assemble(torch.from_numpy(ids))
    exact = laid_out(reference.dense(graph.embeddings()[ids], ids), 0.2)
    divergence = found.kl_to_dense(range(60), tile)
    assert divergence is not None
    assert divergence.item() == pytest.approx(slow_kl(exact, laid_out(found.rows(0, 60).numpy(), 0.2)), abs=1e-6)


def test_a_complete_graph_needs_neither_sketch_nor_constant(complete: Graph) -> None:
    ids = random_batch(50)
    similarity = assembled(complete, ids).numpy()
    assert np.abs(similarity - reference.dense(complete.embeddings()[ids], ids)).max() <= 2**-11


def test_a_sparse_graph_without_sketch_needs_a_constant(tmp_path: Path) -> None:
    graph = build(tmp_path, KnnConfig(k=5, sketch_dim=0))
    with pytest.raises(OptionError, match="--absent"):
        assembled(graph, np.array([0, 1]))
    assert assembled(graph, np.array([0, 1]), absent=0.1).shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_s": 0.0}, "tau_s .* is a positive temperature"),
        ({"tau_s": math.nan}, "tau_s .* is a positive temperature"),
        ({"own_weight": 1.5}, "own_weight is a share from 0 to 1, not 1.5"),
        ({"teacher": "graphs"}, "teacher 'graphs' is none of graph, embeddings"),
        ({"symmetrize": "both"}, "symmetrize 'both' is none of union, mutual"),
    ],
)
def test_options_that_make_no_target_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        TargetOptions(**options)


def test_weights_are_the_blocks_of_the_two_view_target(graph: Graph) -> None:
    ids = random_batch(30)
    similarity = reference.assemble(graph.rows(ids), ids).similarity_BB.astype(np.float64)
    weights, logs = target_weights(torch.from_numpy(similarity), 0.1)
    target = laid_out(similarity, 0.1)
    np.testing.assert_allclose(weights.numpy(), target[:30, 30:], rtol=1e-12)
    np.testing.assert_allclose(logs.exp().numpy(), weights.numpy(), rtol=1e-12)


def test_kl_without_common_support_is_infinite_and_never_nan() -> None:
    assert kl(torch.ones(3, 3), one_hot(3), 0.1).item() == math.inf
    assert math.isfinite(kl(one_hot(3), torch.ones(3, 3), 0.1).item())


def test_supcon_similarities_hold_equal_classes_only() -> None:
    expected = [[1.0, -math.inf, 1.0], [-math.inf, 1.0, -math.inf], [1.0, -math.inf, 1.0]]
    assert same_class(torch.tensor([5, 2, 5])).tolist() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_assembly_on_a_gpu_equals_the_cpu_bit_for_bit(graph: Graph) -> None:
    ids = torch.from_numpy(random_batch(150))
    on_cpu, on_gpu = (TargetAssembler(graph, TargetOptions(), device).assemble(ids) for device in ("cpu", "cuda"))
    assert torch.equal(on_gpu.rows(0, 150).cpu(), on_cpu.rows(0, 150))
    assert on_gpu.hit_rate(range(150)) == on_cpu.hit_rate(range(150))
