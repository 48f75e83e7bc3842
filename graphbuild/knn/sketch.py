"""Sketches: a short int8 code of every embedding, whose dot products approximate similarities.

Shape letters: N texts, n rows of a block, D vector width, R sketch width.

The code of a text is its embedding's coordinates on the R leading eigenvectors of the uncentred, sample-weighted
second-moment matrix of all embeddings, with one scale a row: s_ij is about scale_i scale_j <q_i, q_j>. What that leaves out is
fitted on a sample of pairs (`graphbuild.store.sketches`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from graphbuild.store.sketches import UNCORRECTED, Correction, estimate, residual_lengths

_BLOCK = 8192
_STEP = 2.0**-16
"""Eigenvectors are rounded to multiples of this. Far below an int8 step, it takes rounding noise of the eigensolver out
of the bytes, and makes the projection of float16 vectors exact in float64, so that no block size or thread count shows."""
_RANK_TOLERANCE = 1e-9
_FITTED_ROWS = 128
FEWEST_TEXTS = 4096
"""Up to so many, where a graph is complete unless told otherwise, there is no correction: divergences move by 2 % either way."""
_FEWEST_PAIRS = 10_000
"""Below which a fit would tell of these pairs alone."""
_LEAST_VALUE = 0.01
"""Of the eigenvalues of landmarks."""


def second_moments(shards: Iterable[tuple[NDArray[np.float16], NDArray[np.int32]]], dim: int) -> NDArray[np.float64]:
    """Sum of w x x^T over all texts; shape (D, D).

    Args:
        shards: Vectors (n, D) and their sample counts (n,), in order of text id.
        dim: D.
    """
    total_DD = np.zeros((dim, dim))
    for vectors_nD, weights_n in shards:
        # Fixed blocks in a fixed order: the sum must not depend on how much memory there is.
        for start in range(0, len(vectors_nD), _BLOCK):
            block_nD = vectors_nD[start : start + _BLOCK] * np.sqrt(weights_n[start : start + _BLOCK, None].astype(np.float64))
            # A matrix by its own transpose: half of the product is computed.
            total_DD += block_nD.T @ block_nD
    return total_DD


def sketch_basis(moments_DD: NDArray[np.float64], sketch_dim: int) -> NDArray[np.float64]:
    """Return the R leading eigenvectors as columns, the largest coordinate of each positive; shape (D, R).

    Columns beyond the rank of the data are zero: no embedding has a part there, and an eigensolver's choice is arbitrary.
    """
    dim = len(moments_DD)
    values_D, vectors_DD = np.linalg.eigh((moments_DD + moments_DD.T) / 2)
    basis_DR = np.zeros((dim, sketch_dim))
    for r in range(min(sketch_dim, dim)):
        column = dim - 1 - r
        if values_D[column] <= _RANK_TOLERANCE * values_D[-1]:
            break
        vector_D = vectors_DD[:, column]
        basis_DR[:, r] = vector_D * np.sign(vector_D[np.abs(vector_D).argmax()])
    return np.rint(basis_DR / _STEP) * _STEP


def landmark_basis(own_MM: NDArray[np.float64], sketch_dim: int) -> NDArray[np.float64]:
    """Return the basis of a sketch whose vectors are similarities with M landmarks, from those of the landmarks; shape (M, R).

    Eigenvalues below 0.01, which would add less than that to any similarity, and negative ones are left out.
    """
    basis_MR = sketch_basis(own_MM, sketch_dim)
    values_R = np.einsum("mr,mr->r", basis_MR, own_MM @ basis_MR)
    scale_R = np.where(values_R > _LEAST_VALUE, 1 / np.sqrt(np.maximum(values_R, _LEAST_VALUE)), 0.0)
    scaled_MR: NDArray[np.float64] = np.rint(basis_MR * scale_R / _STEP) * _STEP
    return scaled_MR


def encode_within(vectors_nM: NDArray[np.float16], basis_MR: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Encode as `encode` does, but shorten codes longer than a unit vector, as those of approximate features may be."""
    codes_nR, scales_n = encode(vectors_nM, basis_MR)
    lengths_n = np.sqrt(np.square(codes_nR.astype(np.float32)).sum(axis=1)) * scales_n
    return codes_nR, (scales_n / np.maximum(lengths_n, 1)).astype(np.float32)


def encode(vectors_nD: NDArray[np.float16], basis_DR: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return codes and scales of some texts.

    Returns:
        Codes (n, R) in -127..127, and scales (n,): code times scale approximates the coordinate.
    """
    codes_nR = np.empty((len(vectors_nD), basis_DR.shape[1]), np.int8)
    scales_n = np.empty(len(vectors_nD), np.float32)
    for start in range(0, len(vectors_nD), _BLOCK):
        rows = slice(start, start + _BLOCK)
        coordinates_nR = vectors_nD[rows].astype(np.float64) @ basis_DR
        scales_n[rows] = np.abs(coordinates_nR).max(axis=1) / 127
        # Divided by the scale as stored; a row of zeros keeps scale 0 and codes 0.
        divisor_n = np.where(scales_n[rows] > 0, scales_n[rows], 1).astype(np.float64)
        codes_nR[rows] = np.clip(np.rint(coordinates_nR / divisor_n[:, None]), -127, 127)
    return codes_nR, scales_n


def fit_correction(
    vectors_nD: NDArray[np.float16], codes_nR: NDArray[np.int8], scales_n: NDArray[np.float32], last_n: NDArray[np.float16]
) -> Correction:
    """Fit what sketches leave out of a similarity, by least squares over the pairs of some texts that no row stores.

    Args:
        vectors_nD: The texts' stored embeddings.
        codes_nR: Their codes.
        scales_n: Their scales.
        last_n: The smallest similarity that each one's row stores; a pair is estimated that lies below both.

    Returns:
        Coefficients of four digits, so that no order of summation shows in them; none from too few pairs.
    """
    lengths_n, last = residual_lengths(codes_nR, scales_n), last_n.astype(np.float64)
    products, missed, pairs = np.zeros((4, 4)), np.zeros(4), 0
    for start in range(0, len(codes_nR), _FITTED_ROWS):
        rows = slice(start, start + _FITTED_ROWS)
        exact = vectors_nD[rows].astype(np.float64) @ vectors_nD.astype(np.float64).T
        absent = (exact < np.minimum(last[rows, None], last)) & (np.arange(len(last))[rows, None] < np.arange(len(last)))
        found = estimate(codes_nR[rows], scales_n[rows], codes_nR, scales_n)[absent].astype(np.float64)
        left_out = (lengths_n[rows, None] * lengths_n)[absent].astype(np.float64)
        terms = left_out * found ** np.arange(4)[:, None]
        products += terms @ terms.T
        missed += terms @ (exact[absent] - found)
        pairs += len(found)
    if pairs < _FEWEST_PAIRS:
        return UNCORRECTED
    one, two, three, four = (round(float(value), 4) for value in np.linalg.lstsq(products, missed, rcond=1e-10)[0])
    return one, two, three, four
