"""--symmetrize, --min-similarity and --own-weight: both implementations against loops over pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_targets import laid_out
from helpers_train import tiny_config, write_images, write_tiny_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphbuild.errors import OptionError
from graphbuild.store.neighbors import Rows
from graphbuild.targets import assemble as reference
from graphbuild.targets import softmax as numpy_softmax
from graphbuild.torch import softmax as torch_softmax
from graphbuild.torch.blocks import StoredTarget
from graphbuild.torch.rows import RowTensors
from train.config import TrainConfig
from train.run.loop import train
from train.run.metrics import read_metrics


def random_rows(seed: int, *, texts: int = 15, batch: int = 20, k: int = 5) -> tuple[Rows, NDArray[np.int64]]:
    """Rows of an imported graph: of a pair's two directions one may be missing, or differ from the other."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, texts, batch)
    table = np.array([rng.permutation(np.delete(np.arange(texts), t))[:k] for t in range(texts)], np.int32)
    values = rng.uniform(-1, 1, (texts, k)).astype(np.float16)
    codes = rng.integers(-127, 128, (batch, 8)).astype(np.int8)
    return Rows(table[ids], values[ids], codes, rng.uniform(0.001, 0.01, batch).astype(np.float32)), ids


def slow_mutual(rows: Rows, ids: NDArray[np.int64], absent: float) -> NDArray[np.float64]:
    """A pair is stored if both rows hold it; else it is absent."""
    stored = [dict(zip(r.tolist(), s.tolist(), strict=True)) for r, s in zip(rows.neighbor_ids, rows.similarities, strict=True)]
    result = np.full((len(ids), len(ids)), absent)
    for i, a in enumerate(ids.tolist()):
        for j, b in enumerate(ids.tolist()):
            if a == b:
                result[i, j] = 1.0
            elif b in stored[i] and a in stored[j]:
                result[i, j] = max(stored[i][b], stored[j][a])
    return result


def as_tensors(rows: Rows) -> RowTensors:
    return RowTensors(*(torch.from_numpy(getattr(rows, name)) for name in Rows.__slots__))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 14))
def test_mutual_pairs_are_those_that_both_rows_store(seed: int, k: int) -> None:
    rows, ids = random_rows(seed, k=k)
    found = reference.assemble(rows, ids, absent=-0.5, symmetrize="mutual")
    np.testing.assert_allclose(found.similarity_BB, slow_mutual(rows, ids, -0.5), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), k=st.integers(0, 14), absent=st.sampled_from([None, 0.3, -math.inf]))
def test_torch_takes_the_same_pairs_for_mutual_bit_for_bit(seed: int, k: int, absent: float | None) -> None:
    rows, ids = random_rows(seed, k=k)
    expected = reference.assemble(rows, ids, absent=absent, symmetrize="mutual")
    found, batch = StoredTarget(as_tensors(rows), torch.from_numpy(ids), absent=absent, symmetrize="mutual"), len(ids)
    np.testing.assert_array_equal(found.rows(0, batch).numpy(), expected.similarity_BB)
    np.testing.assert_array_equal(found.stored(0, batch).numpy(), expected.stored_B)


def some_similarity(seed: int, batch: int = 12) -> NDArray[np.float64]:
    values = np.random.default_rng(seed).uniform(-0.2, 1, (batch, batch))
    symmetric = np.maximum(values, values.T)
    np.fill_diagonal(symmetric, 1.0)
    return symmetric


def both(
    g: NDArray[Any], *, min_similarity: float | None = None, own_weight: float = 0.0, tau_s: float = 0.1
) -> list[NDArray[Any]]:
    """The options applied by NumPy and by torch."""
    options: dict[str, Any] = {"min_similarity": min_similarity, "own_weight": own_weight, "tau_s": tau_s}
    return [numpy_softmax.apply_options(g, **options), torch_softmax.apply_options(torch.from_numpy(g), **options).numpy()]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), least=st.floats(-0.5, 1.5))
