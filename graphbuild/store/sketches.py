"""What sketches say of similarities, with what they leave out estimated from what they leave out of both vectors.

A unit vector is the part that its sketch holds and a residual of length r = sqrt(1 - |sketch|^2). The sketches' product e lacks the
product of the residuals, r_i r_j times the cosine between them, which grows with e: texts that are alike where the sketch sees
them are alike where it does not. That cosine is taken for a cubic polynomial of e, fitted when the graph was made.
Shape letters: n texts, a and b those of two sets, R sketch width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphbuild.store.arrays import Float32

Correction = tuple[float, float, float, float]
"""Coefficients of 1, e, e^2 and e^3."""
UNCORRECTED: Correction = (0.0, 0.0, 0.0, 0.0)
"""Of a graph that was made before there was one, that has no sketch, or that stores every pair."""
FACT = "sketch_correction"
"""Its name among the facts of the knn stage."""

Codes = npt.NDArray[np.int8]


def read_correction(facts: dict[str, Any]) -> Correction:
    """Return the correction that the facts of a knn stage name, none if they name none."""
    one, two, three, four = facts.get(FACT, UNCORRECTED)
    return float(one), float(two), float(three), float(four)


def residual_lengths(sketch_nR: Codes, scale_n: Float32) -> Float32:
    """Return how long the part of each unit vector is that its sketch leaves out; (n,)."""
    # Sums of squares of bytes are exact in float32, in any order.
    squares_n = np.square(sketch_nR.astype(np.float32)).sum(axis=1)
    lengths: Float32 = np.sqrt(np.maximum(np.float32(1) - squares_n * (scale_n * scale_n), np.float32(0)))
    return lengths


def estimate(
    codes_aR: Codes, scales_a: Float32, codes_bR: Codes, scales_b: Float32, correction: Correction = UNCORRECTED
) -> Float32:
    """Return the similarities of texts as their sketches have them; (a, b)."""
    products_ab = (codes_aR.astype(np.float32) @ codes_bR.astype(np.float32).T) * (scales_a[:, None] * scales_b)
    lengths_ab = residual_lengths(codes_aR, scales_a)[:, None] * residual_lengths(codes_bR, scales_b)
    return corrected(products_ab, lengths_ab, correction)


def corrected(estimates: Float32, residuals: Float32, correction: Correction) -> Float32:
    """Return estimates with what sketches leave out of them.

    Args:
        estimates: Products of sketches; any shape.
        residuals: Products of both residual lengths, of the same shape.
        correction: That of the graph.
    """
    one, two, three, four = (np.float32(value) for value in correction)
    cosines = ((four * estimates + three) * estimates + two) * estimates + one
    found: Float32 = estimates + residuals * np.minimum(np.maximum(cosines, np.float32(-1)), np.float32(1))
    return found
