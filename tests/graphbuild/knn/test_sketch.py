"""Sketches against numpy's singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_graph import clustered_vectors

from graphbuild.knn.sketch import encode, fit_correction, second_moments, sketch_basis
from graphbuild.store.sketches import UNCORRECTED, estimate


def test_second_moments_weigh_each_text_by_its_samples() -> None:
    vectors, weights = clustered_vectors(200, 12), np.arange(200, dtype=np.int32)
    repeated = np.repeat(vectors.astype(np.float64), weights, axis=0)
    parts = [(vectors[:70], weights[:70]), (vectors[70:], weights[70:])]
    np.testing.assert_allclose(second_moments(parts, 12), repeated.T @ repeated, rtol=1e-12)


def test_basis_spans_the_leading_singular_vectors() -> None:
    vectors = clustered_vectors(300, 20)
    basis = sketch_basis(second_moments([(vectors, np.ones(300, np.int32))], 20), 5)
    leading = np.linalg.svd(vectors.astype(np.float64))[2][:5].T
    np.testing.assert_allclose(np.abs(leading.T @ basis), np.eye(5), atol=1e-3)


def test_largest_coordinate_of_every_eigenvector_is_positive() -> None:
    vectors = clustered_vectors(300, 20)
    basis = sketch_basis(second_moments([(vectors, np.ones(300, np.int32))], 20), 20)
    assert (basis[np.abs(basis).argmax(axis=0), np.arange(20)] > 0).all()


@pytest.mark.parametrize(("count", "dim"), [(300, 12), (7, 40)])
def test_sketch_is_padded_with_zeros_beyond_the_rank(count: int, dim: int) -> None:
    vectors = clustered_vectors(count, dim)
    codes, _ = encode(vectors, sketch_basis(second_moments([(vectors, np.ones(count, np.int32))], dim), 64))
    rank = min(count, dim)
    assert codes.shape == (count, 64)
    assert not codes[:, rank:].any()
    assert codes[:, :rank].any(axis=0).all()


def test_sketch_of_full_rank_estimates_similarities_within_quantisation() -> None:
    vectors = clustered_vectors(200, 24)
    codes, scales = encode(vectors, sketch_basis(second_moments([(vectors, np.ones(200, np.int32))], 24), 24))
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    assert np.abs(estimate(codes, scales, codes, scales) - exact).max() < 0.02


def test_truncated_sketch_errs_by_what_it_leaves_out_and_quantisation() -> None:
    vectors = clustered_vectors(400, 48)
    basis = sketch_basis(second_moments([(vectors, np.ones(400, np.int32))], 48), 16)
    codes, scales = encode(vectors, basis)
    projected = vectors.astype(np.float64) @ basis
    assert np.abs(estimate(codes, scales, codes, scales) - projected @ projected.T).max() < 0.02


def test_codes_of_a_text_do_not_depend_on_its_block() -> None:
    vectors = clustered_vectors(500, 32)
    basis = sketch_basis(second_moments([(vectors, np.ones(500, np.int32))], 32), 16)
    whole, scales = encode(vectors, basis)
    parts = [encode(vectors[start : start + 33], basis) for start in range(0, 500, 33)]
    np.testing.assert_array_equal(whole, np.concatenate([codes for codes, _ in parts]))
    np.testing.assert_array_equal(scales, np.concatenate([part for _, part in parts]))


def test_vector_outside_the_sketched_space_gets_zero_codes_and_scale() -> None:
    basis = np.zeros((4, 2))
    basis[0, 0] = basis[1, 1] = 1
    codes, scales = encode(np.array([[0, 0, 1, 0]], np.float16), basis)
    assert not codes.any()
    assert scales[0] == 0


def test_correction_brings_pairs_it_was_not_fitted_on_nearer_to_brute_force() -> None:
    vectors = clustered_vectors(1200, 48)
    basis = sketch_basis(second_moments([(vectors, np.ones(1200, np.int32))], 48), 16)
    codes, scales = encode(vectors, basis)
    exact = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    last = np.sort(exact, axis=1)[:, -20].astype(np.float16)
    fitted, others = slice(0, 600), slice(600, 1200)
    correction = fit_correction(vectors[fitted], codes[fitted], scales[fitted], last[fitted])
    truth, known = exact[others, others], (codes[others], scales[others])
    absent = truth < np.minimum(last[others, None], last[others])
    errors = [np.square(estimate(*known, *known, one) - truth)[absent].mean() for one in (UNCORRECTED, correction)]
    assert errors[1] < 0.97 * errors[0]
    assert all(value == round(value, 4) for value in correction)


def test_too_few_absent_pairs_give_no_correction() -> None:
    vectors = clustered_vectors(100, 48)
    codes, scales = encode(vectors, sketch_basis(second_moments([(vectors, np.ones(100, np.int32))], 48), 8))
    assert fit_correction(vectors, codes, scales, np.ones(100, np.float16)) == UNCORRECTED


def test_corrected_estimate_never_exceeds_one() -> None:
    vectors = clustered_vectors(300, 24)
    codes, scales = encode(vectors, sketch_basis(second_moments([(vectors, np.ones(300, np.int32))], 24), 8))
    assert estimate(codes, scales, codes, scales, (9.0, 9.0, 9.0, 9.0)).max() <= 1.01