def test_pairs_below_the_least_similarity_have_no_part_in_the_target(seed: int, least: float) -> None:
    g = some_similarity(seed)
    for found in both(g, min_similarity=least):
        for i in range(len(g)):
            for j in range(len(g)):
                assert found[i, j] == (g[i, j] if i == j or g[i, j] >= least else -math.inf)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), weight=st.floats(0, 1), tau_s=st.sampled_from([0.05, 0.1, 0.5]))
def test_own_weight_mixes_the_target_with_one_hot(seed: int, weight: float, tau_s: float) -> None:
    g = some_similarity(seed)
    batch = len(g)
    one_hot = np.zeros((2 * batch, 2 * batch))
    for i in range(2 * batch):
        one_hot[i, (i + batch) % (2 * batch)] = 1.0
    expected = (1 - weight) * laid_out(g, tau_s) + weight * one_hot
    for mixed in both(g, own_weight=weight, tau_s=tau_s):
        np.testing.assert_allclose(laid_out(mixed, tau_s), expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(mixed, mixed.T)


def test_options_apply_in_float32_too() -> None:
    g = some_similarity(1).astype(np.float32)
    mixed, twin = both(g, own_weight=0.3)
    assert mixed.dtype == twin.dtype == np.float32
    np.testing.assert_allclose(twin, mixed, rtol=0, atol=1e-6)
    plain = torch_softmax.own_view_mass(torch.from_numpy(g), 0.1).item()
    assert torch_softmax.own_view_mass(torch.from_numpy(mixed), 0.1).item() == pytest.approx(0.3 + 0.7 * plain, abs=1e-5)


def test_own_weight_is_finite_where_the_share_of_the_own_view_rounds_to_nothing() -> None:
    g = np.array([[1.0, 1.01], [1.01, 1.0]], np.float32)
    for mixed in both(g, own_weight=0.3, tau_s=1e-5):
        assert np.isfinite(mixed).all()
        np.testing.assert_allclose(numpy_softmax.own_view_mass(mixed, 1e-5), 0.3, atol=1e-3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    write_images(folder / "images.parquet", 32)
    write_tiny_graph(folder / "graph", 32)
    return folder


def first_line(place: Path, run_dir: Path, **options: Any) -> dict[str, Any]:
    train(tiny_config(graph_dir=str(place / "graph"), data=str(place / "images.parquet"), steps=1, **options), run_dir)
    return read_metrics(run_dir)[0]


def test_own_weight_reaches_the_target_of_a_run_and_leaves_its_fidelity(place: Path, tmp_path: Path) -> None:
    plain = first_line(place, tmp_path / "plain")
    mixed = first_line(place, tmp_path / "mixed", own_weight=0.5)
    assert mixed["own_view_mass"] == pytest.approx(0.5 + 0.5 * plain["own_view_mass"], abs=1e-5)
    assert mixed["kl_to_dense"] == plain["kl_to_dense"]


def test_nothing_but_the_own_view_above_the_highest_similarity(place: Path, tmp_path: Path) -> None:
    line = first_line(place, tmp_path / "run", min_similarity=1.1)
    assert line["own_view_mass"] == 1.0
    assert math.isfinite(line["kl_to_dense"])


def test_mutual_pairs_change_the_target_of_a_run(place: Path, tmp_path: Path) -> None:
    lines = [first_line(place, tmp_path / name, symmetrize=name, absent=0.0) for name in ("union", "mutual")]
    assert lines[0]["hit_rate"] == lines[1]["hit_rate"]
    assert lines[1]["own_view_mass"] > lines[0]["own_view_mass"]


def test_own_weight_beyond_one_is_refused() -> None:
    with pytest.raises(OptionError, match=r"--own-weight: 1\.5 is not at least 0 and at most 1"):
        TrainConfig(own_weight=1.5)
