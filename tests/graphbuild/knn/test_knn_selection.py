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
    state = selection.new_state(np.full(ROWS, -np.inf, np.float32), WIDTH, K, error)
    scores, closed = coding.new_scores(ROWS, COLUMNS), np.full(COLUMNS, np.inf, np.float32)
    rows = selection.Codes(*(one[:ROWS] for one in facts))
    for start in range(ROWS, len(vectors), COLUMNS):
        columns = selection.Codes(*(one[start : start + COLUMNS] for one in facts))
        multiply(codes[:ROWS], codes[start : start + COLUMNS], scores)
        selection.scan_tile(scores.numpy().reshape(-1), rows, 0, columns, closed, -1, state)
        assert state.counts_S.max() <= WIDTH
    exact = vectors[:ROWS].astype(np.float64) @ vectors.astype(np.float64).T
    exact[:, :ROWS] = -1
    for row, every in enumerate(exact):
        held = state.ids_SW[row, : state.counts_S[row]]
        assert len(set(held.tolist())) == len(held)
        np.testing.assert_allclose(state.scores_SW[row, : len(held)], every[held], rtol=0, atol=error)
        assert np.delete(every, held).max() <= state.limits_S[row] + error


@pytest.mark.parametrize("rank", [1, 5, 70])
# Apart, and with many equal ones.
@pytest.mark.parametrize("digits", [7, 1])
def test_raised_limits_let_the_ranked_candidate_and_few_more_stay_and_drop_only_what_lies_below(rank: int, digits: int) -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 101, 40)
    scores = rng.random((40, 100)).round(digits).astype(np.float32)
    state = selection.new_state(np.full(40, -0.1, np.float32), 100, K, 1e-6)
    state.ids_SW[:], state.scores_SW[:], state.counts_S[:] = np.arange(100), scores, counts
    selection.raise_limits(state, 10, 40, rank)
    for row, count in enumerate(counts):
        if row < 10 or count < rank:
            assert state.limits_S[row] == np.float32(-0.1)
            assert state.counts_S[row] == count
            continue
        ranked = np.sort(scores[row, :count])[-rank]
        assert state.limits_S[row] < ranked
        assert state.counts_S[row] <= max(rank + rank // selection._SPARE, (scores[row, :count] >= ranked).sum())
        kept = np.flatnonzero(scores[row, :count] > state.limits_S[row])
        np.testing.assert_array_equal(state.ids_SW[row, : state.counts_S[row]], kept)
        np.testing.assert_array_equal(state.scores_SW[row, : state.counts_S[row]], scores[row, kept])


@pytest.mark.parametrize("dim", [1, 31, 32, 100, 384, 1536])
def test_similarity_in_full_is_symmetric_and_within_its_error(dim: int) -> None:
    # Of one sign and near one another, where sums are largest; some numbers are subnormal in float16.
    vectors = unit_rows(np.random.default_rng(0).uniform(0.5, 1, (40, dim)))
    vectors[:, ::7] = np.float16(3e-6)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    bits = vectors.view(np.int16)
    found = np.array([[selection.similar(bits, i, bits, j) for j in range(40)] for i in range(40)])
    assert np.abs(found - exact).max() <= selection.full_error(dim, LONGEST)
    np.testing.assert_array_equal(found, found.T)


def test_seed_limit_lets_at_least_that_many_scores_through() -> None:
    scores = np.random.default_rng(0).random((50, 640), np.float32)
    limits, ones = np.zeros(50, np.float32), np.ones(640, np.float32)
    selection.seed_limits(scores.reshape(-1), 640, ones, ones[:50], limits, 7)
    hits = (scores >= limits[:, None]).sum(axis=1)
    assert ((hits >= 7) & (hits <= 60)).all()
