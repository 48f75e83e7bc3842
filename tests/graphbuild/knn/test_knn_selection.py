"""What tiles leave behind: the invariants that the certificate builds on, against all similarities."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_graph import unit_rows

from graphbuild.knn.engines.coding import LONGEST, Coding, eigenvectors, leading_basis, multiply
from graphbuild.knn.kernels import selection

ROWS, COLUMNS, K, WIDTH = 8, 64, 5, 24


@pytest.mark.parametrize("width", [None, 8])
# Apart, near one another, and so near that only exact sums tell them apart.
@pytest.mark.parametrize("spread", [1.0, 0.03, 1e-3])
def test_what_a_row_turned_away_is_at_most_as_similar_as_its_limit_and_no_row_overflows(width: int | None, spread: float) -> None:
    rng = np.random.default_rng(0)
    vectors = unit_rows(rng.standard_normal(32) + spread * rng.standard_normal((ROWS + 40 * COLUMNS, 32)))
    coding = Coding("int8", None if width is None else leading_basis(eigenvectors(vectors), width))
    codes, facts = coding.encode(vectors)
    facts.ids[:] = np.arange(len(vectors))
    error = selection.full_error(32, LONGEST)
    state = selection.State(
        np.full(ROWS, -np.inf, np.float32), np.zeros(ROWS, np.int32), np.full((ROWS, WIDTH), -1, np.int32),
        np.zeros((ROWS, WIDTH), np.float32), K, error,
    )  # fmt: skip
    scores, closed = coding.new_scores(ROWS, COLUMNS), np.full(COLUMNS, np.inf, np.float32)
    rows = selection.Codes(*(one[:ROWS] for one in facts))
    for start in range(ROWS, len(vectors), COLUMNS):
        columns = selection.Codes(*(one[start : start + COLUMNS] for one in facts))
        multiply(codes[:ROWS], codes[start : start + COLUMNS], scores)
        selection.scan_tile(vectors.view(np.int16), scores.numpy().reshape(-1), rows, 0, columns, closed, -1, state)
        assert state.counts_S.max() <= WIDTH
    exact = vectors[:ROWS].astype(np.float64) @ vectors.astype(np.float64).T
    exact[:, :ROWS] = -1
    for row, every in enumerate(exact):
        held = state.ids_SW[row, : state.counts_S[row]]
        assert len(set(held.tolist())) == len(held)
        np.testing.assert_allclose(state.scores_SW[row, : len(held)], every[held], rtol=0, atol=error)
        assert np.delete(every, held).max() <= state.limits_S[row] + error


@pytest.mark.parametrize("dim", [1, 31, 32, 100, 384, 1536])
def test_similarity_in_full_is_symmetric_and_within_its_error(dim: int) -> None:
    # Of one sign and near one another, where sums are largest; some numbers are subnormal in float16.
    vectors = unit_rows(np.random.default_rng(0).uniform(0.5, 1, (40, dim)))
    vectors[:, ::7] = np.float16(3e-6)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    bits = vectors.view(np.int16)
    found = np.array([[selection.similar(bits, i, j) for j in range(40)] for i in range(40)])
    assert np.abs(found - exact).max() <= selection.full_error(dim, LONGEST)
    np.testing.assert_array_equal(found, found.T)


def test_seed_limit_lets_at_least_that_many_scores_through() -> None:
    scores = np.random.default_rng(0).random((50, 640), np.float32)
    limits, ones = np.zeros(50, np.float32), np.ones(640, np.float32)
    rows = selection.Codes(np.arange(50, dtype=np.int32), ones[:50], ones[:50], ones[:50])
    selection.seed_limits(scores.reshape(-1), 640, ones, rows, limits, 7)
    hits = (scores >= limits[:, None]).sum(axis=1)
    assert ((hits >= 7) & (hits <= 60)).all()
